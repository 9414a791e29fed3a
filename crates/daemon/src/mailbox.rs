//! What other threads say, until the program's own thread has time for it. It knows no terminal.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use export::Event;
use pair::ServerStatus;
use rustix::event::{EventfdFlags, eventfd};

use crate::tally::Tallied;

/// What the supervisor of the worker process passes on.
#[derive(Debug)]
pub enum Said {
    /// Something happened; disks are the opener's own.
    Event(Tallied),
    /// A sentence for the owner.
    Note(String),
    /// The code by which machines are let in, as it is from now on.
    Pairing(ServerStatus),
    /// It has died too often, and there is none any more: why, as a sentence. Nothing is served from now on.
    Lost(String),
}

/// Events that wait at most; a failing disk or a hostile peer makes many, and those of a kind are alike.
const MOST: usize = 4096;

/// Events and notes that came, and a descriptor that is readable when there are some.
#[derive(Debug, Clone)]
pub struct Mailbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    waiting: Mutex<Waiting>,
    bell: OwnedFd,
}

/// What came.
#[derive(Debug, Default)]
pub struct Waiting {
    /// What the engine says.
    pub events: Vec<Tallied>,
    /// What the threads say that bring the machine up, a sentence each.
    pub notes: Vec<String>,
    /// How it stands with what they look after: the newest sentence of a subject, or that there is nothing to say of it
    /// any more.
    pub subjects: BTreeMap<String, Option<String>>,
    /// The code by which machines are let in, as it is now, and how many of the events came before it.
    pub view: Option<(usize, ServerStatus)>,
    /// Why nothing is served any more, as a sentence.
    pub end: Option<String>,
    /// How much was too much.
    pub lost: usize,
}

impl Mailbox {
    /// An empty one.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn open() -> rustix::io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Inner { waiting: Mutex::default(), bell })))
    }

    /// Puts an event in, from any thread. Who has which disk is never lost.
    pub fn put(&self, event: impl Into<Tallied>) {
        let tallied = event.into();
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let matters = matches!(
            tallied.event,
            Event::Attached { .. } | Event::Detached { .. } | Event::PairingRequested { .. }
        );
        if matters || waiting.events.len() < MOST {
            waiting.events.push(tallied);
        } else {
            waiting.lost += 1;
        }
        let _ = rustix::io::write(&self.0.bell, &1u64.to_ne_bytes());
    }

    /// Puts a sentence in, from any thread.
    pub fn note(&self, sentence: String) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.notes.len() < MOST {
            waiting.notes.push(sentence);
        } else {
            waiting.lost += 1;
        }
        let _ = rustix::io::write(&self.0.bell, &1u64.to_ne_bytes());
    }

    /// Takes what the process says that serves, from any thread.
    pub fn hear(&self, said: Said) {
        match said {
            Said::Event(tallied) => self.put(tallied),
            Said::Note(sentence) => self.note(sentence),
            Said::Pairing(view) => {
                self.set(|waiting| waiting.view = Some((waiting.events.len(), view)));
            }
            Said::Lost(sentence) => self.set(|waiting| waiting.end = Some(sentence)),
        }
    }

    fn set(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        let _ = rustix::io::write(&self.0.bell, &1u64.to_ne_bytes());
    }

    /// Says how it stands with a subject now, from any thread; what was said of it before is no longer so.
    pub fn about(&self, subject: &str, sentence: Option<String>) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.subjects.insert(subject.to_owned(), sentence);
        let _ = rustix::io::write(&self.0.bell, &1u64.to_ne_bytes());
    }

    /// Takes all that came.
    pub fn receive(&self) -> Waiting {
        let _ = rustix::io::read(&self.0.bell, &mut [0; 8]);
        std::mem::take(&mut *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use export::{Export, Geometry, Identity, Peer};

    fn peer() -> Peer {
        Peer {
            remote: "10.0.0.2:5000".parse().unwrap(),
            local: "10.0.0.1:4420".parse().unwrap(),
            auth: export::Auth::None,
            channel: None,
        }
    }

    #[test]
    fn a_flood_is_bounded_and_who_has_what_is_never_lost() {
        let disk = std::fs::File::open("/dev/null").unwrap().into();
        let geometry = Geometry::new(512, 512).unwrap();
        let export = Arc::new(Export::new("d", "n", Identity::default(), geometry, 512, disk));
        let mailbox = Mailbox::open().unwrap();
        for _ in 0..MOST + 5 {
            mailbox.put(Event::Violation { peer: peer(), rule: "rule" });
        }
        mailbox.put(Event::Attached { export, peer: peer(), host: "h".to_owned(), proven: None });
        mailbox.note("one more".to_owned());
        mailbox.about("eth0", Some("eth0: no cable".to_owned()));
        mailbox.about("eth0", None);
        let Waiting { events, notes, subjects, lost, .. } = mailbox.receive();
        assert_eq!(subjects, BTreeMap::from([("eth0".to_owned(), None)]));
        assert_eq!((events.len(), notes.len(), lost), (MOST + 1, 1, 5));
        assert!(matches!(events.last().unwrap().event, Event::Attached { .. }));
        assert_eq!(mailbox.receive().events.len(), 0);
    }

    #[test]
    fn a_view_stands_where_it_came() {
        let mailbox = Mailbox::open().unwrap();
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
        let violation = || Said::Event(Event::Violation { peer: peer(), rule: "rule" }.into());
        mailbox.hear(Said::Pairing(view(1)));
        mailbox.hear(violation());
        mailbox.hear(Said::Pairing(view(2)));
        mailbox.hear(violation());
        let Waiting { events, view, .. } = mailbox.receive();
        let (before, view) = view.unwrap();
        assert_eq!((events.len(), before, view.failures), (2, 1, 2));
    }
}
