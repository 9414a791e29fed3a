//! Parameter list of EXTENDED COPY (LID1) and data of RECEIVE COPY RESULTS (SPC-4).

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The header of the parameter list: 16 bytes (SPC-4).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Header {
    /// Identifies the copy.
    pub list_id: u8,
    /// STR, LIST ID USAGE, PRIORITY.
    pub flags: u8,
    /// Length of the CSCD descriptors.
    pub disks: U16,
    /// Reserved.
    pub reserved: [u8; 4],
    /// Length of the segment descriptors.
    pub segments: U32,
    /// Length of the inline data.
    pub inline: U32,
}
const _: () = assert!(size_of::<Header>() == 16);

/// Type of a CSCD descriptor: identification descriptor.
pub const IDENTIFICATION: u8 = 0xe4;

/// An identification CSCD descriptor: 32 bytes (SPC-4).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Disk {
    /// [`IDENTIFICATION`].
    pub kind: u8,
    /// LU ID TYPE, peripheral device type.
    pub flags: u8,
    /// Relative initiator port identifier.
    pub port: U16,
    /// Code set.
    pub code_set: u8,
    /// Association and type of the designator.
    pub designator: u8,
    /// Reserved.
    pub reserved: u8,
    /// Length of the designator.
    pub length: u8,
    /// The designator.
    pub name: [u8; 20],
    /// Block length and others.
    pub specific: U32,
}
const _: () = assert!(size_of::<Disk>() == 32);

/// Type of a segment descriptor: block device to block device.
pub const BLOCKS: u8 = 0x02;

/// A segment descriptor of the type [`BLOCKS`]: 28 bytes (SPC-4).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Segment {
    /// [`BLOCKS`].
    pub kind: u8,
    /// DC, CAT.
    pub flags: u8,
    /// Length of what follows: 24.
    pub length: U16,
    /// Index of the source in the CSCD descriptors.
    pub source: U16,
    /// Index of the destination in the CSCD descriptors.
    pub destination: U16,
    /// Reserved.
    pub reserved: [u8; 2],
    /// Number of blocks.
    pub blocks: U16,
    /// The first block of the source.
    pub source_lba: U64,
    /// The first block of the destination.
    pub destination_lba: U64,
}
const _: () = assert!(size_of::<Segment>() == 28);

/// Flag of [`OperatingParameters::flags`]: lists without identifier are supported.
pub const SNLID: u8 = 0x01;

/// Data of RECEIVE COPY OPERATING PARAMETERS: 46 bytes (SPC-4).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct OperatingParameters {
    /// Length of what follows: 42.
    pub available: U32,
    /// [`SNLID`].
    pub flags: u8,
    /// Reserved.
    pub reserved: [u8; 3],
    /// Maximum number of CSCD descriptors.
    pub max_disks: U16,
    /// Maximum number of segment descriptors.
    pub max_segments: U16,
    /// Maximum length of all descriptors.
    pub max_length: U32,
    /// Maximum length of a segment in bytes.
    pub max_segment: U32,
    /// Inline data, held data, stream devices: not supported.
    pub unsupported: [U32; 3],
    /// Reserved.
    pub reserved_2: [u8; 2],
    /// Maximum number of copies at the same time, in all.
    pub total_concurrent: U16,
    /// Maximum number of copies with an identifier at the same time.
    pub concurrent: u8,
    /// Binary logarithm of the granularity of segments, in bytes.
    pub granularity: u8,
    /// Granularity of inline and of held data.
    pub others: [u8; 2],
    /// Reserved.
    pub reserved_3: [u8; 3],
    /// Length of the list of descriptor types: 2.
    pub types_length: u8,
    /// [`BLOCKS`], [`IDENTIFICATION`].
    pub types: [u8; 2],
}
const _: () = assert!(size_of::<OperatingParameters>() == 46);

/// Copy manager status: in progress.
pub const IN_PROGRESS: u8 = 0;
/// Copy manager status: completed without errors.
pub const COMPLETED: u8 = 1;
/// Copy manager status: completed with errors.
pub const FAILED: u8 = 2;

/// Data of RECEIVE COPY STATUS: 12 bytes (SPC-4).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct CopyStatus {
    /// Length of what follows: 8.
    pub available: U32,
    /// [`IN_PROGRESS`], [`COMPLETED`] or [`FAILED`].
    pub status: u8,
    /// Number of segments processed.
    pub segments: U16,
    /// Unit of the transfer count: 1 is KiB.
    pub unit: u8,
    /// Transfer count.
    pub count: U32,
}
const _: () = assert!(size_of::<CopyStatus>() == 12);
