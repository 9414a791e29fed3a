//! The NVM command set: what an I/O queue's commands ask of the disk, one at a time. It knows no PDU.
//! Commands of several steps are in `ranges`, fused pairs in `fused`.

use std::sync::atomic::Ordering;

use export::{Body, Buffer, Fault, Op, Outcome, Pool};

use super::TRANSFER;
use super::admin::Waiting;
use super::fused::{Half, Pair};
use super::link::Link;
use super::queue::Queue;
use super::ranges::{Job, Next};
use super::transfer::{Size, Starving};
use crate::command::IoCommand;
use crate::status::{Direction, Status};
use crate::wire::command::{Fuse, Sqe};

/// What a command under way is about.
#[derive(Debug, Default)]
pub(super) enum Work {
    /// Nothing that the disk is needed for.
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
    /// One request without data: Flush, Write Zeroes.
    Plain {
        op: Op,
        lba: u64,
        blocks: u32,
    },
    /// Several requests, one after the other.
    Job(Box<Job>),
    /// One half of a fused pair that is not complete.
    Half(Box<Half>),
    /// A fused pair that is complete; its slot is that of the first half.
    Pair(Box<Pair>),
    /// An Admin or Fabrics command that waits for its data, or for something to happen.
    Admin(Box<Waiting>),
}

impl Work {
    /// Whether it is an Abort that waits for another queue, which will answer it.
    pub(super) fn is_abort(&self) -> bool {
        matches!(self, Self::Admin(waiting) if matches!(**waiting, Waiting::Abort))
    }

    /// Whether it is a shutdown, which nothing calls off.
    pub(super) fn is_shutdown(&self) -> bool {
        matches!(self, Self::Admin(waiting) if matches!(**waiting, Waiting::Shutdown))
    }

    /// Whether it is a pair that has the disk for itself, or waits to have it.
    pub(super) fn has_right(&self) -> bool {
        matches!(self, Self::Pair(pair) if pair.has_right())
    }

    /// The first block, for the error log.
    pub(super) fn lba(&self) -> u64 {
        match self {
            Self::Read { lba, .. } | Self::Write { lba, .. } | Self::Plain { lba, .. } => *lba,
            _ => 0,
        }
    }
}

/// The direction in which a disk request moves data, for its status. A flush that failed lost writes.
pub(super) fn direction(op: Op) -> Direction {
    if op == Op::Read { Direction::Read } else { Direction::Write }
}

/// NSID of the one namespace of a subsystem.
pub(super) const NSID: u32 = 1;

/// NSID that means all namespaces.
pub(super) const ALL: u32 = 0xffff_ffff;

impl Queue {
    /// A command of an I/O queue.
    pub(super) fn io_command(
        &mut self,
        at: u16,
        sqe: Sqe,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        if sqe.opcode == crate::wire::opcode::fabrics::OPCODE {
            return self.fabrics_on_io_queue(at, &sqe, capsule);
        }
        if !self.link.as_ref().is_some_and(Link::is_usable) {
            return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
        }
        let fuse = self.pair_up(at, &sqe)?;
        let command = IoCommand::parse(&sqe)?;
        self.check_namespace(&command, sqe.nsid.get())?;
        match fuse {
            Fuse::Normal => self.io_alone(at, &sqe, command, capsule),
            _ => self.io_half(at, &sqe, command, capsule),
        }
    }

    fn check_namespace(&self, command: &IoCommand, nsid: u32) -> Result<(), Status> {
        let all = matches!(command, IoCommand::Flush { .. }) && nsid == ALL;
        let there = self.link.as_ref().is_some_and(|link| link.grant.is_some());
        if (nsid == NSID || all) && there { Ok(()) } else { Err(Status::INVALID_NAMESPACE.dnr()) }
    }

    fn io_alone(
        &mut self,
        at: u16,
        sqe: &Sqe,
        command: IoCommand,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        match command {
            IoCommand::Read { slba: lba, nlb: blocks, .. } => {
                let len = self.permitted(Op::Read, lba, blocks)?;
                Self::check_to_host(sqe, len, Size::Exact, capsule.as_ref())?;
                self.start(at, Work::Read { lba, blocks });
            }
            IoCommand::Write { slba: lba, nlb: blocks, fua, .. } => {
                let durable = self.durable(fua);
                let len = self.permitted(Op::Write { durable }, lba, blocks)?;
                self.set_work(at, Work::Write { lba, blocks, durable });
                self.gather(at, sqe, len, Size::Exact, capsule)?;
            }
            IoCommand::Flush { .. } => {
                no_data(capsule.as_ref())?;
                self.start(at, Work::Plain { op: Op::Flush, lba: 0, blocks: 0 });
            }
            IoCommand::WriteZeroes { slba: lba, nlb: blocks, fua, deallocate, .. } => {
                no_data(capsule.as_ref())?;
                let op = Op::Zero { unmap: deallocate, durable: self.durable(fua), fast: false };
                self.start(at, Work::Plain { op, lba, blocks });
            }
            other => self.io_job(at, sqe, other, capsule)?,
        }
        Ok(())
    }

    fn io_job(
        &mut self,
        at: u16,
        sqe: &Sqe,
        command: IoCommand,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        let shift = self.shift();
        match command {
            IoCommand::Compare { slba: lba, nlb: blocks, .. } => {
                let len = self.permitted(Op::Read, lba, blocks)?;
                self.set_work(at, Work::Job(Box::new(Job::compare(lba, blocks))));
                self.gather(at, sqe, len, Size::Exact, capsule)
            }
            IoCommand::Verify { slba: lba, nlb: blocks, .. } => {
                no_data(capsule.as_ref())?;
                self.permit(Op::Read, lba, blocks)?;
                self.start(at, Work::Job(Box::new(Job::verify(lba, blocks, shift))));
                Ok(())
            }
            IoCommand::DatasetManagement { ranges, deallocate, .. } => {
                self.set_work(at, Work::Job(Box::new(Job::dataset(deallocate, ranges))));
                self.gather(at, sqe, u64::from(ranges) * 16, Size::AtLeast, capsule)
            }
            IoCommand::Copy { sdlba, ranges, format, fua, .. } => {
                let len = u64::from(ranges)
                    * Job::copy_range_len(format).ok_or(Status::INVALID_FIELD.dnr())?;
                let durable = self.durable(fua);
                self.set_work(
                    at,
                    Work::Job(Box::new(Job::copy(sdlba, format, ranges, shift, durable))),
                );
                self.gather(at, sqe, len, Size::AtLeast, capsule)
            }
            _ => Err(Status::INVALID_OPCODE.dnr()),
        }
    }

    /// Whether writes must be on stable storage when they end: asked for by the command, or by Set Features 06h.
    pub(super) fn durable(&self, fua: bool) -> bool {
        let through = |link: &Link| link.controller.write_through.load(Ordering::Relaxed);
        fua || self.link.as_ref().is_some_and(through)
    }

    pub(super) fn shift(&self) -> u8 {
        let grant = self.link.as_ref().and_then(|link| link.grant.as_ref());
        grant.map_or(9, |grant| grant.export().geometry.shift())
    }

    /// Refuses early what the gate would refuse later. Gives the number of bytes.
    pub(super) fn permit(&self, op: Op, lba: u64, blocks: u32) -> Result<u64, Status> {
        let grant = self.link.as_ref().and_then(|link| link.grant.as_ref());
        let grant = grant.ok_or(Status::INVALID_NAMESPACE.dnr())?;
        let permitted = grant.permits(op, lba, blocks.into());
        permitted.map(|(_, len)| len).map_err(|fault| Status::from_fault(fault, direction(op)))
    }

    /// The same for a command that moves its blocks over the wire: at most MDTS.
    pub(super) fn permitted(&self, op: Op, lba: u64, blocks: u32) -> Result<u64, Status> {
        let len = self.permit(op, lba, blocks)?;
        if len > TRANSFER { Err(Status::INVALID_FIELD.dnr()) } else { Ok(len) }
    }

    pub(super) fn set_work(&mut self, at: u16, work: Work) {
        if let Some(slot) = self.slots.get(at) {
            slot.work = work;
        }
    }

    fn start(&mut self, at: u16, work: Work) {
        self.set_work(at, work);
        self.drive(at, None);
    }

    /// The data of a command has come whole.
    pub(super) fn loaded(&mut self, at: u16, buffer: Buffer) {
        let Some(slot) = self.slots.get(at) else { return };
        match std::mem::take(&mut slot.work) {
            Work::Write { lba, blocks, durable } => {
                slot.work = Work::Write { lba, blocks, durable };
                self.submit(at, Op::Write { durable }, lba, blocks.into(), Some(buffer), None);
            }
            Work::Job(job) => self.job_loaded(at, job, buffer),
            Work::Half(half) => self.half_loaded(at, half, buffer),
            Work::Admin(waiting) => self.admin_loaded(at, *waiting, &buffer),
            other => slot.work = other,
        }
    }

    /// Goes on with a command: from the start if `outcome` is nothing, else from how its disk request ended.
    pub(super) fn drive(&mut self, at: u16, outcome: Option<Outcome>) {
        let Some(slot) = self.slots.get(at) else { return };
        match std::mem::take(&mut slot.work) {
            Work::Read { lba, blocks } => {
                slot.work = Work::Read { lba, blocks };
                match outcome {
                    None => self.start_read(at, lba, blocks),
                    Some(outcome) => self.end_read(at, lba, blocks, outcome),
                }
            }
            Work::Write { lba, blocks, durable } => {
                slot.work = Work::Write { lba, blocks, durable };
                self.end(at, Op::Write { durable }, lba, blocks, outcome);
            }
            Work::Plain { op, lba, blocks } => {
                slot.work = Work::Plain { op, lba, blocks };
                match outcome {
                    None => self.submit(at, op, lba, blocks.into(), None, None),
                    outcome => self.end(at, op, lba, blocks, outcome),
                }
            }
            Work::Job(job) => self.step(at, job, outcome),
            Work::Pair(pair) => self.pair(at, pair, outcome),
            Work::Admin(waiting) => match (*waiting, outcome) {
                (Waiting::Shutdown, Some(outcome)) => self.flushed(at, &outcome),
                (waiting, _) => slot.work = Work::Admin(Box::new(waiting)),
            },
            other => slot.work = other,
        }
    }

    fn start_read(&mut self, at: u16, lba: u64, blocks: u32) {
        let len = (blocks as usize) << self.shift();
        // Only if the disk was replaced by one of larger blocks since the command was checked.
        if len > Pool::MAX_BUFFER {
            return self.failed(at, Fault::Gone, Op::Read);
        }
        match self.take(at, len) {
            Some(buffer) => self.submit(at, Op::Read, lba, blocks.into(), Some(buffer), None),
            None => self.starve(at, Starving::Disk),
        }
    }

    fn end_read(&mut self, at: u16, lba: u64, blocks: u32, outcome: Outcome) {
        match (outcome.result, outcome.buffer) {
            (Ok(()), Some(buffer)) => {
                let len = buffer.len();
                self.answer_data(at, Body::Whole(buffer), len);
            }
            (result, _) => self.end_badly(at, Op::Read, lba, blocks, result.err()),
        }
    }

    fn end(&mut self, at: u16, op: Op, lba: u64, blocks: u32, outcome: Option<Outcome>) {
        match outcome.map(|outcome| outcome.result) {
            Some(Ok(())) => self.answer(at, Status::SUCCESS),
            other => self.end_badly(at, op, lba, blocks, other.and_then(Result::err)),
        }
    }

    pub(super) fn end_badly(
        &mut self,
        at: u16,
        op: Op,
        lba: u64,
        blocks: u32,
        fault: Option<Fault>,
    ) {
        let fault = fault.unwrap_or(Fault::Io);
        self.note_fault(op, lba, blocks.into(), fault);
        self.failed(at, fault, op);
    }

    fn job_loaded(&mut self, at: u16, mut job: Box<Job>, buffer: Buffer) {
        let grant = self.link.as_ref().and_then(|link| link.grant.clone());
        let loaded =
            grant.ok_or(Status::INVALID_NAMESPACE.dnr()).and_then(|grant| job.load(buffer, &grant));
        match loaded {
            Ok(()) => self.step(at, job, None),
            Err(status) => self.answer(at, status),
        }
    }

    /// The next request of a command of several.
    fn step(&mut self, at: u16, mut job: Box<Job>, outcome: Option<Outcome>) {
        if let Some(Outcome { result, buffer }) = outcome {
            let (op, lba, blocks) = job.under_way();
            if let Err(fault) = result {
                return self.end_badly(at, op, lba, blocks, Some(fault));
            }
            job.done(buffer);
        }
        let next = job.next();
        let holds = job.holds_memory();
        self.set_work(at, Work::Job(job));
        match next {
            Next::Done(status) => self.answer(at, status),
            Next::Discard { lba, blocks } => {
                self.submit(at, Op::Discard, lba, blocks.into(), None, None)
            }
            Next::Write { lba, blocks, durable, buffer } => {
                self.submit(at, Op::Write { durable }, lba, blocks.into(), Some(buffer), None);
            }
            Next::Read { lba, blocks } if holds => self.read_late(at, lba, blocks),
            Next::Read { lba, blocks } => self.start_read(at, lba, blocks),
        }
    }

    /// A read for a command that holds memory already.
    fn read_late(&mut self, at: u16, lba: u64, blocks: u32) {
        let len = (blocks as usize) << self.shift();
        if len > Pool::MAX_BUFFER {
            return self.failed(at, Fault::Gone, Op::Read);
        }
        match self.seconds.take(len) {
            Some(buffer) => self.submit(at, Op::Read, lba, blocks.into(), Some(buffer), None),
            None => self.late.push_back(at),
        }
    }
}

/// A command that moves no data has none in its capsule.
pub(super) fn no_data(capsule: Option<&Buffer>) -> Result<(), Status> {
    if capsule.is_some() { Err(Status::INVALID_FIELD.dnr()) } else { Ok(()) }
}
