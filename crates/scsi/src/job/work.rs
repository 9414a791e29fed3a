//! What the jobs have in common.

use std::fmt::Debug;

use export::{Buffer, Fault, Grant, Op};

use crate::range::Blocks;
use crate::response::Response;

/// The state machine of a command, without the order of memory and disk requests.
pub(super) trait Work: Debug {
    /// Returns how many bytes the CDB asks the initiator to send, in all.
    fn data_out(&self) -> u64 {
        0
    }

    /// Returns the next action.
    fn next(&mut self, grant: &Grant) -> Action;

    /// Takes data of the initiator.
    fn received(&mut self, _buffer: Buffer) {}

    /// Fills a new buffer for a write.
    fn fill(&mut self, _buffer: &mut Buffer) {}

    /// Takes the buffer of a disk request that succeeded.
    fn completed(&mut self, _buffer: Option<Buffer>) {}

    /// Returns whether the command goes on after this fault.
    fn tolerates(&mut self, _fault: Fault) -> bool {
        false
    }

    /// Returns the response to a disk request that failed with this fault, with its operation and
    /// first block.
    fn failed(&self, fault: Fault, op: Op, lba: u64) -> Response {
        Response::fault(fault, op, lba)
    }
}

/// What a [`Work`] does next.
#[derive(Debug)]
pub(super) enum Action {
    /// Receives data of that length in bytes.
    Receive(usize),
    /// Makes a disk request with a new buffer.
    Allocate { len: usize, holds_memory: bool, request: DiskRequest },
    /// Makes a disk request.
    Request(DiskRequest),
    /// Ends exclusive access, if there is any, and notifies other sessions.
    Notify,
    /// Waits until other sessions have changed something.
    Wait,
    /// Ends the command.
    End(Response),
}

/// A disk request of a job.
#[derive(Debug)]
pub(super) struct DiskRequest {
    pub(super) op: Op,
    pub(super) lba: u64,
    pub(super) blocks: u64,
    pub(super) buffer: Option<Buffer>,
    /// Whether exclusive access is needed. It lasts until [`Action::Notify`] or the end.
    pub(super) exclusive: bool,
}

impl DiskRequest {
    /// Creates a request without exclusive access and without a buffer.
    pub(super) fn new(op: Op, range: Blocks) -> Self {
        let (lba, blocks) = (range.lba, range.blocks.into());
        Self { op, lba, blocks, buffer: None, exclusive: false }
    }

    /// Creates a write of a buffer.
    pub(super) fn write(range: Blocks, durable: bool, buffer: Buffer) -> Self {
        Self { buffer: Some(buffer), ..Self::new(Op::Write { durable }, range) }
    }

    /// Makes it exclusive.
    pub(super) fn exclusive(self) -> Self {
        Self { exclusive: true, ..self }
    }
}

impl Action {
    /// Reads a piece into a new buffer.
    pub(super) fn read(grant: &Grant, range: Blocks, holds_memory: bool) -> Self {
        let request = DiskRequest::new(Op::Read, range);
        Self::Allocate { len: length(grant, range), holds_memory, request }
    }

    /// Receives the data of a piece.
    pub(super) fn receive(grant: &Grant, range: Blocks) -> Self {
        Self::Receive(length(grant, range))
    }
}

/// Returns the length of a piece in bytes.
pub(super) fn length(grant: &Grant, range: Blocks) -> usize {
    usize::try_from(range.bytes(grant)).unwrap_or(usize::MAX)
}
