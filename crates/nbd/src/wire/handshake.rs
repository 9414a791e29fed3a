//! The first bytes of a connection, and the answer to the oldest way of choosing an export (NBD, Newstyle negotiation).

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `NBDMAGIC`.
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, which begins the second half of the hello and each option.
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// What stands in its place in the hello of the oldstyle negotiation.
pub const OLDSTYLE: u64 = 0x0000_4202_8186_1253;

/// Handshake flag: the fixed newstyle negotiation.
pub const FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag: the zeros after an export's size and flags can be left out.
pub const NO_ZEROES: u16 = 1 << 1;

/// Client flag: the fixed newstyle negotiation.
pub const C_FIXED_NEWSTYLE: u32 = 1;
/// Client flag: no zeros after an export's size and flags.
pub const C_NO_ZEROES: u32 = 1 << 1;

/// Zeros after an [`ExportReply`], unless both ends left them out.
pub const ZEROES: usize = 124;

/// What a server says first: 18 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Hello {
    /// [`NBDMAGIC`].
    pub magic: U64,
    /// [`IHAVEOPT`], or [`OLDSTYLE`].
    pub style: U64,
    /// [`FIXED_NEWSTYLE`], [`NO_ZEROES`].
    pub flags: U16,
}
const _: () = assert!(size_of::<Hello>() == 18);

impl Hello {
    /// The hello of a server that speaks the fixed newstyle.
    #[must_use]
    pub fn new() -> Self {
        Self {
            magic: NBDMAGIC.into(),
            style: IHAVEOPT.into(),
            flags: (FIXED_NEWSTYLE | NO_ZEROES).into(),
        }
    }
}

impl Default for Hello {
    fn default() -> Self {
        Self::new()
    }
}

/// The client's flags, which answer the hello: 4 bytes.
pub type ClientFlags = U32;

/// The answer to [`super::option::EXPORT_NAME`]: 10 bytes, and perhaps [`ZEROES`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ExportReply {
    /// Bytes of the export.
    pub size: U64,
    /// Transmission flags: [`super::request::flags`].
    pub flags: U16,
}
const _: () = assert!(size_of::<ExportReply>() == 10);

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn golden_hello() {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(b"NBDMAGIC");
        bytes.extend_from_slice(b"IHAVEOPT");
        bytes.extend_from_slice(&[0x00, 0x03]); // fixed newstyle, no zeroes
        assert_eq!(Hello::new().as_bytes(), bytes);
        assert_eq!(Hello::read_from_bytes(&bytes), Ok(Hello::new()));
    }

    #[test]
    fn golden_export_reply() {
        #[rustfmt::skip]
        let bytes: [u8; 10] = [
            0, 0, 0, 1, 0, 0, 0x02, 0x00, // 4 GiB and 512 bytes
            0x01, 0x0d,                   // has flags, flush, fua, multi-conn
        ];
        let reply = ExportReply::read_from_bytes(&bytes).unwrap();
        assert_eq!((reply.size.get(), reply.flags.get()), ((1 << 32) + 512, 0x10d));
        assert_eq!(reply.as_bytes(), bytes);
    }
}
