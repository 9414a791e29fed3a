//! What the engine's threads say, until the program's own thread has time for it. It knows no terminal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use export::Event;
use rustix::event::{EventfdFlags, eventfd};

/// Events that wait at most; a failing disk or a hostile peer makes many, and those of a kind are alike.
const MOST: usize = 4096;

/// Events that came, and a descriptor that is readable when there are some.
#[derive(Debug, Clone)]
pub(crate) struct Mailbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    waiting: Mutex<Waiting>,
    bell: OwnedFd,
}

#[derive(Debug, Default)]
struct Waiting {
    events: Vec<Event>,
    lost: usize,
}

impl Mailbox {
    /// An empty one.
    ///
    /// # Errors
    /// No descriptors left.
    pub(crate) fn open() -> rustix::io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Inner { waiting: Mutex::default(), bell })))
    }

    /// Puts an event in, from any thread. Who has which disk is never lost.
    pub(crate) fn put(&self, event: Event) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let matters = matches!(event, Event::Attached { .. } | Event::Detached { .. });
        if matters || waiting.events.len() < MOST {
            waiting.events.push(event);
        } else {
            waiting.lost += 1;
        }
        let _ = rustix::io::write(&self.0.bell, &1u64.to_ne_bytes());
    }

    /// Takes all that came, and the number of those that were lost.
    pub(crate) fn receive(&self) -> (Vec<Event>, usize) {
        let _ = rustix::io::read(&self.0.bell, &mut [0; 8]);
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let all = std::mem::take(&mut *waiting);
        (all.events, all.lost)
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
        Peer { remote: "10.0.0.2:5000".parse().unwrap(), local: "10.0.0.1:4420".parse().unwrap() }
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
        mailbox.put(Event::Attached { export, peer: peer(), host: "h".to_owned() });
        let (events, lost) = mailbox.receive();
        assert_eq!((events.len(), lost), (MOST + 1, 5));
        assert!(matches!(events.last(), Some(Event::Attached { .. })));
        assert_eq!(mailbox.receive().0.len(), 0);
    }
}
