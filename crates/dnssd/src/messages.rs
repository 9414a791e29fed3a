//! Messages between the responder process and its parent: JSON, one per line.

use std::net::IpAddr;

use protocol::Protocol;
use serde::{Deserialize, Serialize};

/// Longest line in bytes.
pub(super) const MAX_LINE: usize = 64 << 10;
/// Most events that are read: other machines can announce any number of services.
pub(super) const MAX_EVENTS: usize = 1024;

/// A request to the responder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Request {
    /// Start; with a port in place of 5353, use the loopback interface, too.
    Start {
        /// The UDP port.
        port: Option<u16>,
    },
    /// Replace the announced services.
    Announce {
        /// All services to announce.
        services: Vec<Service>,
    },
    /// Report services of other machines.
    Browse,
}

/// A service of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Type.
    pub kind: Protocol,
    /// Instance name.
    pub name: String,
    /// Host name without `.local`.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Addresses of the host.
    pub addresses: Vec<IpAddr>,
    /// Interfaces to announce it on.
    pub interfaces: Vec<String>,
    /// Whether a key is needed.
    pub keyed: bool,
}

/// An event from the responder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Event {
    /// A service was found.
    Found(FoundService),
    /// An error, as a clause.
    Note(String),
}

/// A service that was found. All of it is untrusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundService {
    /// Type.
    pub kind: Protocol,
    /// Instance name.
    pub name: String,
    /// Host name.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Addresses of the host, nearest first.
    pub addresses: Vec<ScopedAddr>,
    /// Whether a key is needed, if announced.
    pub keyed: Option<bool>,
}

/// An address and the interface on which it was received.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ScopedAddr {
    /// IP address.
    pub address: IpAddr,
    /// Name of the interface.
    pub interface: Option<String>,
}

/// Longest name in bytes (RFC 1035 §2.3.4), and most addresses of a host.
const NAME: usize = 255;
const MAX_ADDRESSES: usize = 16;

impl FoundService {
    /// A service at these addresses and interfaces, for tests.
    ///
    /// # Panics
    /// Panics if an address is invalid.
    #[doc(hidden)]
    #[allow(clippy::unwrap_used, reason = "for tests")]
    pub fn sample(
        kind: Protocol,
        name: &str,
        port: u16,
        addresses: &[(&str, Option<&str>)],
    ) -> Self {
        let address = |(address, interface): &(&str, Option<&str>)| ScopedAddr {
            address: address.parse().unwrap(),
            interface: interface.map(str::to_owned),
        };
        Self {
            kind,
            name: name.to_owned(),
            host: format!("{name}.local."),
            port,
            addresses: addresses.iter().map(address).collect(),
            keyed: None,
        }
    }

    /// Returns whether all lengths and numbers are in range. Names may contain any character.
    pub(super) fn is_sound(&self) -> bool {
        let named = |name: &str| !name.is_empty() && name.len() <= NAME;
        let plain = |name: &String| {
            name.len() < 16 && name.chars().all(|c| c.is_ascii_graphic() && !"/%:,".contains(c))
        };
        let sound = |place: &ScopedAddr| place.interface.as_ref().is_none_or(plain);
        let counted = (1..=MAX_ADDRESSES).contains(&self.addresses.len());
        named(&self.name)
            && self.host.len() <= NAME
            && self.port != 0
            && counted
            && self.addresses.iter().all(sound)
    }
}

#[cfg(test)]
pub(super) mod test {
    use super::*;

    pub(crate) fn found(name: &str, address: &str) -> FoundService {
        FoundService {
            kind: Protocol::Nvme,
            name: name.to_owned(),
            host: "a.local.".to_owned(),
            port: 8009,
            addresses: vec![ScopedAddr { address: address.parse().unwrap(), interface: None }],
            keyed: None,
        }
    }

    #[test]
    fn invalid_announcement_is_rejected() {
        assert!(found("a", "10.0.0.1").is_sound());
        let behind = |interface: &str| {
            let mut found = found("a", "fe80::1");
            found.addresses[0].interface = Some(interface.to_owned());
            found
        };
        assert!(behind("eth0").is_sound() && behind("enp3s0.7").is_sound());
        let mut many = found("a", "10.0.0.1");
        many.addresses = vec![many.addresses[0].clone(); 17];
        for wrong in [
            found("", "10.0.0.1"),
            found(&"a".repeat(256), "10.0.0.1"),
            FoundService { port: 0, ..found("a", "10.0.0.1") },
            FoundService { addresses: Vec::new(), ..found("a", "10.0.0.1") },
            behind("eth0,tls_key=1"),
            behind("eth 0"),
            behind("a-name-that-is-too-long"),
            many,
        ] {
            assert!(!wrong.is_sound(), "{wrong:?}");
        }
    }

    #[test]
    fn request_is_one_line() {
        let request = Request::Announce { services: Vec::new() };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        assert!(!line.contains('\n'));
        assert!(serde_json::from_str::<Request>("{\"mount\":{}}").is_err());
    }
}
