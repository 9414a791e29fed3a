//! The NVM command set. Commands of several disk requests are in `ranges`, fused pairs in `fused`.

use std::sync::atomic::Ordering;

use export::{Body, Buffer, Fault, Op, Outcome, Pool};

use super::MAX_TRANSFER;
use super::admin::PendingAdmin;
use super::binding::Binding;
use super::fused::{FusedHalf, FusedPair};
use super::queue::Queue;
use super::ranges::{Job, JobStep};
use super::transfer::{BufferWait, LengthCheck};
use crate::command::IoCommand;
use crate::status::{Direction, Status};
use crate::wire::command::{Fuse, Sqe};

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
    /// One command of a fused pair that is not complete.
    FusedHalf(Box<FusedHalf>),
    /// A complete fused pair, in the slot of its first command.
    FusedPair(Box<FusedPair>),
    /// A pending Admin or Fabrics command.
    Admin(Box<PendingAdmin>),
}

impl Work {
    /// Returns whether it is an Abort that another queue must handle.
    pub(super) fn is_abort(&self) -> bool {
        matches!(self, Self::Admin(waiting) if matches!(**waiting, PendingAdmin::Abort))
    }

    /// Returns whether it is a shutdown, which cannot be aborted.
    pub(super) fn is_shutdown(&self) -> bool {
        matches!(self, Self::Admin(waiting) if matches!(**waiting, PendingAdmin::Shutdown))
    }

    /// Returns whether it is a pair that holds or awaits exclusive access to the disk.
    pub(super) fn holds_exclusive(&self) -> bool {
        matches!(self, Self::FusedPair(pair) if pair.holds_exclusive())
    }

    /// Returns the first block, for the error log.
    pub(super) fn lba(&self) -> u64 {
        match self {
            Self::Read { lba, .. } | Self::Write { lba, .. } | Self::NoData { lba, .. } => *lba,
            _ => 0,
        }
    }
}

/// Returns the direction that determines the status. A failed flush counts as a failed write.
pub(super) fn direction(op: Op) -> Direction {
    if op == Op::Read { Direction::Read } else { Direction::Write }
}

/// NSID of the only namespace of a subsystem.
pub(super) const NSID: u32 = 1;

/// Broadcast NSID.
pub(super) const NSID_ALL: u32 = 0xffff_ffff;

impl Queue {
    /// Handles a command of an I/O queue.
    pub(super) fn io_command(
        &mut self,
        tag: u16,
        sqe: Sqe,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        if sqe.opcode == crate::wire::opcode::fabrics::OPCODE {
            return self.fabrics_on_io_queue(tag, &sqe, capsule);
        }
        if !self.binding.as_ref().is_some_and(Binding::is_usable) {
            return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
        }
        let fuse = self.match_fused(tag, &sqe)?;
        let command = IoCommand::parse(&sqe)?;
        self.check_namespace(&command, sqe.nsid.get())?;
        match fuse {
            Fuse::Normal => self.single_command(tag, &sqe, command, capsule),
            _ => self.fused_command(tag, &sqe, command, capsule),
        }
    }

    fn check_namespace(&self, command: &IoCommand, nsid: u32) -> Result<(), Status> {
        let all = matches!(command, IoCommand::Flush { .. }) && nsid == NSID_ALL;
        let there = self.binding.as_ref().is_some_and(|binding| binding.grant.is_some());
        if (nsid == NSID || all) && there { Ok(()) } else { Err(Status::INVALID_NAMESPACE.dnr()) }
    }

    fn single_command(
        &mut self,
        tag: u16,
        sqe: &Sqe,
        command: IoCommand,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        match command {
            IoCommand::Read { slba: lba, nlb: blocks, .. } => {
                let len = self.check_transfer(Op::Read, lba, blocks)?;
                Self::check_to_host(sqe, len, LengthCheck::Exact, capsule.as_ref())?;
                self.start(tag, Work::Read { lba, blocks });
            }
            IoCommand::Write { slba: lba, nlb: blocks, fua, .. } => {
                let durable = self.is_durable(fua);
                let len = self.check_transfer(Op::Write { durable }, lba, blocks)?;
                self.set_work(tag, Work::Write { lba, blocks, durable });
                self.receive_data(tag, sqe, len, LengthCheck::Exact, capsule)?;
            }
            IoCommand::Flush { .. } => {
                check_no_data(capsule.as_ref())?;
                self.start(tag, Work::NoData { op: Op::Flush, lba: 0, blocks: 0 });
            }
            IoCommand::WriteZeroes { slba: lba, nlb: blocks, fua, deallocate, .. } => {
                check_no_data(capsule.as_ref())?;
                let op = Op::Zero { unmap: deallocate, durable: self.is_durable(fua), fast: false };
                self.start(tag, Work::NoData { op, lba, blocks });
            }
            other => self.io_job(tag, sqe, other, capsule)?,
        }
        Ok(())
    }

    fn io_job(
        &mut self,
        tag: u16,
        sqe: &Sqe,
        command: IoCommand,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        let shift = self.shift();
        match command {
            IoCommand::Compare { slba: lba, nlb: blocks, .. } => {
                let len = self.check_transfer(Op::Read, lba, blocks)?;
                self.set_work(tag, Work::Job(Box::new(Job::compare(lba, blocks))));
                self.receive_data(tag, sqe, len, LengthCheck::Exact, capsule)
            }
            IoCommand::Verify { slba: lba, nlb: blocks, .. } => {
                check_no_data(capsule.as_ref())?;
                self.check_access(Op::Read, lba, blocks)?;
                self.start(tag, Work::Job(Box::new(Job::verify(lba, blocks, shift))));
                Ok(())
            }
            IoCommand::DatasetManagement { ranges, deallocate, .. } => {
                self.set_work(tag, Work::Job(Box::new(Job::dataset(deallocate, ranges))));
                self.receive_data(tag, sqe, u64::from(ranges) * 16, LengthCheck::AtLeast, capsule)
            }
            IoCommand::Copy { sdlba, ranges, format, fua, .. } => {
                let len = u64::from(ranges)
                    * Job::copy_range_len(format).ok_or(Status::INVALID_FIELD.dnr())?;
                let durable = self.is_durable(fua);
                self.set_work(
                    tag,
                    Work::Job(Box::new(Job::copy(sdlba, format, ranges, shift, durable))),
                );
                self.receive_data(tag, sqe, len, LengthCheck::AtLeast, capsule)
            }
            _ => Err(Status::INVALID_OPCODE.dnr()),
        }
    }

    /// Returns whether a write must be durable: FUA is set, or the write cache is disabled.
    pub(super) fn is_durable(&self, fua: bool) -> bool {
        let is_off = |binding: &Binding| binding.controller.write_through.load(Ordering::Relaxed);
        fua || self.binding.as_ref().is_some_and(is_off)
    }

    pub(super) fn shift(&self) -> u8 {
        let grant = self.binding.as_ref().and_then(|binding| binding.grant.as_ref());
        grant.map_or(9, |grant| grant.export().geometry.shift())
    }

    /// Checks a request against the grant before its data is received. Returns its length in bytes.
    pub(super) fn check_access(&self, op: Op, lba: u64, blocks: u32) -> Result<u64, Status> {
        let grant = self.binding.as_ref().and_then(|binding| binding.grant.as_ref());
        let grant = grant.ok_or(Status::INVALID_NAMESPACE.dnr())?;
        let check_transfer = grant.permits(op, lba, blocks.into());
        check_transfer.map(|(_, len)| len).map_err(|fault| Status::from_fault(fault, direction(op)))
    }

    /// Like [`Queue::check_access`], with the limit of MDTS for a command that transfers data.
    pub(super) fn check_transfer(&self, op: Op, lba: u64, blocks: u32) -> Result<u64, Status> {
        let len = self.check_access(op, lba, blocks)?;
        if len > MAX_TRANSFER { Err(Status::INVALID_FIELD.dnr()) } else { Ok(len) }
    }

    pub(super) fn set_work(&mut self, tag: u16, work: Work) {
        if let Some(slot) = self.slots.get(tag) {
            slot.work = work;
        }
    }

    fn start(&mut self, tag: u16, work: Work) {
        self.set_work(tag, work);
        self.drive(tag, None);
    }

    /// Continues a command whose data was received.
    pub(super) fn data_received(&mut self, tag: u16, buffer: Buffer) {
        let Some(slot) = self.slots.get(tag) else { return };
        match std::mem::take(&mut slot.work) {
            Work::Write { lba, blocks, durable } => {
                slot.work = Work::Write { lba, blocks, durable };
                self.submit(tag, Op::Write { durable }, lba, blocks.into(), Some(buffer), None);
            }
            Work::Job(job) => self.job_data_received(tag, job, buffer),
            Work::FusedHalf(half) => self.half_data_received(tag, half, buffer),
            Work::Admin(waiting) => self.admin_data_received(tag, *waiting, &buffer),
            other => slot.work = other,
        }
    }

    /// Continues a command: from the start, or after its disk request with `outcome`.
    pub(super) fn drive(&mut self, tag: u16, outcome: Option<Outcome>) {
        let Some(slot) = self.slots.get(tag) else { return };
        match std::mem::take(&mut slot.work) {
            Work::Read { lba, blocks } => {
                slot.work = Work::Read { lba, blocks };
                match outcome {
                    None => self.start_read(tag, lba, blocks),
                    Some(outcome) => self.finish_read(tag, lba, blocks, outcome),
                }
            }
            Work::Write { lba, blocks, durable } => {
                slot.work = Work::Write { lba, blocks, durable };
                self.finish_io(tag, Op::Write { durable }, lba, blocks, outcome);
            }
            Work::NoData { op, lba, blocks } => {
                slot.work = Work::NoData { op, lba, blocks };
                match outcome {
                    None => self.submit(tag, op, lba, blocks.into(), None, None),
                    outcome => self.finish_io(tag, op, lba, blocks, outcome),
                }
            }
            Work::Job(job) => self.step_job(tag, job, outcome),
            Work::FusedPair(pair) => self.step_pair(tag, pair, outcome),
            Work::Admin(waiting) => match (*waiting, outcome) {
                (PendingAdmin::Shutdown, Some(outcome)) => self.shutdown_flushed(tag, &outcome),
                (waiting, _) => slot.work = Work::Admin(Box::new(waiting)),
            },
            other => slot.work = other,
        }
    }

    fn start_read(&mut self, tag: u16, lba: u64, blocks: u32) {
        let len = (blocks as usize) << self.shift();
        // Possible only if the disk was replaced by one with larger blocks after the check.
        if len > Pool::MAX_BUFFER {
            return self.fail_with_fault(tag, Fault::Gone, Op::Read);
        }
        match self.allocate(tag, len) {
            Some(buffer) => self.submit(tag, Op::Read, lba, blocks.into(), Some(buffer), None),
            None => self.wait_for_buffer(tag, BufferWait::Read),
        }
    }

    fn finish_read(&mut self, tag: u16, lba: u64, blocks: u32, outcome: Outcome) {
        match (outcome.result, outcome.buffer) {
            (Ok(()), Some(buffer)) => {
                let len = buffer.len();
                self.finish_with_data(tag, Body::Whole(buffer), len);
            }
            (result, _) => self.fail_io(tag, Op::Read, lba, blocks, result.err()),
        }
    }

    fn finish_io(&mut self, tag: u16, op: Op, lba: u64, blocks: u32, outcome: Option<Outcome>) {
        match outcome.map(|outcome| outcome.result) {
            Some(Ok(())) => self.finish(tag, Status::SUCCESS),
            other => self.fail_io(tag, op, lba, blocks, other.and_then(Result::err)),
        }
    }

    pub(super) fn fail_io(
        &mut self,
        tag: u16,
        op: Op,
        lba: u64,
        blocks: u32,
        fault: Option<Fault>,
    ) {
        let fault = fault.unwrap_or(Fault::Io);
        self.report_io_fault(op, lba, blocks.into(), fault);
        self.fail_with_fault(tag, fault, op);
    }

    fn job_data_received(&mut self, tag: u16, mut job: Box<Job>, buffer: Buffer) {
        let grant = self.binding.as_ref().and_then(|binding| binding.grant.clone());
        let data_received =
            grant.ok_or(Status::INVALID_NAMESPACE.dnr()).and_then(|grant| job.load(buffer, &grant));
        match data_received {
            Ok(()) => self.step_job(tag, job, None),
            Err(status) => self.finish(tag, status),
        }
    }

    /// Submits the next request of a [`Job`], or completes the command.
    fn step_job(&mut self, tag: u16, mut job: Box<Job>, outcome: Option<Outcome>) {
        if let Some(Outcome { result, buffer }) = outcome {
            let (op, lba, blocks) = job.current();
            if let Err(fault) = result {
                return self.fail_io(tag, op, lba, blocks, Some(fault));
            }
            job.advance(buffer);
        }
        let next = job.next();
        let holds = job.holds_memory();
        self.set_work(tag, Work::Job(job));
        match next {
            JobStep::Done(status) => self.finish(tag, status),
            JobStep::Discard { lba, blocks } => {
                self.submit(tag, Op::Discard, lba, blocks.into(), None, None)
            }
            JobStep::Write { lba, blocks, durable, buffer } => {
                self.submit(tag, Op::Write { durable }, lba, blocks.into(), Some(buffer), None);
            }
            JobStep::Read { lba, blocks } if holds => self.read_second_phase(tag, lba, blocks),
            JobStep::Read { lba, blocks } => self.start_read(tag, lba, blocks),
        }
    }

    /// Reads for a command that holds a buffer already.
    fn read_second_phase(&mut self, tag: u16, lba: u64, blocks: u32) {
        let len = (blocks as usize) << self.shift();
        if len > Pool::MAX_BUFFER {
            return self.fail_with_fault(tag, Fault::Gone, Op::Read);
        }
        match self.second_phase_buffers.take(len) {
            Some(buffer) => self.submit(tag, Op::Read, lba, blocks.into(), Some(buffer), None),
            None => self.awaiting_second_phase.push_back(tag),
        }
    }
}

/// Refuses in-capsule data for a command that takes none.
pub(super) fn check_no_data(capsule: Option<&Buffer>) -> Result<(), Status> {
    if capsule.is_some() { Err(Status::INVALID_FIELD.dnr()) } else { Ok(()) }
}
