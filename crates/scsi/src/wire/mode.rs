//! Mode parameters (SPC-4 §7.5, SBC-3).

use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Codes of mode pages.
pub mod page {
    /// Caching.
    pub const CACHING: u8 = 0x08;
    /// Control.
    pub const CONTROL: u8 = 0x0a;
    /// Informational exceptions control.
    pub const EXCEPTIONS: u8 = 0x1c;
    /// All pages.
    pub const ALL: u8 = 0x3f;
}

/// Subpage code: all subpages.
pub const ALL_SUBPAGES: u8 = 0xff;

/// Flag of the device-specific parameter: write protected.
pub const WP: u8 = 0x80;
/// Flag of the device-specific parameter: DPO and FUA are supported.
pub const DPOFUA: u8 = 0x10;

/// Header of MODE SENSE (6) and MODE SELECT (6): 4 bytes (SPC-4 §7.5).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Header6 {
    /// Length of what follows this field.
    pub length: u8,
    /// Medium type: 0.
    pub medium: u8,
    /// [`WP`], [`DPOFUA`].
    pub device_specific: u8,
    /// Length of the block descriptors.
    pub descriptors: u8,
}
const _: () = assert!(size_of::<Header6>() == 4);

/// Header of MODE SENSE (10) and MODE SELECT (10): 8 bytes (SPC-4 §7.5).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Header10 {
    /// Length of what follows this field.
    pub length: U16,
    /// Medium type: 0.
    pub medium: u8,
    /// [`WP`], [`DPOFUA`].
    pub device_specific: u8,
    /// LONGLBA: never set.
    pub long_lba: u8,
    /// Reserved.
    pub reserved: u8,
    /// Length of the block descriptors.
    pub descriptors: U16,
}
const _: () = assert!(size_of::<Header10>() == 8);

/// Short LBA block descriptor: 8 bytes (SBC-3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct BlockDescriptor {
    /// Number of blocks, or FFFFFFFFh if it does not fit.
    pub blocks: U32,
    /// Reserved.
    pub reserved: u8,
    /// Logical block length in bytes.
    pub block: [u8; 3],
}
const _: () = assert!(size_of::<BlockDescriptor>() == 8);

/// Flag of the caching page: the write cache is enabled.
pub const WCE: u8 = 0x04;
/// Flag of the control page: the log does not save implicitly.
pub const GLTSD: u8 = 0x02;
/// Flag of the control page: software write protect.
pub const SWP: u8 = 0x08;
/// Index of [`SWP`] in the control page.
pub const SWP_AT: usize = 4;
/// Value of the control page: commands may be reordered without restriction.
pub const REORDERED: u8 = 0x10;
/// Flag of the informational exceptions control page: no exceptions are reported.
pub const DEXCPT: u8 = 0x08;
