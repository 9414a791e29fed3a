//! State of a fused Compare and Write (NVMe Base 2.0 §3.4.2, NVM 1.0 §2.1.4): per command until the
//! data of both is received, then of the operation.

use std::sync::Arc;

use export::{Buffer, Exclusive, Export, Op, Outcome};

use super::fault_status;
use crate::status::Status;

/// Maximum length of each command in bytes; ACWU is derived from it. Both commands and the data read
/// must fit in the memory of a connection.
pub(super) const MAX_FUSED_BYTES: u64 = 1 << 16;

/// One command of a fused operation, before the data of both is received.
#[derive(Debug)]
pub(super) struct FusedCommand {
    lba: u64,
    blocks: u32,
    durable: bool,
    is_first: bool,
    /// Slot of the other command, once it was received.
    partner: Option<u16>,
    data: Option<Buffer>,
}

impl FusedCommand {
    pub(super) fn new(
        is_first: bool,
        lba: u64,
        blocks: u32,
        durable: bool,
        partner: Option<u16>,
    ) -> Self {
        Self { lba, blocks, durable, is_first, partner, data: None }
    }

    /// Returns a second command that is not checked yet; its first command is in slot `first_slot`.
    pub(super) fn unchecked_second(first_slot: u16) -> Self {
        Self::new(false, 0, 0, false, Some(first_slot))
    }

    pub(super) fn is_first(&self) -> bool {
        self.is_first
    }

    pub(super) fn partner(&self) -> Option<u16> {
        self.partner
    }

    pub(super) fn set_partner(&mut self, partner: Option<u16>) {
        self.partner = partner;
    }

    pub(super) fn has_range(&self, lba: u64, blocks: u32) -> bool {
        self.lba == lba && self.blocks == blocks
    }

    pub(super) fn set_data(&mut self, data: Buffer) {
        self.data = Some(data);
    }

    pub(super) fn take_data(&mut self) -> Option<Buffer> {
        self.data.take()
    }
}

/// A fused operation whose data is complete.
#[derive(Debug)]
pub(super) struct FusedOperation {
    second_slot: u16,
    lba: u64,
    blocks: u32,
    durable: bool,
    expected: Buffer,
    /// Data to write; `None` from the completion of the read on.
    replacement: Option<Buffer>,
    /// Buffer for the read, between its allocation and the submission of the read.
    current: Option<Buffer>,
    exclusive: Option<Exclusive>,
}

/// What follows a completed disk request.
#[derive(Debug)]
pub(super) enum FusedStep {
    /// Writes this data.
    Write(Buffer),
    /// Completes both commands with these statuses.
    Finish(Status, Status),
}

impl FusedOperation {
    /// Creates the operation from the Write, which is in slot `second_slot`.
    pub(super) fn new(
        second_slot: u16,
        write: &FusedCommand,
        expected: Buffer,
        replacement: Buffer,
    ) -> Self {
        let &FusedCommand { lba, blocks, durable, .. } = write;
        let replacement = Some(replacement);
        Self {
            second_slot,
            lba,
            blocks,
            durable,
            expected,
            replacement,
            current: None,
            exclusive: None,
        }
    }

    pub(super) fn second_slot(&self) -> u16 {
        self.second_slot
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

    /// Releases exclusive access if it is to a disk other than `export`. Returns whether it did.
    pub(super) fn release_stale(&mut self, export: &Arc<Export>) -> bool {
        self.exclusive.take_if(|exclusive| !exclusive.is_for(export)).is_some()
    }

    /// Returns the length of the buffer to allocate for the read; `None` if it is allocated.
    pub(super) fn missing_buffer(&self) -> Option<usize> {
        self.current.is_none().then_some(self.expected.len())
    }

    pub(super) fn set_read_buffer(&mut self, buffer: Buffer) {
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

    /// Takes the exclusive access to `export` for the write of `replacement`. Returns `None` and keeps
    /// the data if there is none; the caller then restarts the operation.
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

    /// Stores the exclusive access that [`FusedOperation::begin_write`] took.
    pub(super) fn restore_exclusive(&mut self, exclusive: Option<Exclusive>) {
        self.exclusive = self.exclusive.take().or(exclusive);
    }

    /// Handles the completion of the current request.
    pub(super) fn complete(&mut self, outcome: &Outcome) -> FusedStep {
        let op = self.op();
        let second_aborted = Status::ABORTED_FAILED_FUSED.dnr();
        match (outcome.result, self.replacement.take()) {
            // A failed write is the status of the second command. The Compare succeeded.
            (Err(fault), None) => FusedStep::Finish(Status::SUCCESS, fault_status(fault, op)),
            (Err(fault), Some(_)) => FusedStep::Finish(fault_status(fault, op), second_aborted),
            (Ok(()), None) => FusedStep::Finish(Status::SUCCESS, Status::SUCCESS),
            (Ok(()), Some(replacement)) => {
                let read = outcome.buffer.as_ref().map(Buffer::bytes);
                if read == Some(self.expected.bytes()) {
                    FusedStep::Write(replacement)
                } else {
                    FusedStep::Finish(Status::COMPARE_FAILURE.dnr(), second_aborted)
                }
            }
        }
    }
}
