//! Receives replies, in any order and in fragments of any size (NBD, Simple reply message,
//! Structured reply chunk message, Extended reply chunk message).

use export::{Buffer, DirectRecv, Extent};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::slots::{Command, Expected, ExtentList};
use super::{Client, Done, Error, Headers, Phase, Step, Violation};
use crate::wire::STRING;
use crate::wire::meta::{Descriptor, ExtendedDescriptor, STATE_HOLE, STATE_ZERO};
use crate::wire::reply::{
    self, BlockStatusExt, ExtendedChunk, OffsetData, OffsetHole, SimpleReply,
};

/// Minimum number of outstanding payload bytes for a direct receive.
const MIN_DIRECT_RECV: u64 = 8192;

/// Maximum number of error chunks in one reply.
const ERRORS: u32 = 64;

/// Maximum number of extents in one chunk (NBD, Structured reply types).
const EXTENTS: u64 = 1 << 20;

/// Maximum length of an error chunk in bytes: a message and as much again for unknown fields.
const ERROR: u64 = 2 * STRING as u64;

/// The part of a reply that is expected next.
#[derive(Debug, Clone, Copy)]
pub(super) enum ReplyState {
    /// The header of a reply or chunk.
    Header,
    /// The offset of a data chunk.
    Offset(Chunk),
    /// Data; the next byte belongs at this offset of the buffer.
    Data(Chunk, usize),
    /// Offset and length of a hole.
    Hole(Chunk),
    /// The fixed part of an error chunk.
    Error(Chunk),
    /// The given number of bytes of an error message, then the offset if the chunk has one.
    Message(Chunk, u64),
    /// Unknown trailing bytes, which are skipped.
    Rest(Chunk),
    /// The metadata context id of a block status chunk.
    Context(Chunk),
    /// An extent.
    Extent(Chunk),
}

/// A chunk being received. The data of a simple reply is treated as one, too.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    cookie: u64,
    kind: u16,
    done: bool,
    /// Bytes of the payload not received yet.
    left: u64,
}

impl Client {
    /// Processes one part from the start of `bytes`. Returns `None` if it is incomplete.
    pub(super) fn transmission(&mut self, bytes: &[u8]) -> Result<Option<usize>, Violation> {
        match self.state {
            ReplyState::Header => self.receive_header(bytes),
            ReplyState::Offset(chunk) => self.receive_part(chunk, bytes, Self::receive_offset),
            ReplyState::Data(chunk, at) => Ok(Some(self.receive_data(chunk, at, bytes))),
            ReplyState::Hole(chunk) => self.receive_part(chunk, bytes, Self::receive_hole),
            ReplyState::Error(chunk) => self.receive_part(chunk, bytes, Self::receive_error),
            ReplyState::Message(chunk, 0) => {
                self.receive_part(chunk, bytes, Self::receive_error_offset)
            }
            ReplyState::Message(chunk, left) => {
                let (n, chunk) = skip(chunk, left, bytes);
                self.skip_message(chunk, left - n as u64)?;
                Ok(Some(n))
            }
            ReplyState::Rest(chunk) => {
                let (n, chunk) = skip(chunk, chunk.left, bytes);
                self.skip_rest(chunk)?;
                Ok(Some(n))
            }
            ReplyState::Context(chunk) if chunk.kind == reply::BLOCK_STATUS_EXT => {
                self.receive_part(chunk, bytes, Self::receive_extended_context)
            }
            ReplyState::Context(chunk) => self.receive_part(chunk, bytes, Self::receive_context),
            ReplyState::Extent(chunk) if chunk.kind == reply::BLOCK_STATUS_EXT => {
                self.receive_part(chunk, bytes, Self::receive_extended_extent)
            }
            ReplyState::Extent(chunk) => self.receive_part(chunk, bytes, Self::receive_extent),
        }
    }

    /// Processes a part of fixed length. Fails if it exceeds the chunk.
    fn receive_part<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &mut self,
        chunk: Chunk,
        bytes: &[u8],
        take: fn(&mut Self, Chunk, &T) -> Result<(), Violation>,
    ) -> Result<Option<usize>, Violation> {
        let Ok((part, _)) = T::ref_from_prefix(bytes) else { return Ok(None) };
        let left = chunk.left.checked_sub(size_of::<T>() as u64);
        let left = left.ok_or(Violation::ChunkLengthWrong)?;
        take(self, Chunk { left, ..chunk }, part)?;
        Ok(Some(size_of::<T>()))
    }

    // ---- headers

    fn receive_header(&mut self, bytes: &[u8]) -> Result<Option<usize>, Violation> {
        let Ok((magic, _)) = U32::read_from_prefix(bytes) else { return Ok(None) };
        match (self.info.headers, magic.get()) {
            (Headers::Simple | Headers::Structured, reply::SIMPLE_MAGIC) => {
                let Ok((header, _)) = SimpleReply::read_from_prefix(bytes) else { return Ok(None) };
                self.simple(&header)?;
                Ok(Some(size_of::<SimpleReply>()))
            }
            (Headers::Structured, reply::CHUNK_MAGIC) => {
                let header = reply::Chunk::read_from_prefix(bytes);
                let Ok((header, _)) = header else { return Ok(None) };
                self.chunk(parse_chunk(&header))?;
                Ok(Some(size_of::<reply::Chunk>()))
            }
            (Headers::Extended, reply::EXTENDED_MAGIC) => {
                let header = ExtendedChunk::read_from_prefix(bytes);
                let Ok((header, _)) = header else { return Ok(None) };
                if self.slots.find(header.cookie.get())?.offset != header.offset.get() {
                    return Err(Violation::OffsetWrong);
                }
                self.chunk(parse_extended_chunk(&header))?;
                Ok(Some(size_of::<ExtendedChunk>()))
            }
            _ => Err(Violation::HeaderMagicWrong),
        }
    }

    /// Processes a simple reply (NBD, Simple reply message). It must not answer a read if replies
    /// are structured.
    fn simple(&mut self, header: &SimpleReply) -> Result<(), Violation> {
        let (cookie, errno) = (header.cookie.get(), header.error.get());
        let structured = self.info.headers != Headers::Simple;
        let command = self.slots.find(cookie)?;
        let reads = matches!(command.expected, Expected::Read { .. });
        if reads && structured {
            return Err(Violation::SimpleForRead);
        }
        if errno != 0 {
            command.error = Some(Error { errno, offset: None });
        }
        if !reads || errno != 0 {
            return self.end(cookie);
        }
        let left = command.len;
        self.record_received(cookie, 0, left)?;
        let chunk = Chunk { cookie, kind: reply::OFFSET_DATA, done: true, left };
        self.state = ReplyState::Data(chunk, 0);
        Ok(())
    }

    /// Checks that type and length of a chunk match the request (NBD, Structured reply types).
    fn chunk(&mut self, chunk: Chunk) -> Result<(), Violation> {
        let command = self.slots.find(chunk.cookie)?;
        match (chunk.kind, &mut command.expected) {
            (reply::NONE, _) => self.none_chunk(chunk),
            (reply::OFFSET_DATA, Expected::Read { .. }) => {
                check(chunk.left > size_of::<OffsetData>() as u64)?;
                self.state = ReplyState::Offset(chunk);
                Ok(())
            }
            (reply::OFFSET_HOLE, Expected::Read { .. }) => {
                check(chunk.left == size_of::<OffsetHole>() as u64)?;
                self.state = ReplyState::Hole(chunk);
                Ok(())
            }
            (reply::BLOCK_STATUS | reply::BLOCK_STATUS_EXT, Expected::Extents(list)) => {
                if std::mem::replace(&mut list.seen, true) {
                    return Err(Violation::ExtentsRepeated);
                }
                self.block_status_chunk(chunk)
            }
            (kind, _) if kind & reply::ERROR_BIT != 0 => {
                command.errors += 1;
                if command.errors > ERRORS {
                    return Err(Violation::TooManyErrors);
                }
                let fixed = size_of::<reply::Error>() as u64;
                let place = if kind == reply::ERROR_OFFSET { size_of::<U64>() as u64 } else { 0 };
                check(chunk.left >= fixed + place && chunk.left <= ERROR)?;
                self.state = ReplyState::Error(chunk);
                Ok(())
            }
            (
                reply::OFFSET_DATA
                | reply::OFFSET_HOLE
                | reply::BLOCK_STATUS
                | reply::BLOCK_STATUS_EXT,
                _,
            ) => Err(Violation::ChunkUnexpected),
            _ => Err(Violation::ChunkTypeUnknown),
        }
    }

    fn none_chunk(&mut self, chunk: Chunk) -> Result<(), Violation> {
        check(chunk.left == 0)?;
        if !chunk.done {
            return Err(Violation::DoneMissing);
        }
        self.end(chunk.cookie)
    }

    fn block_status_chunk(&mut self, chunk: Chunk) -> Result<(), Violation> {
        let long = chunk.kind == reply::BLOCK_STATUS_EXT;
        if long != (self.info.headers == Headers::Extended) {
            return Err(Violation::ChunkUnexpected);
        }
        let (fixed, each) = if long {
            (size_of::<BlockStatusExt>() as u64, size_of::<ExtendedDescriptor>() as u64)
        } else {
            (size_of::<U32>() as u64, size_of::<Descriptor>() as u64)
        };
        let descriptors = chunk.left.checked_sub(fixed).ok_or(Violation::ChunkLengthWrong)?;
        check(descriptors != 0 && descriptors.is_multiple_of(each))?;
        if descriptors / each > EXTENTS {
            return Err(Violation::TooManyExtents);
        }
        self.state = ReplyState::Context(chunk);
        Ok(())
    }

    // ---- data

    /// Records that the bytes from `start` up to `end` of the request arrive now.
    fn record_received(&mut self, cookie: u64, start: u64, end: u64) -> Result<(), Violation> {
        let command = self.slots.find(cookie)?;
        if start >= end || end > command.len {
            return Err(Violation::ContentBeyondRequest);
        }
        let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(end)) else {
            return Err(Violation::ContentBeyondRequest);
        };
        match &mut command.expected {
            Expected::Read { coverage, .. } => coverage.add(start, end),
            _ => Err(Violation::ChunkUnexpected),
        }
    }

    /// Returns where in the request `len` bytes at `offset` of the export belong, and records them
    /// as received.
    fn locate(&mut self, chunk: Chunk, offset: u64, len: u64) -> Result<usize, Violation> {
        let beyond = Violation::ContentBeyondRequest;
        let start = offset.checked_sub(self.slots.find(chunk.cookie)?.offset).ok_or(beyond)?;
        self.record_received(chunk.cookie, start, start.checked_add(len).ok_or(beyond)?)?;
        usize::try_from(start).map_err(|_| beyond)
    }

    fn receive_offset(&mut self, chunk: Chunk, offset: &OffsetData) -> Result<(), Violation> {
        let at = self.locate(chunk, offset.get(), chunk.left)?;
        self.state = ReplyState::Data(chunk, at);
        Ok(())
    }

    fn receive_hole(&mut self, chunk: Chunk, hole: &OffsetHole) -> Result<(), Violation> {
        let len = hole.len.get();
        let at = self.locate(chunk, hole.offset.get(), len.into())?;
        if let Some(buffer) = self.buffer(chunk.cookie) {
            let place = buffer.bytes_mut().get_mut(at..at + len as usize);
            place.unwrap_or_default().fill(0);
        }
        self.chunk_ended(chunk)
    }

    /// Returns the buffer of a read; `None` while the driver receives into it.
    fn buffer(&mut self, cookie: u64) -> Option<&mut Buffer> {
        match &mut self.slots.find(cookie).ok()?.expected {
            Expected::Read { buffer, .. } => buffer.as_mut(),
            _ => None,
        }
    }

    /// Copies received data into the buffer. `place` checked that it fits.
    fn receive_data(&mut self, chunk: Chunk, at: usize, bytes: &[u8]) -> usize {
        let n = bytes.len().min(usize::try_from(chunk.left).unwrap_or(usize::MAX));
        let place = self.buffer(chunk.cookie).and_then(|b| b.bytes_mut().get_mut(at..at + n));
        if let (Some(place), Some(data)) = (place, bytes.get(..n)) {
            place.copy_from_slice(data);
        }
        self.data_advanced(chunk, at, n);
        n
    }

    fn data_advanced(&mut self, chunk: Chunk, at: usize, n: usize) {
        let chunk = Chunk { left: chunk.left.saturating_sub(n as u64), ..chunk };
        self.state = ReplyState::Data(chunk, at + n);
        if chunk.left == 0
            && let Err(violation) = self.chunk_ended(chunk)
        {
            self.close(super::End::Violation(violation));
        }
    }

    /// Returns a buffer for a direct receive if data of a read is expected next. The driver
    /// receives into it and returns it by [`Client::direct_received`]; until then it does not call
    /// [`Client::receive`].
    pub fn direct_recv(&mut self) -> Option<DirectRecv> {
        let ReplyState::Data(chunk, start) = self.state else { return None };
        if chunk.left < MIN_DIRECT_RECV || self.phase != Phase::Transmission {
            return None;
        }
        let left = usize::try_from(chunk.left).ok()?;
        match &mut self.slots.find(chunk.cookie).ok()?.expected {
            Expected::Read { buffer, .. } => {
                Some(DirectRecv { buffer: buffer.take()?, start, end: start + left, token: 0 })
            }
            _ => None,
        }
    }

    /// Returns the buffer of a direct receive, with `got` bytes received into it.
    pub fn direct_received(&mut self, direct: DirectRecv, got: usize) {
        let DirectRecv { buffer, start, end, .. } = direct;
        let got = got.min(end.saturating_sub(start));
        let ReplyState::Data(chunk, at) = self.state else { return };
        if let Ok(Command { expected: Expected::Read { buffer: place, .. }, .. }) =
            self.slots.find(chunk.cookie)
        {
            *place = Some(buffer);
        }
        self.data_advanced(chunk, at, got);
    }

    // ---- errors

    fn receive_error(&mut self, chunk: Chunk, error: &reply::Error) -> Result<(), Violation> {
        let (errno, message) = (error.error.get(), u64::from(error.message.get()));
        if errno == 0 {
            return Err(Violation::ErrorZero);
        }
        let place = if chunk.kind == reply::ERROR_OFFSET { size_of::<U64>() as u64 } else { 0 };
        check(message + place <= chunk.left)?;
        let command = self.slots.find(chunk.cookie)?;
        command.error.get_or_insert(Error { errno, offset: None });
        self.skip_message(chunk, message)
    }

    fn skip_message(&mut self, chunk: Chunk, left: u64) -> Result<(), Violation> {
        if left == 0 && chunk.kind != reply::ERROR_OFFSET {
            return self.skip_rest(chunk);
        }
        self.state = ReplyState::Message(chunk, left);
        Ok(())
    }

    fn receive_error_offset(&mut self, chunk: Chunk, offset: &U64) -> Result<(), Violation> {
        let command = self.slots.find(chunk.cookie)?;
        let offset = offset.get();
        let inside = offset.checked_sub(command.offset).is_some_and(|at| at < command.len);
        if !inside {
            return Err(Violation::ErrorBeyondRequest);
        }
        if let (1, Some(error)) = (command.errors, &mut command.error) {
            error.offset = Some(offset);
        }
        self.skip_rest(chunk)
    }

    fn skip_rest(&mut self, chunk: Chunk) -> Result<(), Violation> {
        self.state = ReplyState::Rest(chunk);
        if chunk.left == 0 { self.chunk_ended(chunk) } else { Ok(()) }
    }

    // ---- extents

    fn receive_context(&mut self, chunk: Chunk, context: &U32) -> Result<(), Violation> {
        self.check_context(context.get())?;
        self.state = ReplyState::Extent(chunk);
        Ok(())
    }

    fn receive_extended_context(
        &mut self,
        chunk: Chunk,
        head: &BlockStatusExt,
    ) -> Result<(), Violation> {
        self.check_context(head.context.get())?;
        let each = size_of::<ExtendedDescriptor>() as u64;
        check(u64::from(head.count.get()) * each == chunk.left)?;
        self.state = ReplyState::Extent(chunk);
        Ok(())
    }

    fn check_context(&self, context: u32) -> Result<(), Violation> {
        let known = self.negotiation.context == Some(context);
        if known { Ok(()) } else { Err(Violation::ContextUnknown) }
    }

    fn receive_extent(&mut self, chunk: Chunk, extent: &Descriptor) -> Result<(), Violation> {
        self.extent(chunk, extent.len.get().into(), extent.flags.get().into())
    }

    fn receive_extended_extent(
        &mut self,
        chunk: Chunk,
        extent: &ExtendedDescriptor,
    ) -> Result<(), Violation> {
        self.extent(chunk, extent.len.get(), extent.flags.get())
    }

    fn extent(&mut self, chunk: Chunk, len: u64, flags: u64) -> Result<(), Violation> {
        let (hole, zero) = (flags & u64::from(STATE_HOLE) != 0, flags & u64::from(STATE_ZERO) != 0);
        let command = self.slots.find(chunk.cookie)?;
        if let Expected::Extents(list) = &mut command.expected {
            list.add(Extent { len, hole, zero }, command.len)?;
        }
        self.state = ReplyState::Extent(chunk);
        if chunk.left == 0 { self.chunk_ended(chunk) } else { Ok(()) }
    }

    // ---- ends

    fn chunk_ended(&mut self, chunk: Chunk) -> Result<(), Violation> {
        self.state = ReplyState::Header;
        if chunk.done { self.end(chunk.cookie) } else { Ok(()) }
    }

    /// Completes a request. Without an error, the reply must have been complete.
    fn end(&mut self, cookie: u64) -> Result<(), Violation> {
        let Command { tag, len, expected, error, .. } = self.slots.release(cookie)?;
        let succeeded = error.is_none();
        let (buffer, extents) = match expected {
            Expected::Nothing => (None, Vec::new()),
            Expected::Read { coverage, .. } if succeeded && !is_whole(&coverage, len) => {
                return Err(Violation::ContentMissing);
            }
            Expected::Read { buffer, .. } => (buffer, Vec::new()),
            Expected::Extents(ExtentList { extents, .. }) if succeeded && extents.is_empty() => {
                return Err(Violation::ExtentsMissing);
            }
            Expected::Extents(ExtentList { extents, .. }) if succeeded => (None, extents),
            Expected::Extents(_) => (None, Vec::new()),
        };
        let result = error.map_or(Ok(()), Err);
        self.out.push_back(Step::Done(Done { tag, result, buffer, extents }));
        Ok(())
    }
}

fn is_whole(coverage: &super::coverage::Coverage, len: u64) -> bool {
    u32::try_from(len).is_ok_and(|len| coverage.is_whole(len))
}

fn check(right: bool) -> Result<(), Violation> {
    if right { Ok(()) } else { Err(Violation::ChunkLengthWrong) }
}

/// Skips up to `left` bytes of a chunk. Returns the number of bytes skipped.
fn skip(chunk: Chunk, left: u64, bytes: &[u8]) -> (usize, Chunk) {
    let n = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
    (n, Chunk { left: chunk.left.saturating_sub(n as u64), ..chunk })
}

/// Unknown flags are ignored (NBD, Structured reply flags).
fn parse_chunk(header: &reply::Chunk) -> Chunk {
    let done = header.flags.get() & reply::DONE != 0;
    let left = header.len.get().into();
    Chunk { cookie: header.cookie.get(), kind: header.kind.get(), done, left }
}

fn parse_extended_chunk(header: &ExtendedChunk) -> Chunk {
    let done = header.flags.get() & reply::DONE != 0;
    let left = header.len.get();
    Chunk { cookie: header.cookie.get(), kind: header.kind.get(), done, left }
}
