//! Encodes client messages, valid or not, and parses replies.

use nbd::wire::errno;
use nbd::wire::handshake::{C_FIXED_NEWSTYLE, C_NO_ZEROES};
use nbd::wire::meta::{BASE_ALLOCATION, MetaRequest};
use nbd::wire::option::{self, InfoRequest, OptionHeader, ReplyHeader};
use nbd::wire::reply::{self, Chunk, ExtendedChunk, SimpleReply};
use nbd::wire::request::{self, ExtendedRequest, Request};
use zerocopy::{FromBytes, IntoBytes};

use crate::nbd_world::{Id, World};

/// Length of the hello.
pub(crate) const HELLO: usize = 18;

/// The form of requests and replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Simple,
    Structured,
    Extended,
}

/// Every form.
pub(crate) const MODES: [Mode; 3] = [Mode::Simple, Mode::Structured, Mode::Extended];

/// The client flags sent by current clients.
pub(crate) fn flags() -> [u8; 4] {
    (C_FIXED_NEWSTYLE | C_NO_ZEROES).to_be_bytes()
}

/// Encodes an option with its data.
pub(crate) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let header = OptionHeader::new(option, u32::try_from(data.len()).unwrap());
    [header.as_bytes(), data].concat()
}

/// Encodes GO for an export.
pub(crate) fn go(name: &str) -> Vec<u8> {
    option(option::GO, &InfoRequest::emit(name, &[]))
}

/// A request of the transmission phase.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestHeader {
    pub(crate) command: u16,
    pub(crate) flags: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl RequestHeader {
    pub(crate) fn new(command: u16, cookie: u64, offset: u64, len: u64) -> Self {
        Self { command, flags: 0, cookie, offset, len }
    }

    pub(crate) fn flags(self, flags: u16) -> Self {
        Self { flags, ..self }
    }

    /// Encodes the header.
    pub(crate) fn bytes(self, mode: Mode) -> Vec<u8> {
        let Self { command, flags, cookie, offset, len } = self;
        let (command, cookie, offset) = (command.into(), cookie.into(), offset.into());
        if mode == Mode::Extended {
            let (magic, flags, len) = (request::EXTENDED_MAGIC.into(), flags.into(), len.into());
            let request = ExtendedRequest { magic, flags, command, cookie, offset, len };
            return request.as_bytes().to_vec();
        }
        let (magic, flags) = (request::MAGIC.into(), flags.into());
        let len = u32::try_from(len).unwrap().into();
        Request { magic, flags, command, cookie, offset, len }.as_bytes().to_vec()
    }
}

/// Creates a read.
pub(crate) fn read(cookie: u64, offset: u64, len: u64) -> RequestHeader {
    RequestHeader::new(request::READ, cookie, offset, len)
}

/// Encodes a write with its data.
pub(crate) fn write(mode: Mode, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let flags = if mode == Mode::Extended { request::PAYLOAD_LEN } else { 0 };
    let say = RequestHeader::new(request::WRITE, cookie, offset, data.len() as u64).flags(flags);
    [say.bytes(mode), data.to_vec()].concat()
}

/// An option reply: option, type, data.
pub(crate) type OptionReply = (u32, u32, Vec<u8>);

/// Parses option replies.
pub(crate) fn option_replies(mut bytes: &[u8]) -> Vec<OptionReply> {
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        let (header, rest) = ReplyHeader::read_from_prefix(bytes).unwrap();
        assert_eq!(header.magic.get(), option::REPLY_MAGIC);
        let (data, rest) = rest.split_at(header.len.get() as usize);
        replies.push((header.option.get(), header.kind.get(), data.to_vec()));
        bytes = rest;
    }
    replies
}

/// Parses option replies and returns their types.
pub(crate) fn kinds(bytes: &[u8]) -> Vec<u32> {
    option_replies(bytes).into_iter().map(|(_, kind, _)| kind).collect()
}

/// A simple reply or a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) cookie: u64,
    /// Zero for a simple reply.
    pub(crate) kind: u16,
    pub(crate) done: bool,
    pub(crate) error: u32,
    pub(crate) data: Vec<u8>,
}

/// Parses replies. `lens` returns the data length of a successful simple reply by cookie.
pub(crate) fn replies(mut bytes: &[u8], lens: impl Fn(u64) -> usize) -> Vec<Reply> {
    let mut received = Vec::new();
    while !bytes.is_empty() {
        let (reply, rest) = one_reply(bytes, &lens).expect("incomplete reply");
        received.push(reply);
        bytes = rest;
    }
    received
}

fn one_reply<'a>(bytes: &'a [u8], lens: &impl Fn(u64) -> usize) -> Option<(Reply, &'a [u8])> {
    let magic = u32::from_be_bytes(*bytes.first_chunk()?);
    match magic {
        reply::SIMPLE_MAGIC => {
            let (simple, rest) = SimpleReply::read_from_prefix(bytes).ok()?;
            let (cookie, error) = (simple.cookie.get(), simple.error.get());
            let len = if error == 0 { lens(cookie) } else { 0 };
            let (data, rest) = rest.split_at_checked(len)?;
            Some((Reply { cookie, kind: 0, done: true, error, data: data.to_vec() }, rest))
        }
        reply::CHUNK_MAGIC => {
            let (chunk, rest) = Chunk::read_from_prefix(bytes).ok()?;
            let (data, rest) = rest.split_at_checked(chunk.len.get() as usize)?;
            let (cookie, kind) = (chunk.cookie.get(), chunk.kind.get());
            Some((part(cookie, kind, chunk.flags.get(), data), rest))
        }
        reply::EXTENDED_MAGIC => {
            let (chunk, rest) = ExtendedChunk::read_from_prefix(bytes).ok()?;
            let (data, rest) = rest.split_at_checked(usize::try_from(chunk.len.get()).unwrap())?;
            let (cookie, kind) = (chunk.cookie.get(), chunk.kind.get());
            Some((part(cookie, kind, chunk.flags.get(), data), rest))
        }
        other => panic!("no reply begins with {other:08x}"),
    }
}

fn part(cookie: u64, kind: u16, flags: u16, data: &[u8]) -> Reply {
    assert_eq!(flags & !reply::DONE, 0);
    let error = if kind & reply::ERROR_BIT == 0 {
        errno::OK
    } else {
        u32::from_be_bytes(*data.first_chunk().unwrap())
    };
    let done = flags & reply::DONE != 0;
    Reply { cookie, kind, done, error, data: data.to_vec() }
}

/// Opens a connection to the disk with that form of replies, and `base:allocation` if possible.
pub(crate) fn attach(world: &mut World, mode: Mode) -> Id {
    let id = world.open();
    let mut bytes = flags().to_vec();
    match mode {
        Mode::Simple => {}
        Mode::Structured => bytes.extend(option(option::STRUCTURED_REPLY, &[])),
        Mode::Extended => bytes.extend(option(option::EXTENDED_HEADERS, &[])),
    }
    if mode != Mode::Simple {
        let data = MetaRequest::emit("sda", &[BASE_ALLOCATION]);
        bytes.extend(option(option::SET_META_CONTEXT, &data));
    }
    bytes.extend(go("sda"));
    let received = world.exchange(id, &bytes);
    assert_eq!(kinds(&received[HELLO..]).last(), Some(&option::ACK));
    id
}

/// Returns the error of the single reply to a request without reply data.
pub(crate) fn error_of(received: &[u8]) -> u32 {
    let all = replies(received, |_| 0);
    assert_eq!(all.len(), 1, "{all:?}");
    assert!(all[0].done);
    all[0].error
}

/// Reassembles the data of a read, or returns its error.
pub(crate) fn data_of(received: &[u8], offset: u64, len: usize) -> Result<Vec<u8>, u32> {
    let mut data = vec![0xaa; len];
    let (mut got, mut error) = (0, 0);
    let all = replies(received, |_| len);
    assert!(all.last().is_some_and(|last| last.done), "{all:?}");
    for part in all {
        error = if error == 0 { part.error } else { error };
        match part.kind {
            0 if part.data.is_empty() => {}
            0 => {
                data.copy_from_slice(&part.data);
                got += part.data.len();
            }
            reply::OFFSET_DATA => {
                let (at, bytes) = part.data.split_at(8);
                let at = u64::from_be_bytes(at.try_into().unwrap()) - offset;
                let at = usize::try_from(at).unwrap();
                data[at..at + bytes.len()].copy_from_slice(bytes);
                got += bytes.len();
            }
            _ => {}
        }
    }
    if error != 0 {
        return Err(error);
    }
    assert_eq!(got, len);
    Ok(data)
}
