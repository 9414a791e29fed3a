//! Parameter list of UNMAP and data of GET LBA STATUS (SBC-3).

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The header of the parameter list of UNMAP: 8 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct UnmapHeader {
    /// Length of what follows this field.
    pub length: U16,
    /// Length of the descriptors.
    pub descriptors: U16,
    /// Reserved.
    pub reserved: [u8; 4],
}
const _: () = assert!(size_of::<UnmapHeader>() == 8);

/// A block descriptor of UNMAP: 16 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct UnmapDescriptor {
    /// The first block.
    pub lba: U64,
    /// The number of blocks.
    pub blocks: U32,
    /// Reserved.
    pub reserved: [u8; 4],
}
const _: () = assert!(size_of::<UnmapDescriptor>() == 16);

/// The header of the data of GET LBA STATUS: 8 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct LbaStatusHeader {
    /// Length of what follows this field.
    pub length: U32,
    /// Reserved.
    pub reserved: [u8; 4],
}
const _: () = assert!(size_of::<LbaStatusHeader>() == 8);

/// Provisioning status: mapped.
pub const MAPPED: u8 = 0;
/// Provisioning status: deallocated.
pub const DEALLOCATED: u8 = 1;

/// An LBA status descriptor: 16 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct LbaStatusDescriptor {
    /// The first block.
    pub lba: U64,
    /// The number of blocks.
    pub blocks: U32,
    /// [`MAPPED`] or [`DEALLOCATED`].
    pub status: u8,
    /// Reserved.
    pub reserved: [u8; 3],
}
const _: () = assert!(size_of::<LbaStatusDescriptor>() == 16);
