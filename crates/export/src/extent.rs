//! What of a disk is data and what is not, as records in a buffer. It knows no disk and no protocol.

use zerocopy::byteorder::{LE, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A part of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes; never zero.
    pub len: u64,
    /// Whether nothing is stored for it.
    pub hole: bool,
    /// Whether it reads as zeros.
    pub zero: bool,
}

/// An extent as it stands in a buffer. A length of zero ends the records, if the buffer does not.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Record {
    len: U64<LE>,
    hole: U32<LE>,
    zero: U32<LE>,
}

impl Extent {
    /// Bytes of a record in a buffer.
    pub const LEN: usize = size_of::<Record>();

    /// Part of a disk with data.
    pub fn data(len: u64) -> Self {
        Self { len, hole: false, zero: false }
    }

    /// Part of a disk with nothing, which reads as zeros.
    pub fn hole(len: u64) -> Self {
        Self { len, hole: true, zero: true }
    }
}

/// Writes extents into a buffer, one after the other.
#[derive(Debug)]
pub struct Extents<'a> {
    buffer: &'a mut [u8],
    used: usize,
}

impl<'a> Extents<'a> {
    /// Into this one, from its start on.
    pub fn emit(buffer: &'a mut [u8]) -> Self {
        buffer.fill(0);
        Self { buffer, used: 0 }
    }

    /// Appends one; it joins the one before if it is of the same kind. Tells whether there was room.
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

    /// Reads those that a buffer holds.
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
    fn extents_come_back_as_they_were_written_and_like_ones_are_joined() {
        let mut buffer = [7; 4 * Extent::LEN + 5];
        let mut extents = Extents::emit(&mut buffer);
        let some = [Extent::data(4096), Extent::hole(1 << 40), Extent::hole(512), Extent::data(1)];
        assert!(some.into_iter().all(|extent| extents.push(extent)));
        assert!(extents.push(Extent::data(0)));
        let back: Vec<Extent> = Extents::parse(&buffer).collect();
        assert_eq!(back, [Extent::data(4096), Extent::hole((1 << 40) + 512), Extent::data(1)]);
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let mut buffer = [0; Extent::LEN];
        let mut extents = Extents::emit(&mut buffer);
        assert!(extents.push(Extent::data(1)));
        assert!(!extents.push(Extent::hole(1)));
        assert!(extents.push(Extent::data(1)));
        assert_eq!(Extents::parse(&buffer).collect::<Vec<_>>(), [Extent::data(2)]);
    }
}
