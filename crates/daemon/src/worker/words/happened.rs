//! What happened, as one process tells the other. It knows no socket.

use std::net::SocketAddr;
use std::sync::Arc;

use export::{Auth, Channel, Event, Export, Fault, KeyId, Peer, Reason};
use serde::{Deserialize, Serialize};

use super::{Hidden, auth};
use crate::tally::Tallied;

/// Who is at the other end of a connection.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::worker) struct PeerWord {
    remote: SocketAddr,
    local: SocketAddr,
    keyed: bool,
    channel: Option<ChannelWord>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ChannelWord {
    key: Option<u64>,
    certified: bool,
    identity: String,
    cipher: String,
    binding: [u8; 32],
}

impl From<&Peer> for PeerWord {
    fn from(peer: &Peer) -> Self {
        let channel = peer.channel.as_deref().map(|channel| ChannelWord {
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

impl From<PeerWord> for Peer {
    fn from(word: PeerWord) -> Self {
        let channel = word.channel.map(|word| Channel {
            key: word.key.map(KeyId::new),
            certified: word.certified,
            identity: word.identity,
            cipher: word.cipher,
            binding: word.binding,
        });
        Self {
            remote: word.remote,
            local: word.local,
            auth: auth(word.keyed),
            channel: channel.map(Arc::new),
        }
    }
}

/// Something that happened: [`export::Event`], with disks by number.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::worker) enum Happened {
    Attached {
        disk: u64,
        peer: PeerWord,
        host: String,
        proven: Option<u64>,
    },
    Detached {
        disk: u64,
        peer: PeerWord,
        host: String,
        #[serde(with = "ReasonWord")]
        reason: Reason,
        read: u64,
        written: u64,
    },
    Refused {
        peer: PeerWord,
        host: String,
        wanted: String,
        why: String,
        count: u64,
    },
    PairingRequested {
        peer: PeerWord,
        number: u64,
        host: String,
        name: String,
        writable: bool,
        secret: Hidden,
    },
    Violation {
        peer: PeerWord,
        rule: String,
        count: u64,
    },
    Fault {
        disk: u64,
        op: String,
        offset: u64,
        len: u64,
        count: u64,
        #[serde(with = "FaultWord")]
        fault: Fault,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Reason")]
enum ReasonWord {
    Peer,
    Violation,
    Timeout,
    Refused,
    Ended,
    Stopping,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Fault")]
enum FaultWord {
    Io,
    NoSpace,
    ReadOnly,
    OutOfRange,
    Misaligned,
    Unsupported,
    Gone,
    Busy,
}

impl Happened {
    /// What happened, to disks of these numbers. Nothing if it happened to a disk that has none.
    pub(in crate::worker) fn new(
        tallied: &Tallied,
        number: impl Fn(&Arc<Export>) -> Option<u64>,
    ) -> Option<Self> {
        let count = tallied.count;
        Some(match &tallied.event {
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
            Event::PairingRequested { peer, request: knock } => Self::PairingRequested {
                peer: peer.into(),
                number: knock.number,
                host: knock.host.clone(),
                name: knock.name.clone(),
                writable: knock.writable,
                secret: Hidden(knock.secret.clone()),
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

    /// How many of its kind it stands for: at least one, whatever was received.
    pub(in crate::worker) fn count(&self) -> u64 {
        match self {
            Self::Refused { count, .. }
            | Self::Violation { count, .. }
            | Self::Fault { count, .. } => (*count).max(1),
            _ => 1,
        }
    }
}
