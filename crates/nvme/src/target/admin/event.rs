//! Asynchronous events (NVMe Base 2.0 §5.2).

use std::collections::VecDeque;

use export::{Access, Grant};

use super::reservation::Notifications;
use crate::status::Status;
use crate::target::context::Context;
use crate::target::controller::ControllerType;
use crate::target::queue::Queue;
use crate::target::work::Work;
use crate::wire::feature::{AsyncEvent, aec};

/// Maximum of outstanding Asynchronous Event Requests: AERL 3, 0's based.
pub(super) const MAX_EVENT_REQUESTS: usize = 4;

/// Event state of one controller.
#[derive(Debug)]
pub(super) struct Events {
    /// Asynchronous Event Configuration: the events that the host has enabled.
    enabled: u32,
    namespace: EventState,
    discovery: EventState,
    ana: EventState,
    reservation: EventState,
    notifications: Notifications,
    /// State at the last check.
    last: Snapshot,
    /// Whether the namespace changed since the host read the Changed Namespace List.
    changed: bool,
    /// Slots of outstanding Asynchronous Event Requests, oldest first.
    requests: VecDeque<u16>,
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
        let mut events = Self {
            enabled: 0,
            namespace: EventState::default(),
            discovery: EventState::default(),
            ana: EventState::default(),
            reservation: EventState::default(),
            notifications: Notifications::default(),
            last,
            changed: false,
            requests: VecDeque::new(),
        };
        // Notices are kept from now on.
        events.notifications.collect(grant);
        events
    }

    /// Returns the notifications of reservations.
    pub(super) fn notifications(&mut self) -> &mut Notifications {
        &mut self.notifications
    }

    /// Returns the events that the host has enabled.
    pub(super) fn enabled(&self) -> u32 {
        self.enabled
    }

    pub(super) fn set_enabled(&mut self, enabled: u32) {
        self.enabled = enabled;
    }

    /// Returns whether the namespace changed since the host read the Changed Namespace List.
    pub(super) fn namespace_changed(&self) -> bool {
        self.changed
    }

    /// Forgets configuration, pending events and requests at a reset.
    pub(super) fn reset(&mut self, queue: &mut Queue) {
        for tag in std::mem::take(&mut self.requests) {
            queue.slots_mut().release(tag);
        }
        self.enabled = 0;
        (self.namespace, self.discovery) = (EventState::default(), EventState::default());
        self.ana = EventState::default();
        (self.reservation, self.notifications) = (EventState::default(), Notifications::default());
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

    /// Returns whether an event can be sent.
    pub(super) fn has_request(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Sends the event of a changed ANA state.
    pub(super) fn ana_changed(&mut self, queue: &mut Queue) {
        self.ana.pending = true;
        self.send(queue);
    }

    /// Unmasks the ANA event after its log page was read.
    pub(super) fn unmask_ana(&mut self) {
        self.ana.masked = false;
    }

    /// Returns whether the host has read each ANA state.
    pub(super) fn is_ana_known(&self) -> bool {
        !self.ana.pending && !self.ana.masked
    }

    /// Unmasks the reservation event after its log page was read. It is sent again if there are
    /// more notifications.
    pub(super) fn unmask_reservation(&mut self) {
        let pending = !self.notifications.is_empty();
        self.reservation = EventState { pending, masked: false };
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
        self.reservation.pending |= self.notifications.collect(grant);
    }

    /// Takes the next event that is pending, enabled and not masked.
    fn next_event(&mut self) -> Option<AsyncEvent> {
        let enabled = |bit: u32| self.enabled & bit != 0;
        let namespace = (enabled(aec::NAMESPACE_ATTRIBUTE), AsyncEvent::NAMESPACE_CHANGED);
        let discovery = (enabled(aec::DISCOVERY_CHANGE), AsyncEvent::DISCOVERY_CHANGED);
        let ana = (enabled(aec::ANA_CHANGE), AsyncEvent::ANA_CHANGED);
        let events = [
            (&mut self.ana, ana),
            (&mut self.namespace, namespace),
            (&mut self.discovery, discovery),
            // Enabled by the mask of its notifications.
            (&mut self.reservation, (true, AsyncEvent::RESERVATION)),
        ];
        for (state, (enabled, event)) in events {
            if state.pending && !state.masked && enabled {
                (state.pending, state.masked) = (false, true);
                return Some(event);
            }
        }
        None
    }

    /// Handles Asynchronous Event Request: completes it at once if an event is pending.
    pub(super) fn request(&mut self, queue: &mut Queue, tag: u16) -> Result<(), Status> {
        if self.requests.len() >= MAX_EVENT_REQUESTS {
            return Err(Status::ASYNC_EVENT_LIMIT_EXCEEDED.dnr());
        }
        self.requests.push_back(tag);
        queue.set_work(tag, Work::Event);
        self.send(queue);
        Ok(())
    }

    /// Forgets the request in that slot. Returns whether there was one.
    pub(super) fn forget(&mut self, tag: u16) -> bool {
        let position = self.requests.iter().position(|&request| request == tag);
        position.and_then(|position| self.requests.remove(position)).is_some()
    }

    /// Detects changes, and completes event requests.
    pub(super) fn check(&mut self, cx: &Context, queue: &mut Queue) {
        let Ok(controller) = queue.controller() else { return };
        let generation = cx.target().catalogue().generation();
        self.detect_changes(controller.kind(), generation, queue.grant());
        self.send(queue);
    }

    /// Completes requests with the events that are pending.
    pub(super) fn send(&mut self, queue: &mut Queue) {
        while let Some(&tag) = self.requests.front() {
            let Some(event) = self.next_event() else { return };
            self.requests.pop_front();
            queue.finish_with(tag, Status::SUCCESS, event.emit().into());
        }
    }
}
