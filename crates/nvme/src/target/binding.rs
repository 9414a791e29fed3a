//! Binding of a connection to a queue of a controller, made by Connect.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use export::Grant;

use super::controller::{ByteCounts, Controller, QueueCounters};
use super::fabrics::Connect;

/// The controller and queue of a connection, and the access it grants.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) controller: Arc<Controller>,
    /// Queue identifier; zero is the Admin queue.
    pub(super) qid: u16,
    /// Reset count of the controller at Connect.
    pub(super) resets: u32,
    /// Whether the I/O queue owns its identifier. Not before the host is authenticated, if it must
    /// be.
    pub(super) joined: bool,
    /// Entries of the submission queue.
    pub(super) entries: u16,
    /// Submission queue head; `None` if SQ flow control is disabled.
    pub(super) head: Option<u16>,
    /// Access to the disk; `None` for a discovery controller, or while the disk is gone. Set by
    /// [`Binding::set_grant`].
    pub(super) grant: Option<Grant>,
    /// Export that was reported as attached.
    pub(super) attached: Option<Arc<export::Export>>,
    /// Byte counts when it was attached.
    pub(super) before: ByteCounts,
    /// Byte counters of this queue.
    pub(super) counters: Arc<QueueCounters>,
}

impl Binding {
    pub(super) fn new(
        connect: &Connect,
        controller: Arc<Controller>,
        grant: Option<Grant>,
    ) -> Self {
        let mut binding = Self {
            qid: connect.qid,
            resets: controller.resets.load(Ordering::Acquire),
            joined: false,
            entries: connect.entries,
            head: connect.flow_control.then_some(1 % connect.entries),
            grant: None,
            attached: None,
            before: ByteCounts::default(),
            counters: controller.new_counters(),
            controller,
        };
        binding.set_grant(grant);
        binding
    }

    /// Replaces the grant. If it is for the same disk, the fence and the writes in flight carry
    /// over.
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
            self.controller.register_fence(grant.fence(), self.resets);
        }
    }

    /// Returns whether a reset has deleted the queue. Never the Admin queue.
    pub(super) fn is_stale(&self) -> bool {
        self.qid != 0 && self.resets != self.controller.resets.load(Ordering::Acquire)
    }

    /// Returns whether the queue may use the disk: not after a reset or shutdown.
    pub(super) fn is_usable(&self) -> bool {
        self.qid == 0 || (self.controller.is_ready() && !self.is_stale())
    }

    /// Takes the queue identifier of an I/O queue. Returns whether it was free.
    pub(super) fn take_qid(&mut self) -> bool {
        // Holds the lock: a reset must not delete the open queues in between.
        let mut shared = self.controller.shared();
        let granted = !self.is_stale() && self.qid <= shared.granted;
        self.joined = granted && shared.open.insert(self.qid);
        self.joined
    }

    /// Releases the queue identifier; ends the controller if it is the Admin queue.
    pub(super) fn leave(&self) {
        // Holds the lock: a reset, after which another queue may own the identifier, must not
        // happen in between.
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

impl Drop for Binding {
    /// Ends the controller with its Admin queue, even if `leave` was not called.
    fn drop(&mut self) {
        if self.qid == 0 {
            self.controller.end();
        }
    }
}
