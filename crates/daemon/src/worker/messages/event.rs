//! Wire types of events.

use std::net::SocketAddr;
use std::sync::Arc;

use export::{Auth, Channel, Event, Export, Fault, KeyId, Peer, Reason};
use serde::{Deserialize, Serialize};

use super::{SecretWire, auth};
use crate::rate_limit::CountedEvent;

#[derive(Debug, Serialize, Deserialize)]
pub(in crate::worker) struct PeerWire {
    remote: SocketAddr,
    local: SocketAddr,
    keyed: bool,
    channel: Option<ChannelWire>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ChannelWire {
    key: Option<u64>,
    certified: bool,
    identity: String,
    cipher: String,
    binding: [u8; 32],
}

impl From<&Peer> for PeerWire {
    fn from(peer: &Peer) -> Self {
        let channel = peer.channel.as_deref().map(|channel| ChannelWire {
            key: channel.key.map(KeyId::number),
            certified: channel.certified,
            identity: channel.identity.clone(),
            cipher: channel.cipher.clone(),
            binding: channel.binding,
        });
        let keyed = peer.auth == Auth::Required;
        Self { remote: peer.remote, local: peer.local, keyed, channel }
    }
}

impl From<PeerWire> for Peer {
    fn from(wire: PeerWire) -> Self {
        let channel = wire.channel.map(|wire| Channel {
            key: wire.key.map(KeyId::new),
            certified: wire.certified,
            identity: wire.identity,
            cipher: wire.cipher,
            binding: wire.binding,
        });
        Self {
            remote: wire.remote,
            local: wire.local,
            auth: auth(wire.keyed),
            channel: channel.map(Arc::new),
        }
    }
}

/// [`export::Event`] with disk numbers in place of exports.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::worker) enum EventWire {
    Attached {
        disk: u64,
        peer: PeerWire,
        host: String,
        proven: Option<u64>,
    },
    Detached {
        disk: u64,
        peer: PeerWire,
        host: String,
        #[serde(with = "ReasonWire")]
        reason: Reason,
        read: u64,
        written: u64,
    },
    Refused {
        peer: PeerWire,
        host: String,
        wanted: String,
        why: String,
        count: u64,
    },
    PairingRequested {
        peer: PeerWire,
        number: u64,
        host: String,
        name: String,
        writable: bool,
        secret: SecretWire,
    },
    Violation {
        peer: PeerWire,
        rule: String,
        count: u64,
    },
    Fault {
        disk: u64,
        op: String,
        offset: u64,
        len: u64,
        count: u64,
        #[serde(with = "FaultWire")]
        fault: Fault,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Reason")]
enum ReasonWire {
    Peer,
    Violation,
    Timeout,
    Refused,
    Ended,
    Stopping,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Fault")]
enum FaultWire {
    Io,
    NoSpace,
    ReadOnly,
    OutOfRange,
    Misaligned,
    Unsupported,
    Gone,
    Busy,
}

impl EventWire {
    /// Converts an event. Returns `None` if its disk has no number.
    pub(in crate::worker) fn new(
        counted: &CountedEvent,
        number: impl Fn(&Arc<Export>) -> Option<u64>,
    ) -> Option<Self> {
        let count = counted.count;
        Some(match &counted.event {
            Event::Attached { export, peer, host, proven } => Self::Attached {
                disk: number(export)?,
                peer: peer.into(),
                host: host.clone(),
                proven: proven.map(KeyId::number),
            },
            Event::Detached { export, peer, host, reason, read, written } => Self::Detached {
                disk: number(export)?,
                peer: peer.into(),
                host: host.clone(),
                reason: *reason,
                read: *read,
                written: *written,
            },
            Event::Refused { peer, host, wanted, why } => Self::Refused {
                peer: peer.into(),
                host: host.clone(),
                wanted: wanted.clone(),
                why: (*why).to_owned(),
                count,
            },
            Event::PairingRequested { peer, request } => Self::PairingRequested {
                peer: peer.into(),
                number: request.number,
                host: request.host.clone(),
                name: request.name.clone(),
                writable: request.writable,
                secret: SecretWire(request.secret.clone()),
            },
            Event::Violation { peer, rule } => {
                Self::Violation { peer: peer.into(), rule: (*rule).to_owned(), count }
            }
            Event::Fault { export, op, offset, len, fault } => Self::Fault {
                disk: number(export)?,
                op: (*op).to_owned(),
                offset: *offset,
                len: *len,
                count,
                fault: *fault,
            },
        })
    }

    /// Number of merged events, at least 1 whatever was received.
    pub(in crate::worker) fn count(&self) -> u64 {
        match self {
            Self::Refused { count, .. }
            | Self::Violation { count, .. }
            | Self::Fault { count, .. } => (*count).max(1),
            _ => 1,
        }
    }
}
