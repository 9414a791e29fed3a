//! Event queue of the main thread, filled by other threads.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use export::Event;
use pair::ServerStatus;
use rustix::event::{EventfdFlags, eventfd};

use crate::rate_limit::CountedEvent;

/// An event of the worker's supervisor.
#[derive(Debug)]
pub enum WorkerEvent {
    /// An event, with the opener's exports.
    Event(CountedEvent),
    /// A message for the user.
    Note(String),
    /// The pairing state changed.
    Pairing(ServerStatus),
    /// The first worker runs: its driver and its restrictions are known.
    Running,
    /// Another worker has taken the place of one that died. The endpoints of a USB cable are lost: no
    /// process has them open, and the kernel has unplugged the device.
    Replaced,
    /// The worker could not be started, or died too often and is not restarted: the reason. Nothing
    /// is served any more.
    Lost(String),
}

/// Capacity for events and for notes. More are dropped, since events of a kind are alike.
const MAX_EVENTS: usize = 4096;

/// Number of events above which the supervisor receives no more. Attachments and pairing requests
/// are not dropped; those of one shutdown fit in addition to [`MAX_EVENTS`].
const MAX_QUEUED: usize = 2 * MAX_EVENTS;

/// Subject of [`Inbox::wake`].
const WAKE: &str = "look";

/// Queue of events and notes, with an eventfd that is readable when it is not empty.
#[derive(Debug, Clone)]
pub struct Inbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pending: Mutex<Pending>,
    received: Condvar,
    wake_fd: OwnedFd,
}

/// Content of the queue.
#[derive(Debug, Default)]
pub struct Pending {
    /// Events of the engine.
    pub events: Vec<CountedEvent>,
    /// Messages for the user.
    pub notes: Vec<String>,
    /// Current message of each subject, or `None` if it no longer applies.
    pub subjects: BTreeMap<String, Option<String>>,
    /// The newest pairing state, and the number of events that precede it.
    pub view: Option<(usize, ServerStatus)>,
    /// Whether the first worker has started to run.
    pub running: bool,
    /// Whether another worker has taken the place of one that died.
    pub replaced: bool,
    /// Why nothing is served any more.
    pub end: Option<String>,
    /// Number of dropped events and notes.
    pub lost: usize,
}

impl Inbox {
    /// # Errors
    /// Fails if descriptors are exhausted.
    pub fn open() -> rustix::io::Result<Self> {
        let wake_fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Inner { pending: Mutex::default(), received: Condvar::new(), wake_fd })))
    }

    /// Queues an event. Attachments and pairing requests are never dropped.
    pub fn put(&self, event: impl Into<CountedEvent>) {
        let counted = event.into();
        let mut pending = self.0.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let is_essential = matches!(
            counted.event,
            Event::Attached { .. } | Event::Detached { .. } | Event::PairingRequested { .. }
        );
        if is_essential || pending.events.len() < MAX_EVENTS {
            pending.events.push(counted);
        } else {
            pending.lost += 1;
        }
        let _ = rustix::io::write(&self.0.wake_fd, &1u64.to_ne_bytes());
    }

    /// Queues a message for the user.
    pub fn note(&self, sentence: String) {
        let mut pending = self.0.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.notes.len() < MAX_EVENTS {
            pending.notes.push(sentence);
        } else {
            pending.lost += 1;
        }
        let _ = rustix::io::write(&self.0.wake_fd, &1u64.to_ne_bytes());
    }

    /// Queues an event of the supervisor.
    pub fn deliver(&self, event: WorkerEvent) {
        match event {
            WorkerEvent::Event(counted) => self.put(counted),
            WorkerEvent::Note(sentence) => self.note(sentence),
            WorkerEvent::Pairing(view) => {
                self.set(|pending| pending.view = Some((pending.events.len(), view)));
            }
            WorkerEvent::Running => self.set(|pending| pending.running = true),
            WorkerEvent::Replaced => self.set(|pending| pending.replaced = true),
            WorkerEvent::Lost(sentence) => self.set(|pending| pending.end = Some(sentence)),
        }
    }

    fn set(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.0.pending.lock().unwrap_or_else(PoisonError::into_inner));
        let _ = rustix::io::write(&self.0.wake_fd, &1u64.to_ne_bytes());
    }

    /// Replaces the message of a subject.
    pub fn set_subject(&self, subject: &str, sentence: Option<String>) {
        let mut pending = self.0.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.subjects.insert(subject.to_owned(), sentence);
        let _ = rustix::io::write(&self.0.wake_fd, &1u64.to_ne_bytes());
    }

    /// Makes the queue readable: its reader looks at other state again.
    pub fn wake(&self) {
        self.set_subject(WAKE, None);
    }

    /// Takes the content of the queue.
    pub fn receive(&self) -> Pending {
        let _ = rustix::io::read(&self.0.wake_fd, &mut [0; 8]);
        let pending =
            std::mem::take(&mut *self.0.pending.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.received.notify_all();
        pending
    }

    /// Waits at most `timeout` until there is room for events. Returns whether there is.
    pub(crate) fn wait_for_room(&self, timeout: Duration) -> bool {
        let pending = self.0.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |pending: &mut Pending| pending.events.len() >= MAX_QUEUED;
        let waited = self.0.received.wait_timeout_while(pending, timeout, is_full);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wake_fd.as_fd()
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use export::{Identity, Peer};

    fn peer() -> Peer {
        Peer::ip(
            "10.0.0.2:5000".parse().unwrap(),
            "10.0.0.1:4420".parse().unwrap(),
            export::Auth::None,
        )
    }

    #[test]
    fn flood_is_bounded_and_attachments_are_kept() {
        let export = Arc::new(testkit::export("d", "n", Identity::default(), (512, 512), 512));
        let inbox = Inbox::open().unwrap();
        for _ in 0..MAX_EVENTS + 5 {
            inbox.put(Event::Violation { peer: peer(), rule: "rule" });
        }
        inbox.put(Event::Attached {
            export,
            peer: peer(),
            host: "h".to_owned(),
            proven: None,
            no_room: false,
        });
        inbox.note("one more".to_owned());
        inbox.set_subject("eth0", Some("eth0: no cable".to_owned()));
        inbox.set_subject("eth0", None);
        let Pending { events, notes, subjects, lost, .. } = inbox.receive();
        assert_eq!(subjects, BTreeMap::from([("eth0".to_owned(), None)]));
        assert_eq!((events.len(), notes.len(), lost), (MAX_EVENTS + 1, 1, 5));
        assert!(matches!(events.last().unwrap().event, Event::Attached { .. }));
        assert_eq!(inbox.receive().events.len(), 0);
    }

    #[test]
    fn pairing_state_keeps_its_order_among_events() {
        let inbox = Inbox::open().unwrap();
        let view = |failures| {
            let waiting = Vec::new();
            ServerStatus {
                codes: None,
                wait_until: None,
                locked: false,
                failures,
                lockouts: 0,
                waiting,
            }
        };
        let violation =
            || WorkerEvent::Event(Event::Violation { peer: peer(), rule: "rule" }.into());
        inbox.deliver(WorkerEvent::Pairing(view(1)));
        inbox.deliver(violation());
        inbox.deliver(WorkerEvent::Pairing(view(2)));
        inbox.deliver(violation());
        let Pending { events, view, .. } = inbox.receive();
        let (before, view) = view.unwrap();
        assert_eq!((events.len(), before, view.failures), (2, 1, 2));
    }
}
