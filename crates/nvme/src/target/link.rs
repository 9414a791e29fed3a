//! A connection's place among the queues of its controller, and what it may do with the disk there.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use export::Grant;

use super::controller::{Controller, Moved, Traffic};
use super::fabrics::Connect;

/// What a queue is once it is connected.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) controller: Arc<Controller>,
    /// Queue identifier; zero is the Admin queue.
    pub(super) qid: u16,
    /// How often the controller had been reset when the queue joined it.
    pub(super) resets: u32,
    /// Whether an I/O queue is among those of its controller: not before its host has proven itself.
    pub(super) joined: bool,
    /// Entries of the submission queue.
    pub(super) entries: u16,
    /// Submission queue head, or nothing without flow control.
    pub(super) head: Option<u16>,
    /// What the host may do with the disk; nothing for a discovery controller, or while there is no disk. Set by
    /// [`Link::set_grant`].
    pub(super) grant: Option<Grant>,
    /// The export that was reported as attached, until it is reported as detached.
    pub(super) attached: Option<Arc<export::Export>>,
    /// What had been moved when it was.
    pub(super) before: Moved,
    /// What this queue has moved.
    pub(super) traffic: Arc<Traffic>,
}

impl Link {
    pub(super) fn new(
        connect: &Connect,
        controller: Arc<Controller>,
        grant: Option<Grant>,
    ) -> Self {
        let mut link = Self {
            qid: connect.qid,
            resets: controller.resets.load(Ordering::Acquire),
            joined: false,
            entries: connect.entries,
            head: connect.flow_control.then_some(1 % connect.entries),
            grant: None,
            attached: None,
            before: Moved::default(),
            traffic: controller.count(),
            controller,
        };
        link.set_grant(grant);
        link
    }

    /// What the host may do with the disk from now on. Writes in flight to the same disk stay those of this queue.
    pub(super) fn set_grant(&mut self, grant: Option<Grant>) {
        let before = self.grant.take();
        self.grant = match (grant, &before) {
            (Some(grant), Some(before)) => Some(grant.with_fence_of(before)),
            (grant, _) => grant,
        };
        let is_new = |grant: &&Grant| {
            before.as_ref().is_none_or(|before| !Arc::ptr_eq(before.fence(), grant.fence()))
        };
        if let Some(grant) = self.grant.as_ref().filter(is_new).filter(|_| self.qid != 0) {
            self.controller.guard(grant.fence(), self.resets);
        }
    }

    /// Whether a reset has deleted the queue: all but the Admin queue.
    pub(super) fn is_stale(&self) -> bool {
        self.qid != 0 && self.resets != self.controller.resets.load(Ordering::Acquire)
    }

    /// Whether the queue may still use the disk: not after a reset or a shutdown.
    pub(super) fn is_usable(&self) -> bool {
        self.qid == 0 || (self.controller.is_ready() && !self.is_stale())
    }

    /// Takes the I/O queue's identifier. Tells whether it was free.
    pub(super) fn join(&mut self) -> bool {
        // A reset, which deletes the queues that are open, comes either before or after.
        let mut shared = self.controller.shared();
        let granted = !self.is_stale() && self.qid <= shared.granted;
        self.joined = granted && shared.open.insert(self.qid);
        self.joined
    }

    /// Gives the I/O queue's identifier back, or ends the controller with its Admin queue.
    pub(super) fn leave(&self) {
        // Under the lock: a reset, after which another queue may have the identifier, comes before or after.
        let mut shared = self.controller.shared();
        if self.joined && !self.is_stale() {
            shared.open.remove(&self.qid);
        }
        drop(shared);
        if self.qid == 0 {
            self.controller.end();
        }
    }
}

impl Drop for Link {
    /// However the Admin queue goes, even by a mistake of ours, its controller goes with it.
    fn drop(&mut self) {
        if self.qid == 0 {
            self.controller.end();
        }
    }
}
