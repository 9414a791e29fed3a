//! Fused Compare and Write (NVMe Base 2.0 §3.4.2, NVM 1.0 §2.1.4): two consecutive commands of a
//! queue that are one atomic operation. Pairs are formed in submission order, whichever data
//! arrives first: VMware hosts send a small Compare in its capsule and the Write's data by R2T, and
//! keep several pairs in flight.

use export::{Buffer, Exclusive, Op, Outcome};

use super::{check_transfer, is_durable};
use crate::command::IoCommand;
use crate::status::Status;
use crate::target::capsule::{Capsule, LengthCheck};
use crate::target::pair::{FusedHalf, FusedPair, MAX_FUSED_BYTES, PairStep};
use crate::target::queue::Queue;
use crate::target::slots::SlotState;
use crate::target::work::Work;
use crate::wire::command::Fuse;

/// Matches the commands of fused pairs.
#[derive(Debug, Default)]
pub(super) struct Fusion {
    /// A fused first command. The next command must be its second.
    first: Option<FusedFirst>,
}

/// State of a fused first command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FusedFirst {
    /// In that slot.
    Slot(u16),
    /// Failed already: the second fails, too.
    Failed,
}

impl Fusion {
    /// Checks that a second command directly follows its first. Aborts a first command without a
    /// second.
    pub(super) fn match_command(
        &mut self,
        queue: &mut Queue,
        capsule: &Capsule<'_>,
    ) -> Result<Fuse, Status> {
        let fuse = capsule.sqe().fuse();
        let previous = self.first.take();
        match (fuse, previous) {
            (Fuse::Reserved, _) => Err(Status::INVALID_FIELD.dnr()),
            (Fuse::Second, Some(FusedFirst::Failed)) => Err(Status::ABORTED_FAILED_FUSED.dnr()),
            (Fuse::Second, None) => Err(Status::ABORTED_MISSING_FUSED.dnr()),
            (Fuse::Second, Some(FusedFirst::Slot(first))) => {
                link_halves(queue, first, capsule.tag());
                Ok(fuse)
            }
            (_, previous) => {
                if let Some(FusedFirst::Slot(first)) = previous {
                    // An R2T may be outstanding.
                    queue.complete_early(first, Status::ABORTED_MISSING_FUSED.dnr());
                }
                // Counts as failed until it has passed all checks.
                self.first = (fuse == Fuse::First).then_some(FusedFirst::Failed);
                Ok(fuse)
            }
        }
    }

    /// Handles a command of a fused pair: the first must be Compare and the second Write, of the
    /// same blocks.
    pub(super) fn command(
        &mut self,
        queue: &mut Queue,
        capsule: Capsule<'_>,
        command: IoCommand,
    ) -> Result<(), Status> {
        let tag = capsule.tag();
        let (first, lba, blocks, fua) = match command {
            IoCommand::Compare { slba, nlb, .. } => (true, slba, nlb, false),
            IoCommand::Write { slba, nlb, fua, .. } => (false, slba, nlb, fua),
            _ => return Err(Status::INVALID_FIELD.dnr()),
        };
        let (durable, partner) = (is_durable(queue, fua), partner(queue, tag));
        if first == partner.is_some() || !is_same_range(queue, partner, lba, blocks) {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let len = check_transfer(queue, Op::Write { durable }, lba, blocks)?;
        if len > MAX_FUSED_BYTES {
            return Err(Status::ATOMIC_WRITE_UNIT_EXCEEDED.dnr());
        }
        let half = FusedHalf::new(first, lba, blocks, durable, partner);
        queue.set_work(tag, Work::FusedHalf(Box::new(half)));
        queue.receive_data(capsule, len, LengthCheck::Exact)?;
        if first {
            self.first = Some(FusedFirst::Slot(tag));
        }
        Ok(())
    }

    /// Completes a command that failed before submission. Aborts the other command if it is fused.
    pub(super) fn fail(&mut self, queue: &mut Queue, tag: u16, status: Status) {
        let partner = partner(queue, tag);
        if self.first == Some(FusedFirst::Slot(tag)) {
            self.first = Some(FusedFirst::Failed);
        }
        queue.finish(tag, status);
        if let Some(partner) = partner {
            abort_partner(queue, partner);
        }
    }
}

/// Links the first command to its second. The second is filled in when it has been checked.
fn link_halves(queue: &mut Queue, first: u16, second: u16) {
    if let Some(half) = half(queue, first) {
        half.set_partner(Some(second));
    }
    queue.set_work(second, Work::FusedHalf(Box::new(FusedHalf::second_of(first))));
}

/// Aborts a command whose partner failed. An R2T may be outstanding.
fn abort_partner(queue: &mut Queue, tag: u16) {
    if let Some(half) = half(queue, tag) {
        half.set_partner(None);
    }
    queue.complete_early(tag, Status::ABORTED_FAILED_FUSED.dnr());
}

fn half(queue: &mut Queue, tag: u16) -> Option<&mut FusedHalf> {
    match queue.slots_mut().work_mut(tag) {
        Some(Work::FusedHalf(half)) => Some(half),
        _ => None,
    }
}

fn partner(queue: &mut Queue, tag: u16) -> Option<u16> {
    half(queue, tag)?.partner()
}

fn is_same_range(queue: &mut Queue, partner: Option<u16>, lba: u64, blocks: u32) -> bool {
    partner.is_none_or(|tag| half(queue, tag).is_some_and(|half| half.is_for(lba, blocks)))
}

/// Stores the data of one command. Starts the pair if that of the other was received.
pub(super) fn data_received(queue: &mut Queue, tag: u16, mut half: Box<FusedHalf>, buffer: Buffer) {
    let (first, partner) = (half.is_first(), half.partner());
    half.set_data(buffer);
    queue.set_work(tag, Work::FusedHalf(half));
    queue.slots_mut().set_state(tag, SlotState::Pending);
    if let Some(partner) = partner {
        let (first, second) = if first { (tag, partner) } else { (partner, tag) };
        start_if_complete(queue, first, second);
    }
}

fn start_if_complete(queue: &mut Queue, first: u16, second: u16) {
    let Some(expected) = half(queue, first).and_then(FusedHalf::take_data) else { return };
    let Some(replacement) = half(queue, second).and_then(FusedHalf::take_data) else {
        if let Some(compare) = half(queue, first) {
            compare.set_data(expected);
        }
        return;
    };
    let Some(write) = half(queue, second) else { return };
    let pair = FusedPair::new(second, write, expected, replacement);
    start(queue, first, Box::new(pair));
}

/// Continues a pair, which has exclusive access to the disk: read, compare, write.
pub(super) fn step(
    queue: &mut Queue,
    tag: u16,
    mut pair: Box<FusedPair>,
    outcome: Option<Outcome>,
) {
    let Some(outcome) = outcome else { return start(queue, tag, pair) };
    if let Err(fault) = outcome.result {
        let (lba, blocks) = pair.range();
        queue.report_io_fault(pair.op(), lba, blocks.into(), fault);
    }
    match pair.completed(&outcome) {
        PairStep::Write(replacement) => write(queue, tag, pair, replacement),
        PairStep::Finish(first, second) => finish(queue, tag, pair, first, second),
    }
}

/// Starts a pair: as soon as there is a buffer for its read, and no other write is in flight.
fn start(queue: &mut Queue, tag: u16, mut pair: Box<FusedPair>) {
    let Some(export) = queue.grant().map(|grant| grant.export().clone()) else {
        let (first, second) = (Status::INVALID_NAMESPACE.dnr(), Status::ABORTED_FAILED_FUSED.dnr());
        return finish(queue, tag, pair, first, second);
    };
    // If the disk was replaced, exclusive access to the old one ends: other writes to it may
    // proceed.
    if pair.release_other(&export) {
        queue.out().notify();
    }
    // Allocates before it claims exclusive access: no claim may be held while waiting for memory.
    if let Some(len) = pair.missing_buffer() {
        match queue.transfers().allocate_second_phase(tag, len) {
            Some(buffer) => pair.set_buffer(buffer),
            None => return queue.set_work(tag, Work::FusedPair(pair)),
        }
    }
    let current = pair.begin_read(&export);
    let (lba, blocks) = pair.range();
    queue.set_work(tag, Work::FusedPair(pair));
    match current {
        Some(current) => submit(queue, tag, Op::Read, (lba, blocks), current, None),
        None => queue.await_exclusive(tag, None),
    }
}

/// Submits the write of a pair. Restarts the pair if the disk was replaced, because the compare
/// read the old one.
pub(super) fn write(queue: &mut Queue, tag: u16, mut pair: Box<FusedPair>, replacement: Buffer) {
    let export = queue.grant().map(|grant| grant.export());
    let Some((exclusive, replacement)) = pair.begin_write(export, replacement) else {
        return start(queue, tag, pair);
    };
    let (range, op) = (pair.range(), pair.write_op());
    queue.set_work(tag, Work::FusedPair(pair));
    submit(queue, tag, op, range, replacement, Some(exclusive));
}

/// Submits a request of a pair. If the gate refuses it, [`Queue::submit`] completes the first
/// command with the reason, and this completes the second.
fn submit(
    queue: &mut Queue,
    tag: u16,
    op: Op,
    (lba, blocks): (u64, u32),
    buffer: Buffer,
    exclusive: Option<Exclusive>,
) {
    let Some(Work::FusedPair(pair)) = queue.slots().work(tag) else { return };
    let second = pair.second();
    queue.submit(tag, op, lba, blocks.into(), Some(buffer), exclusive.as_ref());
    match queue.slots_mut().work_mut(tag) {
        Some(Work::FusedPair(pair)) => pair.keep_exclusive(exclusive),
        _ => {
            queue.finish(second, Status::ABORTED_FAILED_FUSED.dnr());
            queue.out().notify();
        }
    }
}

fn finish(queue: &mut Queue, tag: u16, pair: Box<FusedPair>, first: Status, second: Status) {
    let other = pair.second();
    drop(pair);
    queue.finish(tag, first);
    queue.finish(other, second);
    queue.out().notify();
}
