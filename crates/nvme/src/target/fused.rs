//! Fused Compare and Write (NVMe Base 2.0 §3.4.2, NVM 1.0 §2.1.4): two consecutive commands of a
//! queue that are one atomic operation. Pairs are formed in submission order, whichever data
//! arrives first: VMware hosts send a small Compare in its capsule and the Write's data by R2T, and
//! keep several pairs in flight.

use export::{Buffer, Exclusive, Op, Outcome, Step};

use super::io::Work;
use super::queue::Queue;
use super::slots::SlotState;
use super::transfer::LengthCheck;
use crate::command::IoCommand;
use crate::status::Status;
use crate::wire::command::{Fuse, Sqe};

/// State of a fused first command. The next command must be its second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FusedFirst {
    /// In that slot.
    Slot(u16),
    /// Failed already: the second fails, too.
    Failed,
}

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

impl FusedPair {
    pub(super) fn holds_exclusive(&self) -> bool {
        self.exclusive.is_some()
    }
}

/// Maximum bytes of one command of a pair (ACWU). Both commands and the data read must fit in the
/// memory of a connection.
pub(super) const MAX_FUSED_BYTES: u64 = 1 << 16;

impl Queue {
    /// Checks that a second command directly follows its first. Aborts a first command without a
    /// second.
    pub(super) fn match_fused(&mut self, tag: u16, sqe: &Sqe) -> Result<Fuse, Status> {
        let fuse = sqe.fuse();
        let previous = self.fused.take();
        match (fuse, previous) {
            (Fuse::Reserved, _) => Err(Status::INVALID_FIELD.dnr()),
            (Fuse::Second, Some(FusedFirst::Failed)) => Err(Status::ABORTED_FAILED_FUSED.dnr()),
            (Fuse::Second, None) => Err(Status::ABORTED_MISSING_FUSED.dnr()),
            (Fuse::Second, Some(FusedFirst::Slot(first))) => {
                self.link_halves(first, tag);
                Ok(fuse)
            }
            (_, previous) => {
                if let Some(FusedFirst::Slot(first)) = previous {
                    // An R2T may be outstanding.
                    self.complete_early(first, Status::ABORTED_MISSING_FUSED.dnr());
                }
                // Counts as failed until it has passed all checks.
                self.fused = (fuse == Fuse::First).then_some(FusedFirst::Failed);
                Ok(fuse)
            }
        }
    }

    /// Links the first command to its second. The second is filled in when it has been checked.
    fn link_halves(&mut self, first: u16, second: u16) {
        if let Some(Work::FusedHalf(half)) = self.slots.get(first).map(|slot| &mut slot.work) {
            half.partner = Some(second);
        }
        let half = FusedHalf {
            lba: 0,
            blocks: 0,
            durable: false,
            first: false,
            partner: Some(first),
            data: None,
        };
        self.set_work(second, Work::FusedHalf(Box::new(half)));
    }

    /// Handles a command of a fused pair: the first must be Compare and the second Write, of the
    /// same blocks.
    pub(super) fn fused_command(
        &mut self,
        tag: u16,
        sqe: &Sqe,
        command: IoCommand,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        let (first, lba, blocks, fua) = match command {
            IoCommand::Compare { slba, nlb, .. } => (true, slba, nlb, false),
            IoCommand::Write { slba, nlb, fua, .. } => (false, slba, nlb, fua),
            _ => return Err(Status::INVALID_FIELD.dnr()),
        };
        let (durable, partner) = (self.is_durable(fua), self.partner(tag));
        if first == partner.is_some() || !self.same_blocks(partner, lba, blocks) {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let len = self.check_transfer(Op::Write { durable }, lba, blocks)?;
        if len > MAX_FUSED_BYTES {
            return Err(Status::ATOMIC_WRITE_UNIT_EXCEEDED.dnr());
        }
        self.set_work(
            tag,
            Work::FusedHalf(Box::new(FusedHalf {
                lba,
                blocks,
                durable,
                first,
                partner,
                data: None,
            })),
        );
        self.receive_data(tag, sqe, len, LengthCheck::Exact, capsule)?;
        if first {
            self.fused = Some(FusedFirst::Slot(tag));
        }
        Ok(())
    }

    fn partner(&mut self, tag: u16) -> Option<u16> {
        match self.slots.get(tag).map(|slot| &slot.work) {
            Some(Work::FusedHalf(half)) => half.partner,
            _ => None,
        }
    }

    fn same_blocks(&mut self, partner: Option<u16>, lba: u64, blocks: u32) -> bool {
        let Some(partner) = partner else { return true };
        match self.slots.get(partner).map(|slot| &slot.work) {
            Some(Work::FusedHalf(half)) => half.lba == lba && half.blocks == blocks,
            _ => false,
        }
    }

    /// Completes a command that failed before submission. Aborts the other command if it is fused.
    pub(super) fn fail_command(&mut self, tag: u16, status: Status) {
        let partner = self.partner(tag);
        if self.fused == Some(FusedFirst::Slot(tag)) {
            self.fused = Some(FusedFirst::Failed);
        }
        self.finish(tag, status);
        if let Some(partner) = partner {
            self.abort_partner(partner);
        }
    }

    /// Aborts a command whose partner failed. An R2T may be outstanding.
    fn abort_partner(&mut self, tag: u16) {
        self.set_partner(tag, None);
        self.complete_early(tag, Status::ABORTED_FAILED_FUSED.dnr());
    }

    fn set_partner(&mut self, tag: u16, partner: Option<u16>) {
        if let Some(Work::FusedHalf(half)) = self.slots.get(tag).map(|slot| &mut slot.work) {
            half.partner = partner;
        }
    }

    /// Stores the data of one command. Starts the pair if that of the other was received.
    pub(super) fn half_data_received(
        &mut self,
        tag: u16,
        mut half: Box<FusedHalf>,
        buffer: Buffer,
    ) {
        let (first, partner) = (half.first, half.partner);
        half.data = Some(buffer);
        self.set_work(tag, Work::FusedHalf(half));
        self.set_slot_state(tag, SlotState::Pending);
        if let Some(partner) = partner {
            let (first, second) = if first { (tag, partner) } else { (partner, tag) };
            self.start_if_complete(first, second);
        }
    }

    fn start_if_complete(&mut self, first: u16, second: u16) {
        let Some(expected) = self.take_data(first) else { return };
        let Some(replacement) = self.take_data(second) else {
            return self.put_back_data(first, expected);
        };
        let Some(Work::FusedHalf(half)) = self.slots.get(second).map(|slot| &slot.work) else {
            return;
        };
        let (lba, blocks, durable) = (half.lba, half.blocks, half.durable);
        let pair = FusedPair {
            second,
            lba,
            blocks,
            durable,
            expected,
            replacement: Some(replacement),
            current: None,
            exclusive: None,
        };
        self.set_work(first, Work::FusedPair(Box::new(pair)));
        self.drive(first, None);
    }

    fn take_data(&mut self, tag: u16) -> Option<Buffer> {
        match self.slots.get(tag).map(|slot| &mut slot.work) {
            Some(Work::FusedHalf(half)) => half.data.take(),
            _ => None,
        }
    }

    fn put_back_data(&mut self, tag: u16, data: Buffer) {
        if let Some(Work::FusedHalf(half)) = self.slots.get(tag).map(|slot| &mut slot.work) {
            half.data = Some(data);
        }
    }

    /// Runs a pair with exclusive access to the disk: read, compare, write.
    pub(super) fn step_pair(
        &mut self,
        tag: u16,
        mut pair: Box<FusedPair>,
        outcome: Option<Outcome>,
    ) {
        let (lba, blocks) = (pair.lba, pair.blocks);
        let op =
            if pair.replacement.is_some() { Op::Read } else { Op::Write { durable: pair.durable } };
        let Some(outcome) = outcome else { return self.start_pair(tag, pair) };
        match (outcome.result, pair.replacement.take()) {
            (Err(fault), _) => {
                self.report_io_fault(op, lba, blocks.into(), fault);
                let status = Status::from_fault(fault, super::io::direction(op));
                // A failed write is the status of the second command. The Compare succeeded.
                let failed_write = op.mutates();
                let (first, second) = if failed_write {
                    (Status::SUCCESS, status)
                } else {
                    (status, Status::ABORTED_FAILED_FUSED.dnr())
                };
                self.finish_pair(tag, pair, first, second);
            }
            (Ok(()), None) => self.finish_pair(tag, pair, Status::SUCCESS, Status::SUCCESS),
            (Ok(()), Some(replacement)) => {
                let equal = outcome
                    .buffer
                    .as_ref()
                    .is_some_and(|read| read.bytes() == pair.expected.bytes());
                if equal {
                    self.write_pair(tag, pair, replacement);
                } else {
                    let (first, second) =
                        (Status::COMPARE_FAILURE.dnr(), Status::ABORTED_FAILED_FUSED.dnr());
                    self.finish_pair(tag, pair, first, second);
                }
            }
        }
    }

    fn start_pair(&mut self, tag: u16, mut pair: Box<FusedPair>) {
        let Some(grant) = self.binding.as_ref().and_then(|binding| binding.grant.clone()) else {
            let (first, second) =
                (Status::INVALID_NAMESPACE.dnr(), Status::ABORTED_FAILED_FUSED.dnr());
            return self.finish_pair(tag, pair, first, second);
        };
        // If the disk was replaced, exclusive access to the old one ends: other writes to it may
        // proceed.
        let exclusive = pair.exclusive.take();
        pair.exclusive = exclusive.filter(|exclusive| {
            let same = exclusive.is_for(grant.export());
            if !same {
                self.steps.push_back(Step::Notify);
            }
            same
        });
        // Allocates before it claims exclusive access: no claim may be held while waiting for
        // memory.
        let len = pair.expected.len();
        let Some(current) = pair.current.take().or_else(|| self.second_phase_buffers.take(len))
        else {
            self.set_work(tag, Work::FusedPair(pair));
            return self.awaiting_second_phase.push_back(tag);
        };
        if pair.exclusive.is_none() {
            pair.exclusive = Exclusive::claim(grant.export());
        }
        let (lba, blocks) = (pair.lba, pair.blocks);
        if pair.exclusive.as_ref().is_some_and(Exclusive::is_drained) {
            self.set_work(tag, Work::FusedPair(pair));
            return self.submit_pair(tag, Op::Read, lba, blocks, current, None);
        }
        pair.current = Some(current);
        self.set_work(tag, Work::FusedPair(pair));
        self.awaiting_exclusive.push_back(tag);
    }

    /// Submits the write of a pair. Restarts the pair if the disk was replaced, because the compare
    /// read the old one.
    pub(super) fn write_pair(&mut self, tag: u16, mut pair: Box<FusedPair>, replacement: Buffer) {
        let (lba, blocks, op) = (pair.lba, pair.blocks, Op::Write { durable: pair.durable });
        let grant = self.binding.as_ref().and_then(|binding| binding.grant.as_ref());
        let is_for =
            |exclusive: &Exclusive| grant.is_some_and(|grant| exclusive.is_for(grant.export()));
        if !pair.exclusive.as_ref().is_some_and(is_for) {
            pair.replacement = Some(replacement);
            return self.start_pair(tag, pair);
        }
        let exclusive = pair.exclusive.take();
        self.set_work(tag, Work::FusedPair(pair));
        self.submit_pair(tag, op, lba, blocks, replacement, exclusive);
    }

    /// Submits a request of a pair. If the gate refuses it, [`Queue::submit`] completes the first
    /// command with the reason, and this completes the second.
    fn submit_pair(
        &mut self,
        tag: u16,
        op: Op,
        lba: u64,
        blocks: u32,
        buffer: Buffer,
        exclusive: Option<Exclusive>,
    ) {
        let Some(second) = self.second(tag) else { return };
        self.submit(tag, op, lba, blocks.into(), Some(buffer), exclusive.as_ref());
        match self.slots.get(tag).map(|slot| &mut slot.work) {
            Some(Work::FusedPair(pair)) => pair.exclusive = pair.exclusive.take().or(exclusive),
            _ => {
                self.finish(second, Status::ABORTED_FAILED_FUSED.dnr());
                self.steps.push_back(Step::Notify);
            }
        }
    }

    fn second(&mut self, tag: u16) -> Option<u16> {
        match self.slots.get(tag).map(|slot| &slot.work) {
            Some(Work::FusedPair(pair)) => Some(pair.second),
            _ => None,
        }
    }

    fn finish_pair(&mut self, tag: u16, pair: Box<FusedPair>, first: Status, second: Status) {
        let other = pair.second;
        drop(pair);
        self.finish(tag, first);
        self.finish(other, second);
        self.steps.push_back(Step::Notify);
    }
}
