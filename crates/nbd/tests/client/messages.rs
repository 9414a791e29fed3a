//! Encodes server messages, valid or not.

use nbd::wire::handshake::{Hello, NO_ZEROES};
use nbd::wire::meta::{BASE_ALLOCATION, Context, Descriptor, ExtendedDescriptor};
use nbd::wire::option::{self, InfoBlockSize, InfoExport, ReplyHeader};
use nbd::wire::reply::{self, BlockStatusExt, Chunk, ExtendedChunk, OffsetHole, SimpleReply};
use nbd::wire::request::flags;
use zerocopy::IntoBytes;

/// Transmission flags of an export that supports every command.
pub(crate) const ALL_FLAGS: u16 = flags::HAS_FLAGS
    | flags::SEND_FLUSH
    | flags::SEND_FUA
    | flags::SEND_TRIM
    | flags::SEND_WRITE_ZEROES
    | flags::SEND_DF
    | flags::CAN_MULTI_CONN
    | flags::SEND_CACHE
    | flags::SEND_FAST_ZERO;

/// The id of the `base:allocation` context.
pub(crate) const CONTEXT: u32 = 17;

pub(crate) fn hello() -> Vec<u8> {
    Hello::new().as_bytes().to_vec()
}

/// The hello of a server without NO_ZEROES.
pub(crate) fn hello_with_zeros() -> Vec<u8> {
    let mut hello = Hello::new();
    hello.flags = (hello.flags.get() & !NO_ZEROES).into();
    hello.as_bytes().to_vec()
}

/// Encodes an option reply.
pub(crate) fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [ReplyHeader::new(option, kind, len).as_bytes(), data].concat()
}

pub(crate) fn ack(option: u32) -> Vec<u8> {
    option_reply(option, option::ACK, &[])
}

/// Encodes the size and flags of the export.
pub(crate) fn export(option: u32, bytes: u64, flags: u16) -> Vec<u8> {
    option_reply(option, option::REP_INFO, InfoExport::new(bytes, flags).as_bytes())
}

pub(crate) fn blocks(option: u32, minimum: u32, preferred: u32, maximum: u32) -> Vec<u8> {
    let info = InfoBlockSize::new(minimum, preferred, maximum);
    option_reply(option, option::REP_INFO, info.as_bytes())
}

/// Encodes the `base:allocation` context.
pub(crate) fn context() -> Vec<u8> {
    let context = Context { id: CONTEXT, name: BASE_ALLOCATION };
    option_reply(option::SET_META_CONTEXT, option::META_CONTEXT, &context.emit())
}

pub(crate) fn simple(cookie: u64, error: u32, data: &[u8]) -> Vec<u8> {
    [SimpleReply::new(error, cookie).as_bytes(), data].concat()
}

/// The form of chunk headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Structured,
    /// With the offset of the request.
    Extended(u64),
}

/// Encodes a chunk.
pub(crate) fn chunk(form: Form, kind: u16, flags: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let len = payload.len();
    match form {
        Form::Structured => {
            let header = Chunk::new(kind, flags, cookie, u32::try_from(len).unwrap());
            [header.as_bytes(), payload].concat()
        }
        Form::Extended(offset) => {
            let header = ExtendedChunk::new(kind, flags, cookie, offset, len as u64);
            [header.as_bytes(), payload].concat()
        }
    }
}

pub(crate) fn data(form: Form, flags: u16, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    chunk(form, reply::OFFSET_DATA, flags, cookie, &[&offset.to_be_bytes(), data].concat())
}

pub(crate) fn hole(form: Form, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let hole = OffsetHole { offset: offset.into(), len: len.into() };
    chunk(form, reply::OFFSET_HOLE, flags, cookie, hole.as_bytes())
}

pub(crate) fn empty_reply(form: Form, cookie: u64) -> Vec<u8> {
    chunk(form, reply::NONE, reply::DONE, cookie, &[])
}

/// Encodes an error chunk with a message and an optional offset.
pub(crate) fn error(form: Form, flags: u16, cookie: u64, errno: u32, at: Option<u64>) -> Vec<u8> {
    let head = reply::Error { error: errno.into(), message: 3.into() };
    let mut payload = [head.as_bytes(), b"bad"].concat();
    payload.extend(at.iter().flat_map(|at| at.to_be_bytes()));
    let kind = if at.is_some() { reply::ERROR_OFFSET } else { reply::ERROR };
    chunk(form, kind, flags, cookie, &payload)
}

/// Encodes extents from lengths and flags.
pub(crate) fn block_status(form: Form, flags: u16, cookie: u64, extents: &[(u64, u32)]) -> Vec<u8> {
    match form {
        Form::Structured => {
            let mut payload = CONTEXT.to_be_bytes().to_vec();
            for &(len, flags) in extents {
                let len = u32::try_from(len).unwrap().into();
                payload.extend_from_slice(Descriptor { len, flags: flags.into() }.as_bytes());
            }
            chunk(form, reply::BLOCK_STATUS, flags, cookie, &payload)
        }
        Form::Extended(_) => {
            let count = u32::try_from(extents.len()).unwrap().into();
            let head = BlockStatusExt { context: CONTEXT.into(), count };
            let mut payload = head.as_bytes().to_vec();
            for &(len, flags) in extents {
                let (len, flags) = (len.into(), u64::from(flags).into());
                payload.extend_from_slice(ExtendedDescriptor { len, flags }.as_bytes());
            }
            chunk(form, reply::BLOCK_STATUS_EXT, flags, cookie, &payload)
        }
    }
}
