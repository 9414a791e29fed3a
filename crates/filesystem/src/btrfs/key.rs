//! Keys of items.

use crate::window::le64;

/// Key of an item. Items are in the order of the object, then the type, then the offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) object: u64,
    pub(super) kind: u8,
    pub(super) offset: u64,
}

impl Key {
    pub(super) const LENGTH: usize = 17;

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self { object: le64(bytes, 0)?, kind: *bytes.get(8)?, offset: le64(bytes, 9)? })
    }
}
