//! What the process that announces and the one that started it say to each other: a line of JSON each. It knows no
//! network.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Bytes of the longest line that is read.
pub(super) const MAX_LINE: usize = 64 << 10;
/// Lines that are heard at most: networks have fewer machines that lend disks, and a stranger can make up any number.
pub(super) const MAX_EVENTS: usize = 1024;

/// What is spoken at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceType {
    /// NVMe/TCP: its discovery service (NVMe TP 8009).
    Nvme,
    /// NBD.
    Nbd,
}

impl ServiceType {
    /// The type of service (RFC 6763 §4.1.2).
    pub(super) fn service_type(self) -> &'static str {
        match self {
            Self::Nvme => "_nvme-disc._tcp.local.",
            Self::Nbd => "_nbd._tcp.local.",
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Request {
    /// Begin: at that port instead of 5353, and then on the loopback interface, too.
    Start {
        /// The UDP port.
        port: Option<u16>,
    },
    /// Announce these, and what was announced before no longer.
    Announce {
        /// All that is to be announced.
        services: Vec<Service>,
    },
    /// Say which machines announce disks.
    Browse,
}

/// A service of this machine, as it is announced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// What is spoken.
    pub kind: ServiceType,
    /// The name of the instance.
    pub name: String,
    /// The name of the machine, without `.local`.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The interfaces on which it is announced.
    pub interfaces: Vec<String>,
    /// Whether a key is needed.
    pub keyed: bool,
}

/// What the process that announces says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Event {
    /// A machine announces something.
    Found(FoundService),
    /// Something does not work: a clause.
    Note(String),
}

/// A service of another machine, or of this one, as it was announced: a stranger's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundService {
    /// What is spoken.
    pub kind: ServiceType,
    /// The name of the instance.
    pub name: String,
    /// The name of the machine.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
    /// Where it is.
    pub addresses: Vec<ScopedAddr>,
    /// Whether a key is needed, if it was said.
    pub keyed: Option<bool>,
}

/// An address, and the interface behind which it was heard of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ScopedAddr {
    /// The address.
    pub address: IpAddr,
    /// The interface's name.
    pub interface: Option<String>,
}

/// Bytes of the longest name (RFC 1035 §2.3.4), and addresses of a machine at most.
const NAME: usize = 255;
const MAX_ADDRESSES: usize = 16;

impl FoundService {
    /// Whether it is what a machine can announce, and fit to be shown and asked: its names may hold anything still.
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
            kind: ServiceType::Nvme,
            name: name.to_owned(),
            host: "a.local.".to_owned(),
            port: 8009,
            addresses: vec![ScopedAddr { address: address.parse().unwrap(), interface: None }],
            keyed: None,
        }
    }

    #[test]
    fn what_no_machine_can_announce_is_left_out() {
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
    fn an_order_is_one_line() {
        let request = Request::Announce { services: Vec::new() };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        assert!(!line.contains('\n'));
        assert!(serde_json::from_str::<Request>("{\"mount\":{}}").is_err());
    }
}
