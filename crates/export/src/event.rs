//! What happened, for the screen, the journal and `--json`. Libraries say it with these; only the program prints.

use std::sync::Arc;

use crate::{Export, Fault, KeyId, Peer, Reason, Secret};

/// Something that the machine's owner may want to know.
#[derive(Debug, Clone)]
pub enum Event {
    /// A host attached a disk.
    Attached {
        /// The disk.
        export: Arc<Export>,
        /// From where.
        peer: Peer,
        /// The name the host gives itself (NVMe: its host NQN), as received.
        host: String,
        /// The keys that it has proven to know within the protocol; that of the channel is the peer's.
        proven: Option<KeyId>,
    },
    /// A host that had attached a disk is gone.
    Detached {
        /// The disk.
        export: Arc<Export>,
        /// From where it had attached.
        peer: Peer,
        /// The name the host gave itself.
        host: String,
        /// Why.
        reason: Reason,
        /// Bytes that it has read meanwhile.
        read: u64,
        /// Bytes that it has written meanwhile.
        written: u64,
    },
    /// A host asked for something that it may not have, or that is not there.
    Refused {
        /// From where.
        peer: Peer,
        /// The name the host gives itself.
        host: String,
        /// What it asked for.
        wanted: String,
        /// Why not.
        why: &'static str,
    },
    /// Somebody who knows the code wants to be let in from now on.
    PairingRequested {
        /// From where.
        peer: Peer,
        /// Who, and what for.
        request: Arc<PairingRequest>,
    },
    /// A peer broke a rule of the protocol and was cut off.
    Violation {
        /// From where.
        peer: Peer,
        /// The rule, by the name that the protocol's module gives it.
        rule: &'static str,
    },
    /// The disk failed a request.
    Fault {
        /// The disk.
        export: Arc<Export>,
        /// What was asked of it: `read`, `write`, `flush`, `zero` or `discard`.
        op: &'static str,
        /// The first byte concerned.
        offset: u64,
        /// Bytes concerned.
        len: u64,
        /// How it failed.
        fault: Fault,
    },
}

/// Somebody who has proven to know the code on the screen, and waits for an answer.
#[derive(Debug, PartialEq, Eq)]
pub struct PairingRequest {
    /// Names it, for the answer.
    pub number: u64,
    /// The name that the host will give itself: its host NQN, as received.
    pub host: String,
    /// What its owner calls it, as received.
    pub name: String,
    /// Whether it wants to change disks, too.
    pub writable: bool,
    /// What both know now and nobody else; keys are derived from it.
    pub secret: Secret,
}
