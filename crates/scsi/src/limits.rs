//! The longest transfers, as reported in the block limits page. The functions return blocks.

use export::{AtomicWrites, Geometry};

/// Longest transfer in bytes: bounds the time of one command. libiscsi's suite writes 65536 blocks of
/// 512 bytes at once.
const TRANSFER_BYTES: u32 = 32 << 20;

/// Longest WRITE SAME in bytes: bounds the time of one command, if zeros have to be written.
const WRITE_SAME_BYTES: u32 = 128 << 20;

/// Longest COMPARE AND WRITE in bytes. Both halves of its data and the data read must fit in the
/// memory of a connection.
const COMPARE_AND_WRITE_BYTES: u32 = 64 << 10;

/// Longest WRITE ATOMIC in bytes. Its data and the data read must fit in the memory of a connection.
const ATOMIC_BYTES: u32 = 128 << 10;

/// Maximum number of descriptors of UNMAP.
pub(crate) const UNMAP_DESCRIPTORS: u16 = 256;

/// Returns the longest transfer.
pub(crate) fn transfer(geometry: Geometry) -> u32 {
    TRANSFER_BYTES >> geometry.shift()
}

/// Returns the longest WRITE SAME.
pub(crate) fn write_same(geometry: Geometry) -> u32 {
    WRITE_SAME_BYTES >> geometry.shift()
}

/// Returns the lengths of a WRITE ATOMIC in bytes, if the disk supports any.
pub(crate) fn atomic_writes(geometry: Geometry) -> Option<AtomicWrites> {
    let writes = geometry.atomic?;
    AtomicWrites::new(writes.min(), writes.max().min(ATOMIC_BYTES))
}

/// Returns the longest COMPARE AND WRITE.
pub(crate) fn compare_and_write(geometry: Geometry) -> u8 {
    u8::try_from(COMPARE_AND_WRITE_BYTES >> geometry.shift()).unwrap_or(u8::MAX)
}
