//! How a host has authenticated.

use export::{KeyId, Peer, Policy};
use serde::Serialize;

/// How a host authenticated.
#[derive(Debug, Clone, Default, Serialize)]
pub struct HostAuth {
    /// Name of the host in the access policy, if it used a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    /// Cipher suite of the TLS channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tls: Option<String>,
    /// Whether it authenticated by DH-HMAC-CHAP.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) chap: bool,
}

impl HostAuth {
    pub(super) fn of(peer: &Peer, proven: Option<KeyId>, policy: &Policy) -> Self {
        let channel = peer.channel.as_ref();
        Self {
            key: name_of(peer, proven, policy),
            tls: channel.map(|channel| channel.cipher.clone()),
            chap: proven.is_some(),
        }
    }
}

/// The name in `policy` of the host whose key was used, by DH-HMAC-CHAP or TLS.
pub fn name_of(peer: &Peer, proven: Option<KeyId>, policy: &Policy) -> Option<String> {
    let id = proven.or_else(|| peer.channel.as_ref().and_then(|channel| channel.key))?;
    policy.hosts.iter().find(|host| host.key == id).map(|host| host.name.clone())
}
