//! What a client says, right or wrong, and what it hears, as bytes. It knows nothing of sessions.

use nbd::wire::errno;
use nbd::wire::handshake::{C_FIXED_NEWSTYLE, C_NO_ZEROES};
use nbd::wire::meta::{BASE_ALLOCATION, MetaRequest};
use nbd::wire::option::{self, InfoRequest, OptionHeader, ReplyHeader};
use nbd::wire::reply::{self, Chunk, ExtendedChunk, SimpleReply};
use nbd::wire::request::{self, ExtendedRequest, Request};
use zerocopy::{FromBytes, IntoBytes};

use crate::nbd_world::{Id, World};

/// Bytes of the hello.
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

/// The client's flags that every client of today sends.
pub(crate) fn flags() -> [u8; 4] {
    (C_FIXED_NEWSTYLE | C_NO_ZEROES).to_be_bytes()
}

/// An option with its data.
pub(crate) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let header = OptionHeader::new(option, u32::try_from(data.len()).unwrap());
    [header.as_bytes(), data].concat()
}

/// GO to the export of that name.
pub(crate) fn go(name: &str) -> Vec<u8> {
    option(option::GO, &InfoRequest::emit(name, &[]))
}

/// A request of the transmission phase.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Say {
    pub(crate) command: u16,
    pub(crate) flags: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Say {
    pub(crate) fn new(command: u16, cookie: u64, offset: u64, len: u64) -> Self {
        Self { command, flags: 0, cookie, offset, len }
    }

    pub(crate) fn flags(self, flags: u16) -> Self {
        Self { flags, ..self }
    }

    /// Its header.
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

/// A read.
pub(crate) fn read(cookie: u64, offset: u64, len: u64) -> Say {
    Say::new(request::READ, cookie, offset, len)
}

/// A write with its data.
pub(crate) fn write(mode: Mode, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let flags = if mode == Mode::Extended { request::PAYLOAD_LEN } else { 0 };
    let say = Say::new(request::WRITE, cookie, offset, data.len() as u64).flags(flags);
    [say.bytes(mode), data.to_vec()].concat()
}

/// A reply to an option: option, kind, data.
pub(crate) type OptionReply = (u32, u32, Vec<u8>);

/// Cuts replies to options out of what was heard.
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

/// The kinds of the replies to options.
pub(crate) fn kinds(bytes: &[u8]) -> Vec<u32> {
    option_replies(bytes).into_iter().map(|(_, kind, _)| kind).collect()
}

/// A reply, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) cookie: u64,
    /// Zero for a simple reply.
    pub(crate) kind: u16,
    pub(crate) done: bool,
    pub(crate) error: u32,
    pub(crate) data: Vec<u8>,
}

/// Cuts replies out of what was heard. `lens` tells how long the data of a simple reply without an error is.
pub(crate) fn replies(mut bytes: &[u8], lens: impl Fn(u64) -> usize) -> Vec<Heard> {
    let mut heard = Vec::new();
    while !bytes.is_empty() {
        let (reply, rest) = one_reply(bytes, &lens).expect("replies come whole");
        heard.push(reply);
        bytes = rest;
    }
    heard
}

fn one_reply<'a>(bytes: &'a [u8], lens: &impl Fn(u64) -> usize) -> Option<(Heard, &'a [u8])> {
    let magic = u32::from_be_bytes(*bytes.first_chunk()?);
    match magic {
        reply::SIMPLE_MAGIC => {
            let (simple, rest) = SimpleReply::read_from_prefix(bytes).ok()?;
            let (cookie, error) = (simple.cookie.get(), simple.error.get());
            let len = if error == 0 { lens(cookie) } else { 0 };
            let (data, rest) = rest.split_at_checked(len)?;
            Some((Heard { cookie, kind: 0, done: true, error, data: data.to_vec() }, rest))
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

fn part(cookie: u64, kind: u16, flags: u16, data: &[u8]) -> Heard {
    assert_eq!(flags & !reply::DONE, 0);
    let error = if kind & reply::ERROR_BIT == 0 {
        errno::OK
    } else {
        u32::from_be_bytes(*data.first_chunk().unwrap())
    };
    let done = flags & reply::DONE != 0;
    Heard { cookie, kind, done, error, data: data.to_vec() }
}

/// Flags and GO to the disk with that form of replies, and `base:allocation` where it can be had.
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
    let heard = world.ask(id, &bytes);
    assert_eq!(kinds(&heard[HELLO..]).last(), Some(&option::ACK));
    id
}

/// The one reply that a request without data in its answer gets: its error.
pub(crate) fn error_of(heard: &[u8]) -> u32 {
    let all = replies(heard, |_| 0);
    assert_eq!(all.len(), 1, "{all:?}");
    assert!(all[0].done);
    all[0].error
}

/// The data of a read, put together, or its error.
pub(crate) fn data_of(heard: &[u8], offset: u64, len: usize) -> Result<Vec<u8>, u32> {
    let mut data = vec![0xaa; len];
    let (mut got, mut error) = (0, 0);
    let all = replies(heard, |_| len);
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
