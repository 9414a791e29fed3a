//! How a command ends: every status that this target or its host gives or meets, by name.
//!
//! Knows which status a disk's fault becomes; does not know who gives which status when.

use core::fmt;

use export::Fault;

/// A status: code in bits 7:0, code type in bits 10:8, retry delay in 12:11, More in 13, Do Not
/// Retry in 14 (NVMe Base 2.0 §3.3.3.2.1). The status field of a completion without its phase.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(u16);

/// Which way the data of a failed request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the disk.
    Read,
    /// To the disk, and what only changes or secures what is on it.
    Write,
}

impl Status {
    const CODE: u16 = 0x07ff;
    const MORE: u16 = 1 << 13;
    const DNR: u16 = 1 << 14;

    /// Any status, by code type (3 bits) and code.
    #[must_use]
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self(u16::from_be_bytes([sct & 0b111, sc]))
    }

    /// The same with Do Not Retry: the command fails the same way again.
    #[must_use]
    pub const fn dnr(self) -> Self {
        Self(self.0 | Self::DNR)
    }

    /// The same with More: the error log tells more of it.
    #[must_use]
    pub const fn more(self) -> Self {
        Self(self.0 | Self::MORE)
    }

    /// The status alone, without More, Do Not Retry and retry delay: what to compare by name.
    #[must_use]
    pub const fn code(self) -> Self {
        Self(self.0 & Self::CODE)
    }

    /// Status code type: 0 generic, 1 command specific, 2 media, 3 path.
    #[must_use]
    pub const fn sct(self) -> u8 {
        let [sct, _] = self.code().0.to_be_bytes();
        sct
    }

    /// Status code.
    #[must_use]
    pub const fn sc(self) -> u8 {
        let [_, sc] = self.0.to_be_bytes();
        sc
    }

    /// Whether the host is told not to retry.
    #[must_use]
    pub const fn is_dnr(self) -> bool {
        self.0 & Self::DNR != 0
    }

    /// Whether the command succeeded.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.code().0 == 0
    }

    /// The 16 bits of a completion, with phase tag 0.
    #[must_use]
    pub const fn to_field(self) -> u16 {
        self.0 << 1
    }

    /// The status in the 16 bits of a completion, whatever its phase tag.
    #[must_use]
    pub const fn from_field(field: u16) -> Self {
        Self(field >> 1)
    }

    /// What the host is told of a disk's fault. Do Not Retry is set where the same command would
    /// fail again: the kernel below has already retried a failed sector.
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
        }
    }
}

/// The table of statuses: name, code type, code, sentence.
macro_rules! statuses {
    ($($name:ident $sct:literal $sc:literal $sentence:literal)*) => {
        impl Status { $(
            #[doc = concat!($sentence, " (", stringify!($sct), "h/", stringify!($sc), ").")]
            pub const $name: Self = Self::new($sct, $sc);
        )* }

        /// Every status that has a name.
        pub const ALL: &[Status] = &[$(Status::$name),*];

        /// Name and sentence of a status without flags.
        fn row(code: Status) -> Option<(&'static str, &'static str)> {
            match code {
                $(Status::$name => Some((stringify!($name), $sentence)),)*
                _ => None,
            }
        }
    };
}

statuses! {
    SUCCESS                        0 0x00 "the command succeeded"
    INVALID_OPCODE                 0 0x01 "the controller has no such command"
    INVALID_FIELD                  0 0x02 "a field of the command has a value that is not allowed"
    COMMAND_ID_CONFLICT            0 0x03 "another command is under way with the same identifier"
    DATA_TRANSFER_ERROR            0 0x04 "the data did not come over whole"
    ABORTED_POWER_LOSS             0 0x05 "the command ended for want of power"
    INTERNAL_ERROR                 0 0x06 "the controller failed inside"
    ABORT_REQUESTED                0 0x07 "an Abort ended the command"
    ABORTED_SQ_DELETION            0 0x08 "the command ended with its queue"
    ABORTED_FAILED_FUSED           0 0x09 "the other command of the fused pair failed"
    ABORTED_MISSING_FUSED          0 0x0a "the other command of the fused pair is missing"
    INVALID_NAMESPACE              0 0x0b "there is no such namespace, or not in this form"
    COMMAND_SEQUENCE_ERROR         0 0x0c "the command came at the wrong time"
    INVALID_SGL_SEGMENT            0 0x0d "an SGL segment descriptor is wrong"
    INVALID_SGL_COUNT              0 0x0e "the number of SGL descriptors is wrong"
    DATA_SGL_LENGTH_INVALID        0 0x0f "the SGL is shorter or longer than the data"
    METADATA_SGL_LENGTH_INVALID    0 0x10 "the SGL is shorter or longer than the metadata"
    SGL_TYPE_INVALID               0 0x11 "the SGL descriptor has a type that is not supported"
    INVALID_PRP_OFFSET             0 0x13 "the offset of a PRP entry is wrong"
    ATOMIC_WRITE_UNIT_EXCEEDED     0 0x14 "the write is larger than the atomic unit"
    OPERATION_DENIED               0 0x15 "the host may not do this"
    SGL_OFFSET_INVALID             0 0x16 "the offset of the SGL is outside the capsule"
    HOST_ID_INCONSISTENT           0 0x18 "the host identifier has another length than before"
    KEEP_ALIVE_EXPIRED             0 0x19 "the host kept silent too long"
    KEEP_ALIVE_INVALID             0 0x1a "the Keep Alive timeout is not allowed"
    ABORTED_PREEMPT                0 0x1b "a reservation ended the command"
    SANITIZE_FAILED                0 0x1c "the last sanitize failed"
    SANITIZE_IN_PROGRESS           0 0x1d "a sanitize is under way"
    SGL_GRANULARITY_INVALID        0 0x1e "an SGL address or length is not a whole dword"
    NAMESPACE_WRITE_PROTECTED      0 0x20 "the namespace is write protected"
    COMMAND_INTERRUPTED            0 0x21 "the command had to give way: try it again"
    TRANSIENT_TRANSPORT_ERROR      0 0x22 "the transport damaged the data: try it again"
    COMMAND_PROHIBITED             0 0x23 "the command is locked down"
    LBA_OUT_OF_RANGE               0 0x80 "the blocks lie beyond the end of the namespace"
    CAPACITY_EXCEEDED              0 0x81 "there is no room left for the data"
    NAMESPACE_NOT_READY            0 0x82 "the namespace is not there now"
    RESERVATION_CONFLICT           0 0x83 "another host holds a reservation"
    FORMAT_IN_PROGRESS             0 0x84 "a format is under way"
    INVALID_QUEUE_IDENTIFIER       1 0x01 "there is no such queue, or it is in use"
    INVALID_QUEUE_SIZE             1 0x02 "the queue is too small or too large"
    ABORT_LIMIT_EXCEEDED           1 0x03 "too many Aborts at once"
    ASYNC_EVENT_LIMIT_EXCEEDED     1 0x05 "too many Asynchronous Event Requests at once"
    INVALID_LOG_PAGE               1 0x09 "there is no such log page"
    INVALID_FORMAT                 1 0x0a "the format is not supported"
    FEATURE_NOT_SAVEABLE           1 0x0d "the feature cannot be saved"
    FEATURE_NOT_CHANGEABLE         1 0x0e "the feature cannot be changed"
    FEATURE_NOT_NAMESPACE_SPECIFIC 1 0x0f "the feature is not of a namespace"
    OVERLAPPING_RANGE              1 0x14 "ranges overlap"
    INVALID_CONTROLLER_IDENTIFIER  1 0x1f "there is no such controller"
    COMMAND_SET_NOT_SUPPORTED      1 0x29 "the command set is not supported"
    COMMAND_SET_NOT_ENABLED        1 0x2a "the command set is not enabled"
    COMMAND_SETS_REJECTED          1 0x2b "this combination of command sets is not supported"
    INVALID_COMMAND_SET            1 0x2c "there is no such command set"
    CONNECT_INCOMPATIBLE_FORMAT    1 0x80 "the record format of Connect is not supported"
    CONNECT_CONTROLLER_BUSY        1 0x81 "the controller has a host already"
    CONNECT_INVALID_PARAMETERS     1 0x82 "a parameter of Connect is wrong"
    CONNECT_RESTART_DISCOVERY      1 0x83 "the subsystem is elsewhere: ask the discovery service"
    CONNECT_INVALID_HOST           1 0x84 "the host may not use this subsystem"
    INVALID_QUEUE_TYPE             1 0x85 "this queue cannot be disconnected alone"
    DISCOVER_RESTART               1 0x90 "the discovery log changed: read it again"
    AUTHENTICATION_REQUIRED        1 0x91 "the host has to authenticate first"
    WRITE_FAULT                    2 0x80 "the disk could not write"
    UNRECOVERED_READ_ERROR         2 0x81 "the disk could not read"
    GUARD_CHECK_ERROR              2 0x82 "the guard tag does not match"
    APPLICATION_TAG_CHECK_ERROR    2 0x83 "the application tag does not match"
    REFERENCE_TAG_CHECK_ERROR      2 0x84 "the reference tag does not match"
    COMPARE_FAILURE                2 0x85 "the blocks differ from the data"
    ACCESS_DENIED                  2 0x86 "the host may not access these blocks"
    DEALLOCATED_BLOCK              2 0x87 "the blocks were never written"
    INTERNAL_PATH_ERROR            3 0x00 "the controller cannot reach the namespace"
    ANA_PERSISTENT_LOSS            3 0x01 "this path to the namespace is gone for good"
    ANA_INACCESSIBLE               3 0x02 "this path to the namespace is closed now"
    ANA_TRANSITION                 3 0x03 "this path to the namespace is changing"
    CONTROLLER_PATH_ERROR          3 0x60 "the controller lost the path"
    HOST_PATH_ERROR                3 0x70 "the host lost the path"
    ABORTED_BY_HOST                3 0x71 "the host ended the command"
}

/// Commands that share numbers with others: the code means this for I/O commands, where it means
/// something of Connect's for Fabrics commands.
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
        match row(self.code()) {
            Some((name, _)) => f.write_str(name)?,
            None => write!(f, "{:x}h/{:02x}h", self.sct(), self.sc())?,
        }
        f.write_str(if self.is_dnr() { "|DNR" } else { "" })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentence = row(self.code()).map_or("the command failed", |(_, sentence)| sentence);
        write!(f, "{sentence} ({:x}h/{:02x}h)", self.sct(), self.sc())
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
    fn every_status_keeps_its_numbers_through_the_field() {
        for &status in ALL {
            let back = Status::from_field(status.dnr().more().to_field());
            assert_eq!((back.sct(), back.sc(), back.is_dnr()), (status.sct(), status.sc(), true));
            assert_eq!(back.code(), status);
            assert!(!status.is_dnr());
        }
        assert_eq!(ALL.iter().filter(|status| status.is_success()).count(), 1);
    }

    #[test]
    fn no_two_names_have_the_same_numbers() {
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
        for fault in Fault::ALL {
            assert!(!table(fault).0.is_success() && !table(fault).1.is_success(), "{fault:?}");
        }
    }

    #[test]
    fn a_status_shows_by_name() {
        assert_eq!(format!("{:?}", Status::INVALID_FIELD.dnr()), "INVALID_FIELD|DNR");
        assert_eq!(format!("{:?}", Status::new(7, 0xff)), "7h/ffh");
        assert_eq!(Status::COMPARE_FAILURE.to_string(), "the blocks differ from the data (2h/85h)");
        assert_eq!(Status::new(7, 0xff).to_string(), "the command failed (7h/ffh)");
    }
}
