//! Typed commands, parsed from submission queue entries. Zero's-based numbers are converted here.

use zerocopy::FromZeros;
use zerocopy::little_endian::U32;

use crate::status::Status;
use crate::wire::opcode;
use crate::wire::{Fuse, Sgl, Sqe};

mod admin;
mod fabrics;
mod io;
mod reservation;

pub use admin::AdminCommand;
pub use fabrics::{FabricsCommand, PropertySize};
pub use io::IoCommand;
pub use reservation::ReservationRequest;

/// A command of any command set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Admin queue.
    Admin(AdminCommand),
    /// Any queue.
    Fabrics(FabricsCommand),
    /// I/O queue.
    Io(IoCommand),
}

/// Data transfer of a command, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// No data.
    None,
    /// From the controller to the host.
    ToHost(u64),
    /// From the host to the controller.
    FromHost(u64),
}

impl Transfer {
    /// Returns the length in bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        match self {
            Self::None => 0,
            Self::ToHost(len) | Self::FromHost(len) => len,
        }
    }

    /// Returns whether the command transfers no data.
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

/// Location of the data of a command over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPointer {
    /// In-capsule data.
    InCapsule {
        /// Length in bytes.
        length: u32,
    },
    /// Data PDUs.
    Transport {
        /// Length in bytes.
        length: u32,
    },
}

impl DataPointer {
    /// Parses an SGL descriptor (NVMe/TCP 1.0 §3.3.2).
    ///
    /// # Errors
    /// Fails for another descriptor type, or an offset other than 0 (ICDOFF is 0).
    pub fn parse(sgl: &Sgl) -> Result<Self, Status> {
        let length = sgl.length.get();
        match sgl.id {
            Sgl::TRANSPORT => Ok(Self::Transport { length }),
            Sgl::OFFSET if sgl.addr.get() == 0 => Ok(Self::InCapsule { length }),
            Sgl::OFFSET => Err(Status::SGL_OFFSET_INVALID.dnr()),
            _ => Err(Status::SGL_TYPE_INVALID.dnr()),
        }
    }

    /// Returns the length in bytes.
    #[must_use]
    pub const fn length(self) -> u32 {
        match self {
            Self::InCapsule { length } | Self::Transport { length } => length,
        }
    }
}

impl Command {
    /// Parses an entry received on queue `qid`.
    ///
    /// # Errors
    /// Fails with Invalid Command Opcode for unknown opcodes, and with Invalid Field for PRPs,
    /// invalid FUSE, or values that are never valid. Do Not Retry is set.
    pub fn parse(sqe: &Sqe, qid: u16) -> Result<Self, Status> {
        match (sqe.opcode, qid) {
            (opcode::fabrics::OPCODE, _) => FabricsCommand::parse(sqe).map(Self::Fabrics),
            (_, 0) => AdminCommand::parse(sqe).map(Self::Admin),
            _ => IoCommand::parse(sqe).map(Self::Io),
        }
    }

    /// Returns the data transfer. `block_shift` is the binary logarithm of the block size; it
    /// matters for I/O commands only.
    #[must_use]
    pub fn data_len(&self, block_shift: u8) -> Transfer {
        match self {
            Self::Admin(command) => command.data_len(),
            Self::Fabrics(command) => command.data_len(),
            Self::Io(command) => command.data_len(block_shift),
        }
    }

    /// Checks the SGL length. It must match blocks exactly, and be sufficient for data structures:
    /// Linux sends 4096 bytes with any Dataset Management.
    ///
    /// # Errors
    /// Fails with Data SGL Length Invalid. Do Not Retry is set.
    pub fn check_sgl_length(&self, length: u32, block_shift: u8) -> Result<(), Status> {
        let (length, needed) = (u64::from(length), self.data_len(block_shift).len());
        let fits = match self {
            Self::Io(command) if command.moves_blocks() => length == needed,
            _ => length >= needed,
        };
        if fits { Ok(()) } else { Err(Status::DATA_SGL_LENGTH_INVALID.dnr()) }
    }
}

/// Returns an entry with that opcode, an SGL of length 0, and zeros.
fn entry(opcode: u8) -> Sqe {
    let flags = Sqe::PSDT_SGL << 6;
    Sqe { opcode, flags, sgl1: Sgl::transport(0), ..Sqe::new_zeroed() }
}

/// Checks PSDT: over TCP a data pointer is an SGL, never PRPs (NVMe/TCP 1.0 §3.3.2).
fn check_psdt(sqe: &Sqe) -> Result<(), Status> {
    if sqe.psdt() == Sqe::PSDT_SGL { Ok(()) } else { Err(invalid_field()) }
}

/// Checks that the command is not fused: only I/O commands are (NVMe Base 2.0 §3.4.2).
fn check_not_fused(sqe: &Sqe) -> Result<(), Status> {
    check_psdt(sqe)?;
    if sqe.fuse() == Fuse::Normal { Ok(()) } else { Err(invalid_field()) }
}

const fn invalid_field() -> Status {
    Status::INVALID_FIELD.dnr()
}

/// Returns bits of a dword from `first`.
fn byte(dword: U32, first: u32) -> u8 {
    (dword.get() >> first & 0xff) as u8
}

fn word(dword: U32, first: u32) -> u16 {
    (dword.get() >> first & 0xffff) as u16
}

fn bit(dword: U32, number: u32) -> bool {
    dword.get() >> number & 1 != 0
}

/// Returns a dword with bit `number` set if `on`.
fn flag(on: bool, number: u32) -> u32 {
    u32::from(on) << number
}

/// Returns a 64-bit number from its lower and upper dword.
fn quad(lower: U32, upper: U32) -> u64 {
    u64::from(upper.get()) << 32 | u64::from(lower.get())
}

/// Returns the lower and upper dword of a 64-bit number.
fn dwords(value: u64) -> (U32, U32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (U32::from_bytes([a, b, c, d]), U32::from_bytes([e, f, g, h]))
}

#[cfg(test)]
mod test;
