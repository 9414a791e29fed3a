//! Replies of the transmission phase: simple, structured and extended (NBD, Simple reply, Structured reply chunk, Extended
//! reply chunk).

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Magic of a [`SimpleReply`].
pub const SIMPLE_MAGIC: u32 = 0x6744_6698;
/// Magic of a [`Chunk`].
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// Magic of an [`ExtendedChunk`].
pub const EXTENDED_MAGIC: u32 = 0x6e8a_278c;

/// Reply flag: the last chunk of the reply.
pub const DONE: u16 = 1;

/// Chunk: nothing; the end.
pub const NONE: u16 = 0;
/// Chunk: data ([`OffsetData`]).
pub const OFFSET_DATA: u16 = 1;
/// Chunk: zeros ([`OffsetHole`]).
pub const OFFSET_HOLE: u16 = 2;
/// Chunk: the number of a metadata context, then [`super::meta::Descriptor`]s.
pub const BLOCK_STATUS: u16 = 5;
/// Chunk: [`BlockStatusExt`], then [`super::meta::ExtendedDescriptor`]s.
pub const BLOCK_STATUS_EXT: u16 = 6;
/// Set in the types of chunks that are errors.
pub const ERROR_BIT: u16 = 1 << 15;
/// Chunk: an error ([`Error`]).
pub const ERROR: u16 = ERROR_BIT + 1;
/// Chunk: an error at an offset, which follows the message.
pub const ERROR_OFFSET: u16 = ERROR_BIT + 2;

/// A reply without chunks: 16 bytes, and the data of a read that went well.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct SimpleReply {
    /// [`SIMPLE_MAGIC`].
    pub magic: U32,
    /// One of [`super::errno`].
    pub error: U32,
    /// That of the request.
    pub cookie: U64,
}
const _: () = assert!(size_of::<SimpleReply>() == 16);

impl SimpleReply {
    /// The reply to the request of that cookie.
    #[must_use]
    pub fn new(error: u32, cookie: u64) -> Self {
        Self { magic: SIMPLE_MAGIC.into(), error: error.into(), cookie: cookie.into() }
    }
}

/// A part of a structured reply: 20 bytes, and a payload.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Chunk {
    /// [`CHUNK_MAGIC`].
    pub magic: U32,
    /// [`DONE`], or not yet.
    pub flags: U16,
    /// [`NONE`] and so on.
    pub kind: U16,
    /// That of the request.
    pub cookie: U64,
    /// Bytes of the payload.
    pub len: U32,
}
const _: () = assert!(size_of::<Chunk>() == 20);

impl Chunk {
    /// A chunk with `len` bytes of payload.
    #[must_use]
    pub fn new(kind: u16, flags: u16, cookie: u64, len: u32) -> Self {
        let (kind, flags) = (kind.into(), flags.into());
        Self { magic: CHUNK_MAGIC.into(), flags, kind, cookie: cookie.into(), len: len.into() }
    }
}

/// A part of a reply with extended headers: 32 bytes, and a payload.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ExtendedChunk {
    /// [`EXTENDED_MAGIC`].
    pub magic: U32,
    /// [`DONE`], or not yet.
    pub flags: U16,
    /// [`NONE`] and so on.
    pub kind: U16,
    /// That of the request.
    pub cookie: U64,
    /// That of the request.
    pub offset: U64,
    /// Bytes of the payload.
    pub len: U64,
}
const _: () = assert!(size_of::<ExtendedChunk>() == 32);

impl ExtendedChunk {
    /// A chunk with `len` bytes of payload.
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

/// What begins the payload of [`OFFSET_DATA`]: 8 bytes, then the data.
pub type OffsetData = U64;

/// The payload of [`OFFSET_HOLE`]: 12 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct OffsetHole {
    /// Where the zeros begin.
    pub offset: U64,
    /// How many; not none.
    pub len: U32,
}
const _: () = assert!(size_of::<OffsetHole>() == 12);

/// What begins the payload of [`BLOCK_STATUS_EXT`]: 8 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct BlockStatusExt {
    /// The number of the metadata context.
    pub context: U32,
    /// Descriptors that follow; not none.
    pub count: U32,
}
const _: () = assert!(size_of::<BlockStatusExt>() == 8);

/// What begins the payload of a chunk that is an error: 6 bytes, then a message, then perhaps an offset.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Error {
    /// One of [`super::errno`]; not zero.
    pub error: U32,
    /// Bytes of the message.
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
