//! Messages between threads: a queue, and an eventfd that wakes the reader.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use export::{ExportId, Fence, Notice};
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
    /// The number of sessions of this thread that use each export, and of those that use none yet.
    sessions: Mutex<HashMap<Option<ExportId>, usize>>,
}

impl Inbox {
    /// Returns an empty inbox.
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        let wake_fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Arc::new(Self {
            messages: Mutex::default(),
            has_messages: AtomicBool::new(false),
            wake_fd,
            sessions: Mutex::default(),
        }))
    }

    /// Adds a session of this thread. To be called before it is created, so that it misses no change.
    pub(crate) fn add_session(&self) {
        *lock(&self.sessions).entry(None).or_default() += 1;
    }

    /// Marks the connection of a session as established, with [`Link::set_established`]. Once the
    /// session uses an export, it is notified only of changes that concern that.
    pub(crate) fn set_established(&self, link: &Link, fence: Option<&Arc<Fence>>) {
        let is_new = link.export().is_none();
        link.set_established(fence);
        if let Some(export) = link.export().filter(|_| is_new) {
            let mut sessions = lock(&self.sessions);
            *sessions.entry(Some(export.clone())).or_default() += 1;
            remove(&mut sessions, None);
        }
    }

    /// Removes a session of this thread, which used `export`.
    pub(crate) fn remove_session(&self, export: Option<&ExportId>) {
        remove(&mut lock(&self.sessions), export.cloned());
    }

    /// Returns whether a change concerns a session of this thread.
    fn is_concerned(&self, topic: &Topic) -> bool {
        lock(&self.sessions).keys().any(|export| topic.concerns(export.as_ref()))
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

/// Removes one session that uses `export`.
fn remove(sessions: &mut HashMap<Option<ExportId>, usize>, export: Option<ExportId>) {
    if let Entry::Occupied(mut count) = sessions.entry(export) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
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
            registered.all.iter().filter(|other| !is_own(other) && other.is_concerned(topic));
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
    use std::os::unix::net::UnixStream;

    use export::{Auth, Export, Geometry, Grant, Identity, Peer};

    use super::*;
    use crate::link::{Bounds, ConnectionTable};

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
        let bounds = Bounds { total: 8, unestablished: 8 };
        let (inboxes, table) = (Inboxes::default(), ConnectionTable::new(bounds));
        let all: Vec<_> = (0..4).map(|_| Inbox::new().unwrap()).collect();
        all.iter().for_each(|inbox| inboxes.register(inbox));
        let uses = |at: usize, id: &str| {
            let (socket, _) = UnixStream::pair().unwrap();
            let link = table.insert(socket.into(), Peer::unix(Auth::None)).unwrap();
            let disk = std::fs::File::open("/dev/null").unwrap().into();
            let geometry = Geometry::new(512, 512).unwrap();
            let export = Export::new("d", id, Identity::default(), geometry, 512, disk);
            let grant = Grant::new(Arc::new(export));
            all[at].add_session();
            (0..2).for_each(|_| all[at].set_established(&link, Some(grant.fence())));
        };
        let reached = |topic: &Topic| {
            // However often they alternate, each is there once.
            (0..3).for_each(|_| inboxes.changed(topic, None));
            [0, 1, 2, 3].map(|at| all[at].take().len())
        };
        all[0].add_session();
        uses(1, "a");
        uses(2, "b");
        assert_eq!(reached(&Topic::Export("a".into())), [1, 1, 0, 0]);
        assert_eq!(reached(&Topic::Export("c".into())), [1, 0, 0, 0]);
        assert_eq!(reached(&Topic::All), [1, 1, 1, 1]);
        uses(2, "a");
        uses(2, "a");
        all[2].remove_session(Some(&"a".into()));
        assert_eq!(reached(&Topic::Export("a".into())), [1, 1, 1, 0]);
        all[2].remove_session(Some(&"a".into()));
        all[0].remove_session(None);
        assert_eq!(reached(&Topic::Export("a".into())), [0, 1, 0, 0]);
        assert_eq!(reached(&Topic::Export("b".into())), [0, 0, 1, 0]);
    }
}
