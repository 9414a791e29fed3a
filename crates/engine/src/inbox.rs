//! How threads speak to each other: a list of messages and an eventfd that wakes the reader. It knows no socket.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use export::Notice;
use rustix::event::EventfdFlags;

use crate::Open;
use crate::blocking_op::Answer;
use crate::link::Link;

/// What one thread says to another.
pub(crate) enum Message {
    /// This connection is yours from now on.
    Adopt(Arc<Link>, Open),
    /// Tell all sessions.
    Notice(Notice),
    /// The blocking_op of that number was run.
    Ran(u64, Answer),
    /// Cut all connections and end.
    Quit,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adopt(link, _) => write!(f, "Adopt({link:?})"),
            Self::Notice(notice) => write!(f, "Notice({notice:?})"),
            Self::Ran(number, _) => write!(f, "Ran({number})"),
            Self::Quit => f.write_str("Quit"),
        }
    }
}

/// The messages for one thread.
#[derive(Debug)]
pub(crate) struct Inbox {
    messages: Mutex<Vec<Message>>,
    /// Whether there are messages: looked at by a spinning reader, without a lock or a system call.
    full: AtomicBool,
    /// Written with each message that makes the box full; the reader empties it. It blocks when read, as io_uring needs
    /// it to wait.
    wake_fd: OwnedFd,
}

impl Inbox {
    /// An empty one.
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        let wake_fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Arc::new(Self { messages: Mutex::default(), full: AtomicBool::new(false), wake_fd }))
    }

    /// Adds a message and wakes the reader.
    pub(crate) fn put(&self, message: Message) {
        let mut messages = lock(&self.messages);
        if !is_said_already(&messages, &message) {
            messages.push(message);
        }
        let was_full = self.full.swap(true, Ordering::AcqRel);
        drop(messages);
        if !was_full {
            // Fails only if the counter is at its end, and then the reader wakes all the same.
            let _ = rustix::io::write(&self.wake_fd, &1u64.to_ne_bytes());
        }
    }

    /// Whether there are messages.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// All messages, in order.
    pub(crate) fn take(&self) -> Vec<Message> {
        let mut messages = lock(&self.messages);
        self.full.store(false, Ordering::Release);
        std::mem::take(&mut messages)
    }

    /// Silences the wake_fd after it rang. Waits if it did not.
    pub(crate) fn clear_wake(&self) {
        let _ = rustix::io::read(&self.wake_fd, &mut [0u8; 8]);
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake_fd.as_fd()
    }
}

/// "Something changed" twice in a row says no more than once, and must not fill memory.
fn is_said_already(messages: &[Message], message: &Message) -> bool {
    matches!(
        (messages.last(), message),
        (Some(Message::Notice(Notice::StateChanged)), Message::Notice(Notice::StateChanged))
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All mailboxes that notice go to.
#[derive(Debug, Default)]
pub(crate) struct Inboxes(Mutex<Registered>);

#[derive(Debug, Default)]
struct Registered {
    all: Vec<Arc<Inbox>>,
    stopping: bool,
    quitting: bool,
}

impl Inboxes {
    /// Adds a inbox. It gets at once what all were told that lasts: to stop, to end.
    pub(crate) fn join(&self, inbox: &Arc<Inbox>) {
        let mut boxes = lock(&self.0);
        boxes.all.push(inbox.clone());
        if boxes.stopping {
            inbox.put(Message::Notice(Notice::Stopping));
        }
        if boxes.quitting {
            inbox.put(Message::Quit);
        }
    }

    /// Removes a inbox.
    pub(crate) fn leave(&self, inbox: &Arc<Inbox>) {
        lock(&self.0).all.retain(|other| !Arc::ptr_eq(other, inbox));
    }

    /// Puts `notice` in all mailboxes, but `own`.
    pub(crate) fn notify(&self, notice: Notice, own: Option<&Arc<Inbox>>) {
        let mut boxes = lock(&self.0);
        boxes.stopping |= notice == Notice::Stopping;
        let is_own = |other: &&Arc<Inbox>| own.is_some_and(|own| Arc::ptr_eq(other, own));
        let others = boxes.all.iter().filter(|other| !is_own(other));
        others.for_each(|other| other.put(Message::Notice(notice)));
    }

    /// Has all readers end.
    pub(crate) fn quit(&self) {
        let mut boxes = lock(&self.0);
        boxes.quitting = true;
        boxes.all.iter().for_each(|inbox| inbox.put(Message::Quit));
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn repeated_news_are_said_once_and_the_order_is_kept() {
        let inbox = Inbox::new().unwrap();
        for notice in
            [Notice::StateChanged, Notice::StateChanged, Notice::Stopping, Notice::StateChanged]
        {
            inbox.put(Message::Notice(notice));
        }
        assert!(inbox.is_full());
        inbox.clear_wake();
        let said: Vec<_> = inbox.take().iter().map(|message| format!("{message:?}")).collect();
        assert_eq!(said, ["Notice(Changed)", "Notice(Stopping)", "Notice(Changed)"]);
        assert!(!inbox.is_full());
    }

    #[test]
    fn news_reach_all_but_the_speaker_until_they_leave() {
        let post = Inboxes::default();
        let (one, two) = (Inbox::new().unwrap(), Inbox::new().unwrap());
        post.join(&one);
        post.notify(Notice::Stopping, None);
        post.join(&two);
        post.notify(Notice::StateChanged, Some(&one));
        assert_eq!((one.take().len(), two.take().len()), (1, 2));
        post.leave(&two);
        post.quit();
        assert_eq!((one.take().len(), two.take().len()), (1, 0));
    }
}
