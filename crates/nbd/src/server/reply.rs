//! Encodes replies in their three forms (NBD, Simple reply, Structured reply chunk, Extended reply
//! chunk).

use export::{Body, Buffer, Head, Segment, Step};
use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::U64;

use super::session::Session;
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
    pub(super) cookie: u64,
    /// The requested offset.
    pub(super) offset: u64,
}

impl Session {
    pub(super) fn mode(&self) -> Mode {
        self.attachment.as_ref().map_or(Mode::Simple, |attachment| attachment.mode)
    }

    /// Sends a segment, delayed if a streamed reply is being sent.
    pub(super) fn send(&mut self, segment: Segment) {
        self.send_backlog += segment.len();
        if self.streamed.as_ref().is_some_and(|long| long.has_begun()) {
            self.delayed.push_back(segment);
        } else {
            self.out.push_back(Step::Send(segment));
        }
    }

    /// Sends the single reply to a request without data. For a `read` only if it failed or had
    /// length zero.
    pub(super) fn send_result(&mut self, to: ReplyTo, error: u32, read: bool) {
        let head = match self.mode() {
            Mode::Structured if error == 0 && !read => simple(to, error),
            Mode::Simple => simple(to, error),
            mode if error == 0 => chunk(mode, to, reply::NONE, true, 0),
            mode => failure(mode, to, error, None, true),
        };
        self.send(Segment::head(head));
    }

    /// Sends data of a read: all of it as a simple reply, else one chunk. `offset` is that of its
    /// first byte.
    pub(super) fn send_data(&mut self, to: ReplyTo, offset: u64, data: BufferPart, done: bool) {
        let mode = self.mode();
        let mut head = match mode {
            Mode::Simple => simple(to, 0),
            mode => chunk(mode, to, reply::OFFSET_DATA, done, 8 + data.len as u64),
        };
        if mode != Mode::Simple {
            head.push(U64::new(offset).as_bytes());
        }
        self.send(data.with_head(head));
    }

    /// Sends the error of a piece of a read, with its `offset` if the form of replies allows it.
    pub(super) fn send_piece_error(&mut self, to: ReplyTo, offset: u64, error: u32, done: bool) {
        let head = match self.mode() {
            Mode::Simple => simple(to, error),
            mode => failure(mode, to, error, Some(offset), done),
        };
        self.send(Segment::head(head));
    }
}

/// The part of a buffer that is payload.
#[derive(Debug)]
pub(super) struct BufferPart {
    pub(super) buffer: Buffer,
    pub(super) start: usize,
    pub(super) len: usize,
}

impl BufferPart {
    /// Combines `head` and this payload to a segment.
    pub(super) fn with_head(self, head: Head) -> Segment {
        Segment::with_body(head, Body::Whole(self.buffer), self.start, self.len)
    }
}

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
