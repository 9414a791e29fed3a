//! Data of REPORT LUNS and REPORT SUPPORTED OPERATION CODES (SPC-4 §6.33, §6.35).

use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The header of the data of REPORT LUNS: 8 bytes (SPC-4 §6.33).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct LunsHeader {
    /// Length of the list that follows, in bytes.
    pub length: U32,
    /// Reserved.
    pub reserved: [u8; 4],
}
const _: () = assert!(size_of::<LunsHeader>() == 8);

/// Flag of [`CommandDescriptor::flags`]: a [`Timeouts`] follows.
pub const CTDP: u8 = 0x02;
/// Flag of [`CommandDescriptor::flags`]: the service action is valid.
pub const SERVACTV: u8 = 0x01;

/// A command descriptor: 8 bytes (SPC-4 §6.35.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct CommandDescriptor {
    /// Operation code.
    pub opcode: u8,
    /// Reserved.
    pub reserved: u8,
    /// Service action.
    pub action: U16,
    /// Reserved.
    pub reserved_2: u8,
    /// [`CTDP`], [`SERVACTV`].
    pub flags: u8,
    /// Length of the CDB in bytes.
    pub length: U16,
}
const _: () = assert!(size_of::<CommandDescriptor>() == 8);

/// A command timeouts descriptor: 12 bytes (SPC-4 §6.35.4). 0 is not reported.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Timeouts {
    /// Length of what follows: 10.
    pub length: U16,
    /// Reserved.
    pub reserved: u8,
    /// Command specific.
    pub specific: u8,
    /// Nominal processing timeout in seconds.
    pub nominal: U32,
    /// Recommended timeout in seconds.
    pub recommended: U32,
}
const _: () = assert!(size_of::<Timeouts>() == 12);

/// Flag of [`OneCommand::support`]: a [`Timeouts`] follows the CDB usage data.
pub const ONE_CTDP: u8 = 0x80;
/// Value of [`OneCommand::support`]: not supported.
pub const NOT_SUPPORTED: u8 = 1;
/// Value of [`OneCommand::support`]: supported in conformance with a standard.
pub const SUPPORTED: u8 = 3;

/// The header of the data for one command: 4 bytes, followed by the CDB usage data (SPC-4 §6.35.3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct OneCommand {
    /// Reserved.
    pub reserved: u8,
    /// [`ONE_CTDP`], and [`SUPPORTED`] or [`NOT_SUPPORTED`].
    pub support: u8,
    /// Length of the CDB usage data in bytes.
    pub length: U16,
}
const _: () = assert!(size_of::<OneCommand>() == 4);
