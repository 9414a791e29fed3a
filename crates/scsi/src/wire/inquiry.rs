//! Data of INQUIRY (SPC-4 §6.6, §7.8; SBC-3).

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Codes of vital product data pages.
pub mod page {
    /// Supported VPD pages.
    pub const SUPPORTED: u8 = 0x00;
    /// Unit serial number.
    pub const SERIAL: u8 = 0x80;
    /// Device identification.
    pub const IDENTIFICATION: u8 = 0x83;
    /// Extended INQUIRY data.
    pub const EXTENDED: u8 = 0x86;
    /// Block limits.
    pub const LIMITS: u8 = 0xb0;
    /// Block device characteristics.
    pub const CHARACTERISTICS: u8 = 0xb1;
    /// Logical block provisioning.
    pub const PROVISIONING: u8 = 0xb2;
    /// All supported pages, in ascending order.
    pub const ALL: [u8; 7] =
        [SUPPORTED, SERIAL, IDENTIFICATION, EXTENDED, LIMITS, CHARACTERISTICS, PROVISIONING];
}

/// Peripheral qualifier and device type: a connected direct access block device.
pub const DISK: u8 = 0x00;
/// Peripheral qualifier and device type: no disk is connected, but one can be.
pub const UNCONNECTED: u8 = 0x20;
/// Peripheral qualifier and device type: no device can be at this LUN.
pub const ABSENT: u8 = 0x7f;
/// Version: SPC-4.
pub const VERSION_SPC_4: u8 = 0x06;
/// Response data format: SPC-2 and later.
pub const FORMAT: u8 = 0x02;
/// Flag of [`Standard::flags`], in the first of them: third-party copy is supported.
pub const THIRD_PARTY_COPY: u8 = 0x08;
/// Flag of [`Standard::flags`], in the last of them: commands are queued.
pub const CMDQUE: u8 = 0x02;

/// Flag of [`Standard::removable`]: the medium can be removed.
pub const REMOVABLE: u8 = 0x80;

/// Version descriptors: SAM-5, SPC-4 and SBC-3 (SPC-4 §6.6.2).
pub const STANDARDS: [u16; 3] = [0x00a0, 0x0460, 0x04c0];

/// Standard INQUIRY data: 96 bytes (SPC-4 §6.6.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Standard {
    /// [`DISK`], [`UNCONNECTED`] or [`ABSENT`].
    pub peripheral: u8,
    /// [`REMOVABLE`], or zero.
    pub removable: u8,
    /// [`VERSION_SPC_4`].
    pub version: u8,
    /// [`FORMAT`].
    pub format: u8,
    /// Length of what follows: 91.
    pub additional_length: u8,
    /// SCCS, TPGS, PROTECT and others, [`CMDQUE`].
    pub flags: [u8; 3],
    /// T10 vendor identification.
    pub vendor: [u8; 8],
    /// Product identification.
    pub product: [u8; 16],
    /// Product revision level.
    pub revision: [u8; 4],
    /// Vendor specific.
    pub specific: [u8; 20],
    /// Reserved.
    pub reserved: [u8; 2],
    /// Version descriptors.
    pub versions: [U16; 8],
    /// Reserved.
    pub reserved_2: [u8; 22],
}
const _: () = assert!(size_of::<Standard>() == 96);

/// The header of a vital product data page: 4 bytes (SPC-4 §7.8).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct PageHeader {
    /// [`DISK`].
    pub peripheral: u8,
    /// One of [`page`].
    pub code: u8,
    /// Length of what follows.
    pub length: U16,
}
const _: () = assert!(size_of::<PageHeader>() == 4);

/// The header of a designator: 4 bytes (SPC-4 §7.8).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct DesignatorHeader {
    /// Protocol identifier, and one of [`code_set`].
    pub protocol_and_code_set: u8,
    /// Whether the protocol identifier is valid, one of [`association`], one of [`designator`].
    pub kind: u8,
    /// Reserved.
    pub reserved: u8,
    /// Length of the designator.
    pub length: u8,
}
const _: () = assert!(size_of::<DesignatorHeader>() == 4);

/// Flag of [`DesignatorHeader::kind`]: the protocol identifier is valid.
pub const PIV: u8 = 0x80;

/// Code sets of designators.
pub mod code_set {
    /// Binary.
    pub const BINARY: u8 = 1;
    /// ASCII.
    pub const ASCII: u8 = 2;
    /// UTF-8.
    pub const UTF_8: u8 = 3;
}

/// Associations of designators, in their place in [`DesignatorHeader::kind`].
pub mod association {
    /// The logical unit.
    pub const UNIT: u8 = 0x00;
    /// The target port.
    pub const PORT: u8 = 0x10;
    /// The target device.
    pub const DEVICE: u8 = 0x20;
}

/// Types of designators (SPC-4 §7.8).
pub mod designator {
    /// T10 vendor ID based.
    pub const VENDOR: u8 = 1;
    /// NAA.
    pub const NAA: u8 = 3;
    /// Relative target port identifier.
    pub const RELATIVE_PORT: u8 = 4;
    /// SCSI name string.
    pub const NAME: u8 = 8;
}

/// Flag of [`Extended::attributes`]: SIMPLE task attribute supported.
pub const SIMPSUP: u8 = 0x01;
/// Flag of [`Extended::cache`]: volatile cache supported.
pub const V_SUP: u8 = 0x01;

/// Extended INQUIRY data page: 64 bytes (SPC-4 §7.8).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Extended {
    /// Header.
    pub header: PageHeader,
    /// Protection information: none.
    pub protection: u8,
    /// [`SIMPSUP`].
    pub attributes: u8,
    /// [`V_SUP`].
    pub cache: u8,
    /// Others: none.
    pub others: [u8; 57],
}
const _: () = assert!(size_of::<Extended>() == 64);

/// Flag of [`Limits::unmap_alignment`]: it is valid.
pub const UGAVALID: u32 = 1 << 31;

/// Block limits page: 64 bytes (SBC-3). Lengths are in blocks.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Limits {
    /// Header.
    pub header: PageHeader,
    /// WSNZ: WRITE SAME of no blocks is one to the end of the disk.
    pub flags: u8,
    /// Maximum length of COMPARE AND WRITE.
    pub compare_and_write: u8,
    /// Optimal transfer length granularity.
    pub granularity: U16,
    /// Maximum transfer length.
    pub transfer: U32,
    /// Optimal transfer length; 0 is not reported.
    pub optimal: U32,
    /// Maximum length of PRE-FETCH.
    pub prefetch: U32,
    /// Maximum number of blocks of UNMAP.
    pub unmap: U32,
    /// Maximum number of descriptors of UNMAP.
    pub unmap_descriptors: U32,
    /// Optimal granularity of UNMAP.
    pub unmap_granularity: U32,
    /// Alignment of UNMAP, with [`UGAVALID`].
    pub unmap_alignment: U32,
    /// Maximum length of WRITE SAME.
    pub write_same: U64,
    /// Maximum length of an atomic write; 0 if there are none (SBC-4).
    pub atomic: U32,
    /// Alignment of atomic writes; 0 is any.
    pub atomic_alignment: U32,
    /// Granularity of the length of atomic writes.
    pub atomic_granularity: U32,
    /// Maximum lengths of atomic writes with boundaries, and of a part between two: not supported.
    pub atomic_boundary: [U32; 2],
}
const _: () = assert!(size_of::<Limits>() == 64);

/// Medium rotation rate: non-rotating.
pub const NON_ROTATING: u16 = 1;

/// Block device characteristics page: 64 bytes (SBC-3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Characteristics {
    /// Header.
    pub header: PageHeader,
    /// Medium rotation rate: [`NON_ROTATING`], or 0 if it is not reported.
    pub rotation: U16,
    /// Others: not reported.
    pub others: [u8; 58],
}
const _: () = assert!(size_of::<Characteristics>() == 64);

/// Flags of [`Provisioning::flags`].
pub mod provisioning {
    /// UNMAP is supported.
    pub const LBPU: u8 = 0x80;
    /// WRITE SAME (16) unmaps.
    pub const LBPWS: u8 = 0x40;
    /// WRITE SAME (10) unmaps.
    pub const LBPWS10: u8 = 0x20;
    /// Unmapped blocks read as zeros.
    pub const LBPRZ: u8 = 0x04;
}

/// Provisioning type: thin.
pub const THIN: u8 = 2;

/// Logical block provisioning page: 8 bytes (SBC-3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Provisioning {
    /// Header.
    pub header: PageHeader,
    /// Threshold exponent: not supported.
    pub threshold: u8,
    /// Flags of [`provisioning`].
    pub flags: u8,
    /// [`THIN`], or 0 if it is not reported.
    pub kind: u8,
    /// Threshold percentage: not supported.
    pub percentage: u8,
}
const _: () = assert!(size_of::<Provisioning>() == 8);
