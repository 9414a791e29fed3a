//! State that the connections of a worker thread share during a turn of its event loop.

use std::io;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Instant;

use export::{Export, Fault};

use super::blocking_pool::BlockingPool;
use super::files::FixedFile;
use super::ring::Ring;
use super::slots::Key;
use crate::Sink;
use crate::disk::{Job, Mappings, Pace};
use crate::inbox::Inbox;
use crate::topic::Changes;

/// The shared state.
pub(crate) struct Turn {
    pub(crate) ring: Ring,
    /// The inbox of this thread.
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) blocking_pool: BlockingPool,
    pub(crate) mappings: Mappings,
    /// The time at which the turn began.
    pub(crate) now: Instant,
    /// Changes of shared state to notify sessions of.
    pub(crate) changes: Changes,
    pub(crate) sink: Sink,
}

/// The disk that a session used last.
#[derive(Debug, Default)]
pub(crate) struct LastDisk {
    /// Whether it completes requests immediately.
    pace: Pace,
    /// The indices of its files in the file table. Keeps the files in the table, until the export is
    /// gone.
    files: Option<(Weak<Export>, Rc<[FixedFile]>)>,
}

impl LastDisk {
    /// Releases the disk if it is no longer exported. Returns whether it has released files, which the
    /// next [`Ring::enter`] removes from the table.
    pub(crate) fn release_withdrawn(&mut self) -> bool {
        self.pace.release_withdrawn();
        let is_gone = |disk: &Weak<Export>| disk.upgrade().is_none_or(|disk| disk.is_gone());
        self.files.take_if(|(disk, _)| is_gone(disk)).is_some()
    }

    /// Returns the indices of the files of the request's disk in the file table.
    fn files(&mut self, ring: &mut Ring, job: &Job) -> io::Result<Rc<[FixedFile]>> {
        let export = job.admitted().export();
        if let Some((known, files)) = &self.files
            && known.as_ptr() == Arc::as_ptr(export)
        {
            return Ok(files.clone());
        }
        let files = ring.put_disk(export)?;
        self.files = Some((Arc::downgrade(export), files.clone()));
        Ok(files)
    }
}

impl Turn {
    /// Starts a disk request of `owner`, whose `last` disk was that. Returns the request if it is
    /// complete: executed at once, or refused.
    pub(crate) fn submit(&mut self, owner: Key, last: &mut LastDisk, mut job: Job) -> Option<Job> {
        if job.result().is_none() {
            last.pace.run_at_once(&mut job, &mut self.mappings);
        }
        self.resume(owner, last, job)
    }

    /// Continues a request of `owner` that is not in flight. Returns it if it is complete.
    pub(crate) fn resume(&mut self, owner: Key, last: &mut LastDisk, mut job: Job) -> Option<Job> {
        if job.result().is_some() {
            return Some(job);
        }
        if let Some(blocking_op) = job.blocking_op() {
            let mut job = *self.blocking_pool.send(owner, job, blocking_op).err()?;
            job.refuse(Fault::Io);
            return Some(job);
        }
        match last.files(&mut self.ring, &job) {
            Ok(files) => self.ring.carry_out(owner, job, files),
            // The file table is full.
            Err(_) => {
                job.refuse(Fault::Io);
                return Some(job);
            }
        }
        None
    }
}
