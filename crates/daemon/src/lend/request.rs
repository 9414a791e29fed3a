//! Which disk to export, and where what hosts write to it goes.

use std::path::PathBuf;

/// A request to export a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LendRequest {
    /// Path as given by the user.
    pub path: PathBuf,
    /// Where what hosts write goes.
    pub writes: Writes,
}

/// Where what hosts write to a disk goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// Nowhere: the disk is exported read-only.
    Refused,
    /// To the disk.
    ToDisk,
    /// To memory. The disk is not changed, and is opened read-only.
    ToOverlay,
}

impl LendRequest {
    /// Returns whether the disk itself may be written.
    pub(super) fn writes_disk(&self) -> bool {
        self.writes == Writes::ToDisk
    }
}
