//! Messages between threads: a queue, and an eventfd that wakes the reader.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use export::{ExportId, Notice};
use rustix::event::EventfdFlags;

use crate::MakeSession;
use crate::disk::Answer;
use crate::link::Link;
use crate::topic::Topic;

/// A message to a thread.
pub(crate) enum Message {
    /// Take over this connection.
    Adopt(Arc<Link>, MakeSession),
    /// Pass this to all sessions.
    Notice(Notice),
    /// Pass `StateChanged` to the sessions that a change of this export concerns.
    ExportChanged(ExportId),
    /// The [`BlockingOp`](crate::disk::BlockingOp) with this number is complete.
    BlockingOpDone(u64, Answer),
    /// Cut all connections and end.
    Quit,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adopt(link, _) => write!(f, "Adopt({link:?})"),
            Self::Notice(notice) => write!(f, "Notice({notice:?})"),
            Self::ExportChanged(id) => write!(f, "ExportChanged({id})"),
            Self::BlockingOpDone(number, _) => write!(f, "BlockingOpDone({number})"),
            Self::Quit => f.write_str("Quit"),
        }
    }
}

/// The message queue of one thread.
#[derive(Debug)]
pub(crate) struct Inbox {
    messages: Mutex<Vec<Message>>,
    /// Whether there are messages. Read by a polling reader without a lock or a system call.
    has_messages: AtomicBool,
    /// eventfd, written when the queue becomes non-empty and cleared by the reader. Reads of it
    /// block, which io_uring needs in order to wait for it.
    wake_fd: OwnedFd,
    /// The export of the only session of this thread. Unset for a thread with any number of
    /// sessions, and while the session uses none.
    export: OnceLock<ExportId>,
}

impl Inbox {
    /// Returns an empty inbox.
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        let wake_fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Arc::new(Self {
            messages: Mutex::default(),
            has_messages: AtomicBool::new(false),
            wake_fd,
            export: OnceLock::new(),
        }))
    }

    /// Sets the export of the only session of this thread. Only changes that concern it are sent from
    /// now on.
    pub(crate) fn set_export(&self, export: &ExportId) {
        self.export.get_or_init(|| export.clone());
    }

    /// Returns it.
    pub(crate) fn export(&self) -> Option<&ExportId> {
        self.export.get()
    }

    /// Adds a message and wakes the reader.
    pub(crate) fn push(&self, message: Message) {
        let mut messages = lock(&self.messages);
        if !is_repeated(&messages, &message) {
            messages.push(message);
        }
        let had_messages = self.has_messages.swap(true, Ordering::AcqRel);
        drop(messages);
        if !had_messages {
            // Fails only if the counter would overflow, and then the reader is woken anyway.
            let _ = rustix::io::write(&self.wake_fd, &1u64.to_ne_bytes());
        }
    }

    /// Returns whether there are messages.
    pub(crate) fn has_messages(&self) -> bool {
        self.has_messages.load(Ordering::Acquire)
    }

    /// Removes and returns all messages, in order.
    pub(crate) fn take(&self) -> Vec<Message> {
        let mut messages = lock(&self.messages);
        self.has_messages.store(false, Ordering::Release);
        std::mem::take(&mut messages)
    }

    /// Clears the wake-up. Blocks if there was none.
    pub(crate) fn clear_wake(&self) {
        let _ = rustix::io::read(&self.wake_fd, &mut [0u8; 8]);
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake_fd.as_fd()
    }
}

/// Returns whether `message` repeats one since the last `Stopping`. Changes are idempotent; without
/// this check, a reader that is slow would let the queue grow without limit.
fn is_repeated(messages: &[Message], message: &Message) -> bool {
    let is_same: &dyn Fn(&Message) -> bool = match message {
        Message::Notice(Notice::StateChanged) => {
            &|other| matches!(other, Message::Notice(Notice::StateChanged))
        }
        Message::ExportChanged(id) => {
            &move |other| matches!(other, Message::ExportChanged(other) if other == id)
        }
        _ => return false,
    };
    let is_stopping = |other: &Message| matches!(other, Message::Notice(Notice::Stopping));
    messages.iter().rev().take_while(|other| !is_stopping(other)).any(is_same)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The inboxes that notices are sent to.
#[derive(Debug, Default)]
pub(crate) struct Inboxes(Mutex<Registered>);

#[derive(Debug, Default)]
struct Registered {
    all: Vec<Arc<Inbox>>,
    stopping: bool,
    quitting: bool,
}

impl Inboxes {
    /// Adds an inbox. It immediately receives `Stopping` and `Quit` if they were sent before.
    pub(crate) fn register(&self, inbox: &Arc<Inbox>) {
        let mut registered = lock(&self.0);
        registered.all.push(inbox.clone());
        if registered.stopping {
            inbox.push(Message::Notice(Notice::Stopping));
        }
        if registered.quitting {
            inbox.push(Message::Quit);
        }
    }

    /// Removes an inbox.
    pub(crate) fn unregister(&self, inbox: &Arc<Inbox>) {
        lock(&self.0).all.retain(|other| !Arc::ptr_eq(other, inbox));
    }

    /// Sends `notice` to all inboxes except `own`.
    pub(crate) fn notify(&self, notice: Notice, own: Option<&Arc<Inbox>>) {
        let mut registered = lock(&self.0);
        registered.stopping |= notice == Notice::Stopping;
        let is_own = |other: &&Arc<Inbox>| own.is_some_and(|own| Arc::ptr_eq(other, own));
        let others = registered.all.iter().filter(|other| !is_own(other));
        others.for_each(|other| other.push(Message::Notice(notice)));
    }

    /// Sends a change to all inboxes of sessions that it may concern, except `own`.
    pub(crate) fn changed(&self, topic: &Topic, own: Option<&Arc<Inbox>>) {
        let Topic::Export(id) = topic else { return self.notify(Notice::StateChanged, own) };
        let registered = lock(&self.0);
        let is_own = |other: &Arc<Inbox>| own.is_some_and(|own| Arc::ptr_eq(other, own));
        let concerned =
            registered.all.iter().filter(|other| !is_own(other) && topic.concerns(other.export()));
        concerned.for_each(|other| other.push(Message::ExportChanged(id.clone())));
    }

    /// Sends `Quit` to all inboxes.
    pub(crate) fn quit(&self) {
        let mut registered = lock(&self.0);
        registered.quitting = true;
        registered.all.iter().for_each(|inbox| inbox.push(Message::Quit));
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn repeated_notices_are_merged_and_order_is_kept() {
        let inbox = Inbox::new().unwrap();
        for notice in
            [Notice::StateChanged, Notice::StateChanged, Notice::Stopping, Notice::StateChanged]
        {
            inbox.push(Message::Notice(notice));
        }
        assert!(inbox.has_messages());
        inbox.clear_wake();
        let messages: Vec<_> = inbox.take().iter().map(|message| format!("{message:?}")).collect();
        assert_eq!(messages, ["Notice(StateChanged)", "Notice(Stopping)", "Notice(StateChanged)"]);
        assert!(!inbox.has_messages());
    }

    #[test]
    fn notices_reach_all_registered_inboxes_but_the_senders() {
        let inboxes = Inboxes::default();
        let (one, two) = (Inbox::new().unwrap(), Inbox::new().unwrap());
        inboxes.register(&one);
        inboxes.notify(Notice::Stopping, None);
        inboxes.register(&two);
        inboxes.notify(Notice::StateChanged, Some(&one));
        assert_eq!((one.take().len(), two.take().len()), (1, 2));
        inboxes.unregister(&two);
        inboxes.quit();
        assert_eq!((one.take().len(), two.take().len()), (1, 0));
    }

    #[test]
    fn change_of_an_export_reaches_only_inboxes_that_it_concerns() {
        let inboxes = Inboxes::default();
        let all: Vec<_> = (0..3).map(|_| Inbox::new().unwrap()).collect();
        all.iter().for_each(|inbox| inboxes.register(inbox));
        all[1].set_export(&"a".into());
        all[2].set_export(&"b".into());
        // However often they alternate, each is there once.
        for _ in 0..3 {
            inboxes.changed(&Topic::Export("a".into()), None);
            inboxes.changed(&Topic::Export("c".into()), None);
        }
        assert!(!all[2].has_messages());
        assert_eq!([0, 1, 2].map(|at| all[at].take().len()), [2, 1, 0]);
        inboxes.changed(&Topic::All, None);
        assert_eq!([0, 1, 2].map(|at| all[at].take().len()), [1, 1, 1]);
    }
}
