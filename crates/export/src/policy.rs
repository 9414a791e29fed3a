//! Access policy: the known hosts, their credentials, and the exports that each may use.
//!
//! Schemes of credentials are defined by the protocols. Expired hosts are left out by the program.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Access, Channel, Export, Peer, Secret};

/// Identifies the secrets of a host. Changes when any of them changes.
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

/// How a credential is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proof {
    /// It authenticates the host, as PSK of the TLS channel.
    Tls,
    /// It authenticates the host, within the protocol.
    InBand,
    /// It authenticates this machine to the host. The host does not prove it.
    Target,
}

/// A secret that a host shares with this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// The authentication method, by a name that the protocol defines.
    pub scheme: String,
    /// How it is used.
    pub proof: Proof,
    /// The part that is not secret, as the scheme defines it: the name that goes with the secret,
    /// or a variant of the key derivation; else empty.
    pub parameter: String,
    /// The secret, in the format of the scheme.
    pub secret: Secret,
}

/// A host that the administrator has authorized, under one of its names. A host that is known by
/// another name in another protocol has an entry for each name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The name by which it identifies itself: for NVMe, its host NQN.
    pub id: String,
    /// Its display name, chosen by the administrator.
    pub name: String,
    /// Identifies its secrets.
    pub key: KeyId,
    /// Its credentials, each scheme once. The host must use all that authenticate it.
    pub credentials: Vec<Credential>,
    /// The exports that it may use. The most that any rule allows counts.
    pub rules: Vec<Rule>,
}

/// Allows a host the use of one export or of all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Name, identifier or own serial number of an export; `None` for every export.
    pub disk: Option<String>,
    /// The access mode that is allowed.
    pub access: Access,
}

impl Rule {
    fn covers(&self, export: &Export) -> bool {
        let Some(disk) = &self.disk else { return true };
        let is_home = export.home.is_some() && export.short == *disk;
        let identity = &export.identity;
        let serial = identity.own_serial.as_ref().unwrap_or(&identity.serial);
        is_home || [&export.name, serial].contains(&disk) || export.id.to_string() == *disk
    }
}

impl Host {
    /// Returns the access mode that the rules allow for `export`; `None` if it may not be used.
    pub fn access(&self, export: &Export) -> Option<Access> {
        let rules = self.rules.iter().filter(|rule| rule.covers(export));
        rules.map(|rule| rule.access).max_by_key(|access| *access == Access::Writable)
    }

    /// Returns its credential of this scheme.
    pub fn credential(&self, scheme: &str) -> Option<&Credential> {
        self.credentials.iter().find(|credential| credential.scheme == scheme)
    }

    /// Returns whether it has a credential that is used so.
    fn has(&self, proof: Proof) -> bool {
        self.credentials.iter().any(|credential| credential.proof == proof)
    }

    /// Returns whether it authenticates in plaintext in a protocol with these schemes: within the
    /// protocol, and without TLS.
    pub fn authenticates_in_plaintext(&self, schemes: &[&str]) -> bool {
        let in_band = |credential: &Credential| credential.proof == Proof::InBand;
        let known = |credential: &Credential| schemes.contains(&credential.scheme.as_str());
        !self.has(Proof::Tls) && self.credentials.iter().any(|it| in_band(it) && known(it))
    }

    /// Returns whether `name` is the host's identifier or display name.
    fn has_name(&self, name: &str) -> bool {
        self.id == name || self.name == name
    }

    /// Checks that the caller has proven all credentials that authenticate this host. A certificate
    /// with the host's name stands in for a PSK.
    ///
    /// # Errors
    /// The proof that is missing.
    pub fn authenticate(&self, caller: &Caller<'_>) -> Result<(), Refusal> {
        let (psk, in_band) = (self.has(Proof::Tls), self.has(Proof::InBand));
        let channel = caller.peer.channel.as_ref();
        let keyed = channel.and_then(|channel| channel.key) == Some(self.key);
        let certified =
            channel.is_some_and(|channel| channel.certified && self.has_name(&channel.identity));
        if psk && !(keyed || certified) {
            return Err(Refusal::TlsRequired);
        }
        // For a host without a PSK, that of the channel was derived from an in-band exchange.
        let proven = caller.proven == Some(self.key) || (!psk && keyed);
        if in_band && !proven {
            return Err(Refusal::InBandRequired);
        }
        if psk || in_band { Ok(()) } else { Err(Refusal::NotAllowed) }
    }
}

/// The hosts that the administrator has authorized.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Each host once.
    pub hosts: Vec<Arc<Host>>,
}

impl Policy {
    /// Returns the host that identifies itself by this name.
    pub fn host(&self, id: &str) -> Option<&Arc<Host>> {
        self.hosts.iter().find(|host| host.id == id)
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
    /// The name by which it identifies itself.
    pub host: &'a str,
    /// The secrets that it has proven within the protocol.
    pub proven: Option<KeyId>,
}

/// Why access is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No export has this name.
    Unknown,
    /// The policy does not contain the host, or does not allow it this export.
    NotAllowed,
    /// The host must connect by TLS with its own PSK.
    TlsRequired,
    /// The host must authenticate within the protocol.
    InBandRequired,
    /// The export is for one host at a time, and another host uses it, or was lost while it did.
    OtherHost,
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{Geometry, Identity};

    #[test]
    fn rule_for_a_serial_is_for_the_disk_that_has_it() {
        let export = |serial: &str, own: Option<&str>| {
            let identity = Identity {
                serial: serial.to_owned(),
                own_serial: own.map(str::to_owned),
                ..Identity::default()
            };
            let null = std::fs::File::open("/dev/null").unwrap().into();
            let geometry = Geometry::new(512, 512).unwrap();
            Export::new("disk", "nqn", identity, geometry, 0, null)
        };
        let rule = Rule { disk: Some("S1".to_owned()), access: Access::Writable };
        assert!(rule.covers(&export("S1", None)));
        assert!(rule.covers(&export("reported", Some("S1"))));
        assert!(!rule.covers(&export("S1", Some("S2"))), "somebody gave it that of another disk");
    }
}
