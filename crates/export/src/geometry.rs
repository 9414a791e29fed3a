//! Block sizes, and the arithmetic between blocks and bytes.

use crate::Fault;

/// The block sizes of an export. They do not change while it is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    shift: u8,
    /// Physical block size in bytes: the smallest write without a read-modify-write cycle; at least
    /// one block.
    pub physical: u32,
    /// The writes that the disk does atomically, if any.
    pub atomic: Option<AtomicWrites>,
}

/// Which writes a disk does atomically: after a failure of the power, of the disk or of the machine it has all of
/// the data or none of it. Each has a length that is a power of two, and begins at a multiple of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtomicWrites {
    min: u32,
    max: u32,
}

impl AtomicWrites {
    /// Returns lengths from `min` to `max` bytes, or `None` unless both are powers of two and in this order.
    pub fn new(min: u32, max: u32) -> Option<Self> {
        (min.is_power_of_two() && max.is_power_of_two() && min <= max).then_some(Self { min, max })
    }

    /// Returns the smallest length in bytes.
    pub fn min(self) -> u32 {
        self.min
    }

    /// Returns the largest length in bytes.
    pub fn max(self) -> u32 {
        self.max
    }

    /// Returns whether `len` bytes from `offset` on are written atomically.
    pub fn cover(self, offset: u64, len: u64) -> bool {
        let lengths = u64::from(self.min)..=u64::from(self.max);
        len.is_power_of_two() && lengths.contains(&len) && offset.is_multiple_of(len)
    }
}

impl Geometry {
    /// Returns a geometry with a logical block size of `block` bytes, or `None` unless that is a
    /// power of two from 512 to 65536. A `physical` size that is not a power of two is replaced by
    /// `block`.
    pub fn new(block: u32, physical: u32) -> Option<Self> {
        let valid = block.is_power_of_two() && (512..=65536).contains(&block);
        let physical = if physical.is_power_of_two() { physical.max(block) } else { block };
        #[allow(clippy::cast_possible_truncation, reason = "at most 16")]
        valid.then_some(Self { shift: block.trailing_zeros() as u8, physical, atomic: None })
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
    fn atomic_writes_are_aligned_powers_of_two() {
        let writes = AtomicWrites::new(512, 4096).unwrap();
        let covered = [(0, 512), (512, 512), (8192, 4096), (2048, 2048), (0, 4096)];
        assert!(covered.iter().all(|&(offset, len)| writes.cover(offset, len)));
        let others = [(0, 0), (0, 256), (0, 1536), (512, 1024), (2048, 4096), (0, 8192)];
        assert!(!others.iter().any(|&(offset, len)| writes.cover(offset, len)));
        assert_eq!(AtomicWrites::new(4096, 512), None);
        assert_eq!(AtomicWrites::new(0, 512), None);
        assert_eq!(AtomicWrites::new(512, 1536), None);
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
