//! How threads speak to each other: a list of messages and an eventfd that wakes the reader. It knows no socket.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use export::News;
use rustix::event::EventfdFlags;

use crate::Open;
use crate::errand::Answer;
use crate::link::Link;

/// What one thread says to another.
pub(crate) enum Message {
    /// This connection is yours from now on.
    Adopt(Arc<Link>, Open),
    /// Tell all sessions.
    News(News),
    /// The errand of that number was run.
    Ran(u64, Answer),
    /// Cut all connections and end.
    Quit,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adopt(link, _) => write!(f, "Adopt({link:?})"),
            Self::News(news) => write!(f, "News({news:?})"),
            Self::Ran(number, _) => write!(f, "Ran({number})"),
            Self::Quit => f.write_str("Quit"),
        }
    }
}

/// The messages for one thread.
#[derive(Debug)]
pub(crate) struct Mailbox {
    messages: Mutex<Vec<Message>>,
    /// Whether there are messages: looked at by a spinning reader, without a lock or a system call.
    full: AtomicBool,
    /// Written with each message that makes the box full; the reader empties it. It blocks when read, as io_uring needs
    /// it to wait.
    bell: OwnedFd,
}

impl Mailbox {
    /// An empty one.
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Arc::new(Self { messages: Mutex::default(), full: AtomicBool::new(false), bell }))
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
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
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

    /// Silences the bell after it rang. Waits if it did not.
    pub(crate) fn hush(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// "Something changed" twice in a row says no more than once, and must not fill memory.
fn is_said_already(messages: &[Message], message: &Message) -> bool {
    matches!(
        (messages.last(), message),
        (Some(Message::News(News::Changed)), Message::News(News::Changed))
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All mailboxes that news go to.
#[derive(Debug, Default)]
pub(crate) struct Post(Mutex<Boxes>);

#[derive(Debug, Default)]
struct Boxes {
    all: Vec<Arc<Mailbox>>,
    stopping: bool,
    quitting: bool,
}

impl Post {
    /// Adds a mailbox. It gets at once what all were told that lasts: to stop, to end.
    pub(crate) fn join(&self, mailbox: &Arc<Mailbox>) {
        let mut boxes = lock(&self.0);
        boxes.all.push(mailbox.clone());
        if boxes.stopping {
            mailbox.put(Message::News(News::Stopping));
        }
        if boxes.quitting {
            mailbox.put(Message::Quit);
        }
    }

    /// Removes a mailbox.
    pub(crate) fn leave(&self, mailbox: &Arc<Mailbox>) {
        lock(&self.0).all.retain(|other| !Arc::ptr_eq(other, mailbox));
    }

    /// Puts `news` in all mailboxes, but `own`.
    pub(crate) fn tell(&self, news: News, own: Option<&Arc<Mailbox>>) {
        let mut boxes = lock(&self.0);
        boxes.stopping |= news == News::Stopping;
        let is_own = |other: &&Arc<Mailbox>| own.is_some_and(|own| Arc::ptr_eq(other, own));
        let others = boxes.all.iter().filter(|other| !is_own(other));
        others.for_each(|other| other.put(Message::News(news)));
    }

    /// Has all readers end.
    pub(crate) fn quit(&self) {
        let mut boxes = lock(&self.0);
        boxes.quitting = true;
        boxes.all.iter().for_each(|mailbox| mailbox.put(Message::Quit));
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn repeated_news_are_said_once_and_the_order_is_kept() {
        let mailbox = Mailbox::new().unwrap();
        for news in [News::Changed, News::Changed, News::Stopping, News::Changed] {
            mailbox.put(Message::News(news));
        }
        assert!(mailbox.is_full());
        mailbox.hush();
        let said: Vec<_> = mailbox.take().iter().map(|message| format!("{message:?}")).collect();
        assert_eq!(said, ["News(Changed)", "News(Stopping)", "News(Changed)"]);
        assert!(!mailbox.is_full());
    }

    #[test]
    fn news_reach_all_but_the_speaker_until_they_leave() {
        let post = Post::default();
        let (one, two) = (Mailbox::new().unwrap(), Mailbox::new().unwrap());
        post.join(&one);
        post.tell(News::Stopping, None);
        post.join(&two);
        post.tell(News::Changed, Some(&one));
        assert_eq!((one.take().len(), two.take().len()), (1, 2));
        post.leave(&two);
        post.quit();
        assert_eq!((one.take().len(), two.take().len()), (1, 0));
    }
}
