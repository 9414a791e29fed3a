//! How a command ends: a status, sense data, and data for the initiator.

use export::{Fault, Op};

use crate::wire::sense::Sense;

/// Status codes (SAM-5 §5.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// The command succeeded.
    Good = 0x00,
    /// There is sense data.
    CheckCondition = 0x02,
    /// Another command has exclusive access: try again later.
    Busy = 0x08,
    /// Another initiator has a reservation.
    ReservationConflict = 0x18,
}

/// The end of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: Status,
    /// Sense data, with [`Status::CheckCondition`].
    pub sense: Option<Sense>,
    /// Data for the initiator, at most the allocation length of the CDB.
    pub data: Vec<u8>,
}

impl Response {
    /// Returns a response with a status only.
    #[must_use]
    pub fn status(status: Status) -> Self {
        Self { status, sense: None, data: Vec::new() }
    }

    /// Returns the response of a successful command without data.
    #[must_use]
    pub fn good() -> Self {
        Self::status(Status::Good)
    }

    /// Returns the response of a successful command with data, which is cut off at `allocation`
    /// bytes (SPC-4 §4.2.5.6).
    #[must_use]
    pub fn data(mut data: Vec<u8>, allocation: u32) -> Self {
        data.truncate(usize::try_from(allocation).unwrap_or(usize::MAX));
        Self { data, ..Self::good() }
    }

    /// Returns the response of a command that failed with this sense data.
    #[must_use]
    pub fn check(sense: Sense) -> Self {
        Self { sense: Some(sense), ..Self::status(Status::CheckCondition) }
    }

    /// Returns the response of a command whose disk request, which begins at `lba`, failed. This is
    /// the only table from [`Fault`] to SCSI.
    #[must_use]
    pub fn fault(fault: Fault, op: Op, lba: u64) -> Self {
        let sense = match fault {
            Fault::Io => match op {
                Op::Read | Op::Extents | Op::Prefetch => Sense::READ_ERROR.with_information(lba),
                Op::Write { .. } | Op::WriteAtomic { .. } | Op::Zero { .. } | Op::Discard => {
                    Sense::WRITE_ERROR.with_information(lba)
                }
                Op::Flush => Sense::WRITE_ERROR,
            },
            Fault::NoSpace => Sense::NO_SPACE,
            Fault::ReadOnly => Sense::WRITE_PROTECTED,
            Fault::OutOfRange => Sense::OUT_OF_RANGE,
            Fault::Misaligned => Sense::INVALID_FIELD_IN_CDB,
            Fault::Unsupported => Sense::INVALID_OPCODE,
            Fault::Gone => Sense::MEDIUM_NOT_PRESENT,
            Fault::Busy => return Self::status(Status::Busy),
            Fault::Reserved => return Self::status(Status::ReservationConflict),
        };
        Self::check(sense)
    }

    /// Returns whether the command succeeded.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.status == Status::Good
    }
}

impl From<Sense> for Response {
    fn from(sense: Sense) -> Self {
        Self::check(sense)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::wire::sense::key;

    #[test]
    fn each_fault_has_a_status_and_a_sense_code() {
        let check = |key, asc, ascq| (Status::CheckCondition, Some((key, (asc, ascq))));
        let table = [
            (Fault::Io, check(key::MEDIUM_ERROR, 0x11, 0)),
            (Fault::NoSpace, check(key::DATA_PROTECT, 0x27, 7)),
            (Fault::ReadOnly, check(key::DATA_PROTECT, 0x27, 0)),
            (Fault::OutOfRange, check(key::ILLEGAL_REQUEST, 0x21, 0)),
            (Fault::Misaligned, check(key::ILLEGAL_REQUEST, 0x24, 0)),
            (Fault::Unsupported, check(key::ILLEGAL_REQUEST, 0x20, 0)),
            (Fault::Gone, check(key::NOT_READY, 0x3a, 0)),
            (Fault::Busy, (Status::Busy, None)),
            (Fault::Reserved, (Status::ReservationConflict, None)),
        ];
        assert_eq!(table.map(|(fault, _)| fault), Fault::ALL);
        for (fault, expected) in table {
            let response = Response::fault(fault, Op::Read, 7);
            let sense = response.sense.map(|sense| (sense.key(), sense.code()));
            assert_eq!((response.status, sense), expected, "{fault}");
        }
    }

    #[test]
    fn medium_error_has_the_first_block() {
        let sense = |op| Response::fault(Fault::Io, op, 7).sense.unwrap();
        assert_eq!(sense(Op::Read), Sense::READ_ERROR.with_information(7));
        assert_eq!(sense(Op::Write { durable: true }), Sense::WRITE_ERROR.with_information(7));
        assert_eq!(sense(Op::Flush), Sense::WRITE_ERROR);
    }
}
