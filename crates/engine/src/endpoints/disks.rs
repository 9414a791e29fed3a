//! Execution of the disk requests of a session on endpoints, and waiting for them.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use export::{Admitted, Finished};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::Shared;
use crate::disk::{Answer, carry_out};
use crate::inbox::Inbox;
use crate::incoming::Incoming;
use crate::outgoing::Outgoing;
use crate::uring::DiskQueue;

/// Executes disk requests. Completions of requests of a session that has ended are dropped.
#[derive(Debug)]
pub(super) enum Disks {
    /// By system calls, one after another: the reference. A disk that does not respond blocks the
    /// thread.
    Calls(Arc<Inbox>),
    /// By a ring, several at a time.
    Ring(Box<DiskQueue>),
}

impl Disks {
    /// Opens a ring for this thread, if that is wanted and possible. `inbox` is that of the thread.
    pub(super) fn open(inbox: &Arc<Inbox>, shared: &Shared, with_ring: bool) -> Self {
        let ring = || DiskQueue::open(inbox.clone(), shared.sink.clone()).ok();
        match with_ring.then(ring).flatten() {
            Some(queue) => Self::Ring(Box::new(queue)),
            None => Self::Calls(inbox.clone()),
        }
    }

    /// Executes a disk request. Returns it if it is complete, else [`Disks::next`] does.
    pub(super) fn submit(&mut self, admitted: Admitted) -> Option<Finished> {
        match self {
            Self::Calls(_) => Some(carry_out(admitted)),
            Self::Ring(queue) => queue.submit(admitted),
        }
    }

    /// Submits what was started, before the thread blocks in a system call. An error recurs in
    /// [`Disks::wait`].
    pub(super) fn submit_started(&mut self) {
        if let Self::Ring(queue) = self {
            let _ = queue.submit_started();
        }
    }

    /// Returns the next request that has completed, and whether it is of the current session.
    pub(super) fn next(&mut self) -> Option<(bool, Finished)> {
        match self {
            Self::Calls(_) => None,
            Self::Ring(queue) => queue.next(),
        }
    }

    /// Completes the blocking operation with this number, as [`Disks::next`].
    pub(super) fn answer(&mut self, number: u64, answer: Answer) -> Option<(bool, Finished)> {
        match self {
            Self::Calls(_) => None,
            Self::Ring(queue) => queue.answer(number, answer),
        }
    }

    /// Returns whether requests are in flight, of whatever session.
    pub(super) fn has_requests(&self) -> bool {
        matches!(self, Self::Ring(queue) if queue.has_requests())
    }

    /// Returns whether requests of ended sessions are in flight. Then the thread must not block in a
    /// system call that the host may never let end: others may wait for their completion.
    pub(super) fn has_abandoned(&self) -> bool {
        matches!(self, Self::Ring(queue) if queue.has_abandoned())
    }

    /// Starts to receive the next part of a transfer from `source` beside disk requests.
    ///
    /// # Errors
    /// Returns the memory if it must be received by a system call.
    pub(super) fn receive(
        &mut self,
        source: BorrowedFd<'_>,
        incoming: Box<Incoming>,
    ) -> Result<(), Box<Incoming>> {
        match self {
            Self::Calls(_) => Err(incoming),
            Self::Ring(queue) => queue.receive(source, incoming),
        }
    }

    /// Returns whether a part is being received, or was and is not taken.
    pub(super) fn is_receiving(&self) -> bool {
        matches!(self, Self::Ring(queue) if queue.is_receiving())
    }

    /// Takes a part that was received, and the result.
    pub(super) fn take_received(&mut self) -> Option<(Box<Incoming>, Result<usize, Errno>)> {
        match self {
            Self::Calls(_) => None,
            Self::Ring(queue) => queue.take_received(),
        }
    }

    /// Starts to send the next part of a message to `target` beside disk requests.
    ///
    /// # Errors
    /// Returns the message if it must be sent by a system call.
    pub(super) fn send(
        &mut self,
        target: BorrowedFd<'_>,
        outgoing: Box<Outgoing>,
    ) -> Result<(), Box<Outgoing>> {
        match self {
            Self::Calls(_) => Err(outgoing),
            Self::Ring(queue) => queue.send(target, outgoing),
        }
    }

    /// Takes a message of which a part was sent, and the result.
    pub(super) fn take_sent(&mut self) -> Option<(Box<Outgoing>, Result<usize, Errno>)> {
        match self {
            Self::Calls(_) => None,
            Self::Ring(queue) => queue.take_sent(),
        }
    }

    /// Waits for something to do, for `timeout` at most. Panics if the ring is unusable; from then on
    /// system calls are used. What is in flight stays allocated: the kernel may still use it.
    pub(super) fn wait(&mut self, timeout: Duration) {
        match self {
            Self::Calls(inbox) => {
                let timeout = Timespec::try_from(timeout).ok();
                let mut wake = [PollFd::from_borrowed_fd(inbox.as_fd(), PollFlags::IN)];
                if poll(&mut wake, timeout.as_ref()) == Ok(1) {
                    inbox.clear_wake();
                }
            }
            Self::Ring(queue) => {
                if let Err(error) = queue.wait(timeout) {
                    *self = Self::Calls(queue.inbox().clone());
                    panic!("io_uring_enter failed: {error}");
                }
            }
        }
    }

    /// Releases disks that are no longer exported.
    pub(super) fn release_withdrawn(&mut self) {
        if let Self::Ring(queue) = self {
            queue.release_withdrawn();
        }
    }

    /// Ends the current session: completions of its requests are dropped.
    pub(super) fn abandon(&mut self) {
        if let Self::Ring(queue) = self {
            queue.abandon();
        }
    }

    /// Releases the endpoints, and all disks without requests.
    pub(super) fn release(&mut self) {
        if let Self::Ring(queue) = self {
            queue.release();
        }
    }

    /// Releases all files before the thread ends.
    pub(super) fn close(&mut self) {
        if let Self::Ring(queue) = self {
            queue.close();
        }
    }
}
