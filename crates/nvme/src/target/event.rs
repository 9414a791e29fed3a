//! Asynchronous events (NVMe Base 2.0 §5.2).

use export::{Access, Grant};

use super::admin::{MAX_EVENT_REQUESTS, PendingAdmin};
use super::controller::ControllerType;
use super::io::Work;
use super::queue::Queue;
use crate::status::Status;
use crate::wire::feature::{AsyncEvent, aec};

/// Event state of one controller.
#[derive(Debug)]
pub(super) struct Events {
    /// Asynchronous Event Configuration: the events that the host has enabled.
    pub(super) enabled: u32,
    namespace: EventState,
    discovery: EventState,
    /// State at the last check.
    last: Snapshot,
    /// Whether the namespace changed since the host read the Changed Namespace List.
    pub(super) changed: bool,
}

/// State of one event: masked after it was sent, until its log page is read.
#[derive(Debug, Default, Clone, Copy)]
struct EventState {
    pending: bool,
    masked: bool,
}

#[derive(Debug, PartialEq, Eq, Clone)]
struct Snapshot {
    generation: u64,
    /// Size of the namespace in blocks, or `None` if it is gone.
    blocks: Option<u64>,
    /// Access of the host to it.
    access: Option<Access>,
}

impl Snapshot {
    fn now(generation: u64, grant: Option<&Grant>) -> Self {
        let present = grant.map(Grant::export).filter(|export| !export.is_gone());
        let access = grant.map(Grant::access);
        Self { generation, blocks: present.map(|export| export.blocks()), access }
    }
}

impl Events {
    pub(super) fn new(generation: u64, grant: Option<&Grant>) -> Self {
        let last = Snapshot::now(generation, grant);
        Self {
            enabled: 0,
            namespace: EventState::default(),
            discovery: EventState::default(),
            last,
            changed: false,
        }
    }

    /// Forgets configuration and pending events at a reset.
    pub(super) fn reset(&mut self) {
        (self.enabled, self.namespace, self.discovery) =
            (0, EventState::default(), EventState::default());
        self.changed = false;
    }

    /// Unmasks the namespace event after the Changed Namespace List was read.
    pub(super) fn unmask_namespace(&mut self) {
        (self.changed, self.namespace.masked) = (false, false);
    }

    /// Unmasks the discovery event after the discovery log was read.
    pub(super) fn unmask_discovery(&mut self) {
        self.discovery.masked = false;
    }

    fn detect_changes(&mut self, kind: ControllerType, generation: u64, grant: Option<&Grant>) {
        let last = Snapshot::now(generation, grant);
        match kind {
            ControllerType::Io
                if (last.blocks, last.access) != (self.last.blocks, self.last.access) =>
            {
                (self.changed, self.namespace.pending) = (true, true);
            }
            ControllerType::Discovery if last.generation != self.last.generation => {
                self.discovery.pending = true
            }
            _ => {}
        }
        self.last = last;
    }

    /// Takes the next event that is pending, enabled and not masked.
    fn next_event(&mut self) -> Option<AsyncEvent> {
        let enabled = self.enabled;
        let events = [
            (&mut self.namespace, aec::NAMESPACE_ATTRIBUTE, AsyncEvent::NAMESPACE_CHANGED),
            (&mut self.discovery, aec::DISCOVERY_CHANGE, AsyncEvent::DISCOVERY_CHANGED),
        ];
        for (state, bit, event) in events {
            if state.pending && !state.masked && enabled & bit != 0 {
                (state.pending, state.masked) = (false, true);
                return Some(event);
            }
        }
        None
    }
}

impl Queue {
    /// Handles Asynchronous Event Request: completes it at once if an event is pending.
    pub(super) fn request_event(&mut self, tag: u16) -> Result<(), Status> {
        let admin = self.admin.as_mut().ok_or(Status::COMMAND_SEQUENCE_ERROR.dnr())?;
        if admin.requests.len() >= MAX_EVENT_REQUESTS {
            return Err(Status::ASYNC_EVENT_LIMIT_EXCEEDED.dnr());
        }
        admin.requests.push_back(tag);
        self.set_work(tag, Work::Admin(Box::new(PendingAdmin::Event)));
        self.send_events();
        Ok(())
    }

    /// Drops an Asynchronous Event Request whose command identifier the host reuses. Returns
    /// whether there was one.
    ///
    /// SPDK's host forgets its requests when it detaches, and reuses their identifiers for the
    /// shutdown.
    pub(super) fn drop_event_request(&mut self, cid: u16) -> bool {
        let (Some(tag), Some(admin)) = (self.slots.find(cid), &mut self.admin) else {
            return false;
        };
        let Some(position) = admin.requests.iter().position(|&request| request == tag) else {
            return false;
        };
        admin.requests.remove(position);
        self.slots.release(tag);
        true
    }

    /// Detects changes, and completes event requests.
    pub(super) fn check_events(&mut self) {
        let (Some(admin), Some(binding)) = (&mut self.admin, &self.binding) else { return };
        let generation = self.target.catalogue.generation();
        admin.events.detect_changes(binding.controller.kind, generation, binding.grant.as_ref());
        self.send_events();
    }

    pub(super) fn send_events(&mut self) {
        while let Some(admin) = &mut self.admin {
            let Some(&tag) = admin.requests.front() else { return };
            let Some(event) = admin.events.next_event() else { return };
            admin.requests.pop_front();
            self.finish_with(tag, Status::SUCCESS, event.emit().into());
        }
    }
}
