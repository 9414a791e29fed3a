//! Range lists of Dataset Management and Copy.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A range of Dataset Management: 16 bytes (NVM 1.0 §3.2.3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct DsmRange {
    /// Context attributes: hints only.
    pub cattr: U32,
    /// Length in logical blocks, not 0's based.
    pub nlb: U32,
    /// First logical block.
    pub slba: U64,
}
const _: () = assert!(size_of::<DsmRange>() == 16);

/// A source range of Copy, descriptor format 0: 32 bytes (NVM 1.0 §3.2.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct CopyRange0 {
    pub(crate) _rsvd0: [u8; 8],
    /// First logical block.
    pub slba: U64,
    /// Length in logical blocks, 0's based: see [`Self::blocks`].
    pub nlb: U16,
    pub(crate) _rsvd18: [u8; 6],
    /// Expected initial logical block reference tag.
    pub eilbrt: [u8; 4],
    /// Expected logical block application tag.
    pub elbat: U16,
    /// Expected logical block application tag mask.
    pub elbatm: U16,
}
const _: () = assert!(size_of::<CopyRange0>() == 32);

/// A source range of Copy, descriptor format 1: 40 bytes (NVM 1.0 §3.2.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct CopyRange1 {
    pub(crate) _rsvd0: [u8; 8],
    /// First logical block.
    pub slba: U64,
    /// Length in logical blocks, 0's based: see [`Self::blocks`].
    pub nlb: U16,
    pub(crate) _rsvd18: [u8; 8],
    /// Expected logical block storage and reference tags.
    pub elbt: [u8; 10],
    /// Expected logical block application tag.
    pub elbat: U16,
    /// Expected logical block application tag mask.
    pub elbatm: U16,
}
const _: () = assert!(size_of::<CopyRange1>() == 40);

impl CopyRange0 {
    /// Returns the length in logical blocks: 1 to 65536.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        u32::from(self.nlb.get()).saturating_add(1)
    }
}

impl CopyRange1 {
    /// Returns the length in logical blocks: 1 to 65536.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        u32::from(self.nlb.get()).saturating_add(1)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use core::mem::offset_of;
    use zerocopy::FromZeros;

    #[test]
    fn golden_dsm_range() {
        #[rustfmt::skip]
        let bytes = [
            0x04, 0, 0, 0,                 // attributes
            0x00, 0x01, 0, 0,              // 256 blocks
            0x10, 0, 0, 0, 0x02, 0, 0, 0,  // from block 2_0000_0010h
        ];
        let range = DsmRange::read_from_bytes(&bytes).unwrap();
        assert_eq!((range.cattr.get(), range.nlb.get()), (4, 256));
        assert_eq!(range.slba.get(), 0x2_0000_0010);
        assert_eq!(range.as_bytes(), bytes);
    }

    #[test]
    fn golden_copy_range_0() {
        let mut bytes = [0; 32];
        bytes[8] = 0x40; // SLBA 64
        bytes[16..18].copy_from_slice(&[0xff, 0x00]); // NLB 255: 256 blocks
        bytes[24..32].copy_from_slice(&[1, 2, 3, 4, 5, 0, 6, 0]);
        let range = CopyRange0::read_from_bytes(&bytes).unwrap();
        assert_eq!((range.slba.get(), range.blocks()), (64, 256));
        assert_eq!(range.eilbrt, [1, 2, 3, 4]);
        assert_eq!((range.elbat.get(), range.elbatm.get()), (5, 6));
    }

    #[test]
    fn golden_copy_range_1() {
        let mut bytes = [0; 40];
        bytes[8] = 0x40; // SLBA 64
        bytes[16..18].copy_from_slice(&[0xff, 0xff]); // NLB FFFFh: 65536 blocks
        bytes[36] = 5;
        let range = CopyRange1::read_from_bytes(&bytes).unwrap();
        assert_eq!((range.slba.get(), range.blocks()), (64, 65536));
        assert_eq!(range.elbat.get(), 5);
        assert_eq!(offset_of!(CopyRange1, elbt), 26);
        assert_eq!(CopyRange1::new_zeroed().blocks(), 1);
    }
}
