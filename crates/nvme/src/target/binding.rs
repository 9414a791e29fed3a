//! Binding of a connection to a queue of a controller, made by Connect.

use std::sync::Arc;

use export::{Export, Grant, Op};

use super::NSID;
use super::controller::{Controller, ControllerType};
use super::counters::{ByteCounts, QueueCounters};
use crate::status::Status;

/// Parameters of the queue that a Connect requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Connect {
    qid: u16,
    entries: u16,
    flow_control: bool,
    keep_alive: u32,
}

impl Connect {
    pub(super) fn new(qid: u16, entries: u16, flow_control: bool, keep_alive: u32) -> Self {
        Self { qid, entries, flow_control, keep_alive }
    }

    pub(super) fn qid(&self) -> u16 {
        self.qid
    }

    /// Returns the Keep Alive Timeout in milliseconds.
    pub(super) fn keep_alive(&self) -> u32 {
        self.keep_alive
    }
}

/// The controller and queue of a connection, and the access it grants.
#[derive(Debug)]
pub(super) struct Binding {
    controller: Arc<Controller>,
    /// Queue identifier; zero is the Admin queue.
    qid: u16,
    /// Reset count of the controller at Connect.
    resets: u32,
    /// Whether the I/O queue owns its identifier. Not before the host is authenticated, if it must
    /// be.
    joined: bool,
    /// Entries of the submission queue.
    entries: u16,
    /// Submission queue head; `None` if SQ flow control is disabled.
    head: Option<u16>,
    /// Access to the disk; `None` for a discovery controller, or while the disk is gone.
    grant: Option<Grant>,
    /// Export that was reported as attached.
    attached: Option<Arc<Export>>,
    /// Byte counts when it was attached.
    before: ByteCounts,
    /// Byte counters of this queue.
    counters: Arc<QueueCounters>,
}

impl Binding {
    pub(super) fn new(
        connect: &Connect,
        controller: Arc<Controller>,
        grant: Option<Grant>,
    ) -> Self {
        let mut binding = Self {
            qid: connect.qid,
            resets: controller.resets(),
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

    pub(super) fn controller(&self) -> &Arc<Controller> {
        &self.controller
    }

    /// Returns the queue identifier.
    pub(super) fn qid(&self) -> u16 {
        self.qid
    }

    pub(super) fn is_admin(&self) -> bool {
        self.qid == 0
    }

    // ---- the submission queue

    /// Returns the number of entries of the submission queue.
    pub(super) fn entries(&self) -> u16 {
        self.entries
    }

    /// Returns the submission queue head, or `None` if SQ flow control is disabled.
    pub(super) fn head(&self) -> Option<u16> {
        self.head
    }

    /// Counts a command that was taken from the submission queue.
    pub(super) fn advance_head(&mut self) {
        if let Some(head) = &mut self.head {
            *head = head.checked_add(1).filter(|next| *next < self.entries).unwrap_or(0);
        }
    }

    // ---- access to the disk

    /// Returns the access to the disk, or `None` for a discovery controller, or while the disk is
    /// gone.
    pub(super) fn grant(&self) -> Option<&Grant> {
        self.grant.as_ref()
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
        let Some(grant) = self.grant.take_if(|grant| is_new(&&*grant)) else { return };
        let grant = grant.with_association(self.controller.association());
        if self.qid != 0 {
            self.controller.register_fence(grant.fence(), self.resets);
        }
        let host = self.controller.host();
        // A host without an identifier cannot register.
        let has_id = *host.id() != [0; 16];
        self.grant = Some(match has_id {
            true => grant.with_registrant(host.nqn(), host.id(), 0),
            false => grant,
        });
    }

    /// Counts a disk request of `len` bytes.
    pub(super) fn count(&self, op: Op, len: u64) {
        self.counters.add(op, len);
    }

    /// Returns the export that was reported as attached.
    pub(super) fn attached(&self) -> Option<&Arc<Export>> {
        self.attached.as_ref()
    }

    /// Replaces the export that was reported as attached. Returns the one before, with the bytes
    /// that were transferred since it was attached.
    pub(super) fn attach(&mut self, now: Option<Arc<Export>>) -> Option<(Arc<Export>, ByteCounts)> {
        let byte_counts = self.controller.byte_counts();
        let before = std::mem::replace(&mut self.before, byte_counts);
        let detached = std::mem::replace(&mut self.attached, now)?;
        Some((detached, byte_counts.since(before)))
    }

    // ---- membership in the controller

    /// Returns whether a reset has deleted the queue. Never the Admin queue.
    pub(super) fn is_stale(&self) -> bool {
        self.qid != 0 && self.resets != self.controller.resets()
    }

    /// Returns whether the queue may use the disk: not after a reset or shutdown.
    pub(super) fn is_usable(&self) -> bool {
        self.qid == 0 || (self.controller.is_ready() && !self.is_stale())
    }

    /// Takes the queue identifier of an I/O queue. Returns whether it was free.
    pub(super) fn take_qid(&mut self) -> bool {
        self.joined = self.controller.open_queue(self.qid, self.resets);
        self.joined
    }

    /// Releases the queue identifier; ends the controller if it is the Admin queue.
    pub(super) fn leave(&self) {
        if self.joined {
            self.controller.close_queue(self.qid, self.resets);
        }
        if self.qid == 0 {
            self.controller.end();
        }
    }

    /// Adds a failed command to the error log of the controller.
    pub(super) fn log_error(&self, cid: u16, status: Status, lba: u64) {
        let has_namespace = self.controller.kind() == ControllerType::Io && self.qid != 0;
        let nsid = if has_namespace { NSID } else { 0 };
        self.controller.log_error(self.qid, cid, status.to_field(), nsid, lba);
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
