//! Requests of the transmission phase (NBD, Request message, Extended request) and transmission
//! flags.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Transmission flags: the properties of an export (NBD, Transmission flags).
pub mod flags {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1;
    /// The export is read-only.
    pub const READ_ONLY: u16 = 1 << 1;
    /// [`super::FLUSH`] is supported.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// [`super::FUA`] is supported.
    pub const SEND_FUA: u16 = 1 << 3;
    /// The disk rotates.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// [`super::TRIM`] is supported.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// [`super::WRITE_ZEROES`] and [`super::NO_HOLE`] are supported.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// [`super::DF`] is supported.
    pub const SEND_DF: u16 = 1 << 7;
    /// Multiple connections are coherent: a flush covers the writes of all of them.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// Reserved for resizing.
    pub const SEND_RESIZE: u16 = 1 << 9;
    /// [`super::CACHE`] is supported.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// [`super::FAST_ZERO`] is supported.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// [`super::BLOCK_STATUS`] accepts a payload.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Reads data.
pub const READ: u16 = 0;
/// Writes the data that follow.
pub const WRITE: u16 = 1;
/// Disconnects; has no reply.
pub const DISC: u16 = 2;
/// Flushes completed writes to stable storage.
pub const FLUSH: u16 = 3;
/// Discards a range.
pub const TRIM: u16 = 4;
/// Prefetches a range.
pub const CACHE: u16 = 5;
/// Writes zeros to a range.
pub const WRITE_ZEROES: u16 = 6;
/// Queries the selected metadata contexts for a range.
pub const BLOCK_STATUS: u16 = 7;
/// Reserved for resizing.
pub const RESIZE: u16 = 8;

/// Command flag: reply only once the data is on stable storage.
pub const FUA: u16 = 1;
/// Command flag of [`WRITE_ZEROES`]: keep the range allocated.
pub const NO_HOLE: u16 = 1 << 1;
/// Command flag of [`READ`]: do not fragment, send all data in one chunk.
pub const DF: u16 = 1 << 2;
/// Command flag of [`BLOCK_STATUS`]: return one extent per context.
pub const REQ_ONE: u16 = 1 << 3;
/// Command flag of [`WRITE_ZEROES`]: fail unless it is faster than writing.
pub const FAST_ZERO: u16 = 1 << 4;
/// Command flag with extended headers: the length is that of a payload that follows.
pub const PAYLOAD_LEN: u16 = 1 << 5;

/// Returns the name of a command without its `NBD_CMD_` prefix.
#[must_use]
pub fn name(command: u16) -> &'static str {
    match command {
        READ => "READ",
        WRITE => "WRITE",
        DISC => "DISC",
        FLUSH => "FLUSH",
        TRIM => "TRIM",
        CACHE => "CACHE",
        WRITE_ZEROES => "WRITE_ZEROES",
        BLOCK_STATUS => "BLOCK_STATUS",
        RESIZE => "RESIZE",
        _ => "unknown",
    }
}

/// Magic of a [`Request`].
pub const MAGIC: u32 = 0x2560_9513;
/// Magic of an [`ExtendedRequest`].
pub const EXTENDED_MAGIC: u32 = 0x21e4_1c71;

/// A request with a 32-bit length: 28 bytes, followed by the data of a write.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Request {
    /// [`MAGIC`].
    pub magic: U32,
    /// Command flags.
    pub flags: U16,
    /// [`READ`] and so on.
    pub command: U16,
    /// Chosen by the client, returned in the reply.
    pub cookie: U64,
    /// Offset in bytes.
    pub offset: U64,
    /// Length in bytes.
    pub len: U32,
}
const _: () = assert!(size_of::<Request>() == 28);

/// A request with a 64-bit length: 32 bytes, followed by the data of a write.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ExtendedRequest {
    /// [`EXTENDED_MAGIC`].
    pub magic: U32,
    /// Command flags.
    pub flags: U16,
    /// [`READ`] and so on.
    pub command: U16,
    /// Chosen by the client, returned in the reply.
    pub cookie: U64,
    /// Offset in bytes.
    pub offset: U64,
    /// Length in bytes: of the payload if [`PAYLOAD_LEN`] is set, else of the range.
    pub len: U64,
}
const _: () = assert!(size_of::<ExtendedRequest>() == 32);

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn golden_request() {
        #[rustfmt::skip]
        let bytes: [u8; 28] = [
            0x25, 0x60, 0x95, 0x13,
            0x00, 0x01,             // FUA
            0x00, 0x01,             // WRITE
            1, 2, 3, 4, 5, 6, 7, 8, // cookie
            0, 0, 0, 1, 0, 0, 0, 0, // offset 4 GiB
            0, 0, 0x10, 0,          // 4096 bytes
        ];
        let request = Request::read_from_bytes(&bytes).unwrap();
        assert_eq!((request.magic.get(), request.command.get()), (MAGIC, WRITE));
        assert_eq!((request.flags.get(), request.len.get()), (FUA, 4096));
        assert_eq!((request.offset.get(), request.cookie.get()), (1 << 32, 0x0102_0304_0506_0708));
        assert_eq!(request.as_bytes(), bytes);
    }

    #[test]
    fn golden_extended_request() {
        #[rustfmt::skip]
        let bytes: [u8; 32] = [
            0x21, 0xe4, 0x1c, 0x71,
            0x00, 0x12,             // NO_HOLE, FAST_ZERO
            0x00, 0x06,             // WRITE_ZEROES
            1, 2, 3, 4, 5, 6, 7, 8, // cookie
            0, 0, 0, 0, 0, 0, 2, 0, // offset 512
            0, 0, 1, 0, 0, 0, 0, 0, // 1 TiB
        ];
        let request = ExtendedRequest::read_from_bytes(&bytes).unwrap();
        assert_eq!((request.magic.get(), request.command.get()), (EXTENDED_MAGIC, WRITE_ZEROES));
        assert_eq!((request.flags.get(), request.len.get()), (NO_HOLE | FAST_ZERO, 1 << 40));
        assert_eq!(request.as_bytes(), bytes);
    }
}
