//! Replies in the three forms that there are (NBD, Simple reply, Structured reply chunk, Extended reply chunk). It knows not
//! what a request was about.

use export::{Body, Buffer, Head, Segment, Step};
use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::U64;

use super::session::Session;
use crate::wire::reply::{self, Chunk, Error, ExtendedChunk, SimpleReply};

/// The form of requests and replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Mode {
    #[default]
    Simple,
    Structured,
    Extended,
}

/// The request that a reply is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct To {
    pub(super) cookie: u64,
    /// The first byte that it asked for.
    pub(super) offset: u64,
}

impl Session {
    pub(super) fn mode(&self) -> Mode {
        self.link.as_ref().map_or(Mode::Simple, |link| link.mode)
    }

    /// Has a segment sent: at once, or after the reply that is being sent in pieces.
    pub(super) fn say(&mut self, segment: Segment) {
        self.owed += segment.len();
        if self.long.as_ref().is_some_and(|long| long.has_begun()) {
            self.later.push_back(segment);
        } else {
            self.out.push_back(Step::Send(segment));
        }
    }

    /// The one reply to a request that has no payload. A `read` has none only if it failed, or was for nothing.
    pub(super) fn answer(&mut self, to: To, error: u32, read: bool) {
        let head = match self.mode() {
            Mode::Structured if error == 0 && !read => simple(to, error),
            Mode::Simple => simple(to, error),
            mode if error == 0 => chunk(mode, to, reply::NONE, true, 0),
            mode => failure(mode, to, error, None, true),
        };
        self.say(Segment::head(head));
    }

    /// Data of a read: all of it in a simple reply, else a chunk. `offset` is that of its first byte.
    pub(super) fn answer_data(&mut self, to: To, offset: u64, data: Part, done: bool) {
        let mode = self.mode();
        let mut head = match mode {
            Mode::Simple => simple(to, 0),
            mode => chunk(mode, to, reply::OFFSET_DATA, done, 8 + data.len as u64),
        };
        if mode != Mode::Simple {
            head.push(U64::new(offset).as_bytes());
        }
        self.say(data.behind(head));
    }

    /// A part of a read failed: at `offset`, if the form of replies can say so.
    pub(super) fn answer_failed_part(&mut self, to: To, offset: u64, error: u32, done: bool) {
        let head = match self.mode() {
            Mode::Simple => simple(to, error),
            mode => failure(mode, to, error, Some(offset), done),
        };
        self.say(Segment::head(head));
    }
}

/// A part of a buffer that is payload.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) buffer: Buffer,
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Part {
    /// The segment of `head` and this.
    pub(super) fn behind(self, head: Head) -> Segment {
        Segment::with_body(head, Body::Whole(self.buffer), self.start, self.len)
    }
}

pub(super) fn simple(to: To, error: u32) -> Head {
    Head::new(SimpleReply::new(error, to.cookie).as_bytes())
}

/// The header of a chunk with `len` bytes of payload.
pub(super) fn chunk(mode: Mode, to: To, kind: u16, done: bool, len: u64) -> Head {
    let flags = if done { reply::DONE } else { 0 };
    if mode == Mode::Extended {
        return Head::new(ExtendedChunk::new(kind, flags, to.cookie, to.offset, len).as_bytes());
    }
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    Head::new(Chunk::new(kind, flags, to.cookie, len).as_bytes())
}

/// A chunk that is an error.
fn failure(mode: Mode, to: To, error: u32, at: Option<u64>, done: bool) -> Head {
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
