//! Commands of several disk requests: Compare, Verify, Dataset Management, Copy. A [`Job`] yields
//! the requests; this submits them.

use export::{Buffer, Fault, Op, Outcome, Pool};

use super::single::start_read;
use super::{check_access, check_transfer, is_durable};
use crate::status::Status;
use crate::target::capsule::{Capsule, LengthCheck};
use crate::target::job::{Job, JobStep};
use crate::target::queue::Queue;
use crate::target::work::Work;

/// Handles Compare.
pub(super) fn compare(
    queue: &mut Queue,
    capsule: Capsule<'_>,
    lba: u64,
    blocks: u32,
) -> Result<(), Status> {
    let len = check_transfer(queue, Op::Read, lba, blocks)?;
    queue.set_work(capsule.tag(), Work::Job(Box::new(Job::compare(lba, blocks))));
    queue.receive_data(capsule, len, LengthCheck::Exact)
}

/// Handles Verify.
pub(super) fn verify(
    queue: &mut Queue,
    capsule: &Capsule<'_>,
    lba: u64,
    blocks: u32,
) -> Result<(), Status> {
    capsule.check_no_data()?;
    check_access(queue, Op::Read, lba, blocks)?;
    let job = Job::verify(lba, blocks, queue.shift());
    step(queue, capsule.tag(), Box::new(job), None);
    Ok(())
}

/// Handles Dataset Management.
pub(super) fn dataset(
    queue: &mut Queue,
    capsule: Capsule<'_>,
    ranges: u16,
    deallocate: bool,
) -> Result<(), Status> {
    queue.set_work(capsule.tag(), Work::Job(Box::new(Job::dataset(deallocate, ranges))));
    queue.receive_data(capsule, u64::from(ranges) * 16, LengthCheck::AtLeast)
}

/// Handles Copy.
pub(super) fn copy(
    queue: &mut Queue,
    capsule: Capsule<'_>,
    to: u64,
    ranges: u16,
    format: u8,
    fua: bool,
) -> Result<(), Status> {
    let range_len = Job::copy_range_len(format).ok_or(Status::INVALID_FIELD.dnr())?;
    let len = u64::from(ranges) * range_len;
    let job = Job::copy(to, format, ranges, queue.shift(), is_durable(queue, fua));
    queue.set_work(capsule.tag(), Work::Job(Box::new(job)));
    queue.receive_data(capsule, len, LengthCheck::AtLeast)
}

/// Continues a command whose data was received.
pub(super) fn data_received(queue: &mut Queue, tag: u16, mut job: Box<Job>, buffer: Buffer) {
    let grant = queue.grant().ok_or(Status::INVALID_NAMESPACE.dnr());
    match grant.and_then(|grant| job.load(buffer, grant)) {
        Ok(()) => step(queue, tag, job, None),
        Err(status) => queue.finish(tag, status),
    }
}

/// Submits the next request of a [`Job`], or completes the command.
pub(super) fn step(queue: &mut Queue, tag: u16, mut job: Box<Job>, outcome: Option<Outcome>) {
    if let Some(Outcome { result, buffer }) = outcome {
        let (op, lba, blocks) = job.current();
        if let Err(fault) = result {
            return queue.fail_io(tag, op, lba, blocks, Some(fault));
        }
        job.advance(buffer);
    }
    let next = job.next();
    let holds = job.holds_memory();
    queue.set_work(tag, Work::Job(job));
    match next {
        JobStep::Done(status) => queue.finish(tag, status),
        JobStep::Discard { lba, blocks } => {
            queue.submit(tag, Op::Discard, lba, blocks.into(), None, None);
        }
        JobStep::Write { lba, blocks, durable, buffer } => {
            queue.submit(tag, Op::Write { durable }, lba, blocks.into(), Some(buffer), None);
        }
        JobStep::Read { lba, blocks } if holds => read_second_phase(queue, tag, lba, blocks),
        JobStep::Read { lba, blocks } => start_read(queue, tag, lba, blocks),
    }
}

/// Reads for a command that holds a buffer already.
fn read_second_phase(queue: &mut Queue, tag: u16, lba: u64, blocks: u32) {
    let len = (blocks as usize) << queue.shift();
    if len > Pool::MAX_BUFFER {
        return queue.fail_unreported(tag, Op::Read, Fault::Gone);
    }
    if let Some(buffer) = queue.transfers().allocate_second_phase(tag, len) {
        queue.submit(tag, Op::Read, lba, blocks.into(), Some(buffer), None);
    }
}
