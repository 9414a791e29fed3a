//! Asynchronous events: what the host asked to be told of, and what it has been told (NVMe Base 2.0 §5.2).

use export::{Access, Grant};

use super::admin::{EVENT_REQUESTS, Waiting};
use super::controller::Kind;
use super::io::Work;
use super::queue::Queue;
use crate::status::Status;
use crate::wire::feature::{AsyncEvent, aec};

/// The events of one controller.
#[derive(Debug)]
pub(super) struct Events {
    /// Asynchronous Event Configuration: what the host asked to be told of.
    pub(super) wanted: u32,
    namespace: Notice,
    discovery: Notice,
    /// What the host was last told, or found out by itself.
    seen: Seen,
    /// Whether the namespace changed since the Changed Namespace List was read.
    pub(super) changed: bool,
}

/// One kind of event: told once, then not again before its log page was read.
#[derive(Debug, Default, Clone, Copy)]
struct Notice {
    pending: bool,
    masked: bool,
}

#[derive(Debug, PartialEq, Eq, Clone)]
struct Seen {
    generation: u64,
    /// Blocks of the namespace, or nothing if there is none.
    blocks: Option<u64>,
    /// What the host may do with it.
    access: Option<Access>,
}

impl Seen {
    fn now(generation: u64, grant: Option<&Grant>) -> Self {
        let there = grant.map(Grant::export).filter(|export| !export.is_gone());
        let access = grant.map(Grant::access);
        Self { generation, blocks: there.map(|export| export.blocks()), access }
    }
}

impl Events {
    pub(super) fn new(generation: u64, grant: Option<&Grant>) -> Self {
        let seen = Seen::now(generation, grant);
        Self {
            wanted: 0,
            namespace: Notice::default(),
            discovery: Notice::default(),
            seen,
            changed: false,
        }
    }

    /// A reset forgets what was asked for and what was told.
    pub(super) fn reset(&mut self) {
        (self.wanted, self.namespace, self.discovery) = (0, Notice::default(), Notice::default());
        self.changed = false;
    }

    /// The log page of the Changed Namespace List was read, and its event is to be told again.
    pub(super) fn namespaces_read(&mut self) {
        (self.changed, self.namespace.masked) = (false, false);
    }

    /// The discovery log was read, and its event is to be told again.
    pub(super) fn discovery_read(&mut self) {
        self.discovery.masked = false;
    }

    fn compare(&mut self, kind: Kind, generation: u64, grant: Option<&Grant>) {
        let seen = Seen::now(generation, grant);
        match kind {
            Kind::Io if (seen.blocks, seen.access) != (self.seen.blocks, self.seen.access) => {
                (self.changed, self.namespace.pending) = (true, true);
            }
            Kind::Discovery if seen.generation != self.seen.generation => {
                self.discovery.pending = true
            }
            _ => {}
        }
        self.seen = seen;
    }

    /// An event that can be told now.
    fn next(&mut self) -> Option<AsyncEvent> {
        let wanted = self.wanted;
        let notices = [
            (&mut self.namespace, aec::NAMESPACE_ATTRIBUTE, AsyncEvent::NAMESPACE_CHANGED),
            (&mut self.discovery, aec::DISCOVERY_CHANGE, AsyncEvent::DISCOVERY_CHANGED),
        ];
        for (notice, bit, event) in notices {
            if notice.pending && !notice.masked && wanted & bit != 0 {
                (notice.pending, notice.masked) = (false, true);
                return Some(event);
            }
        }
        None
    }
}

impl Queue {
    /// Asynchronous Event Request: waits for an event, if none is waiting for it.
    pub(super) fn request_event(&mut self, at: u16) -> Result<(), Status> {
        let admin = self.admin.as_mut().ok_or(Status::COMMAND_SEQUENCE_ERROR.dnr())?;
        if admin.requests.len() >= EVENT_REQUESTS {
            return Err(Status::ASYNC_EVENT_LIMIT_EXCEEDED.dnr());
        }
        admin.requests.push_back(at);
        self.set_work(at, Work::Admin(Box::new(Waiting::Event)));
        self.tell_events();
        Ok(())
    }

    /// Forgets an Asynchronous Event Request whose identifier the host uses for another command. Tells whether it was one.
    ///
    /// SPDK's host forgets its requests when it detaches, and uses their identifiers to shut the controller down.
    pub(super) fn drop_event_request(&mut self, cid: u16) -> bool {
        let (Some(at), Some(admin)) = (self.slots.find(cid), &mut self.admin) else { return false };
        let Some(position) = admin.requests.iter().position(|&request| request == at) else {
            return false;
        };
        admin.requests.remove(position);
        self.slots.release(at);
        true
    }

    /// Looks whether anything changed that the host wants to be told of, and tells it.
    pub(super) fn look_for_events(&mut self) {
        let (Some(admin), Some(link)) = (&mut self.admin, &self.link) else { return };
        let generation = self.target.catalogue.generation();
        admin.events.compare(link.controller.kind, generation, link.grant.as_ref());
        self.tell_events();
    }

    pub(super) fn tell_events(&mut self) {
        while let Some(admin) = &mut self.admin {
            let Some(&at) = admin.requests.front() else { return };
            let Some(event) = admin.events.next() else { return };
            admin.requests.pop_front();
            self.answer_with(at, Status::SUCCESS, event.emit().into());
        }
    }
}
