//! Replies, in any order and in pieces of any size (NBD, Simple reply message, Structured reply chunk message, Extended reply
//! chunk message). It knows no option.

use export::{Buffer, DirectRecv, Extent};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::slots::{Command, Telling, What};
use super::{Client, Done, Error, Headers, Phase, Step, Violation};
use crate::wire::STRING;
use crate::wire::meta::{Descriptor, ExtendedDescriptor, STATE_HOLE, STATE_ZERO};
use crate::wire::reply::{
    self, BlockStatusExt, ExtendedChunk, OffsetData, OffsetHole, SimpleReply,
};

/// A payload with less than this still to come is not worth receiving by itself, in bytes.
const LANDING: u64 = 8192;

/// Errors in one reply, at most.
const ERRORS: u32 = 64;

/// Extents in one chunk, at most (NBD, Structured reply types).
const EXTENTS: u64 = 1 << 20;

/// Bytes of a chunk that is an error, at most: a message, and as much again for what is unknown.
const ERROR: u64 = 2 * STRING as u64;

/// What is to come next.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stage {
    /// The header of a reply or a chunk.
    Header,
    /// Where the data of a chunk belongs.
    Offset(Chunk),
    /// Data, whose next byte belongs at this place of the buffer.
    Data(Chunk, usize),
    /// Where the zeros of a chunk belong.
    Hole(Chunk),
    /// What an error is.
    Error(Chunk),
    /// So many bytes of an error's message, then perhaps where it is.
    Message(Chunk, u64),
    /// What nobody needs.
    Rest(Chunk),
    /// Which context a chunk tells of.
    Context(Chunk),
    /// An extent.
    Extent(Chunk),
}

/// A chunk that is being received. A simple reply with data is one, too.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    cookie: u64,
    kind: u16,
    done: bool,
    /// Bytes of its payload that are still to come.
    left: u64,
}

impl Client {
    /// Takes one piece of `bytes`; nothing if it is not whole.
    pub(super) fn transmission(&mut self, bytes: &[u8]) -> Result<Option<usize>, Violation> {
        match self.stage {
            Stage::Header => self.header_came(bytes),
            Stage::Offset(chunk) => self.part(chunk, bytes, Self::offset_came),
            Stage::Data(chunk, at) => Ok(Some(self.data_came(chunk, at, bytes))),
            Stage::Hole(chunk) => self.part(chunk, bytes, Self::hole_came),
            Stage::Error(chunk) => self.part(chunk, bytes, Self::error_came),
            Stage::Message(chunk, 0) => self.part(chunk, bytes, Self::error_offset_came),
            Stage::Message(chunk, left) => {
                let (n, chunk) = skip(chunk, left, bytes);
                self.message_left(chunk, left - n as u64)?;
                Ok(Some(n))
            }
            Stage::Rest(chunk) => {
                let (n, chunk) = skip(chunk, chunk.left, bytes);
                self.rest(chunk)?;
                Ok(Some(n))
            }
            Stage::Context(chunk) if chunk.kind == reply::BLOCK_STATUS_EXT => {
                self.part(chunk, bytes, Self::long_context_came)
            }
            Stage::Context(chunk) => self.part(chunk, bytes, Self::context_came),
            Stage::Extent(chunk) if chunk.kind == reply::BLOCK_STATUS_EXT => {
                self.part(chunk, bytes, Self::long_extent_came)
            }
            Stage::Extent(chunk) => self.part(chunk, bytes, Self::extent_came),
        }
    }

    /// A part of fixed length; that it is within the chunk was seen to at the header.
    fn part<T: FromBytes + KnownLayout + Immutable + Unaligned>(
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

    fn header_came(&mut self, bytes: &[u8]) -> Result<Option<usize>, Violation> {
        let Ok((magic, _)) = U32::read_from_prefix(bytes) else { return Ok(None) };
        match (self.opened.headers, magic.get()) {
            (Headers::Simple | Headers::Structured, reply::SIMPLE_MAGIC) => {
                let Ok((header, _)) = SimpleReply::read_from_prefix(bytes) else { return Ok(None) };
                self.simple(&header)?;
                Ok(Some(size_of::<SimpleReply>()))
            }
            (Headers::Structured, reply::CHUNK_MAGIC) => {
                let header = reply::Chunk::read_from_prefix(bytes);
                let Ok((header, _)) = header else { return Ok(None) };
                self.chunk(parsed(&header))?;
                Ok(Some(size_of::<reply::Chunk>()))
            }
            (Headers::Extended, reply::EXTENDED_MAGIC) => {
                let header = ExtendedChunk::read_from_prefix(bytes);
                let Ok((header, _)) = header else { return Ok(None) };
                if self.slots.find(header.cookie.get())?.offset != header.offset.get() {
                    return Err(Violation::OffsetWrong);
                }
                self.chunk(parsed_long(&header))?;
                Ok(Some(size_of::<ExtendedChunk>()))
            }
            _ => Err(Violation::HeaderMagicWrong),
        }
    }

    /// A simple reply (NBD, Simple reply message): not to a read, and not with data, where replies have structure.
    fn simple(&mut self, header: &SimpleReply) -> Result<(), Violation> {
        let (cookie, errno) = (header.cookie.get(), header.error.get());
        let structured = self.opened.headers != Headers::Simple;
        let command = self.slots.find(cookie)?;
        let reads = matches!(command.what, What::Read { .. });
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
        self.cover(cookie, 0, left)?;
        let chunk = Chunk { cookie, kind: reply::OFFSET_DATA, done: true, left };
        self.stage = Stage::Data(chunk, 0);
        Ok(())
    }

    /// The header of a chunk: its kind and length must fit the request (NBD, Structured reply types).
    fn chunk(&mut self, chunk: Chunk) -> Result<(), Violation> {
        let command = self.slots.find(chunk.cookie)?;
        match (chunk.kind, &mut command.what) {
            (reply::NONE, _) => self.nothing(chunk),
            (reply::OFFSET_DATA, What::Read { .. }) => {
                check(chunk.left > size_of::<OffsetData>() as u64)?;
                self.stage = Stage::Offset(chunk);
                Ok(())
            }
            (reply::OFFSET_HOLE, What::Read { .. }) => {
                check(chunk.left == size_of::<OffsetHole>() as u64)?;
                self.stage = Stage::Hole(chunk);
                Ok(())
            }
            (reply::BLOCK_STATUS | reply::BLOCK_STATUS_EXT, What::Extents(telling)) => {
                if std::mem::replace(&mut telling.seen, true) {
                    return Err(Violation::ExtentsRepeated);
                }
                self.status(chunk)
            }
            (kind, _) if kind & reply::ERROR_BIT != 0 => {
                command.errors += 1;
                if command.errors > ERRORS {
                    return Err(Violation::ErrorsEndless);
                }
                let fixed = size_of::<reply::Error>() as u64;
                let place = if kind == reply::ERROR_OFFSET { size_of::<U64>() as u64 } else { 0 };
                check(chunk.left >= fixed + place && chunk.left <= ERROR)?;
                self.stage = Stage::Error(chunk);
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

    fn nothing(&mut self, chunk: Chunk) -> Result<(), Violation> {
        check(chunk.left == 0)?;
        if !chunk.done {
            return Err(Violation::DoneMissing);
        }
        self.end(chunk.cookie)
    }

    fn status(&mut self, chunk: Chunk) -> Result<(), Violation> {
        let long = chunk.kind == reply::BLOCK_STATUS_EXT;
        if long != (self.opened.headers == Headers::Extended) {
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
            return Err(Violation::ExtentsEndless);
        }
        self.stage = Stage::Context(chunk);
        Ok(())
    }

    // ---- data

    /// Notes that the bytes from `start` up to `end` of the request come now.
    fn cover(&mut self, cookie: u64, start: u64, end: u64) -> Result<(), Violation> {
        let command = self.slots.find(cookie)?;
        if start >= end || end > command.len {
            return Err(Violation::ContentBeyondRequest);
        }
        let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(end)) else {
            return Err(Violation::ContentBeyondRequest);
        };
        match &mut command.what {
            What::Read { coverage, .. } => coverage.add(start, end),
            _ => Err(Violation::ChunkUnexpected),
        }
    }

    /// The place in the request of `len` bytes at `offset` of the export.
    fn place(&mut self, chunk: Chunk, offset: u64, len: u64) -> Result<usize, Violation> {
        let beyond = Violation::ContentBeyondRequest;
        let start = offset.checked_sub(self.slots.find(chunk.cookie)?.offset).ok_or(beyond)?;
        self.cover(chunk.cookie, start, start.checked_add(len).ok_or(beyond)?)?;
        usize::try_from(start).map_err(|_| beyond)
    }

    fn offset_came(&mut self, chunk: Chunk, offset: &OffsetData) -> Result<(), Violation> {
        let at = self.place(chunk, offset.get(), chunk.left)?;
        self.stage = Stage::Data(chunk, at);
        Ok(())
    }

    fn hole_came(&mut self, chunk: Chunk, hole: &OffsetHole) -> Result<(), Violation> {
        let len = hole.len.get();
        let at = self.place(chunk, hole.offset.get(), len.into())?;
        if let Some(buffer) = self.buffer(chunk.cookie) {
            let place = buffer.bytes_mut().get_mut(at..at + len as usize);
            place.unwrap_or_default().fill(0);
        }
        self.chunk_ended(chunk)
    }

    /// The buffer that data of that request belongs in; nothing while the driver has it.
    fn buffer(&mut self, cookie: u64) -> Option<&mut Buffer> {
        match &mut self.slots.find(cookie).ok()?.what {
            What::Read { buffer, .. } => buffer.as_mut(),
            _ => None,
        }
    }

    /// Takes data in; that it is within the buffer was seen to when its place came.
    fn data_came(&mut self, chunk: Chunk, at: usize, bytes: &[u8]) -> usize {
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
        self.stage = Stage::Data(chunk, at + n);
        if chunk.left == 0
            && let Err(violation) = self.chunk_ended(chunk)
        {
            self.close(super::End::Violation(violation));
        }
    }

    /// Memory that the next bytes of the connection belong in, if they are data: the driver may receive into it and gives
    /// it back by [`Client::direct_received`]. While it is out, [`Client::receive`] is not called.
    pub fn direct_recv(&mut self) -> Option<DirectRecv> {
        let Stage::Data(chunk, start) = self.stage else { return None };
        if chunk.left < LANDING || self.phase != Phase::Live {
            return None;
        }
        let left = usize::try_from(chunk.left).ok()?;
        match &mut self.slots.find(chunk.cookie).ok()?.what {
            What::Read { buffer, .. } => {
                Some(DirectRecv { buffer: buffer.take()?, start, end: start + left, mark: 0 })
            }
            _ => None,
        }
    }

    /// The memory comes back, with `got` bytes received into it.
    pub fn direct_received(&mut self, landing: DirectRecv, got: usize) {
        let DirectRecv { buffer, start, end, .. } = landing;
        let got = got.min(end.saturating_sub(start));
        let Stage::Data(chunk, at) = self.stage else { return };
        if let Ok(Command { what: What::Read { buffer: place, .. }, .. }) =
            self.slots.find(chunk.cookie)
        {
            *place = Some(buffer);
        }
        self.data_advanced(chunk, at, got);
    }

    // ---- errors

    fn error_came(&mut self, chunk: Chunk, error: &reply::Error) -> Result<(), Violation> {
        let (errno, message) = (error.error.get(), u64::from(error.message.get()));
        if errno == 0 {
            return Err(Violation::ErrorZero);
        }
        let place = if chunk.kind == reply::ERROR_OFFSET { size_of::<U64>() as u64 } else { 0 };
        check(message + place <= chunk.left)?;
        let command = self.slots.find(chunk.cookie)?;
        command.error.get_or_insert(Error { errno, offset: None });
        self.message_left(chunk, message)
    }

    fn message_left(&mut self, chunk: Chunk, left: u64) -> Result<(), Violation> {
        if left == 0 && chunk.kind != reply::ERROR_OFFSET {
            return self.rest(chunk);
        }
        self.stage = Stage::Message(chunk, left);
        Ok(())
    }

    fn error_offset_came(&mut self, chunk: Chunk, offset: &U64) -> Result<(), Violation> {
        let command = self.slots.find(chunk.cookie)?;
        let offset = offset.get();
        let inside = offset.checked_sub(command.offset).is_some_and(|at| at < command.len);
        if !inside {
            return Err(Violation::ErrorBeyondRequest);
        }
        if let (1, Some(error)) = (command.errors, &mut command.error) {
            error.offset = Some(offset);
        }
        self.rest(chunk)
    }

    fn rest(&mut self, chunk: Chunk) -> Result<(), Violation> {
        self.stage = Stage::Rest(chunk);
        if chunk.left == 0 { self.chunk_ended(chunk) } else { Ok(()) }
    }

    // ---- extents

    fn context_came(&mut self, chunk: Chunk, context: &U32) -> Result<(), Violation> {
        self.check_context(context.get())?;
        self.stage = Stage::Extent(chunk);
        Ok(())
    }

    fn long_context_came(&mut self, chunk: Chunk, head: &BlockStatusExt) -> Result<(), Violation> {
        self.check_context(head.context.get())?;
        let each = size_of::<ExtendedDescriptor>() as u64;
        check(u64::from(head.count.get()) * each == chunk.left)?;
        self.stage = Stage::Extent(chunk);
        Ok(())
    }

    fn check_context(&self, context: u32) -> Result<(), Violation> {
        let known = self.haggle.context == Some(context);
        if known { Ok(()) } else { Err(Violation::ContextUnknown) }
    }

    fn extent_came(&mut self, chunk: Chunk, extent: &Descriptor) -> Result<(), Violation> {
        self.extent(chunk, extent.len.get().into(), extent.flags.get().into())
    }

    fn long_extent_came(
        &mut self,
        chunk: Chunk,
        extent: &ExtendedDescriptor,
    ) -> Result<(), Violation> {
        self.extent(chunk, extent.len.get(), extent.flags.get())
    }

    fn extent(&mut self, chunk: Chunk, len: u64, flags: u64) -> Result<(), Violation> {
        let (hole, zero) = (flags & u64::from(STATE_HOLE) != 0, flags & u64::from(STATE_ZERO) != 0);
        let command = self.slots.find(chunk.cookie)?;
        if let What::Extents(telling) = &mut command.what {
            telling.add(Extent { len, hole, zero }, command.len)?;
        }
        self.stage = Stage::Extent(chunk);
        if chunk.left == 0 { self.chunk_ended(chunk) } else { Ok(()) }
    }

    // ---- ends

    fn chunk_ended(&mut self, chunk: Chunk) -> Result<(), Violation> {
        self.stage = Stage::Header;
        if chunk.done { self.end(chunk.cookie) } else { Ok(()) }
    }

    /// A reply is whole. One without an error must have brought all.
    fn end(&mut self, cookie: u64) -> Result<(), Violation> {
        let Command { tag, len, what, error, .. } = self.slots.release(cookie)?;
        let well = error.is_none();
        let (buffer, extents) = match what {
            What::Plain => (None, Vec::new()),
            What::Read { coverage, .. } if well && !is_whole(&coverage, len) => {
                return Err(Violation::ContentMissing);
            }
            What::Read { buffer, .. } => (buffer, Vec::new()),
            What::Extents(Telling { extents, .. }) if well && extents.is_empty() => {
                return Err(Violation::ExtentsMissing);
            }
            What::Extents(Telling { extents, .. }) if well => (None, extents),
            What::Extents(_) => (None, Vec::new()),
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

/// Skips up to `left` bytes of a chunk: how many are there.
fn skip(chunk: Chunk, left: u64, bytes: &[u8]) -> (usize, Chunk) {
    let n = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
    (n, Chunk { left: chunk.left.saturating_sub(n as u64), ..chunk })
}

/// Flags that nobody knows are nobody's affair (NBD, Structured reply flags).
fn parsed(header: &reply::Chunk) -> Chunk {
    let done = header.flags.get() & reply::DONE != 0;
    let left = header.len.get().into();
    Chunk { cookie: header.cookie.get(), kind: header.kind.get(), done, left }
}

fn parsed_long(header: &ExtendedChunk) -> Chunk {
    let done = header.flags.get() & reply::DONE != 0;
    let left = header.len.get();
    Chunk { cookie: header.cookie.get(), kind: header.kind.get(), done, left }
}
