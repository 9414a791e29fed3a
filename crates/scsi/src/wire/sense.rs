//! Sense data (SPC-4 §4.5).

use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Sense keys (SPC-4 §4.5.6).
pub mod key {
    /// NO SENSE.
    pub const NO_SENSE: u8 = 0x0;
    /// RECOVERED ERROR.
    pub const RECOVERED_ERROR: u8 = 0x1;
    /// NOT READY.
    pub const NOT_READY: u8 = 0x2;
    /// MEDIUM ERROR.
    pub const MEDIUM_ERROR: u8 = 0x3;
    /// HARDWARE ERROR.
    pub const HARDWARE_ERROR: u8 = 0x4;
    /// ILLEGAL REQUEST.
    pub const ILLEGAL_REQUEST: u8 = 0x5;
    /// UNIT ATTENTION.
    pub const UNIT_ATTENTION: u8 = 0x6;
    /// DATA PROTECT.
    pub const DATA_PROTECT: u8 = 0x7;
    /// COPY ABORTED.
    pub const COPY_ABORTED: u8 = 0xa;
    /// ABORTED COMMAND.
    pub const ABORTED_COMMAND: u8 = 0xb;
    /// MISCOMPARE.
    pub const MISCOMPARE: u8 = 0xe;
}

/// Response code: current error, fixed format.
const FIXED_CURRENT: u8 = 0x70;
/// Flags of the sense key specific field: it is valid, and points into the CDB.
const FIELD_IN_CDB: u8 = 0xc0;
/// Flag of the response code: the information field is valid.
const VALID: u8 = 0x80;

/// Sense data of a current error in fixed format: 18 bytes (SPC-4 §4.5.3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Sense {
    response_code: u8,
    obsolete: u8,
    key: u8,
    information: U32,
    additional_length: u8,
    command_specific: U32,
    asc: u8,
    ascq: u8,
    replaceable_unit: u8,
    key_specific: [u8; 3],
}
const _: () = assert!(size_of::<Sense>() == 18);

impl Sense {
    /// Returns sense data with that sense key and additional sense code and qualifier.
    #[must_use]
    pub const fn new(key: u8, asc: u8, ascq: u8) -> Self {
        Self {
            response_code: FIXED_CURRENT,
            obsolete: 0,
            key,
            information: U32::new(0),
            additional_length: 10,
            command_specific: U32::new(0),
            asc,
            ascq,
            replaceable_unit: 0,
            key_specific: [0; 3],
        }
    }

    /// Sets the information field: the first block of a medium error, or the offset of the first
    /// byte of a miscompare. A number of more than 32 bits does not fit, and is left out.
    #[must_use]
    pub fn with_information(mut self, information: u64) -> Self {
        if let Ok(information) = u32::try_from(information) {
            self.response_code |= VALID;
            self.information.set(information);
        }
        self
    }

    /// Sets the field pointer: the byte of the CDB that is in error (SPC-4 §4.5.2.4.2). libiscsi's
    /// suite takes an invalid field without it for a command that is not supported.
    #[must_use]
    pub fn with_field(mut self, byte: u8) -> Self {
        self.key_specific = [FIELD_IN_CDB, 0, byte];
        self
    }

    /// Returns the sense key.
    #[must_use]
    pub fn key(&self) -> u8 {
        self.key & 0x0f
    }

    /// Returns the additional sense code and its qualifier.
    #[must_use]
    pub fn code(&self) -> (u8, u8) {
        (self.asc, self.ascq)
    }

    /// Returns the information field, if it is valid.
    #[must_use]
    pub fn information(&self) -> Option<u32> {
        (self.response_code & VALID != 0).then_some(self.information.get())
    }

    /// NO ADDITIONAL SENSE INFORMATION.
    pub const NONE: Self = Self::new(key::NO_SENSE, 0x00, 0x00);
    /// MEDIUM NOT PRESENT.
    pub const MEDIUM_NOT_PRESENT: Self = Self::new(key::NOT_READY, 0x3a, 0x00);
    /// WRITE ERROR.
    pub const WRITE_ERROR: Self = Self::new(key::MEDIUM_ERROR, 0x0c, 0x00);
    /// INTERNAL TARGET FAILURE.
    pub const INTERNAL_TARGET_FAILURE: Self = Self::new(key::HARDWARE_ERROR, 0x44, 0x00);
    /// UNRECOVERED READ ERROR.
    pub const READ_ERROR: Self = Self::new(key::MEDIUM_ERROR, 0x11, 0x00);
    /// PARAMETER LIST LENGTH ERROR.
    pub const PARAMETER_LIST_LENGTH: Self = Self::new(key::ILLEGAL_REQUEST, 0x1a, 0x00);
    /// INVALID COMMAND OPERATION CODE.
    pub const INVALID_OPCODE: Self = Self::new(key::ILLEGAL_REQUEST, 0x20, 0x00);
    /// LOGICAL BLOCK ADDRESS OUT OF RANGE.
    pub const OUT_OF_RANGE: Self = Self::new(key::ILLEGAL_REQUEST, 0x21, 0x00);
    /// INVALID FIELD IN CDB.
    pub const INVALID_FIELD_IN_CDB: Self = Self::new(key::ILLEGAL_REQUEST, 0x24, 0x00);
    /// LOGICAL UNIT NOT SUPPORTED.
    pub const NO_SUCH_UNIT: Self = Self::new(key::ILLEGAL_REQUEST, 0x25, 0x00);
    /// INVALID FIELD IN PARAMETER LIST.
    pub const INVALID_FIELD_IN_PARAMETERS: Self = Self::new(key::ILLEGAL_REQUEST, 0x26, 0x00);
    /// INVALID RELEASE OF PERSISTENT RESERVATION.
    pub const INVALID_RELEASE: Self = Self::new(key::ILLEGAL_REQUEST, 0x26, 0x04);
    /// INSUFFICIENT REGISTRATION RESOURCES.
    pub const TOO_MANY_REGISTRATIONS: Self = Self::new(key::ILLEGAL_REQUEST, 0x55, 0x04);
    /// TOO MANY TARGET DESCRIPTORS.
    pub const TOO_MANY_TARGETS: Self = Self::new(key::ILLEGAL_REQUEST, 0x26, 0x06);
    /// UNSUPPORTED TARGET DESCRIPTOR TYPE CODE.
    pub const UNSUPPORTED_TARGET_DESCRIPTOR: Self = Self::new(key::ILLEGAL_REQUEST, 0x26, 0x07);
    /// TOO MANY SEGMENT DESCRIPTORS.
    pub const TOO_MANY_SEGMENTS: Self = Self::new(key::ILLEGAL_REQUEST, 0x26, 0x08);
    /// UNSUPPORTED SEGMENT DESCRIPTOR TYPE CODE.
    pub const UNSUPPORTED_SEGMENT_DESCRIPTOR: Self = Self::new(key::ILLEGAL_REQUEST, 0x26, 0x09);
    /// A segment of a copy is beyond the end of the disk.
    pub const COPY_ABORTED: Self = Self::new(key::COPY_ABORTED, 0x00, 0x00);
    /// UNREACHABLE COPY TARGET.
    pub const UNREACHABLE_COPY_TARGET: Self = Self::new(key::COPY_ABORTED, 0x08, 0x04);
    /// SAVING PARAMETERS NOT SUPPORTED.
    pub const SAVING_NOT_SUPPORTED: Self = Self::new(key::ILLEGAL_REQUEST, 0x39, 0x00);
    /// MEDIUM REMOVAL PREVENTED.
    pub const REMOVAL_PREVENTED: Self = Self::new(key::ILLEGAL_REQUEST, 0x53, 0x02);
    /// WRITE PROTECTED.
    pub const WRITE_PROTECTED: Self = Self::new(key::DATA_PROTECT, 0x27, 0x00);
    /// LOGICAL UNIT SOFTWARE WRITE PROTECTED.
    pub const SOFTWARE_WRITE_PROTECTED: Self = Self::new(key::DATA_PROTECT, 0x27, 0x02);
    /// SPACE ALLOCATION FAILED WRITE PROTECT.
    pub const NO_SPACE: Self = Self::new(key::DATA_PROTECT, 0x27, 0x07);
    /// MISCOMPARE DURING VERIFY OPERATION.
    pub const MISCOMPARE: Self = Self::new(key::MISCOMPARE, 0x1d, 0x00);
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn golden_sense_data() {
        #[rustfmt::skip]
        assert_eq!(Sense::OUT_OF_RANGE.as_bytes(), [
            0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0,
        ]);
        #[rustfmt::skip]
        assert_eq!(Sense::READ_ERROR.with_information(0x0102_0304).as_bytes(), [
            0xf0, 0, 3, 1, 2, 3, 4, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0,
        ]);
    }

    #[test]
    fn golden_field_pointer() {
        #[rustfmt::skip]
        assert_eq!(Sense::INVALID_FIELD_IN_CDB.with_field(2).as_bytes(), [
            0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xc0, 0, 2,
        ]);
    }

    #[test]
    fn information_above_32_bits_is_left_out() {
        assert_eq!(Sense::READ_ERROR.with_information(1 << 32), Sense::READ_ERROR);
        let last = Sense::READ_ERROR.with_information(u64::from(u32::MAX));
        assert_eq!((last.information(), Sense::NONE.information()), (Some(u32::MAX), None));
    }
}
