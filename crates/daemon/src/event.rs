//! Events of `storagetm serve`, in JSON and as sentences.
//!
//! The JSON format is stable: `docs/json-events.md`.

mod host_auth;
mod sentence;

use std::fmt;
use std::sync::Arc;

use console::escape_unprintable;
use export::{Access, Event, Export, PairingRequest, Peer, Policy, Transport};
use iscsi::iqn;
use nvme::nqn;
use serde::{Serialize, Serializer};

use crate::certificates::CertificateIds;
use crate::overlay::{Kept, OverlayRef};
use crate::rate_limit::CountedEvent;
pub use host_auth::{HostAuth, name_of};
use protocol::commands::ExportNames;
use protocol::endpoint::Endpoint;
use protocol::{PROTOCOLS, Protocol, Row};

/// An event.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum ServeEvent {
    /// A listening socket was opened.
    Listening {
        /// Name of the protocol.
        protocol: &'static str,
        /// Its address.
        #[serde(flatten)]
        at: EventAddr,
        /// `disks` or `discovery`, or both.
        serves: &'static [&'static str],
        /// Whether hosts need a key.
        keyed: bool,
        /// SHA-256 of the certificate for HTTPS.
        #[serde(skip_serializing_if = "Option::is_none")]
        certificate: Option<String>,
        /// SHA-256 of its public key in base64.
        #[serde(skip_serializing_if = "Option::is_none")]
        public_key: Option<String>,
    },
    /// A listening address was removed from this machine.
    Closed {
        /// Name of the protocol.
        protocol: &'static str,
        /// Its address.
        #[serde(flatten)]
        at: EventAddr,
    },
    /// A disk was exported.
    Lent {
        /// The disk.
        #[serde(flatten)]
        disk: Disk,
        /// How other machines use it: a member for each protocol of the table.
        #[serde(flatten)]
        usage: Usage,
    },
    /// All requested disks are exported.
    Ready,
    /// A host attached a disk.
    Attached {
        /// Protocol of the host.
        protocol: &'static str,
        /// The disk.
        #[serde(flatten)]
        which: DiskRef,
        /// Host NQN; with NBD, that of the host whose key was used, or empty.
        host: String,
        /// Address and port of the host.
        address: String,
        /// Whether it can only read, because the overlay has no room for another host.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        no_room: bool,
        /// How the host authenticated.
        #[serde(flatten)]
        shown: HostAuth,
    },
    /// A host detached a disk, or disconnected.
    Detached {
        /// Protocol of the host.
        protocol: &'static str,
        /// The disk.
        #[serde(flatten)]
        which: DiskRef,
        /// Host NQN.
        host: String,
        /// Address and port of the host.
        address: String,
        /// Reason.
        reason: String,
        /// Bytes read by this attachment.
        read: u64,
        /// Bytes written by this attachment.
        written: u64,
        /// Changes that an overlay keeps; `None` without one.
        #[serde(flatten)]
        kept: Option<Kept>,
        /// The secure channel it used.
        #[serde(flatten)]
        shown: HostAuth,
    },
    /// A new pairing code, which replaces the previous one.
    Pairing {
        /// The digits to type on the other machine.
        code: String,
        /// A link for a QR code.
        link: String,
    },
    /// A new code for reading by HTTPS, which replaces the previous one.
    Reading {
        /// The code to type in a browser.
        #[serde(rename = "reading_code")]
        code: String,
        /// A link for a QR code.
        #[serde(skip_serializing_if = "Option::is_none")]
        link: Option<String>,
    },
    /// A client that knew the code requests write access, which the user must grant.
    Asking {
        /// Host NQN.
        host: String,
        /// Name of the client.
        name: String,
        /// Address and port of the client.
        address: String,
    },
    /// A host was paired.
    Paired {
        /// Host NQN.
        host: String,
        /// Name of the client.
        name: String,
        /// Address and port of the client.
        address: String,
        /// Access granted.
        #[serde(serialize_with = "access_name")]
        access: Access,
    },
    /// A host was denied access.
    Refused {
        /// Protocol of the host.
        protocol: &'static str,
        /// Host NQN; empty if unknown.
        host: String,
        /// Address and port of the host.
        address: String,
        /// The name that it asked for.
        wanted: String,
        /// Reason.
        reason: &'static str,
        /// Number of merged events; omitted if 1.
        #[serde(skip_serializing_if = "is_once")]
        count: u64,
    },
    /// A peer violated the protocol and was disconnected.
    Violation {
        /// Protocol of the listener.
        protocol: &'static str,
        /// Address and port of the peer.
        address: String,
        /// Name of the violated rule.
        rule: &'static str,
        /// Number of merged events; omitted if 1.
        #[serde(skip_serializing_if = "is_once")]
        count: u64,
    },
    /// A disk failed one or more requests.
    Fault {
        /// The disk.
        #[serde(flatten)]
        which: DiskRef,
        /// The operation.
        op: &'static str,
        /// First byte of the failed requests.
        offset: u64,
        /// Length of the range in bytes.
        bytes: u64,
        /// Number of failed requests.
        count: u64,
        /// Reason.
        reason: String,
    },
    /// The size of a disk changed.
    Resized {
        /// The disk.
        #[serde(flatten)]
        which: DiskRef,
        /// New size in bytes.
        bytes: u64,
        /// Previous size in bytes.
        before: u64,
    },
    /// An export was withdrawn.
    Withdrawn {
        /// The disk.
        #[serde(flatten)]
        which: DiskRef,
        /// Reason.
        reason: String,
    },
    /// Events before this one were dropped because the consumer was too slow.
    Lost {
        /// Number of dropped events.
        count: u64,
    },
    /// Information without an event of its own.
    Note {
        /// The text.
        message: String,
    },
    /// The program ends; the last event.
    Stopped,
}

/// Address of a listener.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum EventAddr {
    /// A network address.
    Net {
        /// IP address; a link-local IPv6 address with its interface.
        address: String,
        /// TCP port.
        port: u16,
    },
    /// A Unix socket.
    Path {
        /// Path.
        path: String,
    },
}

impl fmt::Display for EventAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net { address, port } => write!(f, "the address {address} (port {port})"),
            Self::Path { path } => write!(f, "the socket {path}"),
        }
    }
}

/// An exported disk.
#[derive(Debug, Clone, Serialize)]
pub struct Disk {
    disk: String,
    name: String,
    nqn: String,
    nsid: u32,
    iqn: String,
    bytes: u64,
    block_size: u32,
    #[serde(serialize_with = "access_name")]
    access: Access,
    /// Where what hosts write is kept, if not on the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    overlay: Option<OverlayRef>,
    model: String,
    serial: String,
}

/// Command lines or URIs of an export for all endpoints, by protocol: members of the table.
#[derive(Debug, Clone)]
pub struct Usage(Vec<(&'static str, Vec<String>)>);

impl Usage {
    /// Lists the most important line for each endpoint, then the next.
    fn of(export: &Export, endpoints: &[Endpoint], digests: bool) -> Self {
        let names = ExportNames { id: &export.id, short: &export.short };
        let listed = |row: &'static Row| {
            let endpoints = endpoints.iter().filter(|at| at.protocol == row.protocol);
            let all: Vec<Vec<String>> =
                endpoints.map(|at| at.instructions(Some(names), digests).listed).collect();
            let longest = all.iter().map(Vec::len).max().unwrap_or_default();
            let lines = (0..longest).flat_map(|n| all.iter().filter_map(move |one| one.get(n)));
            (row.member, lines.cloned().collect())
        };
        Self(PROTOCOLS.iter().map(listed).collect())
    }
}

impl Serialize for Usage {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|(member, lines)| (member, lines)))
    }
}

fn access_name<S: Serializer>(access: &Access, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(access)
}

/// Reference to an exported disk.
#[derive(Debug, Clone, Serialize)]
pub struct DiskRef {
    disk: String,
    nqn: String,
}

impl DiskRef {
    pub fn of(export: &Export) -> Self {
        Self { disk: export.name.clone(), nqn: nqn::of(&export.id) }
    }
}

/// The protocol of the host at a USB cable.
const USB: &str = "usb";

/// Address and port of a peer; `unix` for a Unix socket, `usb` for a cable.
fn address(peer: &Peer) -> String {
    peer.transport.to_string()
}

/// The peer of an event, if there is one.
pub fn peer_of(event: &Event) -> Option<&Peer> {
    match event {
        Event::Attached { peer, .. }
        | Event::Detached { peer, .. }
        | Event::Refused { peer, .. }
        | Event::PairingRequested { peer, .. }
        | Event::Violation { peer, .. } => Some(peer),
        Event::Fault { .. } => None,
    }
}

impl ServeEvent {
    pub fn lent(export: &Export, endpoints: &[Endpoint], digests: bool) -> Self {
        let disk = Disk {
            disk: export.name.clone(),
            name: export.short.clone(),
            nqn: nqn::of(&export.id),
            iqn: iqn::of(&export.id),
            nsid: 1,
            bytes: export.bytes(),
            block_size: export.geometry.block(),
            access: export.access,
            overlay: OverlayRef::of(export),
            model: export.identity.model.clone(),
            serial: export.identity.serial.clone(),
        };
        Self::Lent { disk, usage: Usage::of(export, endpoints, digests) }
    }

    pub fn withdrawn(export: &Arc<Export>, reason: &str) -> Self {
        Self::Withdrawn { which: DiskRef::of(export), reason: reason.to_owned() }
    }

    pub fn resized(export: &Export, before: u64) -> Self {
        Self::Resized { which: DiskRef::of(export), bytes: export.bytes(), before }
    }

    pub fn paired(peer: &Peer, request: &PairingRequest, access: Access) -> Self {
        Self::Paired {
            host: request.host.clone(),
            name: request.name.clone(),
            address: address(peer),
            access,
        }
    }

    /// Adds the certificate, if it is the event of a listener of HTTPS.
    pub(crate) fn set_certificate(&mut self, ids: Option<&CertificateIds>) {
        let is_https = |name| name == Protocol::Https.name();
        if let (Self::Listening { protocol, certificate, public_key, .. }, Some(ids)) = (self, ids)
            && is_https(*protocol)
        {
            *certificate = Some(ids.fingerprint.to_string());
            *public_key = Some(ids.pin.to_string());
        }
    }

    pub fn note(message: impl ToString) -> Self {
        Self::Note { message: message.to_string() }
    }

    /// One line of JSON. Characters that could control a terminal are escaped.
    pub fn json(&self) -> String {
        escaped(&serde_json::to_string(self).unwrap_or_default())
    }

    /// The event as journal fields `STORAGETM_EVENT`, `STORAGETM_HOST` and so on, escaped.
    pub fn fields(&self) -> Vec<(String, String)> {
        let Ok(serde_json::Value::Object(members)) = serde_json::to_value(self) else {
            return Vec::new();
        };
        let field = |(name, value): (String, serde_json::Value)| {
            let value = match value {
                serde_json::Value::String(text) => escape_unprintable(&text, true),
                other => other.to_string(),
            };
            (format!("STORAGETM_{}", name.to_ascii_uppercase()), value)
        };
        members.into_iter().map(field).collect()
    }

    /// Returns whether the screen lists it as a message. Attachments are shown elsewhere on the
    /// screen.
    pub fn is_message(&self) -> bool {
        let is_notable = matches!(
            self,
            Self::Note { .. }
                | Self::Paired { .. }
                | Self::Withdrawn { .. }
                | Self::Resized { .. }
                | Self::Attached { no_room: true, .. }
        );
        is_notable || self.is_problem()
    }

    /// Returns whether it reports a problem.
    pub fn is_problem(&self) -> bool {
        let shrunk = matches!(self, Self::Resized { bytes, before, .. } if bytes < before);
        shrunk || matches!(self, Self::Refused { .. } | Self::Violation { .. } | Self::Fault { .. })
    }
}

fn is_once(count: &u64) -> bool {
    *count == 1
}

/// Escapes characters in JSON that could control a terminal; the value stays the same. Line breaks
/// stay.
pub fn escaped(json: &str) -> String {
    json.split('\n')
        .map(|line| line.chars().map(json_escaped).collect())
        .collect::<Vec<String>>()
        .join("\n")
}

/// Escapes one character. Outside of JSON strings all characters are printable ASCII.
fn json_escaped(c: char) -> String {
    let shown = escape_unprintable(c.encode_utf8(&mut [0; 4]), true);
    if shown.chars().eq([c]) {
        return shown;
    }
    let mut units = [0; 2];
    c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
}

impl ServeEvent {
    /// Converts an engine event of a peer that uses `protocol`; names of hosts are taken from
    /// `policy`.
    pub fn of(event: impl Into<CountedEvent>, policy: &Policy, protocol: Protocol) -> Self {
        let CountedEvent { event, count } = event.into();
        let is_usb = peer_of(&event).is_some_and(|peer| peer.transport == Transport::Usb);
        let protocol = if is_usb { USB } else { protocol.name() };
        match event {
            Event::Attached { export, peer, host, proven, no_room } => Self::Attached {
                protocol,
                no_room,
                which: DiskRef::of(&export),
                host,
                address: address(&peer),
                shown: HostAuth::of(&peer, proven, policy),
            },
            Event::Detached { export, peer, host, reason, read, written } => Self::Detached {
                protocol,
                which: DiskRef::of(&export),
                host,
                address: address(&peer),
                reason: reason.to_string(),
                read,
                written,
                kept: Kept::of(&export),
                shown: HostAuth::of(&peer, None, policy),
            },
            Event::PairingRequested { peer, request } => Self::Asking {
                host: request.host.clone(),
                name: request.name.clone(),
                address: address(&peer),
            },
            Event::Refused { peer, host, wanted, reason } => {
                let address = address(&peer);
                Self::Refused { protocol, host, address, wanted, reason, count }
            }
            Event::Violation { peer, rule } => {
                Self::Violation { protocol, address: address(&peer), rule, count }
            }
            Event::Fault { export, op, offset, len, fault } => Self::Fault {
                which: DiskRef::of(&export),
                op,
                offset,
                bytes: len,
                count,
                reason: fault.to_string(),
            },
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use export::{Channel, Fault, Geometry, Host, Identity, KeyId, Reason};
    use protocol::endpoint::{EndpointAddr, NetAddr};

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
        Peer::ip(
            "10.0.0.2:5000".parse().unwrap(),
            "10.0.0.1:4420".parse().unwrap(),
            export::Auth::None,
        )
    }

    #[test]
    fn startup_events_have_documented_form() {
        let listening = ServeEvent::Listening {
            protocol: Protocol::Nvme.name(),
            at: EventAddr::Net { address: "127.0.0.1".to_owned(), port: 4420 },
            serves: &["discovery", "disks"],
            keyed: false,
            certificate: None,
            public_key: None,
        };
        assert_eq!(
            listening.json(),
            r#"{"event":"listening","protocol":"nvme-tcp","address":"127.0.0.1","port":4420,"serves":["discovery","disks"],"keyed":false}"#
        );
        let at = |protocol: Protocol, ip: &str| {
            let (ip, port) = (ip.parse().unwrap(), protocol.row().ports[0].number);
            let addr = EndpointAddr::Net(NetAddr { ip, interface: None, port });
            Endpoint { protocol, addr, keyed: false, pin: None }
        };
        let endpoints = [
            at(Protocol::Nvme, "10.0.0.1"),
            at(Protocol::Nvme, "::1"),
            at(Protocol::Nbd, "10.0.0.1"),
        ];
        let lent = ServeEvent::lent(&export(), &endpoints, false);
        let wanted = r#"{"event":"lent","disk":"disk.img","name":"disk","nqn":"nqn.test","nsid":1,"iqn":"iqn.test","bytes":1048576,"block_size":512,"access":"read-only","model":"Example","serial":"S1","attach":["nvme connect -t tcp -a 10.0.0.1 -s 4420 -n nqn.test","nvme connect -t tcp -a ::1 -s 4420 -n nqn.test","nvme connect-all -t tcp -a 10.0.0.1 -s 4420","nvme connect-all -t tcp -a ::1 -s 4420"],"nbd":["nbd://10.0.0.1/disk"],"iscsi":[]"#;
        // Other protocols have members after these.
        assert!(lent.json().starts_with(wanted), "{}", lent.json());
        assert_eq!(ServeEvent::Ready.json(), r#"{"event":"ready"}"#);
        assert_eq!(ServeEvent::Stopped.json(), r#"{"event":"stopped"}"#);
    }

    #[test]
    fn engine_events_have_documented_form() {
        let (export, peer) = (export(), peer());
        let host = "nqn.host".to_owned();
        for (event, json) in [
            (
                Event::Attached {
                    export: export.clone(),
                    peer: peer.clone(),
                    host: host.clone(),
                    proven: None,
                    no_room: false,
                },
                r#"{"event":"attached","protocol":"nvme-tcp","disk":"disk.img","nqn":"nqn.test","host":"nqn.host","address":"10.0.0.2:5000"}"#,
            ),
            (
                Event::Detached {
                    export: export.clone(),
                    peer: peer.clone(),
                    host: host.clone(),
                    reason: Reason::Peer,
                    read: 1,
                    written: 2,
                },
                r#"{"event":"detached","protocol":"nvme-tcp","disk":"disk.img","nqn":"nqn.test","host":"nqn.host","address":"10.0.0.2:5000","reason":"disconnected","read":1,"written":2}"#,
            ),
            (
                Event::Refused {
                    peer: peer.clone(),
                    host,
                    wanted: "nqn.other".to_owned(),
                    reason: "not lent",
                },
                r#"{"event":"refused","protocol":"nvme-tcp","host":"nqn.host","address":"10.0.0.2:5000","wanted":"nqn.other","reason":"not lent"}"#,
            ),
            (
                Event::Violation { peer, rule: "PlenTooShort" },
                r#"{"event":"violation","protocol":"nvme-tcp","address":"10.0.0.2:5000","rule":"PlenTooShort"}"#,
            ),
            (
                Event::Fault { export, op: "read", offset: 512, len: 1024, fault: Fault::Io },
                r#"{"event":"fault","disk":"disk.img","nqn":"nqn.test","op":"read","offset":512,"bytes":1024,"count":1,"reason":"the disk reported an error"}"#,
            ),
        ] {
            assert_eq!(ServeEvent::of(event, &Policy::default(), Protocol::Nvme).json(), json);
        }
    }

    #[test]
    fn attachment_event_has_key_and_channel() {
        let host = Host {
            id: "nqn.host".to_owned(),
            name: "laptop".to_owned(),
            key: KeyId::new(7),
            credentials: Vec::new(),
            rules: Vec::new(),
        };
        let policy = Policy { hosts: vec![Arc::new(host)] };
        let channel = Channel {
            key: Some(KeyId::new(7)),
            certified: false,
            identity: "NVMe0R01 a b".to_owned(),
            cipher: "TLS_AES_128_GCM_SHA256".to_owned(),
            binding: [0; 32],
        };
        let attached = Event::Attached {
            export: export(),
            peer: Peer { channel: Some(Arc::new(channel)), ..peer() },
            host: "nqn.host".to_owned(),
            proven: Some(KeyId::new(7)),
            no_room: false,
        };
        let event = ServeEvent::of(attached, &policy, Protocol::Nbd);
        let json = event.json();
        let end = r#","key":"laptop","tls":"TLS_AES_128_GCM_SHA256","chap":true}"#;
        assert!(json.ends_with(end), "{json}");
        let wanted = "attached by laptop at 10.0.0.2:5000, encrypted (TLS_AES_128_GCM_SHA256)";
        assert!(event.sentence().unwrap().ends_with(wanted));
    }

    #[test]
    fn host_without_a_state_in_an_overlay_is_reported() {
        let attached = |no_room| {
            let (export, peer, host) = (export(), peer(), "nqn.host".to_owned());
            let event = Event::Attached { export, peer, host, proven: None, no_room };
            ServeEvent::of(event, &Policy::default(), Protocol::Nvme)
        };
        let event = attached(true);
        assert!(event.is_message() && event.sentence().unwrap().contains("it can only read"));
        assert!(event.json().ends_with(r#""no_room":true}"#), "{}", event.json());
        let event = attached(false);
        assert!(!event.is_message() && !event.json().contains("no_room"));
    }

    #[test]
    fn pairing_is_a_message_after_a_wrong_code() {
        let request = PairingRequest {
            number: 1,
            host: "nqn.host".to_owned(),
            name: "vm".to_owned(),
            writable: false,
            secret: export::Secret::new(vec![1; 32]),
        };
        let paired = ServeEvent::paired(&peer(), &request, Access::ReadOnly);
        assert!(paired.is_message() && !paired.is_problem());
        let wanted = "vm at 10.0.0.2:5000 was paired by the code: read-only";
        assert_eq!(paired.sentence().unwrap(), wanted);
        assert!(!ServeEvent::Ready.is_message());
    }

    #[test]
    fn journal_fields_are_escaped() {
        let refused = Event::Refused {
            peer: peer(),
            host: "a\x1b[2J\nb".to_owned(),
            wanted: String::new(),
            reason: "no key",
        };
        let fields = ServeEvent::of(refused, &Policy::default(), Protocol::Nvme).fields();
        let find = |name| &fields.iter().find(|(known, _)| known == name).unwrap().1;
        assert_eq!(find("STORAGETM_EVENT"), "refused");
        assert_eq!(find("STORAGETM_ADDRESS"), "10.0.0.2:5000");
        assert!(find("STORAGETM_HOST").chars().all(|c| !c.is_control()));
    }

    #[test]
    fn pairing_code_is_an_event_without_sentence() {
        let pairing =
            ServeEvent::Pairing { code: "12345678".to_owned(), link: "storagetm:x".to_owned() };
        assert_eq!(pairing.json(), r#"{"event":"pairing","code":"12345678","link":"storagetm:x"}"#);
        assert_eq!(pairing.sentence(), None);
    }

    #[test]
    fn resize_and_withdraw_events_have_documented_form() {
        let export = export();
        assert_eq!(
            ServeEvent::resized(&export, 512).json(),
            r#"{"event":"resized","disk":"disk.img","nqn":"nqn.test","bytes":1048576,"before":512}"#
        );
        assert_eq!(
            ServeEvent::withdrawn(&export, "unplugged").json(),
            r#"{"event":"withdrawn","disk":"disk.img","nqn":"nqn.test","reason":"unplugged"}"#
        );
        assert_eq!(ServeEvent::note("look").json(), r#"{"event":"note","message":"look"}"#);
    }

    #[test]
    fn hostile_name_is_escaped_everywhere() {
        let host = "\x1b[2J\u{9b}\u{202e}\u{e0001}\"\n\x7f".to_owned();
        let event = ServeEvent::of(
            Event::Attached {
                export: export(),
                peer: peer(),
                host: host.clone(),
                proven: None,
                no_room: false,
            },
            &Policy::default(),
            Protocol::Nvme,
        );
        let json = event.json();
        assert!(json.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{json}");
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read["host"], host);
        let sentence = event.sentence().unwrap();
        assert!(sentence.chars().all(|c| !c.is_control()), "{sentence}");
    }

    #[test]
    fn merged_events_have_a_count() {
        let of = |event, count| {
            ServeEvent::of(CountedEvent { event, count }, &Policy::default(), Protocol::Nvme)
        };
        let (op, fault) = ("read", Fault::Io);
        let faults = Event::Fault { export: export(), op, offset: 512, len: 1024, fault };
        let event = of(faults, 7);
        assert!(event.json().contains(r#""offset":512,"bytes":1024,"count":7,"#));
        let wanted =
            "disk.img: 7 read requests between 512 and 1536 failed: the disk reported an error";
        assert_eq!(event.sentence().unwrap(), wanted);
        let event = of(Event::Violation { peer: peer(), rule: "PlenTooShort" }, 3);
        assert!(event.json().ends_with(r#""rule":"PlenTooShort","count":3}"#));
        assert!(event.sentence().unwrap().contains("was cut off 3 times"));
    }

    #[test]
    fn sentences_name_host_disk_and_reason() {
        let detached = Event::Detached {
            export: export(),
            peer: peer(),
            host: "nqn.2014-08.org.nvmexpress:uuid:2f6d1c52-0000-4000-8000-000000000000".to_owned(),
            reason: Reason::Timeout,
            read: 4096,
            written: 0,
        };
        assert_eq!(
            ServeEvent::of(detached, &Policy::default(), Protocol::Nvme).sentence().unwrap(),
            "disk.img is no longer attached by host 2f6d1c52 at 10.0.0.2:5000: timed out; it has read \
             4.1 kB and written 0 bytes"
        );
    }

    #[test]
    fn anonymous_host_on_unix_socket_is_described() {
        let peer = Peer { transport: Transport::Unix, ..peer() };
        let host = String::new();
        let attached = Event::Attached {
            export: export(),
            peer: peer.clone(),
            host,
            proven: None,
            no_room: false,
        };
        let event = ServeEvent::of(attached, &Policy::default(), Protocol::Nbd);
        assert_eq!(
            event.json(),
            r#"{"event":"attached","protocol":"nbd","disk":"disk.img","nqn":"nqn.test","host":"","address":"unix"}"#
        );
        assert_eq!(
            event.sentence().unwrap(),
            "disk.img is attached by a host without a name on this machine"
        );
        let refused = |wanted: &str| Event::Refused {
            peer: peer.clone(),
            host: String::new(),
            wanted: wanted.to_owned(),
            reason: "not lent",
        };
        let sentence = |event| ServeEvent::of(event, &Policy::default(), Protocol::Nbd).sentence();
        assert_eq!(
            sentence(refused("")).unwrap(),
            "a host without a name on this machine was refused: not lent"
        );
        assert!(sentence(refused("sdb")).unwrap().contains("asked for sdb and was refused"));
    }
}
