//! Reservation commands (NVMe Base 2.0 §7.2 to §7.5).

use zerocopy::little_endian::{U32, U64};

use super::{Transfer, bit, byte, entry, flag};
use crate::status::Status;
use crate::wire::Sqe;
use crate::wire::opcode::io as opcode;
use crate::wire::reservation::ReservationKeys;

const IEKEY: u32 = 3;
const RTYPE: u32 = 8;
const CPTPL: u32 = 30;
const EDS: u32 = 0;

/// A reservation command without its keys. Fields that the controller has to judge are numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservationRequest {
    /// Reservation Register.
    Register {
        /// RREGA: see [`crate::wire::reservation::rrega`].
        action: u8,
        /// IEKEY: the current key is ignored.
        ignore_key: bool,
        /// CPTPL: see [`crate::wire::reservation::cptpl`].
        persistence: u8,
    },
    /// Reservation Acquire.
    Acquire {
        /// RACQA: see [`crate::wire::reservation::racqa`].
        action: u8,
        /// IEKEY: not valid.
        ignore_key: bool,
        /// RTYPE.
        rtype: u8,
    },
    /// Reservation Release.
    Release {
        /// RRELA: see [`crate::wire::reservation::rrela`].
        action: u8,
        /// IEKEY: not valid.
        ignore_key: bool,
        /// RTYPE.
        rtype: u8,
    },
    /// Reservation Report.
    Report {
        /// Length in bytes.
        len: u64,
        /// EDS: host identifiers of 128 bits.
        extended: bool,
    },
}

impl ReservationRequest {
    pub(super) fn parse(sqe: &Sqe) -> Result<Self, Status> {
        let (action, ignore_key) = (byte(sqe.cdw10, 0) & 0b111, bit(sqe.cdw10, IEKEY));
        let (rtype, persistence) = (byte(sqe.cdw10, RTYPE), byte(sqe.cdw10, CPTPL));
        match sqe.opcode {
            opcode::RESERVATION_REGISTER => Ok(Self::Register { action, ignore_key, persistence }),
            opcode::RESERVATION_ACQUIRE => Ok(Self::Acquire { action, ignore_key, rtype }),
            opcode::RESERVATION_RELEASE => Ok(Self::Release { action, ignore_key, rtype }),
            opcode::RESERVATION_REPORT => {
                let len = (u64::from(sqe.cdw10.get()) + 1) * 4;
                Ok(Self::Report { len, extended: bit(sqe.cdw11, EDS) })
            }
            _ => Err(Status::INVALID_OPCODE.dnr()),
        }
    }

    /// Returns the data transfer.
    #[must_use]
    pub const fn data_len(self) -> Transfer {
        match self {
            Self::Register { .. } | Self::Acquire { .. } => {
                Transfer::FromHost(size_of::<ReservationKeys>() as u64)
            }
            Self::Release { .. } => Transfer::FromHost(size_of::<U64>() as u64),
            Self::Report { len, .. } => Transfer::ToHost(len),
        }
    }

    pub(super) fn emit(self) -> Sqe {
        let dword = |action: u8, ignore_key: bool| u32::from(action) | flag(ignore_key, IEKEY);
        let with = |opcode: u8, cdw10: u32| Sqe { cdw10: U32::new(cdw10), ..entry(opcode) };
        match self {
            Self::Register { action, ignore_key, persistence } => {
                let cptpl = u32::from(persistence) << CPTPL;
                with(opcode::RESERVATION_REGISTER, dword(action, ignore_key) | cptpl)
            }
            Self::Acquire { action, ignore_key, rtype } => {
                let rtype = u32::from(rtype) << RTYPE;
                with(opcode::RESERVATION_ACQUIRE, dword(action, ignore_key) | rtype)
            }
            Self::Release { action, ignore_key, rtype } => {
                let rtype = u32::from(rtype) << RTYPE;
                with(opcode::RESERVATION_RELEASE, dword(action, ignore_key) | rtype)
            }
            Self::Report { len, extended } => {
                let numd = u32::try_from((len / 4).saturating_sub(1)).unwrap_or(u32::MAX);
                let cdw11 = U32::new(flag(extended, EDS));
                Sqe { cdw11, ..with(opcode::RESERVATION_REPORT, numd) }
            }
        }
    }
}
