//! Events for the log, the screen and `--json`. Libraries emit them; only the program prints.

use std::sync::Arc;

use crate::{Export, Fault, KeyId, Peer, Reason, Secret};

/// Something that the administrator may want to know.
#[derive(Debug, Clone)]
pub enum Event {
    /// A host attached a disk.
    Attached {
        /// The disk.
        export: Arc<Export>,
        /// The connection it attached over.
        peer: Peer,
        /// The name that the host claims (NVMe: its host NQN), as received.
        host: String,
        /// The keys that the host has proven within the protocol. The channel's key is in `peer`.
        proven: Option<KeyId>,
    },
    /// A host detached a disk, or its connection was lost.
    Detached {
        /// The disk.
        export: Arc<Export>,
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
        why: &'static str,
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
        rule: &'static str,
    },
    /// A disk request failed.
    Fault {
        /// The disk.
        export: Arc<Export>,
        /// The operation, see [`Op::name`](crate::Op::name).
        op: &'static str,
        /// Offset of the first byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// How it failed.
        fault: Fault,
    },
}

/// A request for access by a host that has proven that it knows the pairing code.
#[derive(Debug, PartialEq, Eq)]
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
