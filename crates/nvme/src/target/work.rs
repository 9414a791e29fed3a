//! The commands in flight: what a slot is used for.

use export::{Op, Settling};

use super::binding::Connect;
use super::compare_and_write::{FusedCommand, FusedOperation};
use super::job::Job;
use crate::command::{AdminCommand, ReservationRequest};
use crate::wire::fabrics::ConnectData;

/// The operation of a command in flight, with its state.
#[derive(Debug, Default)]
pub(super) enum Work {
    /// No operation.
    #[default]
    None,
    Read {
        lba: u64,
        blocks: u32,
    },
    Write {
        lba: u64,
        blocks: u32,
        durable: bool,
    },
    /// A single request without data: Flush, Write Zeroes.
    NoData {
        op: Op,
        lba: u64,
        blocks: u32,
    },
    /// Several requests in sequence.
    Job(Box<Job>),
    /// A reservation command that waits for its keys.
    Reservation(ReservationRequest),
    /// A reservation command that has taken effect, and may not be answered yet.
    Settling(Box<Settling>),
    /// One command of a fused operation, before the data of both is received.
    FusedCommand(Box<FusedCommand>),
    /// A fused operation whose data is complete, in the slot of its first command.
    FusedOperation(Box<FusedOperation>),
    /// Connect: waits for its data.
    Connect(Box<Connect>),
    /// Connect: waits for orphaned writes of earlier connections to end.
    BlockedConnect(Box<Connect>, Box<ConnectData>),
    /// Authentication Send: waits for its message.
    AuthMessage,
    /// An Admin command: waits for its data.
    Admin(Box<AdminCommand>),
    /// Asynchronous Event Request: waits for an event.
    Event,
    /// Abort: waits for the queue that owns the command.
    Abort,
    /// Shutdown: waits for writes of the I/O queues in flight, then for the flush of the disk.
    Shutdown,
}

impl Work {
    /// Returns whether the command can be aborted before it is submitted to the disk. An Abort is
    /// completed by another queue, and a shutdown takes place in any case.
    pub(super) fn is_abortable(&self) -> bool {
        !matches!(
            self,
            Self::FusedOperation(_) | Self::FusedCommand(_) | Self::Abort | Self::Shutdown
        )
    }

    /// Returns whether it is a fused operation that holds or awaits exclusive access to the disk.
    pub(super) fn holds_exclusive(&self) -> bool {
        matches!(self, Self::FusedOperation(operation) if operation.holds_exclusive())
    }

    /// Returns the disk request (operation, first block, blocks) of a command that consists of one.
    pub(super) fn request(&self) -> Option<(Op, u64, u32)> {
        match *self {
            Self::Read { lba, blocks } => Some((Op::Read, lba, blocks)),
            Self::Write { lba, blocks, durable } => Some((Op::Write { durable }, lba, blocks)),
            Self::NoData { op, lba, blocks } => Some((op, lba, blocks)),
            _ => None,
        }
    }

    /// Returns the first block, for the error log.
    pub(super) fn lba(&self) -> u64 {
        self.request().map_or(0, |(_, lba, _)| lba)
    }
}
