//! Data of the reservation commands (NVMe Base 2.0 §7.2 to §7.5).

use export::ReservationType;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Values of RREGA: the action of Reservation Register.
pub mod rrega {
    /// Register.
    pub const REGISTER: u8 = 0;
    /// Unregister.
    pub const UNREGISTER: u8 = 1;
    /// Replace the key.
    pub const REPLACE: u8 = 2;
}

/// Values of RACQA: the action of Reservation Acquire.
pub mod racqa {
    /// Acquire.
    pub const ACQUIRE: u8 = 0;
    /// Preempt.
    pub const PREEMPT: u8 = 1;
    /// Preempt and abort.
    pub const PREEMPT_AND_ABORT: u8 = 2;
}

/// Values of RRELA: the action of Reservation Release.
pub mod rrela {
    /// Release.
    pub const RELEASE: u8 = 0;
    /// Clear.
    pub const CLEAR: u8 = 1;
}

/// Values of CPTPL: change of the persist through power loss state.
pub mod cptpl {
    /// No change.
    pub const NO_CHANGE: u8 = 0;
    /// Reservations do not persist.
    pub const CLEAR: u8 = 2;
    /// Reservations persist.
    pub const SET: u8 = 3;
}

/// Bits of RESCAP, the reservation capabilities of a namespace.
pub mod rescap {
    /// Persist through power loss.
    pub const PERSISTENCE: u8 = 1 << 0;
    /// All six types.
    pub const ALL_TYPES: u8 = 0b0111_1110;
    /// IEKEY is used as since NVMe 1.3: in Register only.
    pub const IGNORE_KEY: u8 = 1 << 7;
}

/// Returns the type for a value of RTYPE.
#[must_use]
pub fn type_of(rtype: u8) -> Option<ReservationType> {
    ReservationType::ALL.get(usize::from(rtype).checked_sub(1)?).copied()
}

/// Returns RTYPE.
#[must_use]
pub fn rtype_of(kind: ReservationType) -> u8 {
    match kind {
        ReservationType::WriteExclusive => 1,
        ReservationType::ExclusiveAccess => 2,
        ReservationType::WriteExclusiveRegistrantsOnly => 3,
        ReservationType::ExclusiveAccessRegistrantsOnly => 4,
        ReservationType::WriteExclusiveAllRegistrants => 5,
        ReservationType::ExclusiveAccessAllRegistrants => 6,
    }
}

/// The data of Reservation Register and Reservation Acquire: 16 bytes; of Reservation Release the
/// first 8 of them.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ReservationKeys {
    /// CRKEY: the current key of the host.
    pub current: U64,
    /// NRKEY: the new key; PRKEY: the key of those to be preempted.
    pub other: U64,
}
const _: () = assert!(size_of::<ReservationKeys>() == 16);

impl ReservationKeys {
    /// Returns the data with these keys.
    #[must_use]
    pub const fn new(current: u64, other: u64) -> Self {
        Self { current: U64::new(current), other: U64::new(other) }
    }
}

/// The header of the Reservation Status Extended data structure: 64 bytes (NVMe Base 2.0 §7.5).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ReservationStatus {
    /// Generation.
    pub generation: U32,
    /// RTYPE; 0 if there is no reservation.
    pub rtype: u8,
    /// Number of registered controllers.
    pub regctl: U16,
    pub(crate) _rsvd7: [u8; 2],
    /// Persist through power loss state.
    pub ptpls: u8,
    pub(crate) _rsvd10: [u8; 54],
}
const _: () = assert!(size_of::<ReservationStatus>() == 64);

impl ReservationStatus {
    /// Returns the header for `registered` entries.
    #[must_use]
    pub fn new(generation: u32, rtype: u8, registered: u16, persistent: bool) -> Self {
        Self {
            generation: U32::new(generation),
            rtype,
            regctl: U16::new(registered),
            ptpls: persistent.into(),
            ..Self::new_zeroed()
        }
    }
}

/// An entry of the Reservation Status Extended data structure: 64 bytes (NVMe Base 2.0 §7.5).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct RegisteredController {
    /// Controller identifier; FFFFh for dynamic controllers.
    pub cntlid: U16,
    /// Bit 0: the host holds the reservation.
    pub rcsts: u8,
    pub(crate) _rsvd3: [u8; 5],
    /// Reservation key.
    pub rkey: U64,
    /// Host identifier.
    pub hostid: [u8; 16],
    pub(crate) _rsvd32: [u8; 32],
}
const _: () = assert!(size_of::<RegisteredController>() == 64);

impl RegisteredController {
    /// Returns an entry for any controller of a host.
    #[must_use]
    pub fn new(is_holder: bool, rkey: u64, hostid: [u8; 16]) -> Self {
        Self {
            cntlid: U16::new(u16::MAX),
            rcsts: is_holder.into(),
            rkey: U64::new(rkey),
            hostid,
            ..Self::new_zeroed()
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn types_have_the_numbers_of_the_standard() {
        for (number, kind) in (1..).zip(ReservationType::ALL) {
            assert_eq!((rtype_of(kind), type_of(number)), (number, Some(kind)));
        }
        assert_eq!((type_of(0), type_of(7)), (None, None));
    }

    #[test]
    fn golden_status_is_that_of_nvmet() {
        let status = ReservationStatus::new(2, 1, 2, false);
        assert_eq!(status.as_bytes()[..10], [2, 0, 0, 0, 1, 2, 0, 0, 0, 0]);
        let entry = RegisteredController::new(true, 10, [0x5a; 16]);
        let golden = [0xff, 0xff, 1, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(entry.as_bytes()[..16], golden);
        assert_eq!(entry.as_bytes()[16..32], [0x5a; 16]);
    }
}
