//! Data of PERSISTENT RESERVE IN and PERSISTENT RESERVE OUT (SPC-4).

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Service action of PERSISTENT RESERVE IN: READ KEYS.
pub const READ_KEYS: u8 = 0x00;
/// Service action of PERSISTENT RESERVE IN: READ RESERVATION.
pub const READ_RESERVATION: u8 = 0x01;
/// Service action of PERSISTENT RESERVE IN: REPORT CAPABILITIES.
pub const REPORT_CAPABILITIES: u8 = 0x02;
/// Service action of PERSISTENT RESERVE IN: READ FULL STATUS.
pub const READ_FULL_STATUS: u8 = 0x03;

/// Service action of PERSISTENT RESERVE OUT: REGISTER.
pub const REGISTER: u8 = 0x00;
/// Service action of PERSISTENT RESERVE OUT: RESERVE.
pub const RESERVE: u8 = 0x01;
/// Service action of PERSISTENT RESERVE OUT: RELEASE.
pub const RELEASE: u8 = 0x02;
/// Service action of PERSISTENT RESERVE OUT: CLEAR.
pub const CLEAR: u8 = 0x03;
/// Service action of PERSISTENT RESERVE OUT: PREEMPT.
pub const PREEMPT: u8 = 0x04;
/// Service action of PERSISTENT RESERVE OUT: PREEMPT AND ABORT.
pub const PREEMPT_AND_ABORT: u8 = 0x05;
/// Service action of PERSISTENT RESERVE OUT: REGISTER AND IGNORE EXISTING KEY.
pub const REGISTER_AND_IGNORE: u8 = 0x06;

/// Scope: the logical unit.
pub const SCOPE_UNIT: u8 = 0;

/// The header of the data of READ KEYS, READ RESERVATION and READ FULL STATUS: 8 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Header {
    /// How many commands have changed registrations.
    pub generation: U32,
    /// Length of what follows.
    pub length: U32,
}
const _: () = assert!(size_of::<Header>() == 8);

/// A reservation: 16 bytes (SPC-4).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ReservationDescriptor {
    /// The key of the holder, or 0 if all registrants are holders.
    pub key: U64,
    /// Obsolete and reserved.
    pub reserved: [u8; 5],
    /// Scope and type.
    pub scope_and_type: u8,
    /// Obsolete.
    pub obsolete: [u8; 2],
}
const _: () = assert!(size_of::<ReservationDescriptor>() == 16);

/// Flag of [`Capabilities::flags`]: RESERVE (6) and RELEASE (6) succeed for registrants.
pub const CRH: u8 = 0x10;
/// Flag of [`Capabilities::flags`]: reservations can persist.
pub const PTPL_C: u8 = 0x01;
/// Flag of [`Capabilities::flags_2`]: the types are valid.
pub const TMV: u8 = 0x80;
/// Flag of [`Capabilities::flags_2`]: reservations persist now.
pub const PTPL_A: u8 = 0x01;
/// [`Capabilities::types`]: all six types.
pub const ALL_TYPES: u16 = 0xea01;

/// Data of REPORT CAPABILITIES: 8 bytes (SPC-4).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Capabilities {
    /// Length of this data: 8.
    pub length: U16,
    /// [`CRH`], [`PTPL_C`].
    pub flags: u8,
    /// [`TMV`], [`PTPL_A`].
    pub flags_2: u8,
    /// [`ALL_TYPES`].
    pub types: U16,
    /// Reserved.
    pub reserved: [u8; 2],
}
const _: () = assert!(size_of::<Capabilities>() == 8);

/// Flag of [`StatusDescriptor::flags`]: this registrant holds the reservation.
pub const R_HOLDER: u8 = 0x01;

/// A registrant: 24 bytes, followed by its TransportID (SPC-4).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct StatusDescriptor {
    /// Its key.
    pub key: U64,
    /// Reserved.
    pub reserved: [u8; 4],
    /// [`R_HOLDER`].
    pub flags: u8,
    /// Scope and type, of the holder.
    pub scope_and_type: u8,
    /// Reserved.
    pub reserved_2: [u8; 4],
    /// Relative target port identifier.
    pub port: U16,
    /// Length of the TransportID.
    pub length: U32,
}
const _: () = assert!(size_of::<StatusDescriptor>() == 24);

/// The first bytes of an iSCSI TransportID: 4 bytes (SPC-4 §7.6.4.6).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct TransportIdHeader {
    /// [`ISCSI_DEVICE`] or [`ISCSI_PORT`].
    pub format: u8,
    /// Reserved.
    pub reserved: u8,
    /// Length of the name, at least 20 and a multiple of 4.
    pub length: U16,
}
const _: () = assert!(size_of::<TransportIdHeader>() == 4);

/// TransportID format: iSCSI, the name of an initiator device.
pub const ISCSI_DEVICE: u8 = 0x05;
/// TransportID format: iSCSI, the name of an initiator port.
pub const ISCSI_PORT: u8 = 0x45;

/// Flag of [`OutParameters::flags`]: registrations of others are specified.
pub const SPEC_I_PT: u8 = 0x08;
/// Flag of [`OutParameters::flags`]: registers with all target ports.
pub const ALL_TG_PT: u8 = 0x04;
/// Flag of [`OutParameters::flags`]: reservations persist.
pub const APTPL: u8 = 0x01;

/// The parameter list of PERSISTENT RESERVE OUT: 24 bytes (SPC-4).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct OutParameters {
    /// The key of the registrant.
    pub key: U64,
    /// A new key, or the key of those that are preempted.
    pub action_key: U64,
    /// Obsolete.
    pub obsolete: [u8; 4],
    /// [`SPEC_I_PT`], [`ALL_TG_PT`], [`APTPL`].
    pub flags: u8,
    /// Reserved and obsolete.
    pub reserved: [u8; 3],
}
const _: () = assert!(size_of::<OutParameters>() == 24);
