//! A ring for a thread whose connection has files that the ring cannot wait for, so that it makes
//! system calls itself: disk requests, and transfers beside them.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use export::{Admitted, Export, Fault, Finished};
use rustix::io::Errno;

use super::blocking_pool::BlockingPool;
use super::files::FixedFile;
use super::ring::{Done, Ring};
use super::slots::Key;
use super::turn::{LastDisk, Turn};
use crate::Sink;
use crate::disk::{Answer, Job, Mappings};
use crate::inbox::{Inbox, Message};
use crate::incoming::Incoming;
use crate::outgoing::Outgoing;
use crate::topic::Changes;

/// Most requests of ended sessions that may be in flight to a disk. With more, new ones fail: the disk
/// does not respond, and its requests hold memory.
const MAX_ABANDONED: usize = 6;

/// The ring, and the requests in flight.
pub(crate) struct DiskQueue {
    turn: Turn,
    last: LastDisk,
    /// Number of the current session.
    session: u64,
    /// The disk of each request in flight, and the number of its session.
    in_flight: Vec<(u64, Weak<Export>)>,
    /// The file that is received from.
    source: Option<Rc<FixedFile>>,
    is_receiving: bool,
    received: Option<(Box<Incoming>, Result<usize, Errno>)>,
    /// The file that is sent to.
    target: Option<Rc<FixedFile>>,
    is_sending: bool,
    sent: Option<(Box<Outgoing>, Result<usize, Errno>)>,
}

/// How long [`DiskQueue::close`] waits for what is in flight.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

impl DiskQueue {
    /// Opens a ring for this thread.
    ///
    /// # Errors
    /// As for [`Ring::open`].
    pub(crate) fn open(inbox: Arc<Inbox>, sink: Sink) -> io::Result<Self> {
        let mut ring = Ring::open(inbox.clone())?;
        ring.arm_wake();
        let blocking_pool = BlockingPool::new(inbox.clone());
        // The data is sent by system calls, which a mapping must not be passed to.
        let (mappings, now, changes) = (Mappings::none(), Instant::now(), Changes::default());
        let turn = Turn { ring, inbox, blocking_pool, mappings, now, changes, sink };
        Ok(Self {
            turn,
            last: LastDisk::default(),
            session: 0,
            in_flight: Vec::new(),
            source: None,
            is_receiving: false,
            received: None,
            target: None,
            is_sending: false,
            sent: None,
        })
    }

    /// As [`Ring::breaker`].
    #[cfg(test)]
    pub(crate) fn breaker(&self) -> impl FnOnce() + Send + use<> {
        self.turn.ring.breaker()
    }

    /// Returns the inbox of the thread.
    pub(crate) fn inbox(&self) -> &Arc<Inbox> {
        &self.turn.inbox
    }

    /// Starts a disk request of the current session. Returns it if it is complete.
    pub(crate) fn submit(&mut self, admitted: Admitted) -> Option<Finished> {
        let export = admitted.export().clone();
        let mut job = Job::new(admitted);
        if self.abandoned(&export) >= MAX_ABANDONED {
            job.refuse(Fault::Io);
        }
        let owner = Key::from_number(self.session);
        let done = self.turn.submit(owner, &mut self.last, job);
        if done.is_none() {
            self.in_flight.push((self.session, Arc::downgrade(&export)));
        }
        done.map(Job::finish)
    }

    /// Returns the number of requests of ended sessions that are in flight to a disk.
    fn abandoned(&self, export: &Arc<Export>) -> usize {
        let is_abandoned = |(session, disk): &&(u64, Weak<Export>)| {
            *session != self.session && ptr::eq(disk.as_ptr(), Arc::as_ptr(export))
        };
        self.in_flight.iter().filter(is_abandoned).count()
    }

    /// Returns the next completed request, and whether it is of the current session.
    pub(crate) fn next(&mut self) -> Option<(bool, Finished)> {
        while let Some(done) = self.turn.ring.reap() {
            match done {
                Done::Disk(owner, job) => {
                    let resumed = self.turn.resume(owner, &mut self.last, job);
                    if let Some(done) = resumed {
                        return Some(self.complete(owner, done));
                    }
                }
                Done::Incoming(incoming, result) => {
                    (self.is_receiving, self.received) = (false, Some((incoming, result)));
                }
                Done::Outgoing(outgoing, result) => {
                    (self.is_sending, self.sent) = (false, Some((outgoing, result)));
                }
                Done::Wake => self.turn.ring.arm_wake(),
                Done::Received(..) | Done::Sent(..) => {}
            }
        }
        None
    }

    /// Returns the request whose blocking operation is complete, as [`DiskQueue::next`] does.
    pub(crate) fn answer(&mut self, number: u64, answer: Answer) -> Option<(bool, Finished)> {
        let (owner, mut job) = self.turn.blocking_pool.take_back(number)?;
        job.answer(answer);
        let done = self.turn.resume(owner, &mut self.last, job)?;
        Some(self.complete(owner, done))
    }

    fn complete(&mut self, owner: Key, job: Job) -> (bool, Finished) {
        let disk = Arc::as_ptr(job.admitted().export());
        let is_it = |(session, export): &(u64, Weak<Export>)| {
            *session == owner.number() && ptr::eq(export.as_ptr(), disk)
        };
        if let Some(at) = self.in_flight.iter().position(is_it) {
            self.in_flight.swap_remove(at);
        }
        (owner.number() == self.session, job.finish())
    }

    /// Starts to receive the next part of a transfer from `source`, which is the same file until
    /// [`DiskQueue::release`].
    ///
    /// # Errors
    /// Returns the memory if the file table is full.
    pub(crate) fn receive(
        &mut self,
        source: BorrowedFd<'_>,
        incoming: Box<Incoming>,
    ) -> Result<(), Box<Incoming>> {
        if self.source.is_none() {
            self.source = self.turn.ring.put(source).ok();
        }
        let Some(file) = &self.source else { return Err(incoming) };
        self.turn.ring.receive_part(incoming, file.clone());
        self.is_receiving = true;
        Ok(())
    }

    /// Returns the memory of a part that was received, and the result.
    pub(crate) fn take_received(&mut self) -> Option<(Box<Incoming>, Result<usize, Errno>)> {
        self.received.take()
    }

    /// Returns whether a part is being received, or was and is not taken.
    pub(crate) fn is_receiving(&self) -> bool {
        self.is_receiving || self.received.is_some()
    }

    /// Starts to send the next part of a message to `target`, which is the same file until
    /// [`DiskQueue::release`]. [`DiskQueue::take_sent`] returns it.
    ///
    /// # Errors
    /// Returns the message if the file table is full, or one of a session that has panicked is being sent.
    pub(crate) fn send(
        &mut self,
        target: BorrowedFd<'_>,
        outgoing: Box<Outgoing>,
    ) -> Result<(), Box<Outgoing>> {
        if self.target.is_none() {
            self.target = self.turn.ring.put(target).ok();
        }
        let Some(file) = self.target.as_ref().filter(|_| !self.is_sending) else {
            return Err(outgoing);
        };
        (self.is_sending, self.sent) = (true, None);
        self.turn.ring.send_part(outgoing, file.clone());
        Ok(())
    }

    /// Returns the message of which a part was sent, and the result.
    pub(crate) fn take_sent(&mut self) -> Option<(Box<Outgoing>, Result<usize, Errno>)> {
        self.sent.take()
    }

    /// Returns whether requests of ended sessions are in flight.
    pub(crate) fn has_abandoned(&self) -> bool {
        self.in_flight.iter().any(|(session, _)| *session != self.session)
    }

    /// Returns whether requests are in flight.
    pub(crate) fn has_requests(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Submits what was started.
    ///
    /// # Errors
    /// As for [`Ring::enter`].
    pub(crate) fn submit_started(&mut self) -> io::Result<()> {
        if self.turn.ring.has_unsubmitted() { self.turn.ring.enter(None) } else { Ok(()) }
    }

    /// Waits until a request completes, a part is received, or the inbox has a message, for `timeout`
    /// at most.
    ///
    /// # Errors
    /// As for [`Ring::enter`].
    pub(crate) fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.turn.ring.enter(Some(timeout))
    }

    /// Ends the session: its requests in flight are completed for nobody.
    pub(crate) fn abandon(&mut self) {
        self.session += 1;
        self.last = LastDisk::default();
    }

    /// Releases disks that are no longer exported.
    pub(crate) fn release_withdrawn(&mut self) {
        if self.last.release_withdrawn() {
            // An error will recur when there is something to do.
            let _ = self.turn.ring.enter(None);
        }
    }

    /// Releases all files that are not in use.
    pub(crate) fn release(&mut self) {
        (self.last, self.source, self.target) = (LastDisk::default(), None, None);
        // An error will recur when there is something to do.
        let _ = self.turn.ring.enter(None);
    }

    /// Ends the wait for the inbox and releases all files, so that the ring can be dropped. What is still in
    /// flight, as a transfer that the host does not end, keeps its files.
    pub(crate) fn close(&mut self) {
        self.release();
        drop(self.turn.inbox.take());
        self.turn.inbox.push(Message::Quit);
        let until = Instant::now() + CLOSE_TIMEOUT;
        loop {
            match self.turn.ring.reap() {
                Some(Done::Wake) => return self.release(),
                Some(Done::Disk(owner, job)) => {
                    let done = self.turn.resume(owner, &mut self.last, job);
                    done.map(|job| self.complete(owner, job));
                }
                Some(_) => {}
                None if Instant::now() >= until => return,
                None if self.turn.ring.enter(Some(CLOSE_TIMEOUT)).is_err() => return,
                None => {}
            }
        }
    }
}

impl fmt::Debug for DiskQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskQueue({} in flight)", self.in_flight.len())
    }
}

#[cfg(test)]
mod test {
    use std::os::fd::AsFd;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    #[test]
    fn closed_queue_holds_no_file() {
        let Ok(mut queue) = DiskQueue::open(Inbox::new().unwrap(), Arc::new(drop)) else {
            eprintln!("skipped: io_uring is not available");
            return;
        };
        let (ours, theirs) = io::pipe().unwrap();
        // A file that stays in the table, as those of a disk in use.
        let file = queue.turn.ring.put(theirs.as_fd()).unwrap();
        drop(theirs);
        queue.wait(Duration::ZERO).unwrap();
        queue.close();
        drop(queue);
        let tick = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        let mut end = [PollFd::new(&ours, PollFlags::empty())];
        assert_eq!(poll(&mut end, Some(&tick)), Ok(1));
        drop(file);
    }
}
