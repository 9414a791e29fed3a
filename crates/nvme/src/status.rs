//! Status codes of completions, by name.

use core::fmt;

use export::{Fault, ReservationError};

/// A status: status code (SC) in bits 7:0, status code type (SCT) in 10:8, command retry delay (CRD)
/// in 12:11, More (M) in 13, Do Not Retry (DNR) in 14 (NVMe Base 2.0 §3.3.3.2.1). This is the status field of a completion without its
/// phase tag.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(u16);

/// Direction of a failed disk request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// A read.
    Read,
    /// A write, flush, discard or other change.
    Write,
}

impl Status {
    const CODE: u16 = 0x07ff;
    const MORE: u16 = 1 << 13;
    const DNR: u16 = 1 << 14;

    /// Creates a status from SCT (3 bits) and SC.
    #[must_use]
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self(u16::from_be_bytes([sct & 0b111, sc]))
    }

    /// Returns the status with Do Not Retry: the command would fail again.
    #[must_use]
    pub const fn dnr(self) -> Self {
        Self(self.0 | Self::DNR)
    }

    /// Returns the status with More: the error log has details.
    #[must_use]
    pub const fn more(self) -> Self {
        Self(self.0 | Self::MORE)
    }

    /// Returns the status without More, Do Not Retry and Command Retry Delay, for comparisons.
    #[must_use]
    pub const fn code(self) -> Self {
        Self(self.0 & Self::CODE)
    }

    /// Returns the status code type: 0 generic, 1 command specific, 2 media, 3 path.
    #[must_use]
    pub const fn sct(self) -> u8 {
        let [sct, _] = self.code().0.to_be_bytes();
        sct
    }

    /// Returns the status code.
    #[must_use]
    pub const fn sc(self) -> u8 {
        let [_, sc] = self.0.to_be_bytes();
        sc
    }

    /// Returns whether Do Not Retry is set.
    #[must_use]
    pub const fn is_dnr(self) -> bool {
        self.0 & Self::DNR != 0
    }

    /// Returns whether the command succeeded.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.code().0 == 0
    }

    /// Returns the 16-bit field of a completion, with phase tag 0.
    #[must_use]
    pub const fn to_field(self) -> u16 {
        self.0 << 1
    }

    /// Parses the 16-bit field of a completion; ignores the phase tag.
    #[must_use]
    pub const fn from_field(field: u16) -> Self {
        Self(field >> 1)
    }

    /// Returns the status for a fault of the disk. Do Not Retry is set if the command would fail
    /// again: the kernel has retried failed sectors already.
    #[must_use]
    pub const fn from_fault(fault: Fault, direction: Direction) -> Self {
        match (fault, direction) {
            (Fault::Io, Direction::Read) => Self::UNRECOVERED_READ_ERROR.dnr(),
            (Fault::Io, Direction::Write) => Self::WRITE_FAULT.dnr(),
            (Fault::NoSpace, _) => Self::CAPACITY_EXCEEDED.dnr(),
            (Fault::ReadOnly, _) => Self::NAMESPACE_WRITE_PROTECTED.dnr(),
            (Fault::OutOfRange, _) => Self::LBA_OUT_OF_RANGE.dnr(),
            (Fault::Misaligned, _) => Self::INVALID_FIELD.dnr(),
            (Fault::Unsupported, _) => Self::INVALID_OPCODE.dnr(),
            (Fault::Gone, _) => Self::NAMESPACE_NOT_READY,
            (Fault::Busy, _) => Self::COMMAND_INTERRUPTED,
            (Fault::Reserved, _) => Self::RESERVATION_CONFLICT.dnr(),
        }
    }
}

impl Status {
    /// Returns the status for a reservation command that failed.
    #[must_use]
    pub const fn from_reservation_error(error: ReservationError) -> Self {
        match error {
            ReservationError::Conflict => Self::RESERVATION_CONFLICT.dnr(),
            ReservationError::InvalidKey
            | ReservationError::WrongType
            | ReservationError::InvalidType
            | ReservationError::NoPersistence => Self::INVALID_FIELD.dnr(),
            ReservationError::ReadOnly => Self::NAMESPACE_WRITE_PROTECTED.dnr(),
            ReservationError::TooManyRegistrants => Self::INTERNAL_ERROR.dnr(),
            ReservationError::Gone => Self::NAMESPACE_NOT_READY,
            ReservationError::Unsupported => Self::INVALID_OPCODE.dnr(),
        }
    }
}

/// Table of statuses: name, SCT, SC, text.
macro_rules! statuses {
    ($($name:ident $sct:literal $sc:literal $text:literal)*) => {
        impl Status { $(
            #[doc = concat!($text, " (", stringify!($sct), "h/", stringify!($sc), ").")]
            pub const $name: Self = Self::new($sct, $sc);
        )* }

        /// All statuses with a name.
        pub const ALL: &[Status] = &[$(Status::$name),*];

        /// Returns name and text of a status without flags.
        fn name_and_text(code: Status) -> Option<(&'static str, &'static str)> {
            match code {
                $(Status::$name => Some((stringify!($name), $text)),)*
                _ => None,
            }
        }
    };
}

statuses! {
    SUCCESS                        0 0x00 "the command succeeded"
    INVALID_OPCODE                 0 0x01 "invalid command opcode"
    INVALID_FIELD                  0 0x02 "invalid field in the command"
    COMMAND_ID_CONFLICT            0 0x03 "the command identifier is in use"
    DATA_TRANSFER_ERROR            0 0x04 "data transfer error"
    ABORTED_POWER_LOSS             0 0x05 "the command was aborted because of a power loss"
    INTERNAL_ERROR                 0 0x06 "internal error of the controller"
    ABORT_REQUESTED                0 0x07 "the command was aborted on request"
    ABORTED_SQ_DELETION            0 0x08 "the command was aborted because its queue was deleted"
    ABORTED_FAILED_FUSED           0 0x09 "the other command of the fused pair failed"
    ABORTED_MISSING_FUSED          0 0x0a "the other command of the fused pair is missing"
    INVALID_NAMESPACE              0 0x0b "invalid namespace"
    COMMAND_SEQUENCE_ERROR         0 0x0c "command sequence error"
    INVALID_SGL_SEGMENT            0 0x0d "invalid SGL segment descriptor"
    INVALID_SGL_COUNT              0 0x0e "invalid number of SGL descriptors"
    DATA_SGL_LENGTH_INVALID        0 0x0f "the SGL length does not match the data"
    METADATA_SGL_LENGTH_INVALID    0 0x10 "the SGL length does not match the metadata"
    SGL_TYPE_INVALID               0 0x11 "unsupported SGL descriptor type"
    INVALID_PRP_OFFSET             0 0x13 "invalid PRP offset"
    ATOMIC_WRITE_UNIT_EXCEEDED     0 0x14 "the write is larger than the atomic write unit"
    OPERATION_DENIED               0 0x15 "operation denied"
    SGL_OFFSET_INVALID             0 0x16 "the SGL offset is outside the capsule"
    HOST_ID_INCONSISTENT           0 0x18 "the format of the host identifier is inconsistent"
    KEEP_ALIVE_EXPIRED             0 0x19 "the keep-alive timer expired"
    KEEP_ALIVE_INVALID             0 0x1a "invalid keep-alive timeout"
    ABORTED_PREEMPT                0 0x1b "the command was aborted by a reservation preempt"
    SANITIZE_FAILED                0 0x1c "the last sanitize failed"
    SANITIZE_IN_PROGRESS           0 0x1d "a sanitize operation is in progress"
    SGL_GRANULARITY_INVALID        0 0x1e "an SGL address or length is not a multiple of four bytes"
    NAMESPACE_WRITE_PROTECTED      0 0x20 "the namespace is write protected"
    COMMAND_INTERRUPTED            0 0x21 "the command was interrupted: retry it"
    TRANSIENT_TRANSPORT_ERROR      0 0x22 "transient transport error: retry the command"
    COMMAND_PROHIBITED             0 0x23 "the command is prohibited by a lockdown"
    LBA_OUT_OF_RANGE               0 0x80 "the blocks are beyond the end of the namespace"
    CAPACITY_EXCEEDED              0 0x81 "no space left"
    NAMESPACE_NOT_READY            0 0x82 "the namespace is not ready"
    RESERVATION_CONFLICT           0 0x83 "another host holds a reservation"
    FORMAT_IN_PROGRESS             0 0x84 "a format is in progress"
    INVALID_QUEUE_IDENTIFIER       1 0x01 "invalid queue identifier"
    INVALID_QUEUE_SIZE             1 0x02 "invalid queue size"
    ABORT_LIMIT_EXCEEDED           1 0x03 "too many outstanding Aborts"
    ASYNC_EVENT_LIMIT_EXCEEDED     1 0x05 "too many outstanding Asynchronous Event Requests"
    INVALID_LOG_PAGE               1 0x09 "invalid log page"
    INVALID_FORMAT                 1 0x0a "invalid format"
    FEATURE_NOT_SAVEABLE           1 0x0d "the feature is not saveable"
    FEATURE_NOT_CHANGEABLE         1 0x0e "the feature is not changeable"
    FEATURE_NOT_NAMESPACE_SPECIFIC 1 0x0f "the feature is not namespace specific"
    OVERLAPPING_RANGE              1 0x14 "overlapping ranges"
    INVALID_CONTROLLER_IDENTIFIER  1 0x1f "invalid controller identifier"
    COMMAND_SET_NOT_SUPPORTED      1 0x29 "the command set is not supported"
    COMMAND_SET_NOT_ENABLED        1 0x2a "the command set is not enabled"
    COMMAND_SET_COMBINATION        1 0x2b "the combination of command sets is not supported"
    INVALID_COMMAND_SET            1 0x2c "invalid command set"
    CONNECT_INCOMPATIBLE_FORMAT    1 0x80 "the record format of Connect is not supported"
    CONNECT_CONTROLLER_BUSY        1 0x81 "the controller is busy"
    CONNECT_INVALID_PARAMETERS     1 0x82 "invalid Connect parameters"
    CONNECT_RESTART_DISCOVERY      1 0x83 "restart discovery: the subsystem is at another address"
    CONNECT_INVALID_HOST           1 0x84 "the host is not allowed to use this subsystem"
    INVALID_QUEUE_TYPE             1 0x85 "this type of queue cannot be disconnected alone"
    DISCOVER_RESTART               1 0x90 "the discovery log changed: read it again"
    AUTHENTICATION_REQUIRED        1 0x91 "authentication required"
    WRITE_FAULT                    2 0x80 "write error of the disk"
    UNRECOVERED_READ_ERROR         2 0x81 "read error of the disk"
    GUARD_CHECK_ERROR              2 0x82 "guard check error"
    APPLICATION_TAG_CHECK_ERROR    2 0x83 "application tag check error"
    REFERENCE_TAG_CHECK_ERROR      2 0x84 "reference tag check error"
    COMPARE_FAILURE                2 0x85 "the blocks differ from the data"
    ACCESS_DENIED                  2 0x86 "access to these blocks is denied"
    DEALLOCATED_BLOCK              2 0x87 "the blocks are deallocated or unwritten"
    INTERNAL_PATH_ERROR            3 0x00 "internal path error of the controller"
    ANA_PERSISTENT_LOSS            3 0x01 "the path to the namespace is permanently lost"
    ANA_INACCESSIBLE               3 0x02 "the path to the namespace is inaccessible"
    ANA_TRANSITION                 3 0x03 "the path to the namespace is in transition"
    CONTROLLER_PATH_ERROR          3 0x60 "path error detected by the controller"
    HOST_PATH_ERROR                3 0x70 "path error detected by the host"
    ABORTED_BY_HOST                3 0x71 "the command was aborted by the host"
}

/// I/O command statuses whose numbers mean something else for Fabrics commands.
impl Status {
    /// Conflicting attributes of Dataset Management (1h/80h).
    pub const CONFLICTING_ATTRIBUTES: Self = Self::new(1, 0x80);
    /// An attempted write to a read-only range (1h/82h).
    pub const WRITE_TO_READ_ONLY_RANGE: Self = Self::new(1, 0x82);
    /// A Copy, Write Zeroes or Dataset Management larger than the limit (1h/83h).
    pub const COMMAND_SIZE_LIMIT_EXCEEDED: Self = Self::new(1, 0x83);
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match name_and_text(self.code()) {
            Some((name, _)) => f.write_str(name)?,
            None => write!(f, "{:x}h/{:02x}h", self.sct(), self.sc())?,
        }
        f.write_str(if self.is_dnr() { "|DNR" } else { "" })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = name_and_text(self.code()).map_or("the command failed", |(_, text)| text);
        write!(f, "{text} ({:x}h/{:02x}h)", self.sct(), self.sc())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn golden_fields() {
        assert_eq!(Status::SUCCESS.to_field(), 0x0000);
        assert_eq!(Status::INVALID_FIELD.dnr().to_field(), 0x8004);
        assert_eq!(Status::CONNECT_INVALID_PARAMETERS.dnr().to_field(), 0x8304);
        assert_eq!(Status::UNRECOVERED_READ_ERROR.to_field(), 0x0502);
        assert_eq!(Status::COMPARE_FAILURE.more().to_field(), 0x450a);
        assert_eq!(Status::from_field(0x8305), Status::CONNECT_INVALID_PARAMETERS.dnr());
    }

    #[test]
    fn status_field_round_trips() {
        for &status in ALL {
            let back = Status::from_field(status.dnr().more().to_field());
            assert_eq!((back.sct(), back.sc(), back.is_dnr()), (status.sct(), status.sc(), true));
            assert_eq!(back.code(), status);
            assert!(!status.is_dnr());
        }
        assert_eq!(ALL.iter().filter(|status| status.is_success()).count(), 1);
    }

    #[test]
    fn numbers_are_unique() {
        let distinct: std::collections::HashSet<_> = ALL.iter().collect();
        assert_eq!(distinct.len(), ALL.len());
    }

    #[test]
    fn every_fault_has_a_status() {
        let table = |fault| {
            (
                Status::from_fault(fault, Direction::Read),
                Status::from_fault(fault, Direction::Write),
            )
        };
        let both = |status: Status| (status, status);
        assert_eq!(table(Fault::Io), (Status::new(2, 0x81).dnr(), Status::new(2, 0x80).dnr()));
        assert_eq!(table(Fault::NoSpace), both(Status::new(0, 0x81).dnr()));
        assert_eq!(table(Fault::ReadOnly), both(Status::new(0, 0x20).dnr()));
        assert_eq!(table(Fault::OutOfRange), both(Status::new(0, 0x80).dnr()));
        assert_eq!(table(Fault::Misaligned), both(Status::new(0, 0x02).dnr()));
        assert_eq!(table(Fault::Unsupported), both(Status::new(0, 0x01).dnr()));
        assert_eq!(table(Fault::Gone), both(Status::new(0, 0x82)));
        assert_eq!(table(Fault::Busy), both(Status::new(0, 0x21)));
        assert_eq!(table(Fault::Reserved), both(Status::new(0, 0x83).dnr()));
        for fault in Fault::ALL {
            assert!(!table(fault).0.is_success() && !table(fault).1.is_success(), "{fault:?}");
        }
    }

    #[test]
    fn each_reservation_error_has_a_status() {
        for (error, status) in [
            (ReservationError::Conflict, Status::new(0, 0x83).dnr()),
            (ReservationError::InvalidKey, Status::new(0, 0x02).dnr()),
            (ReservationError::WrongType, Status::new(0, 0x02).dnr()),
            (ReservationError::InvalidType, Status::new(0, 0x02).dnr()),
            (ReservationError::NoPersistence, Status::new(0, 0x02).dnr()),
            (ReservationError::ReadOnly, Status::new(0, 0x20).dnr()),
            (ReservationError::TooManyRegistrants, Status::new(0, 0x06).dnr()),
            (ReservationError::Gone, Status::new(0, 0x82)),
        ] {
            assert_eq!(Status::from_reservation_error(error), status);
        }
    }

    #[test]
    fn statuses_are_shown_by_name() {
        assert_eq!(format!("{:?}", Status::INVALID_FIELD.dnr()), "INVALID_FIELD|DNR");
        assert_eq!(format!("{:?}", Status::new(7, 0xff)), "7h/ffh");
        assert_eq!(Status::COMPARE_FAILURE.to_string(), "the blocks differ from the data (2h/85h)");
        assert_eq!(Status::new(7, 0xff).to_string(), "the command failed (7h/ffh)");
    }
}
