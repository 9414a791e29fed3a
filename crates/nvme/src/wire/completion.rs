//! The completion queue entry.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::status::Status;

/// A completion queue entry: 16 bytes (NVMe Base 2.0 §3.3.3.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Cqe {
    /// Dword 0: command specific.
    pub dw0: U32,
    /// Dword 1: upper half of an 8-byte result, otherwise 0.
    pub dw1: U32,
    /// Submission queue head; reserved if SQ flow control is disabled.
    pub sqhd: U16,
    /// Submission queue identifier: reserved over fabrics, 0.
    pub sqid: U16,
    /// Command identifier.
    pub cid: U16,
    /// Status field in bits 15:1; bit 0 is the phase tag, 0 over fabrics.
    pub status: U16,
}
const _: () = assert!(size_of::<Cqe>() == 16);

impl Cqe {
    /// Creates a completion of command `cid` with result and SQHD 0.
    #[must_use]
    pub fn new(cid: u16, status: Status) -> Self {
        Self { cid: U16::new(cid), status: U16::new(status.to_field()), ..Self::new_zeroed() }
    }

    /// Sets a 4-byte result.
    #[must_use]
    pub const fn with_dw0(mut self, dw0: u32) -> Self {
        self.dw0 = U32::new(dw0);
        self
    }

    /// Sets an 8-byte result.
    #[must_use]
    pub fn with_result(mut self, value: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        self.dw0 = U32::from_bytes([a, b, c, d]);
        self.dw1 = U32::from_bytes([e, f, g, h]);
        self
    }

    /// Sets the submission queue head.
    #[must_use]
    pub const fn with_sqhd(mut self, sqhd: u16) -> Self {
        self.sqhd = U16::new(sqhd);
        self
    }

    /// Returns both dwords as an 8-byte result.
    #[must_use]
    pub fn result(&self) -> u64 {
        u64::from(self.dw1.get()) << 32 | u64::from(self.dw0.get())
    }

    /// Returns the status.
    #[must_use]
    pub fn outcome(&self) -> Status {
        Status::from_field(self.status.get())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn golden_failure() {
        #[rustfmt::skip]
        let bytes: [u8; 16] = [
            0x00, 0x01, 0x01, 0x00, // dword 0: offset 256 in the data
            0, 0, 0, 0,             // dword 1
            0x05, 0x00,             // SQHD 5
            0, 0,                   // SQID
            0x34, 0x12,             // CID 1234h
            0x04, 0x83,             // SCT 1, SC 82h, DNR
        ];
        let cqe = Cqe::read_from_bytes(&bytes).unwrap();
        assert_eq!(cqe.outcome(), Status::CONNECT_INVALID_PARAMETERS.dnr());
        assert_eq!((cqe.dw0.get(), cqe.sqhd.get(), cqe.cid.get()), (0x1_0100, 5, 0x1234));
        let made = Cqe::new(0x1234, Status::CONNECT_INVALID_PARAMETERS.dnr());
        assert_eq!(made.with_dw0(0x1_0100).with_sqhd(5).as_bytes(), bytes);
    }

    #[test]
    fn eight_byte_result_uses_both_dwords() {
        let cqe = Cqe::new(1, Status::SUCCESS).with_result(0x1122_3344_5566_7788);
        assert_eq!(cqe.as_bytes()[..8], [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        assert_eq!(cqe.result(), 0x1122_3344_5566_7788);
    }
}
