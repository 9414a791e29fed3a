//! The state of a fused Compare and Write (NVMe Base 2.0 §3.4.2, NVM 1.0 §2.1.4): of each of the
//! two commands until all their data was received, then of the pair.

use std::sync::Arc;

use export::{Buffer, Exclusive, Export, Op, Outcome};

use super::fault_status;
use crate::status::Status;

/// Maximum bytes of one command of a pair (ACWU). Both commands and the data read must fit in the
/// memory of a connection.
pub(super) const MAX_FUSED_BYTES: u64 = 1 << 16;

/// One command of a fused pair that is not complete.
#[derive(Debug)]
pub(super) struct FusedHalf {
    lba: u64,
    blocks: u32,
    durable: bool,
    first: bool,
    /// Slot of the other command, once it was received.
    partner: Option<u16>,
    data: Option<Buffer>,
}

impl FusedHalf {
    pub(super) fn new(
        first: bool,
        lba: u64,
        blocks: u32,
        durable: bool,
        partner: Option<u16>,
    ) -> Self {
        Self { lba, blocks, durable, first, partner, data: None }
    }

    /// Returns the second command of the pair whose first is in slot `first`, before it was
    /// checked.
    pub(super) fn second_of(first: u16) -> Self {
        Self::new(false, 0, 0, false, Some(first))
    }

    pub(super) fn is_first(&self) -> bool {
        self.first
    }

    pub(super) fn partner(&self) -> Option<u16> {
        self.partner
    }

    pub(super) fn set_partner(&mut self, partner: Option<u16>) {
        self.partner = partner;
    }

    /// Returns whether the command is for these blocks.
    pub(super) fn is_for(&self, lba: u64, blocks: u32) -> bool {
        self.lba == lba && self.blocks == blocks
    }

    pub(super) fn set_data(&mut self, data: Buffer) {
        self.data = Some(data);
    }

    pub(super) fn take_data(&mut self) -> Option<Buffer> {
        self.data.take()
    }
}

/// A fused pair with all data.
#[derive(Debug)]
pub(super) struct FusedPair {
    second: u16,
    lba: u64,
    blocks: u32,
    durable: bool,
    expected: Buffer,
    /// Data to write; `None` once the write was submitted.
    replacement: Option<Buffer>,
    /// Buffer for the current data; `None` once the read was submitted.
    current: Option<Buffer>,
    exclusive: Option<Exclusive>,
}

/// What follows a disk request of a pair.
#[derive(Debug)]
pub(super) enum PairStep {
    /// Writes this data.
    Write(Buffer),
    /// Completes both commands with these statuses.
    Finish(Status, Status),
}

impl FusedPair {
    /// Returns the pair of the Write `half` in slot `second`.
    pub(super) fn new(
        second: u16,
        half: &FusedHalf,
        expected: Buffer,
        replacement: Buffer,
    ) -> Self {
        let &FusedHalf { lba, blocks, durable, .. } = half;
        let replacement = Some(replacement);
        Self { second, lba, blocks, durable, expected, replacement, current: None, exclusive: None }
    }

    /// Returns the slot of the second command.
    pub(super) fn second(&self) -> u16 {
        self.second
    }

    /// Returns the first block and the number of blocks.
    pub(super) fn range(&self) -> (u64, u32) {
        (self.lba, self.blocks)
    }

    /// Returns the operation of the current request.
    pub(super) fn op(&self) -> Op {
        if self.replacement.is_some() { Op::Read } else { self.write_op() }
    }

    pub(super) fn write_op(&self) -> Op {
        Op::Write { durable: self.durable }
    }

    pub(super) fn holds_exclusive(&self) -> bool {
        self.exclusive.is_some()
    }

    /// Ends exclusive access to another disk than `export`. Returns whether it had that.
    pub(super) fn release_other(&mut self, export: &Arc<Export>) -> bool {
        self.exclusive.take_if(|exclusive| !exclusive.is_for(export)).is_some()
    }

    /// Returns the length of the buffer that it needs for the current data, if it has none.
    pub(super) fn missing_buffer(&self) -> Option<usize> {
        self.current.is_none().then_some(self.expected.len())
    }

    /// Gives it the buffer for the current data.
    pub(super) fn set_buffer(&mut self, buffer: Buffer) {
        self.current = Some(buffer);
    }

    /// Claims exclusive access. Returns the buffer to read into once no other write is in flight.
    pub(super) fn begin_read(&mut self, export: &Arc<Export>) -> Option<Buffer> {
        if self.exclusive.is_none() {
            self.exclusive = Exclusive::claim(export);
        }
        let drained = self.exclusive.as_ref().is_some_and(Exclusive::is_drained);
        if drained { self.current.take() } else { None }
    }

    /// Takes the exclusive access to `export` for the write of `replacement`. Without it, keeps the
    /// data, for a new start.
    pub(super) fn begin_write(
        &mut self,
        export: Option<&Arc<Export>>,
        replacement: Buffer,
    ) -> Option<(Exclusive, Buffer)> {
        let is_for = |exclusive: &mut Exclusive| export.is_some_and(|one| exclusive.is_for(one));
        match self.exclusive.take_if(is_for) {
            Some(exclusive) => Some((exclusive, replacement)),
            None => {
                self.replacement = Some(replacement);
                None
            }
        }
    }

    /// Gives back exclusive access after its request was submitted.
    pub(super) fn keep_exclusive(&mut self, exclusive: Option<Exclusive>) {
        self.exclusive = self.exclusive.take().or(exclusive);
    }

    /// Handles the completion of the current request.
    pub(super) fn completed(&mut self, outcome: &Outcome) -> PairStep {
        let op = self.op();
        let second_aborted = Status::ABORTED_FAILED_FUSED.dnr();
        match (outcome.result, self.replacement.take()) {
            // A failed write is the status of the second command. The Compare succeeded.
            (Err(fault), None) => PairStep::Finish(Status::SUCCESS, fault_status(fault, op)),
            (Err(fault), Some(_)) => PairStep::Finish(fault_status(fault, op), second_aborted),
            (Ok(()), None) => PairStep::Finish(Status::SUCCESS, Status::SUCCESS),
            (Ok(()), Some(replacement)) => {
                let read = outcome.buffer.as_ref().map(Buffer::bytes);
                if read == Some(self.expected.bytes()) {
                    PairStep::Write(replacement)
                } else {
                    PairStep::Finish(Status::COMPARE_FAILURE.dnr(), second_aborted)
                }
            }
        }
    }
}
