//! A ring for a thread whose connection has files that the ring cannot wait for, so that it makes
//! system calls itself: disk requests, and receives beside them.

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
use crate::inbox::Inbox;
use crate::incoming::Incoming;
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
}

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
        })
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
                    let resumed = self.turn.resume(owner, job);
                    if let Some(done) = resumed {
                        return Some(self.complete(owner, done));
                    }
                }
                Done::Incoming(incoming, result) => {
                    (self.is_receiving, self.received) = (false, Some((incoming, result)));
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
        let done = self.turn.resume(owner, job)?;
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
        self.last.release_withdrawn();
    }

    /// Releases all files that are not in use.
    pub(crate) fn release(&mut self) {
        (self.last, self.source) = (LastDisk::default(), None);
        // An error will recur when there is something to do.
        let _ = self.turn.ring.enter(None);
    }
}

impl fmt::Debug for DiskQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskQueue({} in flight)", self.in_flight.len())
    }
}
