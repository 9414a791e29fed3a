//! Fused Compare and Write (NVMe Base 2.0 §3.4.2, NVM 1.0 §2.1.4): two consecutive commands of a
//! queue that are one atomic operation. Commands are matched in submission order, whichever data
//! arrives first: VMware hosts send a small Compare in its capsule and the Write's data by R2T, and
//! keep several operations in flight.

use export::{Buffer, Exclusive, Op, Outcome};

use super::{check_transfer, is_durable};
use crate::command::IoCommand;
use crate::status::Status;
use crate::target::capsule::{Capsule, LengthCheck};
use crate::target::compare_and_write::{FusedCommand, FusedOperation, FusedStep, MAX_FUSED_BYTES};
use crate::target::queue::Queue;
use crate::target::slots::SlotState;
use crate::target::work::Work;
use crate::wire::command::Fuse;

/// Matches first and second fused commands.
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
                link_commands(queue, first, capsule.tag());
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

    /// Handles a command of a fused operation: the first must be Compare and the second Write, of the
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
        let fused = FusedCommand::new(first, lba, blocks, durable, partner);
        queue.set_work(tag, Work::FusedCommand(Box::new(fused)));
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

/// Links the first command to its second. The second is replaced once it has been checked.
fn link_commands(queue: &mut Queue, first: u16, second: u16) {
    if let Some(fused) = fused_command(queue, first) {
        fused.set_partner(Some(second));
    }
    queue.set_work(second, Work::FusedCommand(Box::new(FusedCommand::unchecked_second(first))));
}

/// Aborts a command whose partner failed. An R2T may be outstanding.
fn abort_partner(queue: &mut Queue, tag: u16) {
    if let Some(fused) = fused_command(queue, tag) {
        fused.set_partner(None);
    }
    queue.complete_early(tag, Status::ABORTED_FAILED_FUSED.dnr());
}

fn fused_command(queue: &mut Queue, tag: u16) -> Option<&mut FusedCommand> {
    match queue.slots_mut().work_mut(tag) {
        Some(Work::FusedCommand(fused)) => Some(fused),
        _ => None,
    }
}

fn partner(queue: &mut Queue, tag: u16) -> Option<u16> {
    fused_command(queue, tag)?.partner()
}

fn is_same_range(queue: &mut Queue, partner: Option<u16>, lba: u64, blocks: u32) -> bool {
    partner.is_none_or(|tag| {
        fused_command(queue, tag).is_some_and(|fused| fused.has_range(lba, blocks))
    })
}

/// Stores the data of one command. Starts the operation if the data of the other was received.
pub(super) fn data_received(
    queue: &mut Queue,
    tag: u16,
    mut fused: Box<FusedCommand>,
    buffer: Buffer,
) {
    let (first, partner) = (fused.is_first(), fused.partner());
    fused.set_data(buffer);
    queue.set_work(tag, Work::FusedCommand(fused));
    queue.slots_mut().set_state(tag, SlotState::Pending);
    if let Some(partner) = partner {
        let (first, second) = if first { (tag, partner) } else { (partner, tag) };
        start_if_complete(queue, first, second);
    }
}

fn start_if_complete(queue: &mut Queue, first: u16, second: u16) {
    let Some(expected) = fused_command(queue, first).and_then(FusedCommand::take_data) else {
        return;
    };
    let Some(replacement) = fused_command(queue, second).and_then(FusedCommand::take_data) else {
        if let Some(compare) = fused_command(queue, first) {
            compare.set_data(expected);
        }
        return;
    };
    let Some(write) = fused_command(queue, second) else { return };
    let operation = FusedOperation::new(second, write, expected, replacement);
    start(queue, first, Box::new(operation));
}

/// Continues an operation, which has exclusive access to the disk: read, compare, write.
pub(super) fn step(
    queue: &mut Queue,
    tag: u16,
    mut operation: Box<FusedOperation>,
    outcome: Option<Outcome>,
) {
    let Some(outcome) = outcome else { return start(queue, tag, operation) };
    if let Err(fault) = outcome.result {
        let (lba, blocks) = operation.range();
        queue.report_io_fault(operation.op(), lba, blocks.into(), fault);
    }
    match operation.complete(&outcome) {
        FusedStep::Write(replacement) => write(queue, tag, operation, replacement),
        FusedStep::Finish(first, second) => finish(queue, tag, operation, first, second),
    }
}

/// Starts an operation: as soon as there is a buffer for its read, and no other write is in flight.
fn start(queue: &mut Queue, tag: u16, mut operation: Box<FusedOperation>) {
    let Some(export) = queue.grant().map(|grant| grant.export().clone()) else {
        let (first, second) = (Status::INVALID_NAMESPACE.dnr(), Status::ABORTED_FAILED_FUSED.dnr());
        return finish(queue, tag, operation, first, second);
    };
    // If the disk was replaced, exclusive access to the old one ends: other writes to it may
    // proceed.
    if operation.release_stale(&export) {
        queue.out().notify();
    }
    // Allocates before it claims exclusive access: no claim may be held while waiting for memory.
    if let Some(len) = operation.missing_buffer() {
        match queue.transfers().allocate_second_phase(tag, len) {
            Some(buffer) => operation.set_read_buffer(buffer),
            None => return queue.set_work(tag, Work::FusedOperation(operation)),
        }
    }
    let current = operation.begin_read(&export);
    let (lba, blocks) = operation.range();
    queue.set_work(tag, Work::FusedOperation(operation));
    match current {
        Some(current) => submit(queue, tag, Op::Read, (lba, blocks), current, None),
        None => queue.await_exclusive(tag, None),
    }
}

/// Submits the write of an operation. Restarts it if the disk was replaced, because the compare
/// read the old one.
pub(super) fn write(
    queue: &mut Queue,
    tag: u16,
    mut operation: Box<FusedOperation>,
    replacement: Buffer,
) {
    let export = queue.grant().map(|grant| grant.export());
    let Some((exclusive, replacement)) = operation.begin_write(export, replacement) else {
        return start(queue, tag, operation);
    };
    let (range, op) = (operation.range(), operation.write_op());
    queue.set_work(tag, Work::FusedOperation(operation));
    submit(queue, tag, op, range, replacement, Some(exclusive));
}

/// Submits a request of an operation. If the gate refuses it, [`Queue::submit`] completes the first
/// command with the reason, and this completes the second.
fn submit(
    queue: &mut Queue,
    tag: u16,
    op: Op,
    (lba, blocks): (u64, u32),
    buffer: Buffer,
    exclusive: Option<Exclusive>,
) {
    let Some(Work::FusedOperation(operation)) = queue.slots().work(tag) else { return };
    let second = operation.second_slot();
    queue.submit(tag, op, lba, blocks.into(), Some(buffer), exclusive.as_ref());
    match queue.slots_mut().work_mut(tag) {
        Some(Work::FusedOperation(operation)) => operation.restore_exclusive(exclusive),
        _ => {
            queue.finish(second, Status::ABORTED_FAILED_FUSED.dnr());
            queue.out().notify();
        }
    }
}

fn finish(
    queue: &mut Queue,
    tag: u16,
    operation: Box<FusedOperation>,
    first: Status,
    second: Status,
) {
    let other = operation.second_slot();
    drop(operation);
    queue.finish(tag, first);
    queue.finish(other, second);
    queue.out().notify();
}
