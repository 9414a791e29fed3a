//! Thread pool for disk requests that io_uring has no operation for. There is one thread per disk,
//! so that a slow disk does not delay others. Only the [`BlockingOp`] is sent to the thread; the
//! request itself is not `Send` and stays here until the operation is complete.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Weak};

use export::Export;

use super::slots::{Key, Slots};
use crate::disk::{BlockingOp, Job};
use crate::inbox::{Inbox, Message};

/// The threads, and the requests in flight on them.
pub(crate) struct BlockingPool {
    inbox: Arc<Inbox>,
    waiting: Slots<(Key, Job)>,
    threads: Vec<DiskThread>,
}

/// A thread, which ends when the sender is dropped.
struct DiskThread {
    disk: Weak<Export>,
    sender: Sender<(u64, BlockingOp)>,
}

impl BlockingPool {
    /// Returns an empty pool. Completions are sent to `inbox`.
    pub(crate) fn new(inbox: Arc<Inbox>) -> Self {
        Self { inbox, waiting: Slots::default(), threads: Vec::new() }
    }

    /// Starts a blocking operation for a request of `connection`. [`BlockingPool::take_back`]
    /// returns the request when it is complete.
    ///
    /// # Errors
    /// Returns the request if no thread can be created.
    pub(crate) fn send(
        &mut self,
        connection: Key,
        job: Job,
        blocking_op: BlockingOp,
    ) -> Result<(), Box<Job>> {
        self.threads.retain(|thread| thread.disk.strong_count() > 0);
        let key = self.waiting.insert((connection, job));
        let thread = self.thread(blocking_op.export());
        if thread.is_some_and(|thread| thread.sender.send((key.number(), blocking_op)).is_ok()) {
            return Ok(());
        }
        self.waiting.remove(key).map_or(Ok(()), |(_, job)| Err(Box::new(job)))
    }

    /// Returns the request of a completed operation, and its connection.
    pub(crate) fn take_back(&mut self, number: u64) -> Option<(Key, Job)> {
        self.waiting.remove(Key::from_number(number))
    }

    fn thread(&mut self, disk: &Arc<Export>) -> Option<&DiskThread> {
        let serves_disk = |thread: &DiskThread| thread.disk.as_ptr() == Arc::as_ptr(disk);
        if !self.threads.iter().any(serves_disk) {
            let sender = start(self.inbox.clone())?;
            self.threads.push(DiskThread { disk: Arc::downgrade(disk), sender });
        }
        self.threads.iter().find(|thread| serves_disk(thread))
    }
}

fn start(inbox: Arc<Inbox>) -> Option<Sender<(u64, BlockingOp)>> {
    let (sender, ops) = mpsc::channel();
    let run = move || run(&ops, &inbox);
    std::thread::Builder::new().name("blocking".to_owned()).spawn(run).ok().map(|_| sender)
}

fn run(ops: &Receiver<(u64, BlockingOp)>, inbox: &Inbox) {
    while let Ok((number, blocking_op)) = ops.recv() {
        let answer = blocking_op.run();
        // Dropped before the completion is reported, so that this thread does not keep the disk
        // open after it.
        drop(blocking_op);
        inbox.push(Message::BlockingOpDone(number, answer));
    }
}
