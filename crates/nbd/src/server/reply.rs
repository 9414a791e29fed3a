//! Encodes replies in their three forms (NBD, Simple reply, Structured reply chunk, Extended reply
//! chunk).

use export::{Body, Buffer, Head, Segment};
use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::U64;

use crate::wire::reply::{self, Chunk, Error, ExtendedChunk, SimpleReply};

/// The negotiated form of requests and replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Mode {
    #[default]
    Simple,
    Structured,
    Extended,
}

/// The request that a reply answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReplyTo {
    cookie: u64,
    /// The requested offset.
    offset: u64,
}

impl ReplyTo {
    pub(super) fn new(cookie: u64, offset: u64) -> Self {
        Self { cookie, offset }
    }

    /// Returns the requested offset.
    pub(super) fn offset(self) -> u64 {
        self.offset
    }
}

/// Encodes the single reply to a request without data. For a `read` only if it failed or had length
/// zero.
pub(super) fn result(mode: Mode, to: ReplyTo, error: u32, read: bool) -> Segment {
    Segment::head(match mode {
        Mode::Structured if error == 0 && !read => simple(to, error),
        Mode::Simple => simple(to, error),
        mode if error == 0 => chunk(mode, to, reply::NONE, true, 0),
        mode => failure(mode, to, error, None, true),
    })
}

/// Encodes data of a read: all of it as a simple reply, else one chunk. `offset` is that of its
/// first byte.
pub(super) fn data(mode: Mode, to: ReplyTo, offset: u64, data: BufferPart, done: bool) -> Segment {
    let mut head = match mode {
        Mode::Simple => simple(to, 0),
        mode => chunk(mode, to, reply::OFFSET_DATA, done, 8 + data.len as u64),
    };
    if mode != Mode::Simple {
        head.push(U64::new(offset).as_bytes());
    }
    data.with_head(head)
}

/// Encodes the error of a piece of a read, with its `offset` if the form of replies allows it.
pub(super) fn piece_error(mode: Mode, to: ReplyTo, offset: u64, error: u32, done: bool) -> Segment {
    Segment::head(match mode {
        Mode::Simple => simple(to, error),
        mode => failure(mode, to, error, Some(offset), done),
    })
}

/// The part of a buffer that is payload.
#[derive(Debug)]
pub(super) struct BufferPart {
    buffer: Buffer,
    start: usize,
    len: usize,
}

impl BufferPart {
    pub(super) fn new(buffer: Buffer, start: usize, len: usize) -> Self {
        Self { buffer, start, len }
    }

    /// Combines `head` and this payload to a segment.
    pub(super) fn with_head(self, head: Head) -> Segment {
        Segment::with_body(head, Body::Whole(self.buffer), self.start, self.len)
    }
}

/// Encodes a simple reply header.
pub(super) fn simple(to: ReplyTo, error: u32) -> Head {
    Head::new(SimpleReply::new(error, to.cookie).as_bytes())
}

/// Encodes the header of a chunk with `len` bytes of payload.
pub(super) fn chunk(mode: Mode, to: ReplyTo, kind: u16, done: bool, len: u64) -> Head {
    let flags = if done { reply::DONE } else { 0 };
    if mode == Mode::Extended {
        return Head::new(ExtendedChunk::new(kind, flags, to.cookie, to.offset, len).as_bytes());
    }
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    Head::new(Chunk::new(kind, flags, to.cookie, len).as_bytes())
}

/// Encodes an error chunk.
fn failure(mode: Mode, to: ReplyTo, error: u32, at: Option<u64>, done: bool) -> Head {
    let body = Error { error: error.into(), message: 0.into() };
    let kind = if at.is_some() { reply::ERROR_OFFSET } else { reply::ERROR };
    let len = if at.is_some() { 14 } else { 6 };
    let mut head = chunk(mode, to, kind, done, len);
    head.push(body.as_bytes());
    if let Some(at) = at {
        head.push(U64::new(at).as_bytes());
    }
    head
}
