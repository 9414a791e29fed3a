//! A received command, with the place of its data.

use export::Buffer;

use crate::command::DataPointer;
use crate::status::Status;
use crate::wire::command::Sqe;
use crate::wire::opcode::fabrics;

/// A command capsule whose command is in flight.
#[derive(Debug)]
pub(super) struct Capsule<'a> {
    tag: u16,
    sqe: &'a Sqe,
    /// Buffer for the in-capsule data that follows.
    buffer: Option<Buffer>,
}

/// How the length in the data pointer must relate to that of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LengthCheck {
    /// Equal: blocks.
    Exact,
    /// At least: data structures. Linux hosts send 4096 bytes with any Dataset Management.
    AtLeast,
}

impl<'a> Capsule<'a> {
    /// Creates the capsule of the command in slot `tag`.
    pub(super) fn new(tag: u16, sqe: &'a Sqe, buffer: Option<Buffer>) -> Self {
        Self { tag, sqe, buffer }
    }

    /// Returns the slot.
    pub(super) fn tag(&self) -> u16 {
        self.tag
    }

    pub(super) fn sqe(&self) -> &'a Sqe {
        self.sqe
    }

    /// Returns the buffer for in-capsule data.
    pub(super) fn into_buffer(self) -> Option<Buffer> {
        self.buffer
    }

    /// Checks the data pointer of a command that transfers `len` bytes to the host.
    pub(super) fn check_to_host(&self, len: u64, check: LengthCheck) -> Result<(), Status> {
        let DataPointer::Transport { length } = DataPointer::parse(&self.sqe.sgl1)? else {
            return Err(Status::SGL_TYPE_INVALID.dnr());
        };
        self.check_no_data()?;
        check.apply(length.into(), len)
    }

    /// Refuses in-capsule data for a command that takes none.
    pub(super) fn check_no_data(&self) -> Result<(), Status> {
        if self.buffer.is_some() { Err(Status::INVALID_FIELD.dnr()) } else { Ok(()) }
    }

    /// Refuses in-capsule data of Fabrics commands, except of Connect and Authentication Send.
    pub(super) fn check_fabrics_data(&self) -> Result<(), Status> {
        match self.sqe.fctype() {
            fabrics::CONNECT | fabrics::AUTHENTICATION_SEND => Ok(()),
            _ => self.check_no_data(),
        }
    }
}

impl LengthCheck {
    /// Checks that a data pointer has a length for a command of `len` bytes.
    pub(super) fn apply(self, has: u64, len: u64) -> Result<(), Status> {
        let fits = if self == Self::Exact { has == len } else { has >= len };
        if fits { Ok(()) } else { Err(Status::DATA_SGL_LENGTH_INVALID.dnr()) }
    }
}
