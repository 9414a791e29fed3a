//! What happened, for the screen, the journal and `--json`. Libraries say it with these; only the program prints.

use std::sync::Arc;

use crate::{Export, Fault, Peer, Reason};

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
