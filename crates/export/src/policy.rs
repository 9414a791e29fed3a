//! Whom the owner lets in, with which keys, and to what. It knows no protocol: how a key proves anything is the
//! protocol's, and the program leaves out what has expired.

use std::sync::Arc;

use crate::{Access, Channel, Export, Peer, Secret};

/// Names the keys of a host. Another one as soon as any of its keys is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(u64);

impl KeyId {
    /// The identifier of that number.
    pub fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// A host that the owner knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The name it gives itself: its host NQN.
    pub nqn: String,
    /// What the owner calls it.
    pub name: String,
    /// Names its keys.
    pub key: KeyId,
    /// The key for a secured channel, in the interchange form (`NVMeTLSkey-1:…`). Who has one must use it.
    pub tls: Option<Secret>,
    /// Whether that key is also derived as libnvme did before it followed RFC 8446 to the letter.
    pub tls_compat: bool,
    /// The key for DH-HMAC-CHAP with which it proves who it is (`DHHC-1:…`). Who has one must use it.
    pub chap: Option<Secret>,
    /// The key for DH-HMAC-CHAP with which this machine proves who it is, if the host asks (`DHHC-1:…`).
    pub chap_controller: Option<Secret>,
    /// What it may have. The most that any rule gives counts.
    pub rules: Vec<Rule>,
}

/// What a host may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// A disk by its name, NQN or serial number; nothing for each that is lent.
    pub disk: Option<String>,
    /// What may be done with it, at most.
    pub access: Access,
}

impl Rule {
    fn covers(&self, export: &Export) -> bool {
        self.disk
            .as_ref()
            .is_none_or(|disk| [&export.name, &export.nqn, &export.identity.serial].contains(&disk))
    }
}

impl Host {
    /// The most that it may do with `export`; nothing if it may not have it.
    pub fn access(&self, export: &Export) -> Option<Access> {
        let rules = self.rules.iter().filter(|rule| rule.covers(export));
        rules.map(|rule| rule.access).max_by_key(|access| *access == Access::Writable)
    }

    /// Whether it is called so: by its own name, or as the owner calls it.
    fn is(&self, name: &str) -> bool {
        self.nqn == name || self.name == name
    }

    /// Whether what the caller has shown are this host's keys: all that it has. A certificate with the host's name does
    /// what its key for a secured channel does.
    ///
    /// # Errors
    /// What is missing.
    pub fn accepts(&self, caller: &Caller<'_>) -> Result<(), Refusal> {
        let channel = caller.peer.channel.as_ref();
        let keyed = channel.and_then(|channel| channel.key) == Some(self.key);
        let certified =
            channel.is_some_and(|channel| channel.certified && self.is(&channel.identity));
        let secured = keyed || certified;
        if self.tls.is_some() && !secured {
            return Err(Refusal::TlsRequired);
        }
        // Without a key of its own for the channel, the channel's key came out of the other proof.
        let proven = caller.proven == Some(self.key) || (self.tls.is_none() && keyed);
        if self.chap.is_some() && !proven {
            return Err(Refusal::ChapRequired);
        }
        if self.tls.is_none() && self.chap.is_none() { Err(Refusal::NotAllowed) } else { Ok(()) }
    }
}

/// The hosts that the owner knows, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Them.
    pub hosts: Vec<Arc<Host>>,
}

impl Policy {
    /// The host of that name.
    pub fn host(&self, nqn: &str) -> Option<&Arc<Host>> {
        self.hosts.iter().find(|host| host.nqn == nqn)
    }

    /// The host that has made that channel: by its key, or by a certificate with its name. Which of its keys it has shown
    /// there is [another question](Host::accepts).
    pub fn host_of(&self, channel: &Channel) -> Option<&Arc<Host>> {
        self.hosts.iter().find(|host| match channel.key {
            Some(key) => host.key == key,
            None => channel.certified && host.is(&channel.identity),
        })
    }
}

/// Who asks for something.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// From where, and through what.
    pub peer: &'a Peer,
    /// The name that it gives itself.
    pub host: &'a str,
    /// The keys that it has proven to know within the protocol, by DH-HMAC-CHAP.
    pub proven: Option<KeyId>,
}

/// Why a peer does not get an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing of that name is lent.
    Unknown,
    /// The owner has not let this host in, or not to this disk.
    NotAllowed,
    /// The host must come in a channel that its key secures.
    TlsRequired,
    /// The host must prove that it knows its key.
    ChapRequired,
}
