//! Names in certificates of peers, as the TLS library passes them to its callbacks.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use s2n_tls::callbacks::VerifyHostNameCallback;

/// Longest accepted name in a certificate, in bytes.
const MAX_NAME: usize = 255;

/// Records the first name in a client's certificate and accepts any: the certificate itself is
/// verified by the TLS library, and the name is authorized by the policy. Names with control
/// characters, which could be displayed deceptively, are discarded.
#[derive(Clone, Default)]
pub(super) struct PeerName(Arc<OnceLock<String>>);

impl PeerName {
    /// Returns the name; empty if there was none.
    pub(super) fn name(&self) -> String {
        self.0.get().cloned().unwrap_or_default()
    }
}

impl VerifyHostNameCallback for PeerName {
    fn verify_host_name(&self, name: &str) -> bool {
        let is_valid = name.len() <= MAX_NAME && !name.chars().any(char::is_control);
        self.0.get_or_init(|| if is_valid { name.to_owned() } else { String::new() });
        true
    }
}

/// Accepts a server certificate that contains this address.
pub(super) struct ExpectedAddress(pub(super) IpAddr);

impl VerifyHostNameCallback for ExpectedAddress {
    fn verify_host_name(&self, name: &str) -> bool {
        name.parse() == Ok(self.0)
    }
}
