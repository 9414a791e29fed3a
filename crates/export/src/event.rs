//! Events for the log, the screen and `--json`. Libraries emit them; only the program prints.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Deserializer, Serialize};

use crate::{Export, Fault, KeyId, Peer, Reason, Secret};

/// A phrase of this program. An alias, because a reference in the type would make serde borrow.
type Phrase = &'static str;

/// Maximum length of a text of a peer in an event, in bytes. Protocols truncate longer ones.
pub const MAX_TEXT: usize = 1024;

/// Something that the administrator may want to know.
///
/// `D` stands for a disk: the export, or what identifies it for another process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event<D = Arc<Export>> {
    /// A host attached a disk.
    Attached {
        /// The disk.
        export: D,
        /// The connection it attached over.
        peer: Peer,
        /// The name that the host claims (NVMe: its host NQN), as received.
        host: String,
        /// The keys that the host has proven within the protocol. The channel's key is in `peer`.
        proven: Option<KeyId>,
        /// Whether it can only read because the disk's overlay has no free state for it:
        /// [`Grant::has_no_room`](crate::Grant::has_no_room).
        no_room: bool,
    },
    /// A host detached a disk, or its connection was lost.
    Detached {
        /// The disk.
        export: D,
        /// The connection it had attached over.
        peer: Peer,
        /// The name that the host claims, as received.
        host: String,
        /// Why.
        reason: Reason,
        /// Bytes that the host read while attached.
        read: u64,
        /// Bytes that the host wrote while attached.
        written: u64,
    },
    /// A host was refused access, or asked for an export that does not exist.
    Refused {
        /// The connection.
        peer: Peer,
        /// The name that the host claims, as received.
        host: String,
        /// The name of the export that it asked for, as received.
        wanted: String,
        /// The reason, as a phrase for people.
        #[serde(deserialize_with = "interned")]
        reason: Phrase,
    },
    /// A host has proven that it knows the pairing code, and waits for the user's decision.
    PairingRequested {
        /// The connection.
        peer: Peer,
        /// The request.
        request: Arc<PairingRequest>,
    },
    /// A peer violated the protocol and was disconnected.
    Violation {
        /// The connection.
        peer: Peer,
        /// The violated rule, as named by the protocol's crate.
        #[serde(deserialize_with = "interned")]
        rule: Phrase,
    },
    /// A disk request failed.
    Fault {
        /// The disk.
        export: D,
        /// The operation, see [`Op::name`](crate::Op::name).
        #[serde(deserialize_with = "interned")]
        op: Phrase,
        /// Offset of the first byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// How it failed.
        fault: Fault,
    },
}

impl<D> Event<D> {
    /// Returns the event with its disk replaced by what `map` returns; `None` if that is `None`.
    pub fn map_export<T>(self, map: impl FnOnce(D) -> Option<T>) -> Option<Event<T>> {
        Some(match self {
            Self::Attached { export, peer, host, proven, no_room } => {
                Event::Attached { export: map(export)?, peer, host, proven, no_room }
            }
            Self::Detached { export, peer, host, reason, read, written } => {
                Event::Detached { export: map(export)?, peer, host, reason, read, written }
            }
            Self::Fault { export, op, offset, len, fault } => {
                Event::Fault { export: map(export)?, op, offset, len, fault }
            }
            Self::Refused { peer, host, wanted, reason } => {
                Event::Refused { peer, host, wanted, reason }
            }
            Self::PairingRequested { peer, request } => Event::PairingRequested { peer, request },
            Self::Violation { peer, rule } => Event::Violation { peer, rule },
        })
    }
}

/// Maximum number of different phrases that are deserialized; further ones become [`OTHER`].
const MAX_PHRASES: usize = 512;

/// Maximum length of a deserialized phrase in bytes.
const MAX_PHRASE: usize = 200;

/// The names of operations, which are always deserialized.
const OPERATIONS: [&str; 7] = ["read", "write", "flush", "zero", "discard", "extents", "prefetch"];

/// Stands for phrases beyond these limits.
const OTHER: &str = "another";

/// The phrases that were deserialized. Each is allocated once, for as long as the process runs, and
/// so many at most: a compromised sender cannot use up memory.
#[derive(Debug)]
struct Phrases(BTreeSet<&'static str>);

impl Phrases {
    fn intern(&mut self, phrase: String) -> &'static str {
        // What depends on the operation must work whatever else was sent.
        let known = OPERATIONS.iter().find(|name| **name == phrase);
        if let Some(phrase) = known.or_else(|| self.0.get(phrase.as_str())) {
            return phrase;
        }
        if self.0.len() >= MAX_PHRASES || phrase.len() > MAX_PHRASE {
            return OTHER;
        }
        let phrase: &'static str = Box::leak(phrase.into_boxed_str());
        self.0.insert(phrase);
        phrase
    }
}

/// Deserializes a phrase of this program.
fn interned<'de, D: Deserializer<'de>>(deserializer: D) -> Result<&'static str, D::Error> {
    static PHRASES: Mutex<Phrases> = Mutex::new(Phrases(BTreeSet::new()));
    let phrase = String::deserialize(deserializer)?;
    Ok(PHRASES.lock().unwrap_or_else(PoisonError::into_inner).intern(phrase))
}

/// A request for access by a host that has proven that it knows the pairing code.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairingRequest {
    /// Identifies the request in the answer.
    pub number: u64,
    /// The name that the host will use: its host NQN, as received.
    pub host: String,
    /// The display name of the host, as received.
    pub name: String,
    /// Whether write access is requested.
    pub writable: bool,
    /// The secret shared with the host, from which keys are derived.
    pub secret: Secret,
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{Auth, KeyId, Op, Peer};

    fn sent(event: &Event<u64>) -> Event<u64> {
        serde_json::from_str(&serde_json::to_string(event).unwrap()).unwrap()
    }

    #[test]
    fn events_arrive_as_they_were_sent() {
        let peer =
            || Peer::ip(([10, 0, 0, 2], 1).into(), ([10, 0, 0, 1], 2).into(), Auth::Required);
        let host = || "host".to_owned();
        let proven = Some(KeyId::new(u64::MAX));
        let (read, written, reason) = (1, u64::MAX, Reason::Timeout);
        let secret = Secret::new(vec![0, 255]);
        let (name, number, writable) = ("name".to_owned(), 3, true);
        let request = Arc::new(PairingRequest { number, host: host(), name, writable, secret });
        let unix = || Peer::unix(Auth::None);
        let events = [
            Event::Attached { export: 7, peer: peer(), host: host(), proven, no_room: true },
            Event::Detached { export: 7, peer: peer(), host: host(), reason, read, written },
            Event::Refused { peer: unix(), host: host(), wanted: "disk".to_owned(), reason: "why" },
            Event::PairingRequested { peer: peer(), request },
            Event::Violation { peer: unix(), rule: "rule" },
            Event::Fault { export: 1, op: "read", offset: 2, len: 3, fault: Fault::Io },
        ];
        for event in events {
            assert_eq!(format!("{:?}", sent(&event)), format!("{event:?}"));
        }
    }

    #[test]
    fn deserialized_phrases_are_bounded() {
        let mut phrases = Phrases(BTreeSet::new());
        let interned: Vec<_> =
            (0..2 * MAX_PHRASES).map(|n| phrases.intern(format!("made up {n}"))).collect();
        assert_eq!(interned.iter().filter(|phrase| **phrase == OTHER).count(), MAX_PHRASES);
        assert_eq!(phrases.intern("made up 0".to_owned()), "made up 0");
        for op in [Op::Read, Op::Write { durable: false }, Op::Flush, Op::Discard, Op::Extents] {
            assert_eq!(phrases.intern(op.name().to_owned()), op.name());
        }
        let long = "x".repeat(MAX_PHRASE + 1);
        assert_eq!(Phrases(BTreeSet::new()).intern(long), OTHER);
    }
}
