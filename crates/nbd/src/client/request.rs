//! Requests of a client, and their encoding (NBD, Request message, Extended request).

use std::rc::Rc;

use export::{Body, Buffer, Head, Segment};
use zerocopy::IntoBytes;

use super::coverage::Coverage;
use super::slots::{Command, Expected, ExtentList};
use super::{Client, ExportInfo, Headers, Phase};
use crate::wire::request::{self, ExtendedRequest, flags};

/// A request. Offsets and lengths are in bytes, multiples of [`ExportInfo::minimum`].
#[derive(Debug)]
pub enum Request {
    /// Reads into the whole buffer, at most [`ExportInfo::maximum`] bytes.
    Read {
        /// Offset on the export.
        offset: u64,
        /// Receives the data.
        buffer: Buffer,
    },
    /// Writes part of a buffer, at most [`ExportInfo::maximum`] bytes.
    Write {
        /// Offset on the export.
        offset: u64,
        /// Contains the data.
        buffer: Rc<Buffer>,
        /// Offset of the data in the buffer.
        start: usize,
        /// Length of the data.
        len: usize,
        /// Sets FUA: completes only once the data is on stable storage.
        durable: bool,
    },
    /// Flushes completed writes to stable storage.
    Flush,
    /// Discards a range.
    Trim {
        /// Offset on the export.
        offset: u64,
        /// Length of the range.
        len: u64,
        /// Sets FUA: completes only once the change is on stable storage.
        durable: bool,
    },
    /// Writes zeros to a range.
    Zero {
        /// Offset on the export.
        offset: u64,
        /// Length of the range.
        len: u64,
        /// Keeps the range allocated.
        no_hole: bool,
        /// Fails with ENOTSUP unless it is faster than writing zeros.
        fast: bool,
        /// Sets FUA: completes only once the zeros are on stable storage.
        durable: bool,
    },
    /// Prefetches a range.
    Cache {
        /// Offset on the export.
        offset: u64,
        /// Length of the range.
        len: u64,
    },
    /// Queries which parts of a range are data.
    Extents {
        /// Offset on the export.
        offset: u64,
        /// Length of the range.
        len: u64,
    },
}

/// Why a request was not submitted; contains the request.
#[derive(Debug)]
pub enum SubmitError {
    /// All slots are in use.
    Full(Request),
    /// The export is not open yet, or not any more.
    NotOpen(Request),
    /// The export does not support the request, or the range is invalid.
    Unsupported(Request),
}

impl Request {
    /// Returns offset and length in bytes.
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

    /// Returns the command flags.
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

    /// Returns the transmission flags that the export must have.
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

    /// Returns whether the export supports the request.
    fn fits(&self, info: &ExportInfo) -> bool {
        let allowed = info.can(self.needs()) && (info.is_writable() || !self.mutates());
        let told = !matches!(self, Self::Extents { .. }) || info.extents;
        allowed && told && (matches!(self, Self::Flush) || self.range_fits(info))
    }

    fn range_fits(&self, info: &ExportInfo) -> bool {
        let (offset, len) = self.range();
        let minimum = u64::from(info.minimum);
        let max = match self {
            Self::Read { .. } | Self::Write { .. } => u64::from(info.maximum),
            _ if info.headers == Headers::Extended => u64::MAX,
            _ => u64::from(u32::MAX),
        };
        let inside = offset.checked_add(len).is_some_and(|end| end <= info.bytes);
        let part = match self {
            Self::Write { buffer, start, len, .. } => {
                start.checked_add(*len).is_some_and(|end| end <= buffer.len())
            }
            _ => true,
        };
        let whole = offset.is_multiple_of(minimum) && len.is_multiple_of(minimum);
        inside && part && whole && len != 0 && len <= max
    }
}

impl Client {
    /// Submits a request; `tag` is returned in [`super::Done`].
    ///
    /// # Errors
    /// Fails if the request cannot be sent now or is not supported by the export.
    pub fn submit(&mut self, request: Request, tag: u32) -> Result<(), SubmitError> {
        if self.phase != Phase::Transmission {
            return Err(SubmitError::NotOpen(request));
        }
        if !request.fits(&self.info) {
            return Err(SubmitError::Unsupported(request));
        }
        if self.free_slots() == 0 {
            return Err(SubmitError::Full(request));
        }
        self.send_request(request, tag);
        Ok(())
    }

    /// Returns how many more requests can be submitted now.
    #[must_use]
    pub fn free_slots(&self) -> usize {
        if self.phase == Phase::Transmission { self.slots.free_slots() } else { 0 }
    }

    /// Returns the number of requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }

    fn send_request(&mut self, request: Request, tag: u32) {
        let (offset, len) = request.range();
        let (command, flags) = (request.command(), request.flags());
        let (expected, body, start) = match request {
            Request::Read { buffer, .. } => {
                let coverage = Coverage::default();
                (Expected::Read { buffer: Some(buffer), coverage }, Body::None, 0)
            }
            Request::Write { buffer, start, .. } => (Expected::Nothing, Body::Part(buffer), start),
            Request::Extents { .. } => (Expected::Extents(ExtentList::default()), Body::None, 0),
            _ => (Expected::Nothing, Body::None, 0),
        };
        let entry = Command { tag, offset, len, expected, errors: 0, error: None };
        // `submit` checked that a slot is free.
        let cookie = self.slots.claim(entry).unwrap_or_default();
        let head = self.header(command, flags, cookie, offset, len);
        let payload = if command == request::WRITE { len } else { 0 };
        let payload = usize::try_from(payload).unwrap_or(usize::MAX);
        self.send(Segment::with_body(head, body, start, payload));
    }

    fn header(&self, command: u16, flags: u16, cookie: u64, offset: u64, len: u64) -> Head {
        if self.info.headers == Headers::Extended {
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

    /// Sends `NBD_CMD_DISC`. It has no reply, so any cookie will do.
    pub(super) fn send_disc(&mut self) {
        let head = self.header(request::DISC, 0, u64::MAX, 0, 0);
        self.send(Segment::head(head));
    }
}
