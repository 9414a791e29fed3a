//! Allocation status of ranges of a disk, as a list of records in a buffer.

use zerocopy::byteorder::{LE, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A range of a disk with one allocation status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes.
    pub len: u64,
    /// Whether no storage is allocated for it.
    pub hole: bool,
    /// Whether it reads as zeros.
    pub zero: bool,
}

/// An extent as encoded in a buffer. A length of zero marks the end of a list that does not fill
/// its buffer.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Record {
    len: U64<LE>,
    hole: U32<LE>,
    zero: U32<LE>,
}

impl Extent {
    /// Length of an encoded extent, in bytes.
    pub const LEN: usize = size_of::<Record>();

    /// Returns an extent of `len` bytes of data.
    pub fn data(len: u64) -> Self {
        Self { len, hole: false, zero: false }
    }

    /// Returns an extent of `len` unallocated bytes, which read as zeros.
    pub fn hole(len: u64) -> Self {
        Self { len, hole: true, zero: true }
    }
}

/// Encodes extents into a buffer.
#[derive(Debug)]
pub struct Extents<'a> {
    buffer: &'a mut [u8],
    used: usize,
}

impl<'a> Extents<'a> {
    /// Returns an encoder that writes to the start of `buffer`, which is cleared.
    pub fn emit(buffer: &'a mut [u8]) -> Self {
        buffer.fill(0);
        Self { buffer, used: 0 }
    }

    /// Appends an extent, or extends the previous one if it has the same status. An empty extent is
    /// ignored. Returns false if the buffer is full.
    pub fn push(&mut self, extent: Extent) -> bool {
        if extent.len == 0 || self.join(extent) {
            return true;
        }
        let Some(place) = self.buffer.get_mut(self.used..self.used + Extent::LEN) else {
            return false;
        };
        let (hole, zero) = (u32::from(extent.hole).into(), u32::from(extent.zero).into());
        let record = Record { len: extent.len.into(), hole, zero };
        place.copy_from_slice(record.as_bytes());
        self.used += Extent::LEN;
        true
    }

    fn join(&mut self, extent: Extent) -> bool {
        let Some(start) = self.used.checked_sub(Extent::LEN) else { return false };
        let place = self.buffer.get_mut(start..self.used).unwrap_or_default();
        let Ok(record) = Record::mut_from_bytes(place) else { return false };
        let same = (record.hole.get() != 0, record.zero.get() != 0) == (extent.hole, extent.zero);
        let len = record.len.get().checked_add(extent.len).filter(|_| same);
        len.map(|len| record.len = len.into()).is_some()
    }

    /// Decodes the extents in a buffer.
    pub fn parse(buffer: &[u8]) -> impl Iterator<Item = Extent> + '_ {
        let records = buffer.chunks_exact(Extent::LEN).map_while(|bytes| {
            let record = Record::ref_from_bytes(bytes).ok()?;
            let (hole, zero) = (record.hole.get() != 0, record.zero.get() != 0);
            Some(Extent { len: record.len.get(), hole, zero })
        });
        records.take_while(|extent| extent.len != 0)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn extents_round_trip_and_adjacent_equal_ones_are_merged() {
        let mut buffer = [7; 4 * Extent::LEN + 5];
        let mut extents = Extents::emit(&mut buffer);
        let some = [Extent::data(4096), Extent::hole(1 << 40), Extent::hole(512), Extent::data(1)];
        assert!(some.into_iter().all(|extent| extents.push(extent)));
        assert!(extents.push(Extent::data(0)));
        let back: Vec<Extent> = Extents::parse(&buffer).collect();
        assert_eq!(back, [Extent::data(4096), Extent::hole((1 << 40) + 512), Extent::data(1)]);
    }

    #[test]
    fn push_to_a_full_buffer_fails() {
        let mut buffer = [0; Extent::LEN];
        let mut extents = Extents::emit(&mut buffer);
        assert!(extents.push(Extent::data(1)));
        assert!(!extents.push(Extent::hole(1)));
        assert!(extents.push(Extent::data(1)));
        assert_eq!(Extents::parse(&buffer).collect::<Vec<_>>(), [Extent::data(2)]);
    }
}
