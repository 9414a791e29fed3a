//! Capacity and allocation status (SBC-3, MMC-6).

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Data of READ CAPACITY (10): 8 bytes (SBC-3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Capacity10 {
    /// The last block, or FFFFFFFFh if it does not fit.
    pub last_lba: U32,
    /// Logical block length in bytes.
    pub block: U32,
}
const _: () = assert!(size_of::<Capacity10>() == 8);

/// Flag of [`Capacity16::provisioning`]: logical block provisioning management is enabled.
pub const LBPME: u16 = 0x8000;
/// Flag of [`Capacity16::provisioning`]: unmapped blocks read as zeros.
pub const LBPRZ: u16 = 0x4000;

/// Data of READ CAPACITY (16): 32 bytes (SBC-3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Capacity16 {
    /// The last block.
    pub last_lba: U64,
    /// Logical block length in bytes.
    pub block: U32,
    /// Protection information: none.
    pub protection: u8,
    /// Binary logarithm of the number of logical blocks in a physical one.
    pub exponent: u8,
    /// [`LBPME`], [`LBPRZ`], and the lowest aligned block.
    pub provisioning: U16,
    /// Reserved.
    pub reserved: [u8; 16],
}
const _: () = assert!(size_of::<Capacity16>() == 32);

/// Descriptor type of [`FormatCapacities`]: formatted medium.
pub const FORMATTED: u8 = 2;

/// Data of READ FORMAT CAPACITIES: 12 bytes (MMC-6).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct FormatCapacities {
    /// Reserved.
    pub reserved: [u8; 3],
    /// Length of what follows: 8.
    pub length: u8,
    /// Number of blocks, or FFFFFFFFh if it does not fit.
    pub blocks: U32,
    /// [`FORMATTED`].
    pub kind: u8,
    /// Logical block length in bytes.
    pub block: [u8; 3],
}
const _: () = assert!(size_of::<FormatCapacities>() == 12);
