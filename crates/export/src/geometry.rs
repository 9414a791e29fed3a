//! Block sizes and capacity, and all arithmetic between blocks and bytes. It knows no disk.

use crate::Fault;

/// The shape of an export, fixed while it is lent: its block size, and what it prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    shift: u8,
    /// The smallest piece that the disk writes without reading first, in bytes; at least one block.
    pub physical: u32,
}

impl Geometry {
    /// A geometry of `block` bytes a block: a power of two from 512 to 65536. Nothing for any other.
    pub fn new(block: u32, physical: u32) -> Option<Self> {
        let valid = block.is_power_of_two() && (512..=65536).contains(&block);
        let physical = if physical.is_power_of_two() { physical.max(block) } else { block };
        #[allow(clippy::cast_possible_truncation, reason = "at most 16")]
        valid.then_some(Self { shift: block.trailing_zeros() as u8, physical })
    }

    /// Bytes of a block.
    pub fn block(&self) -> u32 {
        1 << self.shift
    }

    /// Binary logarithm of the block size.
    pub fn shift(&self) -> u8 {
        self.shift
    }

    /// Whole blocks in `bytes`; a rest is not counted.
    pub fn blocks_in(&self, bytes: u64) -> u64 {
        bytes >> self.shift
    }

    /// Blocks that hold `bytes`, with a rest counted as one.
    pub fn blocks_for(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.block().into())
    }

    /// The bytes `[offset, offset + len)` of `blocks` blocks from `lba` on a disk of `capacity` blocks.
    ///
    /// # Errors
    /// [`Fault::OutOfRange`] if a block is beyond the end, or the sum overflows.
    pub fn bytes_of(&self, lba: u64, blocks: u64, capacity: u64) -> Result<(u64, u64), Fault> {
        let end = lba.checked_add(blocks).ok_or(Fault::OutOfRange)?;
        if end > capacity {
            return Err(Fault::OutOfRange);
        }
        let bytes = |n: u64| n.checked_mul(u64::from(self.block())).ok_or(Fault::OutOfRange);
        Ok((bytes(lba)?, bytes(blocks)?))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn only_powers_of_two_from_512_are_block_sizes() {
        assert!([512, 4096, 65536].iter().all(|&b| Geometry::new(b, b).is_some()));
        assert!([0, 1, 256, 513, 131_072].iter().all(|&b| Geometry::new(b, b).is_none()));
    }

    #[test]
    fn the_last_block_is_in_range_and_the_next_is_not() {
        let geometry = Geometry::new(512, 4096).unwrap();
        assert_eq!(geometry.bytes_of(7, 1, 8), Ok((3584, 512)));
        assert_eq!(geometry.bytes_of(8, 1, 8), Err(Fault::OutOfRange));
        assert_eq!(geometry.bytes_of(7, 2, 8), Err(Fault::OutOfRange));
        assert_eq!(geometry.bytes_of(u64::MAX, 1, 8), Err(Fault::OutOfRange));
        assert_eq!(geometry.bytes_of(1, u64::MAX, u64::MAX), Err(Fault::OutOfRange));
        assert_eq!(geometry.bytes_of(u64::MAX - 1, 1, u64::MAX), Err(Fault::OutOfRange));
    }
}
