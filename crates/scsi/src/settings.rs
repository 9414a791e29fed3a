//! What the commands of an initiator leave behind for later ones.

use std::cell::Cell;

/// The state that jobs change.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// Whether the initiator has protected the disk from its own writes (SWP).
    pub(crate) protected: Cell<bool>,
    /// Whether the initiator has ejected the medium.
    pub(crate) ejected: Cell<bool>,
    /// The last copy.
    pub(crate) last_copy: Cell<Option<LastCopy>>,
}

/// The last copy of an initiator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LastCopy {
    pub(crate) list_id: u8,
    /// `None` while it is in progress; else whether it succeeded.
    pub(crate) succeeded: Option<bool>,
    /// Number of segments processed.
    pub(crate) segments: u16,
    /// Bytes written.
    pub(crate) bytes: u64,
}
