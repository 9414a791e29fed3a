//! What happens while disks are lent, as a line of JSON and as a sentence. It knows no terminal.
//!
//! The JSON is a contract: `docs/json-events.md` describes it.

use std::sync::Arc;

use console::{host_name, printable, size};
use export::{Access, Event, Export};
use serde::{Serialize, Serializer};

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Happening {
    /// Hosts can connect there.
    Listening {
        /// Always `nvme-tcp`.
        protocol: &'static str,
        /// The address; an IPv6 link-local one with its interface.
        address: String,
        /// The TCP port.
        port: u16,
        /// `disks` or `discovery`, or both.
        serves: &'static [&'static str],
    },
    /// An address that was listened on is gone from this machine.
    Closed {
        /// Always `nvme-tcp`.
        protocol: &'static str,
        /// The address.
        address: String,
        /// The TCP port.
        port: u16,
    },
    /// A disk is lent.
    Lent {
        /// What it is.
        #[serde(flatten)]
        disk: Disk,
        /// The lines that attach it, then those that attach all disks.
        attach: Vec<String>,
    },
    /// All that was asked for is lent.
    Ready,
    /// A host attached a disk.
    Attached {
        /// Which disk.
        #[serde(flatten)]
        which: Which,
        /// The NVMe Qualified Name that the host gives itself.
        host: String,
        /// Where the host is, with its port.
        address: String,
    },
    /// A host gave a disk back, or is gone.
    Detached {
        /// Which disk.
        #[serde(flatten)]
        which: Which,
        /// The NVMe Qualified Name that the host gave itself.
        host: String,
        /// Where the host was, with its port.
        address: String,
        /// Why.
        reason: String,
    },
    /// A host asked for what it may not have.
    Refused {
        /// The NVMe Qualified Name that the host gives itself.
        host: String,
        /// Where the host is, with its port.
        address: String,
        /// The name that it asked for.
        wanted: String,
        /// Why not.
        reason: &'static str,
    },
    /// A peer broke a rule of the protocol and was cut off.
    Violation {
        /// Where the peer is, with its port.
        address: String,
        /// The rule, by name.
        rule: &'static str,
    },
    /// A disk failed a request.
    Fault {
        /// Which disk.
        #[serde(flatten)]
        which: Which,
        /// What was asked of it.
        op: &'static str,
        /// The first byte concerned.
        offset: u64,
        /// Bytes concerned.
        bytes: u64,
        /// How it failed.
        reason: String,
    },
    /// A disk has another size now.
    Resized {
        /// Which disk.
        #[serde(flatten)]
        which: Which,
        /// Bytes that it has now.
        bytes: u64,
    },
    /// A disk is lent no longer.
    Withdrawn {
        /// Which disk.
        #[serde(flatten)]
        which: Which,
        /// Why.
        reason: String,
    },
    /// Something that is worth knowing and has no event of its own.
    Note {
        /// A sentence.
        message: String,
    },
    /// The program ends; nothing follows.
    Stopped,
}

/// A disk as it is lent.
#[derive(Debug, Clone, Serialize)]
pub struct Disk {
    disk: String,
    nqn: String,
    nsid: u32,
    bytes: u64,
    block_size: u32,
    #[serde(serialize_with = "in_a_word")]
    access: Access,
    model: String,
    serial: String,
}

fn in_a_word<S: Serializer>(access: &Access, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(access)
}

/// Which of the disks that are lent.
#[derive(Debug, Clone, Serialize)]
pub struct Which {
    disk: String,
    nqn: String,
}

impl Which {
    /// That one.
    pub fn of(export: &Export) -> Self {
        Self { disk: export.name.clone(), nqn: export.nqn.clone() }
    }
}

/// The only protocol yet.
pub const PROTOCOL: &str = "nvme-tcp";

impl Happening {
    /// A disk is lent, and attached by these lines.
    pub fn lent(export: &Export, attach: Vec<String>) -> Self {
        let disk = Disk {
            disk: export.name.clone(),
            nqn: export.nqn.clone(),
            nsid: 1,
            bytes: export.bytes(),
            block_size: export.geometry.block(),
            access: export.access,
            model: export.identity.model.clone(),
            serial: export.identity.serial.clone(),
        };
        Self::Lent { disk, attach }
    }

    /// A disk is lent no longer.
    pub fn withdrawn(export: &Arc<Export>, reason: &str) -> Self {
        Self::Withdrawn { which: Which::of(export), reason: reason.to_owned() }
    }

    /// A disk has another size.
    pub fn resized(export: &Export) -> Self {
        Self::Resized { which: Which::of(export), bytes: export.bytes() }
    }

    /// A sentence.
    pub fn note(message: impl ToString) -> Self {
        Self::Note { message: message.to_string() }
    }

    /// One line of JSON, without a line break; characters that could steer a terminal are escaped.
    pub fn json(&self) -> String {
        escaped(&serde_json::to_string(self).unwrap_or_default())
    }

    /// One sentence for people, or nothing where the screen says it all.
    pub fn sentence(&self) -> Option<String> {
        let sentence = match self {
            Self::Listening { .. } | Self::Lent { .. } | Self::Ready => return None,
            Self::Closed { address, port, .. } => {
                format!("the address {address} (port {port}) is gone from this machine")
            }
            Self::Attached { which, host, address } => {
                format!("{} is attached by {} at {address}", which.disk, host_name(host, true))
            }
            Self::Detached { which, host, address, reason } => {
                let host = host_name(host, true);
                format!("{} is no longer attached by {host} at {address}: {reason}", which.disk)
            }
            Self::Refused { host, address, wanted, reason } => {
                let host = host_name(host, true);
                format!("{host} at {address} asked for {wanted} and was refused: {reason}")
            }
            Self::Violation { address, rule } => {
                format!("the host at {address} broke the protocol and was cut off: {rule}")
            }
            Self::Fault { which, op, offset, bytes, reason } => {
                format!("{}: {op} of {bytes} bytes at {offset} failed: {reason}", which.disk)
            }
            Self::Resized { which, bytes } => format!("{} has now {}", which.disk, size(*bytes)),
            Self::Withdrawn { which, reason } => {
                format!("{} is lent no longer: {reason}", which.disk)
            }
            Self::Note { message } => message.clone(),
            Self::Stopped => "storagetm has stopped; all hosts are disconnected".to_owned(),
        };
        Some(printable(&sentence, true))
    }

    /// Whether something went wrong.
    pub fn is_bad(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Violation { .. } | Self::Fault { .. })
    }
}

/// JSON in which characters that could steer a terminal are escaped; it means the same. Line breaks stay.
pub(crate) fn escaped(json: &str) -> String {
    json.split('\n')
        .map(|line| line.chars().map(json_escaped).collect())
        .collect::<Vec<String>>()
        .join("\n")
}

/// A character within a JSON string: only there are characters beyond printable ASCII.
fn json_escaped(c: char) -> String {
    let shown = printable(c.encode_utf8(&mut [0; 4]), true);
    if shown.chars().eq([c]) {
        return shown;
    }
    let mut units = [0; 2];
    c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
}

impl From<Event> for Happening {
    fn from(event: Event) -> Self {
        match event {
            Event::Attached { export, peer, host } => {
                Self::Attached { which: Which::of(&export), host, address: peer.remote.to_string() }
            }
            Event::Detached { export, peer, host, reason } => Self::Detached {
                which: Which::of(&export),
                host,
                address: peer.remote.to_string(),
                reason: reason.to_string(),
            },
            Event::Refused { peer, host, wanted, why } => {
                Self::Refused { host, address: peer.remote.to_string(), wanted, reason: why }
            }
            Event::Violation { peer, rule } => {
                Self::Violation { address: peer.remote.to_string(), rule }
            }
            Event::Fault { export, op, offset, len, fault } => Self::Fault {
                which: Which::of(&export),
                op,
                offset,
                bytes: len,
                reason: fault.to_string(),
            },
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use export::{Fault, Geometry, Identity, Peer, Reason};

    fn export() -> Arc<Export> {
        let disk = std::fs::File::open("/dev/null").unwrap().into();
        let identity = Identity {
            serial: "S1".to_owned(),
            model: "Example".to_owned(),
            ..Identity::default()
        };
        let geometry = Geometry::new(512, 4096).unwrap();
        Arc::new(Export::new("disk.img", "nqn.test", identity, geometry, 1 << 20, disk))
    }

    fn peer() -> Peer {
        Peer { remote: "10.0.0.2:5000".parse().unwrap(), local: "10.0.0.1:4420".parse().unwrap() }
    }

    #[test]
    fn the_first_events_have_the_form_of_the_contract() {
        let listening = Happening::Listening {
            protocol: PROTOCOL,
            address: "127.0.0.1".to_owned(),
            port: 4420,
            serves: &["discovery", "disks"],
        };
        assert_eq!(
            listening.json(),
            r#"{"event":"listening","protocol":"nvme-tcp","address":"127.0.0.1","port":4420,"serves":["discovery","disks"]}"#
        );
        let lent = Happening::lent(&export(), vec!["nvme connect".to_owned()]);
        assert_eq!(
            lent.json(),
            r#"{"event":"lent","disk":"disk.img","nqn":"nqn.test","nsid":1,"bytes":1048576,"block_size":512,"access":"read-only","model":"Example","serial":"S1","attach":["nvme connect"]}"#
        );
        assert_eq!(Happening::Ready.json(), r#"{"event":"ready"}"#);
        assert_eq!(Happening::Stopped.json(), r#"{"event":"stopped"}"#);
    }

    #[test]
    fn what_the_engine_says_has_the_form_of_the_contract() {
        let (export, peer) = (export(), peer());
        let host = "nqn.host".to_owned();
        for (event, json) in [
            (
                Event::Attached { export: export.clone(), peer, host: host.clone() },
                r#"{"event":"attached","disk":"disk.img","nqn":"nqn.test","host":"nqn.host","address":"10.0.0.2:5000"}"#,
            ),
            (
                Event::Detached {
                    export: export.clone(),
                    peer,
                    host: host.clone(),
                    reason: Reason::Peer,
                },
                r#"{"event":"detached","disk":"disk.img","nqn":"nqn.test","host":"nqn.host","address":"10.0.0.2:5000","reason":"disconnected"}"#,
            ),
            (
                Event::Refused { peer, host, wanted: "nqn.other".to_owned(), why: "not lent" },
                r#"{"event":"refused","host":"nqn.host","address":"10.0.0.2:5000","wanted":"nqn.other","reason":"not lent"}"#,
            ),
            (
                Event::Violation { peer, rule: "PlenTooShort" },
                r#"{"event":"violation","address":"10.0.0.2:5000","rule":"PlenTooShort"}"#,
            ),
            (
                Event::Fault { export, op: "read", offset: 512, len: 1024, fault: Fault::Io },
                r#"{"event":"fault","disk":"disk.img","nqn":"nqn.test","op":"read","offset":512,"bytes":1024,"reason":"the disk reported an error"}"#,
            ),
        ] {
            assert_eq!(Happening::from(event).json(), json);
        }
    }

    #[test]
    fn disks_that_change_or_go_have_the_form_of_the_contract() {
        let export = export();
        assert_eq!(
            Happening::resized(&export).json(),
            r#"{"event":"resized","disk":"disk.img","nqn":"nqn.test","bytes":1048576}"#
        );
        assert_eq!(
            Happening::withdrawn(&export, "unplugged").json(),
            r#"{"event":"withdrawn","disk":"disk.img","nqn":"nqn.test","reason":"unplugged"}"#
        );
        assert_eq!(Happening::note("look").json(), r#"{"event":"note","message":"look"}"#);
    }

    #[test]
    fn a_hostile_name_reaches_neither_terminal_nor_log_raw_and_survives_in_json() {
        let host = "\x1b[2J\u{9b}\u{202e}\u{e0001}\"\n\x7f".to_owned();
        let happening =
            Happening::from(Event::Attached { export: export(), peer: peer(), host: host.clone() });
        let json = happening.json();
        assert!(json.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{json}");
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read["host"], host);
        let sentence = happening.sentence().unwrap();
        assert!(sentence.chars().all(|c| !c.is_control()), "{sentence}");
    }

    #[test]
    fn sentences_say_who_what_and_why() {
        let detached = Event::Detached {
            export: export(),
            peer: peer(),
            host: "nqn.2014-08.org.nvmexpress:uuid:2f6d1c52-0000-4000-8000-000000000000".to_owned(),
            reason: Reason::Timeout,
        };
        assert_eq!(
            Happening::from(detached).sentence().unwrap(),
            "disk.img is no longer attached by host 2f6d1c52 at 10.0.0.2:5000: timed out"
        );
    }
}
