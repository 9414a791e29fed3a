//! Block sizes, and the arithmetic between blocks and bytes.

use crate::Fault;

/// The block sizes of an export. They do not change while it is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    shift: u8,
    /// Physical block size in bytes: the smallest write without a read-modify-write cycle; at least
    /// one block.
    pub physical: u32,
}

impl Geometry {
    /// Returns a geometry with a logical block size of `block` bytes, or `None` unless that is a
    /// power of two from 512 to 65536. A `physical` size that is not a power of two is replaced by
    /// `block`.
    pub fn new(block: u32, physical: u32) -> Option<Self> {
        let valid = block.is_power_of_two() && (512..=65536).contains(&block);
        let physical = if physical.is_power_of_two() { physical.max(block) } else { block };
        #[allow(clippy::cast_possible_truncation, reason = "at most 16")]
        valid.then_some(Self { shift: block.trailing_zeros() as u8, physical })
    }

    /// Returns the logical block size in bytes.
    pub fn block(&self) -> u32 {
        1 << self.shift
    }

    /// Returns the binary logarithm of the logical block size.
    pub fn shift(&self) -> u8 {
        self.shift
    }

    /// Converts bytes to blocks, rounding down.
    pub fn blocks_in(&self, bytes: u64) -> u64 {
        bytes >> self.shift
    }

    /// Converts bytes to blocks, rounding up.
    pub fn blocks_for(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.block().into())
    }

    /// Converts a range of `blocks` blocks from `lba` to an offset and a length in bytes.
    /// `capacity` is that of the disk, in blocks.
    ///
    /// # Errors
    /// [`Fault::OutOfRange`] if the range extends beyond the capacity or overflows.
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
    fn only_powers_of_two_from_512_to_65536_are_block_sizes() {
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
