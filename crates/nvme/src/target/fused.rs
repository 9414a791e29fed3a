//! Fused Compare and Write (NVMe Base 2.0 §3.4.2, NVM 1.0 §2.1.4): two commands that follow one another on a queue are
//! one step on the disk. The pair is made in the order of submission, whichever data comes first: VMware's hosts send a
//! small Compare in its capsule and have the data of the Write fetched, and several pairs are under way at once.

use export::{Buffer, Exclusive, Op, Outcome, Step};

use super::io::Work;
use super::queue::Queue;
use super::slots::Stage;
use super::transfer::Size;
use crate::command::IoCommand;
use crate::status::Status;
use crate::wire::command::{Fuse, Sqe};

/// The first half of a pair whose second half must be the next command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    /// It is in that slot.
    Slot(u16),
    /// It has failed already: so must the second.
    Failed,
}

/// One half of a pair that is not complete.
#[derive(Debug)]
pub(super) struct Half {
    lba: u64,
    blocks: u32,
    durable: bool,
    first: bool,
    /// The slot of the other half, once it is there.
    partner: Option<u16>,
    data: Option<Buffer>,
}

/// A complete pair.
#[derive(Debug)]
pub(super) struct Pair {
    second: u16,
    lba: u64,
    blocks: u32,
    durable: bool,
    expected: Buffer,
    /// Until it is written.
    replacement: Option<Buffer>,
    /// Memory to read into, until it is read into.
    current: Option<Buffer>,
    right: Option<Exclusive>,
}

impl Pair {
    pub(super) fn has_right(&self) -> bool {
        self.right.is_some()
    }
}

/// Bytes of one half at most (ACWU): both halves and what is read must fit in a connection's memory.
pub(super) const LARGEST: u64 = 1 << 16;

impl Queue {
    /// Sees to it that a first half is followed by its second at once; else the first is aborted.
    pub(super) fn pair_up(&mut self, at: u16, sqe: &Sqe) -> Result<Fuse, Status> {
        let fuse = sqe.fuse();
        let before = self.fused.take();
        match (fuse, before) {
            (Fuse::Reserved, _) => Err(Status::INVALID_FIELD.dnr()),
            (Fuse::Second, Some(First::Failed)) => Err(Status::ABORTED_FAILED_FUSED.dnr()),
            (Fuse::Second, None) => Err(Status::ABORTED_MISSING_FUSED.dnr()),
            (Fuse::Second, Some(First::Slot(first))) => {
                self.link_halves(first, at);
                Ok(fuse)
            }
            (_, before) => {
                if let Some(First::Slot(first)) = before {
                    // Its data may still be coming.
                    self.cut_off(first, Status::ABORTED_MISSING_FUSED.dnr());
                }
                // Until it has passed every check, it counts as failed.
                self.fused = (fuse == Fuse::First).then_some(First::Failed);
                Ok(fuse)
            }
        }
    }

    /// Lets the first half know of its second; the second learns of the first when it has been checked.
    fn link_halves(&mut self, first: u16, second: u16) {
        if let Some(Work::Half(half)) = self.slots.get(first).map(|slot| &mut slot.work) {
            half.partner = Some(second);
        }
        let half = Half {
            lba: 0,
            blocks: 0,
            durable: false,
            first: false,
            partner: Some(first),
            data: None,
        };
        self.set_work(second, Work::Half(Box::new(half)));
    }

    /// A half of a pair: the first must be Compare and the second Write, of the same blocks.
    pub(super) fn io_half(
        &mut self,
        at: u16,
        sqe: &Sqe,
        command: IoCommand,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        let (first, lba, blocks, fua) = match command {
            IoCommand::Compare { slba, nlb, .. } => (true, slba, nlb, false),
            IoCommand::Write { slba, nlb, fua, .. } => (false, slba, nlb, fua),
            _ => return Err(Status::INVALID_FIELD.dnr()),
        };
        let (durable, partner) = (self.durable(fua), self.partner(at));
        if first == partner.is_some() || !self.same_blocks(partner, lba, blocks) {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let len = self.permitted(Op::Write { durable }, lba, blocks)?;
        if len > LARGEST {
            return Err(Status::ATOMIC_WRITE_UNIT_EXCEEDED.dnr());
        }
        self.set_work(
            at,
            Work::Half(Box::new(Half { lba, blocks, durable, first, partner, data: None })),
        );
        self.gather(at, sqe, len, Size::Exact, capsule)?;
        if first {
            self.fused = Some(First::Slot(at));
        }
        Ok(())
    }

    fn partner(&mut self, at: u16) -> Option<u16> {
        match self.slots.get(at).map(|slot| &slot.work) {
            Some(Work::Half(half)) => half.partner,
            _ => None,
        }
    }

    fn same_blocks(&mut self, partner: Option<u16>, lba: u64, blocks: u32) -> bool {
        let Some(partner) = partner else { return true };
        match self.slots.get(partner).map(|slot| &slot.work) {
            Some(Work::Half(half)) => half.lba == lba && half.blocks == blocks,
            _ => false,
        }
    }

    /// Ends a command that failed before the disk; if it is half of a pair, the other half with it.
    pub(super) fn spoil(&mut self, at: u16, status: Status) {
        let partner = self.partner(at);
        if self.fused == Some(First::Slot(at)) {
            self.fused = Some(First::Failed);
        }
        self.answer(at, status);
        if let Some(partner) = partner {
            self.abort_half(partner);
        }
    }

    /// The other half failed: so does this one, at once, though its data may still be coming.
    fn abort_half(&mut self, at: u16) {
        self.set_partner(at, None);
        self.cut_off(at, Status::ABORTED_FAILED_FUSED.dnr());
    }

    fn set_partner(&mut self, at: u16, partner: Option<u16>) {
        if let Some(Work::Half(half)) = self.slots.get(at).map(|slot| &mut slot.work) {
            half.partner = partner;
        }
    }

    /// The data of one half is there; the pair runs when that of the other is, too.
    pub(super) fn half_loaded(&mut self, at: u16, mut half: Box<Half>, buffer: Buffer) {
        let (first, partner) = (half.first, half.partner);
        half.data = Some(buffer);
        self.set_work(at, Work::Half(half));
        self.set_stage(at, Stage::Waiting);
        if let Some(partner) = partner {
            let (first, second) = if first { (at, partner) } else { (partner, at) };
            self.join(first, second);
        }
    }

    fn join(&mut self, first: u16, second: u16) {
        let Some(expected) = self.take_data(first) else { return };
        let Some(replacement) = self.take_data(second) else {
            return self.give_data(first, expected);
        };
        let Some(Work::Half(half)) = self.slots.get(second).map(|slot| &slot.work) else { return };
        let (lba, blocks, durable) = (half.lba, half.blocks, half.durable);
        let pair = Pair {
            second,
            lba,
            blocks,
            durable,
            expected,
            replacement: Some(replacement),
            current: None,
            right: None,
        };
        self.set_work(first, Work::Pair(Box::new(pair)));
        self.drive(first, None);
    }

    fn take_data(&mut self, at: u16) -> Option<Buffer> {
        match self.slots.get(at).map(|slot| &mut slot.work) {
            Some(Work::Half(half)) => half.data.take(),
            _ => None,
        }
    }

    fn give_data(&mut self, at: u16, data: Buffer) {
        if let Some(Work::Half(half)) = self.slots.get(at).map(|slot| &mut slot.work) {
            half.data = Some(data);
        }
    }

    /// Runs a complete pair: alone on the disk, read, compare, write.
    pub(super) fn pair(&mut self, at: u16, mut pair: Box<Pair>, outcome: Option<Outcome>) {
        let (lba, blocks) = (pair.lba, pair.blocks);
        let op =
            if pair.replacement.is_some() { Op::Read } else { Op::Write { durable: pair.durable } };
        let Some(outcome) = outcome else { return self.start_pair(at, pair) };
        match (outcome.result, pair.replacement.take()) {
            (Err(fault), _) => {
                self.note_fault(op, lba, blocks.into(), fault);
                let status = Status::from_fault(fault, super::io::direction(op));
                // A failed write is the second command's; the comparison before it succeeded.
                let failed_write = op.mutates();
                let (first, second) = if failed_write {
                    (Status::SUCCESS, status)
                } else {
                    (status, Status::ABORTED_FAILED_FUSED.dnr())
                };
                self.end_pair(at, pair, first, second);
            }
            (Ok(()), None) => self.end_pair(at, pair, Status::SUCCESS, Status::SUCCESS),
            (Ok(()), Some(replacement)) => {
                let equal = outcome
                    .buffer
                    .as_ref()
                    .is_some_and(|read| read.bytes() == pair.expected.bytes());
                if equal {
                    self.write_pair(at, pair, replacement);
                } else {
                    let (first, second) =
                        (Status::COMPARE_FAILURE.dnr(), Status::ABORTED_FAILED_FUSED.dnr());
                    self.end_pair(at, pair, first, second);
                }
            }
        }
    }

    fn start_pair(&mut self, at: u16, mut pair: Box<Pair>) {
        let Some(grant) = self.link.as_ref().and_then(|link| link.grant.clone()) else {
            let (first, second) =
                (Status::INVALID_NAMESPACE.dnr(), Status::ABORTED_FAILED_FUSED.dnr());
            return self.end_pair(at, pair, first, second);
        };
        // The disk may have been replaced since: other writes to the old one may go on then.
        let right = pair.right.take();
        pair.right = right.filter(|right| {
            let same = right.is_for(grant.export());
            if !same {
                self.out.push_back(Step::Notify);
            }
            same
        });
        // Takes the buffer before the claim: a claim must not be held while waiting for memory.
        let len = pair.expected.len();
        let Some(current) = pair.current.take().or_else(|| self.seconds.take(len)) else {
            self.set_work(at, Work::Pair(pair));
            return self.late.push_back(at);
        };
        if pair.right.is_none() {
            pair.right = Exclusive::claim(grant.export());
        }
        let (lba, blocks) = (pair.lba, pair.blocks);
        if pair.right.as_ref().is_some_and(Exclusive::is_drained) {
            self.set_work(at, Work::Pair(pair));
            return self.submit_half(at, Op::Read, lba, blocks, current, None);
        }
        pair.current = Some(current);
        self.set_work(at, Work::Pair(pair));
        self.contending.push_back(at);
    }

    /// Writes the second half. Starts the pair anew if the disk has been replaced: the comparison was with the old one.
    pub(super) fn write_pair(&mut self, at: u16, mut pair: Box<Pair>, replacement: Buffer) {
        let (lba, blocks, op) = (pair.lba, pair.blocks, Op::Write { durable: pair.durable });
        let grant = self.link.as_ref().and_then(|link| link.grant.as_ref());
        let is_for = |right: &Exclusive| grant.is_some_and(|grant| right.is_for(grant.export()));
        if !pair.right.as_ref().is_some_and(is_for) {
            pair.replacement = Some(replacement);
            return self.start_pair(at, pair);
        }
        let right = pair.right.take();
        self.set_work(at, Work::Pair(pair));
        self.submit_half(at, op, lba, blocks, replacement, right);
    }

    /// Hands one half to the disk. If the gate refuses it, the first command is answered with the reason, and the second
    /// here.
    fn submit_half(
        &mut self,
        at: u16,
        op: Op,
        lba: u64,
        blocks: u32,
        buffer: Buffer,
        right: Option<Exclusive>,
    ) {
        let Some(second) = self.second(at) else { return };
        self.submit(at, op, lba, blocks.into(), Some(buffer), right.as_ref());
        match self.slots.get(at).map(|slot| &mut slot.work) {
            Some(Work::Pair(pair)) => pair.right = pair.right.take().or(right),
            _ => {
                self.answer(second, Status::ABORTED_FAILED_FUSED.dnr());
                self.out.push_back(Step::Notify);
            }
        }
    }

    fn second(&mut self, at: u16) -> Option<u16> {
        match self.slots.get(at).map(|slot| &slot.work) {
            Some(Work::Pair(pair)) => Some(pair.second),
            _ => None,
        }
    }

    fn end_pair(&mut self, at: u16, pair: Box<Pair>, first: Status, second: Status) {
        let other = pair.second;
        drop(pair);
        self.answer(at, first);
        self.answer(other, second);
        self.out.push_back(Step::Notify);
    }
}
