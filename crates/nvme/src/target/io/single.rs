//! Commands of one disk request: Read, Write, Flush, Write Zeroes.

use export::{Body, Fault, Op, Outcome, Pool};

use super::{check_transfer, is_durable};
use crate::status::Status;
use crate::target::capsule::{Capsule, LengthCheck};
use crate::target::queue::Queue;
use crate::target::slots::BufferWait;
use crate::target::work::Work;

/// Handles Read.
pub(super) fn read(
    queue: &mut Queue,
    capsule: Capsule<'_>,
    lba: u64,
    blocks: u32,
) -> Result<(), Status> {
    let tag = capsule.tag();
    let len = check_transfer(queue, Op::Read, lba, blocks)?;
    capsule.check_to_host(len, LengthCheck::Exact)?;
    queue.set_work(tag, Work::Read { lba, blocks });
    start_read(queue, tag, lba, blocks);
    Ok(())
}

/// Handles Write.
pub(super) fn write(
    queue: &mut Queue,
    capsule: Capsule<'_>,
    lba: u64,
    blocks: u32,
    fua: bool,
) -> Result<(), Status> {
    let durable = is_durable(queue, fua);
    let len = check_transfer(queue, Op::Write { durable }, lba, blocks)?;
    queue.set_work(capsule.tag(), Work::Write { lba, blocks, durable });
    queue.receive_data(capsule, len, LengthCheck::Exact)
}

/// Handles a command without data.
pub(super) fn no_data(
    queue: &mut Queue,
    capsule: &Capsule<'_>,
    op: Op,
    lba: u64,
    blocks: u32,
) -> Result<(), Status> {
    capsule.check_no_data()?;
    let tag = capsule.tag();
    queue.set_work(tag, Work::NoData { op, lba, blocks });
    queue.submit(tag, op, lba, blocks.into(), None, None);
    Ok(())
}

/// Continues a command of one disk request (operation, first block, blocks): from the start, or after
/// the request with `outcome`.
pub(super) fn step(
    queue: &mut Queue,
    tag: u16,
    (op, lba, blocks): (Op, u64, u32),
    outcome: Option<Outcome>,
) {
    match (op, outcome) {
        (Op::Read, None) => start_read(queue, tag, lba, blocks),
        (Op::Read, Some(Outcome { result: Ok(()), buffer: Some(buffer) })) => {
            let len = buffer.len();
            queue.finish_with_data(tag, Body::Whole(buffer), len);
        }
        (Op::Read, Some(outcome)) => {
            queue.fail_io(tag, op, lba, blocks, outcome.result.err());
        }
        (_, Some(Outcome { result: Ok(()), .. })) => queue.finish(tag, Status::SUCCESS),
        (Op::Write { .. }, None) => queue.fail_io(tag, op, lba, blocks, None),
        (_, None) => queue.submit(tag, op, lba, blocks.into(), None, None),
        (_, Some(outcome)) => queue.fail_io(tag, op, lba, blocks, outcome.result.err()),
    }
}

/// Submits a read as soon as a buffer is available.
pub(super) fn start_read(queue: &mut Queue, tag: u16, lba: u64, blocks: u32) {
    let len = (blocks as usize) << queue.shift();
    // Possible only if the disk was replaced by one with larger blocks after the check.
    if len > Pool::MAX_BUFFER {
        return queue.fail_unreported(tag, Op::Read, Fault::Gone);
    }
    match queue.transfers().allocate(tag, len) {
        Some(buffer) => queue.submit(tag, Op::Read, lba, blocks.into(), Some(buffer), None),
        None => queue.transfers().wait_for_buffer(tag, BufferWait::Read),
    }
}
