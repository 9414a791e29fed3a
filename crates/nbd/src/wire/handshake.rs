//! The handshake phase: server hello, client flags, and the reply to `NBD_OPT_EXPORT_NAME` (NBD,
//! Newstyle negotiation).

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `NBDMAGIC`.
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: second half of the hello, and magic of each option.
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// The second magic of an oldstyle hello, in place of [`IHAVEOPT`].
pub const OLDSTYLE: u64 = 0x0000_4202_8186_1253;

/// Handshake flag: the server supports the fixed newstyle negotiation.
pub const FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag: the server can omit the zeros of an [`ExportReply`].
pub const NO_ZEROES: u16 = 1 << 1;

/// Client flag: the client supports the fixed newstyle negotiation.
pub const C_FIXED_NEWSTYLE: u32 = 1;
/// Client flag: the server omits the zeros of an [`ExportReply`].
pub const C_NO_ZEROES: u32 = 1 << 1;

/// Number of zeros after an [`ExportReply`], unless both sides agreed to omit them.
pub const ZEROES: usize = 124;

/// The server's first message: 18 bytes.
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
    /// Returns the hello of a fixed newstyle server.
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

/// The client's reply to the hello: 4 bytes of flags.
pub type ClientFlags = U32;

/// The reply to [`super::option::EXPORT_NAME`]: 10 bytes, followed by [`ZEROES`] zeros unless
/// omitted.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ExportReply {
    /// Size of the export in bytes.
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
