//! What a client can ask of an export, and how it stands on the wire (NBD, Request message, Extended request). It knows no
//! reply.

use std::rc::Rc;

use export::{Body, Buffer, Head, Segment};
use zerocopy::IntoBytes;

use super::coverage::Coverage;
use super::slots::{Command, Telling, What};
use super::{Client, Headers, Opened, Phase};
use crate::wire::request::{self, ExtendedRequest, flags};

/// A request. Offsets and lengths are in bytes and multiples of [`Opened::minimum`].
#[derive(Debug)]
pub enum Request {
    /// Fill the buffer, of at most [`Opened::largest`] bytes.
    Read {
        /// The first byte.
        offset: u64,
        /// The memory.
        buffer: Buffer,
    },
    /// Write part of the buffer, at most [`Opened::largest`] bytes.
    Write {
        /// The first byte on the export.
        offset: u64,
        /// The memory.
        buffer: Rc<Buffer>,
        /// The first byte of the part.
        start: usize,
        /// Bytes of the part.
        len: usize,
        /// Whether the answer is to wait for stable storage.
        durable: bool,
    },
    /// Put what was written before, and answered, on stable storage.
    Flush,
    /// The bytes are not needed.
    Trim {
        /// The first byte.
        offset: u64,
        /// How many.
        len: u64,
        /// Whether the answer is to wait for stable storage.
        durable: bool,
    },
    /// Have the bytes read as zeros.
    Zero {
        /// The first byte.
        offset: u64,
        /// How many.
        len: u64,
        /// Whether space is to stay allocated for them.
        no_hole: bool,
        /// Whether to fail with ENOTSUP if it would take as long as writing zeros.
        fast: bool,
        /// Whether the answer is to wait for stable storage.
        durable: bool,
    },
    /// The bytes will be read soon.
    Cache {
        /// The first byte.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// Tell what is data and what is not.
    Extents {
        /// The first byte.
        offset: u64,
        /// How many are of interest.
        len: u64,
    },
}

/// A request that cannot be submitted, which comes back.
#[derive(Debug)]
pub enum NotNow {
    /// As many requests are under way as there are slots.
    Full(Request),
    /// The export is not there yet, or no more.
    NotOpen(Request),
    /// It cannot be asked of this export: it does not offer it, or the range is wrong.
    Impossible(Request),
}

impl Request {
    /// Offset and length.
    #[must_use]
    pub fn range(&self) -> (u64, u64) {
        match self {
            Self::Flush => (0, 0),
            Self::Read { offset, buffer } => (*offset, buffer.len() as u64),
            Self::Write { offset, len, .. } => (*offset, *len as u64),
            Self::Trim { offset, len, .. }
            | Self::Zero { offset, len, .. }
            | Self::Cache { offset, len }
            | Self::Extents { offset, len } => (*offset, *len),
        }
    }

    fn command(&self) -> u16 {
        match self {
            Self::Read { .. } => request::READ,
            Self::Write { .. } => request::WRITE,
            Self::Flush => request::FLUSH,
            Self::Trim { .. } => request::TRIM,
            Self::Zero { .. } => request::WRITE_ZEROES,
            Self::Cache { .. } => request::CACHE,
            Self::Extents { .. } => request::BLOCK_STATUS,
        }
    }

    /// Command flags.
    fn flags(&self) -> u16 {
        let flag = |set, flag| if set { flag } else { 0 };
        match *self {
            Self::Write { durable, .. } | Self::Trim { durable, .. } => flag(durable, request::FUA),
            Self::Zero { no_hole, fast, durable, .. } => {
                flag(no_hole, request::NO_HOLE)
                    | flag(fast, request::FAST_ZERO)
                    | flag(durable, request::FUA)
            }
            _ => 0,
        }
    }

    /// The transmission flags that an export must have for this.
    fn needs(&self) -> u16 {
        let durable = self.flags() & request::FUA != 0;
        let fua = if durable { flags::SEND_FUA } else { 0 };
        match self {
            Self::Read { .. } | Self::Extents { .. } => 0,
            Self::Write { .. } => fua,
            Self::Flush => flags::SEND_FLUSH,
            Self::Trim { .. } => fua | flags::SEND_TRIM,
            Self::Zero { fast: true, .. } => fua | flags::SEND_WRITE_ZEROES | flags::SEND_FAST_ZERO,
            Self::Zero { .. } => fua | flags::SEND_WRITE_ZEROES,
            Self::Cache { .. } => flags::SEND_CACHE,
        }
    }

    fn mutates(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Trim { .. } | Self::Zero { .. })
    }

    /// Whether it can be asked of that export.
    fn fits(&self, opened: &Opened) -> bool {
        let allowed = opened.can(self.needs()) && (opened.is_writable() || !self.mutates());
        let told = !matches!(self, Self::Extents { .. }) || opened.extents;
        allowed && told && (matches!(self, Self::Flush) || self.range_fits(opened))
    }

    fn range_fits(&self, opened: &Opened) -> bool {
        let (offset, len) = self.range();
        let minimum = u64::from(opened.minimum);
        let most = match self {
            Self::Read { .. } | Self::Write { .. } => u64::from(opened.largest),
            _ if opened.headers == Headers::Extended => u64::MAX,
            _ => u64::from(u32::MAX),
        };
        let inside = offset.checked_add(len).is_some_and(|end| end <= opened.bytes);
        let part = match self {
            Self::Write { buffer, start, len, .. } => {
                start.checked_add(*len).is_some_and(|end| end <= buffer.len())
            }
            _ => true,
        };
        let whole = offset.is_multiple_of(minimum) && len.is_multiple_of(minimum);
        inside && part && whole && len != 0 && len <= most
    }
}

impl Client {
    /// Sends a request; `tag` comes back with [`super::Done`].
    ///
    /// # Errors
    /// It cannot be sent now, or not to this export; it comes back.
    pub fn submit(&mut self, request: Request, tag: u32) -> Result<(), NotNow> {
        if self.phase != Phase::Live {
            return Err(NotNow::NotOpen(request));
        }
        if !request.fits(&self.opened) {
            return Err(NotNow::Impossible(request));
        }
        if self.room() == 0 {
            return Err(NotNow::Full(request));
        }
        self.send_request(request, tag);
        Ok(())
    }

    /// How many requests could be submitted now.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.phase == Phase::Live { self.slots.room() } else { 0 }
    }

    /// How many requests are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.slots.under_way()
    }

    fn send_request(&mut self, request: Request, tag: u32) {
        let (offset, len) = request.range();
        let (command, flags) = (request.command(), request.flags());
        let (what, body, start) = match request {
            Request::Read { buffer, .. } => {
                let coverage = Coverage::default();
                (What::Read { buffer: Some(buffer), coverage }, Body::None, 0)
            }
            Request::Write { buffer, start, .. } => (What::Plain, Body::Part(buffer), start),
            Request::Extents { .. } => (What::Extents(Telling::default()), Body::None, 0),
            _ => (What::Plain, Body::None, 0),
        };
        let entry = Command { tag, offset, len, what, errors: 0, error: None };
        // There is room for it: that was asked before.
        let cookie = self.slots.claim(entry).unwrap_or_default();
        let head = self.header(command, flags, cookie, offset, len);
        let payload = if command == request::WRITE { len } else { 0 };
        let payload = usize::try_from(payload).unwrap_or(usize::MAX);
        self.send(Segment::with_body(head, body, start, payload));
    }

    fn header(&self, command: u16, flags: u16, cookie: u64, offset: u64, len: u64) -> Head {
        if self.opened.headers == Headers::Extended {
            let payload = if command == request::WRITE { request::PAYLOAD_LEN } else { 0 };
            let header = ExtendedRequest {
                magic: request::EXTENDED_MAGIC.into(),
                flags: (flags | payload).into(),
                command: command.into(),
                cookie: cookie.into(),
                offset: offset.into(),
                len: len.into(),
            };
            return Head::new(header.as_bytes());
        }
        let header = request::Request {
            magic: request::MAGIC.into(),
            flags: flags.into(),
            command: command.into(),
            cookie: cookie.into(),
            offset: offset.into(),
            len: u32::try_from(len).unwrap_or(u32::MAX).into(),
        };
        Head::new(header.as_bytes())
    }

    /// There is no reply, and so no cookie that matters.
    pub(super) fn send_disc(&mut self) {
        let head = self.header(request::DISC, 0, u64::MAX, 0, 0);
        self.send(Segment::head(head));
    }
}
