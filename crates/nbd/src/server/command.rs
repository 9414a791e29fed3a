//! Parses request headers to typed commands, and checks command flags (NBD, Request types, Command
//! flags).

use export::Op;
use zerocopy::FromBytes;

use super::Violation;
use super::reply::{Mode, ReplyTo};
use crate::wire::errno;
use crate::wire::request::{self, ExtendedRequest, Request, flags};

/// A request header, compact or extended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    len: u64,
}

/// A command with its flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Read { whole: bool },
    Write { durable: bool },
    Disc,
    Flush,
    Trim { durable: bool },
    Cache,
    Zero { unmap: bool, durable: bool, fast: bool },
    Status { one: bool },
}

impl Header {
    /// Parses a header. Returns it with its length, or `None` if it is incomplete.
    pub(super) fn parse(bytes: &[u8], mode: Mode) -> Result<Option<(Self, usize)>, Violation> {
        if mode == Mode::Extended { Self::extended(bytes) } else { Self::compact(bytes) }
    }

    fn compact(bytes: &[u8]) -> Result<Option<(Self, usize)>, Violation> {
        let Ok((request, _)) = Request::ref_from_prefix(bytes) else { return Ok(None) };
        if request.magic.get() != request::MAGIC {
            return Err(Violation::RequestMagicWrong);
        }
        let header = Self {
            flags: request.flags.get(),
            command: request.command.get(),
            cookie: request.cookie.get(),
            offset: request.offset.get(),
            len: request.len.get().into(),
        };
        Ok(Some((header, size_of::<Request>())))
    }

    fn extended(bytes: &[u8]) -> Result<Option<(Self, usize)>, Violation> {
        let Ok((request, _)) = ExtendedRequest::ref_from_prefix(bytes) else { return Ok(None) };
        if request.magic.get() != request::EXTENDED_MAGIC {
            return Err(Violation::RequestMagicWrong);
        }
        let header = Self {
            flags: request.flags.get(),
            command: request.command.get(),
            cookie: request.cookie.get(),
            offset: request.offset.get(),
            len: request.len.get(),
        };
        Ok(Some((header, size_of::<ExtendedRequest>())))
    }

    /// Returns what a reply refers to.
    pub(super) fn reply_to(&self) -> ReplyTo {
        ReplyTo::new(self.cookie, self.offset)
    }

    /// Returns the offset and the length in bytes.
    pub(super) fn range(&self) -> (u64, u64) {
        (self.offset, self.len)
    }

    /// Returns the length of the payload. A write always has one; with extended headers other
    /// commands may have one, too.
    pub(super) fn payload(&self, mode: Mode) -> u64 {
        let says = mode == Mode::Extended && self.flags & request::PAYLOAD_LEN != 0;
        if self.command == request::WRITE || says { self.len } else { 0 }
    }
}

impl Command {
    /// Parses the command of `header`. `offered` are the transmission flags of the export; `status`
    /// is set if block status was negotiated.
    ///
    /// # Errors
    /// Returns EINVAL if the command is unknown or one of its flags was not negotiated.
    pub(super) fn parse(
        header: &Header,
        mode: Mode,
        offered: u16,
        status: bool,
    ) -> Result<Self, u32> {
        let has = |flag: u16| header.flags & flag != 0;
        let durable = has(request::FUA);
        let (command, allowed) = match header.command {
            request::READ => (Self::Read { whole: has(request::DF) }, request::DF),
            request::WRITE => (Self::Write { durable }, request::PAYLOAD_LEN),
            request::DISC => (Self::Disc, u16::MAX),
            request::FLUSH => (Self::Flush, 0),
            request::TRIM => (Self::Trim { durable }, 0),
            request::CACHE => (Self::Cache, 0),
            request::WRITE_ZEROES => {
                let (unmap, fast) = (!has(request::NO_HOLE), has(request::FAST_ZERO));
                let zero = Self::Zero { unmap, durable, fast };
                (zero, request::NO_HOLE | request::FAST_ZERO)
            }
            request::BLOCK_STATUS if status => {
                (Self::Status { one: has(request::REQ_ONE) }, request::REQ_ONE)
            }
            _ => return Err(errno::EINVAL),
        };
        let allowed = allowed | request::FUA;
        let agreed =
            header.flags & !allowed == 0 && header.flags & !negotiated_flags(mode, offered) == 0;
        if agreed || command == Self::Disc { Ok(command) } else { Err(errno::EINVAL) }
    }

    /// Returns the disk operation.
    pub(super) fn op(self) -> Op {
        match self {
            Self::Read { .. } => Op::Read,
            Self::Write { durable } => Op::Write { durable },
            Self::Trim { .. } => Op::Discard,
            Self::Cache => Op::Prefetch,
            Self::Zero { unmap, durable, fast } => Op::Zero { unmap, durable, fast },
            Self::Status { .. } => Op::Extents,
            Self::Disc | Self::Flush => Op::Flush,
        }
    }

    /// Returns whether the export supports the command. Read-only access is checked before, and
    /// fails with EPERM.
    pub(super) fn is_offered(self, offered: u16) -> bool {
        match self {
            Self::Trim { .. } => offered & flags::SEND_TRIM != 0,
            Self::Zero { .. } => offered & flags::SEND_WRITE_ZEROES != 0,
            _ => true,
        }
    }
}

/// Returns the negotiated command flags.
fn negotiated_flags(mode: Mode, offered: u16) -> u16 {
    let when = |flag: u16, command: u16| if offered & flag != 0 { command } else { 0 };
    let payload = if mode == Mode::Extended { request::PAYLOAD_LEN } else { 0 };
    request::NO_HOLE
        | request::REQ_ONE
        | payload
        | when(flags::SEND_FUA, request::FUA)
        | when(flags::SEND_DF, request::DF)
        | when(flags::SEND_FAST_ZERO, request::FAST_ZERO)
}
