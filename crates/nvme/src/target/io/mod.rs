//! An I/O queue: the NVM command set. Commands of one disk request are in `single`, of several in
//! `job`, fused pairs in `fused`.

mod fused;
mod job;
mod reservation;
mod single;

use export::{Buffer, Op, Outcome, Request};

use fused::Fusion;

use super::MAX_TRANSFER;
use super::binding::Binding;
use super::capsule::Capsule;
use super::queue::Queue;
use super::slots::SlotState;
use super::work::Work;
use super::{NSID, NSID_ALL, fault_status};
use crate::command::IoCommand;
use crate::status::Status;
use crate::wire::command::Fuse;

/// State of an I/O queue beyond its commands in flight.
#[derive(Debug, Default)]
pub(super) struct IoQueue {
    fusion: Fusion,
}

impl IoQueue {
    /// Handles a command of an I/O queue.
    pub(super) fn command(
        &mut self,
        queue: &mut Queue,
        capsule: Capsule<'_>,
    ) -> Result<(), Status> {
        let sqe = capsule.sqe();
        if !queue.binding().is_some_and(Binding::is_usable) {
            return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
        }
        let fuse = self.fusion.match_command(queue, &capsule)?;
        let command = IoCommand::parse(sqe)?;
        check_namespace(queue, &command, sqe.nsid.get())?;
        match fuse {
            Fuse::Normal => execute(queue, capsule, command),
            _ => self.fusion.command(queue, capsule, command),
        }
    }

    /// Completes a command that failed before submission. Aborts the other command if it is fused.
    pub(super) fn fail(&mut self, queue: &mut Queue, tag: u16, status: Status) {
        self.fusion.fail(queue, tag, status);
    }
}

/// Executes a command that is not fused: one line for each.
fn execute(queue: &mut Queue, capsule: Capsule<'_>, command: IoCommand) -> Result<(), Status> {
    match command {
        IoCommand::Read { slba, nlb, .. } => single::read(queue, capsule, slba, nlb),
        IoCommand::Write { slba, nlb, fua, .. } => single::write(queue, capsule, slba, nlb, fua),
        IoCommand::Flush { .. } => single::no_data(queue, &capsule, Op::Flush, 0, 0),
        IoCommand::WriteZeroes { slba, nlb, fua, deallocate, .. } => {
            let durable = is_durable(queue, fua);
            let op = Op::Zero { unmap: deallocate, durable, fast: false };
            single::no_data(queue, &capsule, op, slba, nlb)
        }
        IoCommand::Compare { slba, nlb, .. } => job::compare(queue, capsule, slba, nlb),
        IoCommand::Verify { slba, nlb, .. } => job::verify(queue, &capsule, slba, nlb),
        IoCommand::DatasetManagement { ranges, deallocate, .. } => {
            job::dataset(queue, capsule, ranges, deallocate)
        }
        IoCommand::Copy { sdlba, ranges, format, fua, .. } => {
            job::copy(queue, capsule, sdlba, ranges, format, fua)
        }
        IoCommand::Reservation { .. } if !queue.supports_reservations() => {
            Err(Status::INVALID_OPCODE.dnr())
        }
        IoCommand::Reservation { request, .. } => reservation::command(queue, capsule, request),
    }
}

/// Continues a command whose data was received.
pub(super) fn data_received(queue: &mut Queue, tag: u16, work: Work, buffer: Buffer) {
    match work {
        Work::Write { lba, blocks, durable } => {
            queue.set_work(tag, Work::Write { lba, blocks, durable });
            queue.submit(tag, Op::Write { durable }, lba, blocks.into(), Some(buffer), None);
        }
        Work::Job(job) => job::data_received(queue, tag, job, buffer),
        Work::Reservation(request) => reservation::data_received(queue, tag, request, &buffer),
        Work::FusedCommand(command) => fused::data_received(queue, tag, command, buffer),
        other => queue.set_work(tag, other),
    }
}

/// Continues a command: from the start, or after its disk request with `outcome`.
pub(super) fn drive(queue: &mut Queue, tag: u16, outcome: Option<Outcome>) {
    if let Some(request) = queue.slots().work(tag).and_then(Work::request) {
        return single::step(queue, tag, request, outcome);
    }
    match queue.take_work(tag) {
        Work::Job(job) => job::step(queue, tag, job, outcome),
        Work::FusedOperation(operation) => fused::step(queue, tag, operation, outcome),
        Work::Settling(settling) => queue.settle(tag, *settling),
        other => queue.set_work(tag, other),
    }
}

/// Retries a command that waited for another one's exclusive access to end.
pub(super) fn retry(queue: &mut Queue, tag: u16) {
    let Some(state) = queue.slots_mut().state_mut(tag) else { return };
    match std::mem::replace(state, SlotState::Pending) {
        SlotState::AwaitingExclusive(Request { op, lba, blocks, buffer, .. }) => {
            match (queue.take_work(tag), buffer) {
                (Work::FusedOperation(operation), Some(buffer)) => {
                    fused::write(queue, tag, operation, buffer)
                }
                (work, buffer) => {
                    queue.set_work(tag, work);
                    queue.submit(tag, op, lba, blocks, buffer, None);
                }
            }
        }
        SlotState::Pending => drive(queue, tag, None),
        other => *state = other,
    }
}

/// Aborts the commands of this queue that pending Aborts on the Admin queue name (NVMe Base 2.0
/// §5.1).
pub(super) fn process_aborts(queue: &mut Queue) {
    let Some(binding) = queue.binding() else { return };
    let (controller, qid) = (binding.controller().clone(), binding.qid());
    for cid in controller.pending_aborts(qid) {
        let aborted = queue.abort(cid);
        controller.set_aborted(qid, cid, aborted);
        queue.out().notify();
    }
}

fn check_namespace(queue: &Queue, command: &IoCommand, nsid: u32) -> Result<(), Status> {
    let all = matches!(command, IoCommand::Flush { .. }) && nsid == NSID_ALL;
    let valid = (nsid == NSID || all) && queue.grant().is_some();
    if valid { Ok(()) } else { Err(Status::INVALID_NAMESPACE.dnr()) }
}

/// Returns whether a write must be durable: FUA is set, or the write cache is disabled.
fn is_durable(queue: &Queue, fua: bool) -> bool {
    fua || queue.controller().is_ok_and(|controller| controller.is_write_through())
}

/// Checks a request against the grant before its data is received. Returns its length in bytes.
fn check_access(queue: &Queue, op: Op, lba: u64, blocks: u32) -> Result<u64, Status> {
    let grant = queue.grant().ok_or(Status::INVALID_NAMESPACE.dnr())?;
    let permitted = grant.permits(op, lba, blocks.into());
    permitted.map(|(_, len)| len).map_err(|fault| fault_status(fault, op))
}

/// Like [`check_access`], with the limit of MDTS for a command that transfers data.
fn check_transfer(queue: &Queue, op: Op, lba: u64, blocks: u32) -> Result<u64, Status> {
    let len = check_access(queue, op, lba, blocks)?;
    if len > MAX_TRANSFER { Err(Status::INVALID_FIELD.dnr()) } else { Ok(len) }
}
