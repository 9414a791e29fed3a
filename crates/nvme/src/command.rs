//! What a command asks for: a submission queue entry, parsed into a typed command.
//!
//! Zero's-based numbers become counts here and nowhere else. Knows the rules of a single entry, not
//! of the queue, the controller or the namespace that it is sent to.

use zerocopy::FromZeros;
use zerocopy::little_endian::U32;

use crate::status::Status;
use crate::wire::opcode;
use crate::wire::{Fuse, Sgl, Sqe};

mod admin;
mod fabrics;
mod io;

pub use admin::AdminCommand;
pub use fabrics::{FabricsCommand, PropertySize};
pub use io::IoCommand;

/// A command of any set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// On the Admin queue.
    Admin(AdminCommand),
    /// On any queue.
    Fabrics(FabricsCommand),
    /// On an I/O queue.
    Io(IoCommand),
}

/// What data goes with a command, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// None.
    None,
    /// From the controller to the host.
    ToHost(u64),
    /// From the host to the controller.
    FromHost(u64),
}

impl Transfer {
    /// Bytes in either direction.
    #[must_use]
    pub const fn len(self) -> u64 {
        match self {
            Self::None => 0,
            Self::ToHost(len) | Self::FromHost(len) => len,
        }
    }

    /// Whether no byte goes either way.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    const fn to_host(len: u64) -> Self {
        if len == 0 { Self::None } else { Self::ToHost(len) }
    }

    const fn from_host(len: u64) -> Self {
        if len == 0 { Self::None } else { Self::FromHost(len) }
    }
}

/// Where the data of a command is, over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPointer {
    /// In the capsule, right behind the command.
    InCapsule {
        /// Bytes.
        length: u32,
    },
    /// In data PDUs.
    Transport {
        /// Bytes.
        length: u32,
    },
}

impl DataPointer {
    /// The place that an SGL descriptor names (NVMe/TCP 1.0 §3.3.2).
    ///
    /// # Errors
    /// A type other than the two, or an offset into the capsule that is not 0 (ICDOFF is 0).
    pub fn parse(sgl: &Sgl) -> Result<Self, Status> {
        let length = sgl.length.get();
        match sgl.id {
            Sgl::TRANSPORT => Ok(Self::Transport { length }),
            Sgl::OFFSET if sgl.addr.get() == 0 => Ok(Self::InCapsule { length }),
            Sgl::OFFSET => Err(Status::SGL_OFFSET_INVALID.dnr()),
            _ => Err(Status::SGL_TYPE_INVALID.dnr()),
        }
    }

    /// Bytes, wherever they are.
    #[must_use]
    pub const fn length(self) -> u32 {
        match self {
            Self::InCapsule { length } | Self::Transport { length } => length,
        }
    }
}

impl Command {
    /// The command in an entry that came on queue `qid`.
    ///
    /// # Errors
    /// Invalid Command Opcode for what no set has, Invalid Field for PRPs, a fused command that
    /// cannot be, and values that no controller allows. All with Do Not Retry.
    pub fn parse(sqe: &Sqe, qid: u16) -> Result<Self, Status> {
        match (sqe.opcode, qid) {
            (opcode::fabrics::OPCODE, _) => FabricsCommand::parse(sqe).map(Self::Fabrics),
            (_, 0) => AdminCommand::parse(sqe).map(Self::Admin),
            _ => IoCommand::parse(sqe).map(Self::Io),
        }
    }

    /// The data that goes with the command. `block_shift` is the block size of its namespace as a
    /// power of two, and counts for I/O commands only.
    #[must_use]
    pub fn data_len(&self, block_shift: u8) -> Transfer {
        match self {
            Self::Admin(command) => command.data_len(),
            Self::Fabrics(command) => command.data_len(),
            Self::Io(command) => command.data_len(block_shift),
        }
    }

    /// Whether an SGL of `length` bytes fits the command. Blocks have to fit exactly; elsewhere the
    /// host may give more room: Linux sends 4096 bytes with any Dataset Management.
    ///
    /// # Errors
    /// Data SGL Length Invalid, with Do Not Retry.
    pub fn check_sgl_length(&self, length: u32, block_shift: u8) -> Result<(), Status> {
        let (length, needed) = (u64::from(length), self.data_len(block_shift).len());
        let fits = match self {
            Self::Io(command) if command.moves_blocks() => length == needed,
            _ => length >= needed,
        };
        if fits { Ok(()) } else { Err(Status::DATA_SGL_LENGTH_INVALID.dnr()) }
    }
}

/// An entry with this opcode, an SGL of no bytes, and all else 0.
fn entry(opcode: u8) -> Sqe {
    let flags = Sqe::PSDT_SGL << 6;
    Sqe { opcode, flags, sgl1: Sgl::transport(0), ..Sqe::new_zeroed() }
}

/// NVMe/TCP 1.0 §3.3.2: a data pointer is an SGL, never PRPs.
fn check_psdt(sqe: &Sqe) -> Result<(), Status> {
    if sqe.psdt() == Sqe::PSDT_SGL { Ok(()) } else { Err(invalid_field()) }
}

/// NVMe Base 2.0 §3.4.2: only I/O commands are fused.
fn check_alone(sqe: &Sqe) -> Result<(), Status> {
    check_psdt(sqe)?;
    if sqe.fuse() == Fuse::Normal { Ok(()) } else { Err(invalid_field()) }
}

const fn invalid_field() -> Status {
    Status::INVALID_FIELD.dnr()
}

/// Bits of a dword, from `first` on, as many as the type has.
fn byte(dword: U32, first: u32) -> u8 {
    (dword.get() >> first & 0xff) as u8
}

fn word(dword: U32, first: u32) -> u16 {
    (dword.get() >> first & 0xffff) as u16
}

fn bit(dword: U32, number: u32) -> bool {
    dword.get() >> number & 1 != 0
}

/// A bit of a dword to be emitted.
fn flag(on: bool, number: u32) -> u32 {
    u32::from(on) << number
}

/// A 64-bit number from its lower and its upper dword.
fn quad(lower: U32, upper: U32) -> u64 {
    u64::from(upper.get()) << 32 | u64::from(lower.get())
}

/// The lower and the upper dword of a 64-bit number.
fn dwords(value: u64) -> (U32, U32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (U32::from_bytes([a, b, c, d]), U32::from_bytes([e, f, g, h]))
}

#[cfg(test)]
mod test;
