//! Replies of the transmission phase: simple, structured and extended (NBD, Simple reply,
//! Structured reply chunk, Extended reply chunk).

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Magic of a [`SimpleReply`].
pub const SIMPLE_MAGIC: u32 = 0x6744_6698;
/// Magic of a [`Chunk`].
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// Magic of an [`ExtendedChunk`].
pub const EXTENDED_MAGIC: u32 = 0x6e8a_278c;

/// Reply flag: last chunk of the reply.
pub const DONE: u16 = 1;

/// Chunk type: no payload; ends the reply.
pub const NONE: u16 = 0;
/// Chunk type: data ([`OffsetData`]).
pub const OFFSET_DATA: u16 = 1;
/// Chunk type: a hole, read as zeros ([`OffsetHole`]).
pub const OFFSET_HOLE: u16 = 2;
/// Chunk type: metadata context id, followed by [`super::meta::Descriptor`]s.
pub const BLOCK_STATUS: u16 = 5;
/// Chunk type: [`BlockStatusExt`], followed by [`super::meta::ExtendedDescriptor`]s.
pub const BLOCK_STATUS_EXT: u16 = 6;
/// Bit set in chunk types that are errors.
pub const ERROR_BIT: u16 = 1 << 15;
/// Chunk type: an error ([`Error`]).
pub const ERROR: u16 = ERROR_BIT + 1;
/// Chunk type: an error ([`Error`]) whose message is followed by an offset.
pub const ERROR_OFFSET: u16 = ERROR_BIT + 2;

/// A reply without chunks: 16 bytes, followed by the data of a successful read.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct SimpleReply {
    /// [`SIMPLE_MAGIC`].
    pub magic: U32,
    /// One of [`super::errno`].
    pub error: U32,
    /// The cookie of the request.
    pub cookie: U64,
}
const _: () = assert!(size_of::<SimpleReply>() == 16);

impl SimpleReply {
    /// Creates the reply to the request with that cookie.
    #[must_use]
    pub fn new(error: u32, cookie: u64) -> Self {
        Self { magic: SIMPLE_MAGIC.into(), error: error.into(), cookie: cookie.into() }
    }
}

/// The header of a structured reply chunk: 20 bytes, followed by the payload.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Chunk {
    /// [`CHUNK_MAGIC`].
    pub magic: U32,
    /// [`DONE`] or zero.
    pub flags: U16,
    /// The chunk type: [`NONE`] and so on.
    pub kind: U16,
    /// The cookie of the request.
    pub cookie: U64,
    /// Length of the payload in bytes.
    pub len: U32,
}
const _: () = assert!(size_of::<Chunk>() == 20);

impl Chunk {
    /// Creates the header of a chunk with `len` bytes of payload.
    #[must_use]
    pub fn new(kind: u16, flags: u16, cookie: u64, len: u32) -> Self {
        let (kind, flags) = (kind.into(), flags.into());
        Self { magic: CHUNK_MAGIC.into(), flags, kind, cookie: cookie.into(), len: len.into() }
    }
}

/// The header of an extended reply chunk: 32 bytes, followed by the payload.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ExtendedChunk {
    /// [`EXTENDED_MAGIC`].
    pub magic: U32,
    /// [`DONE`] or zero.
    pub flags: U16,
    /// The chunk type: [`NONE`] and so on.
    pub kind: U16,
    /// The cookie of the request.
    pub cookie: U64,
    /// The offset of the request.
    pub offset: U64,
    /// Length of the payload in bytes.
    pub len: U64,
}
const _: () = assert!(size_of::<ExtendedChunk>() == 32);

impl ExtendedChunk {
    /// Creates the header of a chunk with `len` bytes of payload.
    #[must_use]
    pub fn new(kind: u16, flags: u16, cookie: u64, offset: u64, len: u64) -> Self {
        Self {
            magic: EXTENDED_MAGIC.into(),
            flags: flags.into(),
            kind: kind.into(),
            cookie: cookie.into(),
            offset: offset.into(),
            len: len.into(),
        }
    }
}

/// The start of an [`OFFSET_DATA`] payload: the 8-byte offset of the data that follow.
pub type OffsetData = U64;

/// The payload of [`OFFSET_HOLE`]: 12 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct OffsetHole {
    /// Offset of the first zero byte.
    pub offset: U64,
    /// Length in bytes; not zero.
    pub len: U32,
}
const _: () = assert!(size_of::<OffsetHole>() == 12);

/// The start of a [`BLOCK_STATUS_EXT`] payload: 8 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct BlockStatusExt {
    /// The metadata context id.
    pub context: U32,
    /// Number of descriptors that follow; not zero.
    pub count: U32,
}
const _: () = assert!(size_of::<BlockStatusExt>() == 8);

/// The start of an error payload: 6 bytes, followed by the message and, for [`ERROR_OFFSET`], the
/// offset.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Error {
    /// One of [`super::errno`]; not zero.
    pub error: U32,
    /// Length of the message in bytes.
    pub message: U16,
}
const _: () = assert!(size_of::<Error>() == 6);

#[cfg(test)]
mod test {
    use super::super::errno;
    use super::*;

    #[test]
    fn golden_simple_reply() {
        let bytes = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(SimpleReply::new(errno::ENOSPC, 0x0102_0304_0506_0708).as_bytes(), bytes);
    }

    #[test]
    fn golden_chunk() {
        #[rustfmt::skip]
        let bytes: [u8; 20] = [
            0x66, 0x8e, 0x33, 0xef,
            0, 1,                   // done
            0, 1,                   // OFFSET_DATA
            1, 2, 3, 4, 5, 6, 7, 8, // cookie
            0, 0, 0x10, 8,          // an offset and 4096 bytes
        ];
        assert_eq!(Chunk::new(OFFSET_DATA, DONE, 0x0102_0304_0506_0708, 4104).as_bytes(), bytes);
    }

    #[test]
    fn golden_extended_chunk() {
        #[rustfmt::skip]
        let bytes: [u8; 32] = [
            0x6e, 0x8a, 0x27, 0x8c,
            0, 1,                   // done
            0x80, 2,                // ERROR_OFFSET
            1, 2, 3, 4, 5, 6, 7, 8, // cookie
            0, 0, 0, 0, 0, 0, 2, 0, // offset of the request
            0, 0, 0, 0, 0, 0, 0, 14,
        ];
        let chunk = ExtendedChunk::new(ERROR_OFFSET, DONE, 0x0102_0304_0506_0708, 512, 14);
        assert_eq!(chunk.as_bytes(), bytes);
    }

    #[test]
    fn golden_payloads() {
        let hole = OffsetHole { offset: 512.into(), len: 4096.into() };
        assert_eq!(hole.as_bytes(), [0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0x10, 0]);
        let error = Error { error: errno::EIO.into(), message: 3.into() };
        assert_eq!(error.as_bytes(), [0, 0, 0, 5, 0, 3]);
        let status = BlockStatusExt { context: 1.into(), count: 2.into() };
        assert_eq!(status.as_bytes(), [0, 0, 0, 1, 0, 0, 0, 2]);
    }
}
