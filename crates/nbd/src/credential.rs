//! The credentials of NBD clients in an access policy.

use export::{Credential, Proof, Secret};

/// Scheme: the PSK for TLS, for cipher suites with SHA-256.
pub const TLS_PSK: &str = "nbd-tls-psk";

/// All schemes.
pub const SCHEMES: &[&str] = &[TLS_PSK];

/// Returns the credential of a PSK.
pub fn tls_psk(secret: Secret) -> Credential {
    let (scheme, parameter) = (TLS_PSK.to_owned(), String::new());
    Credential { scheme, proof: Proof::Tls, parameter, secret }
}
