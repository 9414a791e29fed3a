//! Abort (NVMe Base 2.0 §5.1). Commands of I/O queues are aborted by their queue, on its thread.

use super::event::Events;
use crate::status::Status;
use crate::target::queue::Queue;
use crate::target::work::Work;

/// Handles Abort. Bit 0 of dword 0 is clear if the command was aborted.
pub(super) fn request(
    queue: &mut Queue,
    events: &mut Events,
    tag: u16,
    sqid: u16,
    cid: u16,
) -> Result<(), Status> {
    if sqid == 0 {
        let aborted = abort_own(queue, events, tag, cid);
        queue.finish_with(tag, Status::SUCCESS, u64::from(!aborted));
        return Ok(());
    }
    if queue.controller()?.add_abort(sqid, cid, tag)? {
        queue.set_work(tag, Work::Abort);
        queue.out().notify();
    } else {
        queue.finish_with(tag, Status::SUCCESS, 1);
    }
    Ok(())
}

/// Aborts a command of the Admin queue, but not the Abort itself.
fn abort_own(queue: &mut Queue, events: &mut Events, tag: u16, cid: u16) -> bool {
    match queue.slots().find(cid) {
        Some(other) if other != tag => {
            events.forget(other);
            queue.abort(cid)
        }
        _ => false,
    }
}

/// Completes the Aborts that the I/O queues have handled.
pub(super) fn answer(queue: &mut Queue) {
    let Ok(controller) = queue.controller() else { return };
    for (tag, aborted) in controller.take_aborts() {
        queue.finish_with(tag, Status::SUCCESS, u64::from(!aborted));
    }
}
