//! Access policy: the known hosts, their keys, and the exports that each may use.
//!
//! How a key is proven is up to the protocol. Expired hosts are left out by the program.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Access, Channel, Export, Peer, Secret};

/// Identifies the set of keys of a host. Changes when any of the keys changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyId(u64);

impl KeyId {
    /// Returns the identifier with this number.
    pub fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the number.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// A host that the administrator has authorized.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its host NQN.
    pub nqn: String,
    /// Its display name, chosen by the administrator.
    pub name: String,
    /// Identifies its keys.
    pub key: KeyId,
    /// The configured PSK for TLS, in interchange format (`NVMeTLSkey-1:…`). If set, the host must
    /// use it.
    pub tls: Option<Secret>,
    /// Whether PSKs are also derived as libnvme did before it followed RFC 8446 exactly.
    pub tls_compat: bool,
    /// The DH-HMAC-CHAP key that authenticates the host (`DHHC-1:…`). If set, the host must use it.
    pub chap: Option<Secret>,
    /// The DH-HMAC-CHAP key that authenticates this machine, if the host requests it (`DHHC-1:…`).
    pub chap_controller: Option<Secret>,
    /// The exports that it may use. The most that any rule allows counts.
    pub rules: Vec<Rule>,
}

/// Allows a host the use of one export or of all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Name, identifier or serial number of an export; `None` for every export.
    pub disk: Option<String>,
    /// The access mode that is allowed.
    pub access: Access,
}

impl Rule {
    fn covers(&self, export: &Export) -> bool {
        let Some(disk) = &self.disk else { return true };
        [&export.name, &export.identity.serial].contains(&disk) || export.id.to_string() == *disk
    }
}

impl Host {
    /// Returns the access mode that the rules allow for `export`; `None` if it may not be used.
    pub fn access(&self, export: &Export) -> Option<Access> {
        let rules = self.rules.iter().filter(|rule| rule.covers(export));
        rules.map(|rule| rule.access).max_by_key(|access| *access == Access::Writable)
    }

    /// Returns whether `name` is the host's NQN or display name.
    fn has_name(&self, name: &str) -> bool {
        self.nqn == name || self.name == name
    }

    /// Checks that the caller has proven all keys of this host. A certificate with the host's name
    /// stands in for the TLS key.
    ///
    /// # Errors
    /// The proof that is missing.
    pub fn authenticate(&self, caller: &Caller<'_>) -> Result<(), Refusal> {
        let channel = caller.peer.channel.as_ref();
        let keyed = channel.and_then(|channel| channel.key) == Some(self.key);
        let certified =
            channel.is_some_and(|channel| channel.certified && self.has_name(&channel.identity));
        let secured = keyed || certified;
        if self.tls.is_some() && !secured {
            return Err(Refusal::TlsRequired);
        }
        // For a host without a TLS key, the channel's PSK was derived from the DH-HMAC-CHAP
        // exchange.
        let proven = caller.proven == Some(self.key) || (self.tls.is_none() && keyed);
        if self.chap.is_some() && !proven {
            return Err(Refusal::ChapRequired);
        }
        if self.tls.is_none() && self.chap.is_none() { Err(Refusal::NotAllowed) } else { Ok(()) }
    }
}

/// The hosts that the administrator has authorized.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Each host once.
    pub hosts: Vec<Arc<Host>>,
}

impl Policy {
    /// Returns the host with this NQN.
    pub fn host(&self, nqn: &str) -> Option<&Arc<Host>> {
        self.hosts.iter().find(|host| host.nqn == nqn)
    }

    /// Returns the host at the other end of `channel`, by its key or by the name in its
    /// certificate. [`Host::authenticate`] checks whether that is all that the host must prove.
    pub fn host_of(&self, channel: &Channel) -> Option<&Arc<Host>> {
        self.hosts.iter().find(|host| match channel.key {
            Some(key) => host.key == key,
            None => channel.certified && host.has_name(&channel.identity),
        })
    }
}

/// A host that requests access, for the access check.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// Its connection.
    pub peer: &'a Peer,
    /// The host NQN that it claims.
    pub host: &'a str,
    /// The keys that it has proven within the protocol, by DH-HMAC-CHAP.
    pub proven: Option<KeyId>,
}

/// Why access is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No export has this name.
    Unknown,
    /// The policy does not contain the host, or does not allow it this export.
    NotAllowed,
    /// The host must connect by TLS with its own key.
    TlsRequired,
    /// The host must authenticate by DH-HMAC-CHAP.
    ChapRequired,
}
