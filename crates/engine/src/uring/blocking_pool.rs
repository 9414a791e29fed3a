//! Threads beside a ring's, for what no ring does: one for each disk, so that a slow one delays no other. They are given an
//! blocking_op, which may travel; the request that it is of, which may not, stays here until it is run.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Weak};

use export::Export;

use super::slots::{Key, Slots};
use crate::blocking_op::BlockingOp;
use crate::disk::Job;
use crate::inbox::{Inbox, Message};

/// The threads, and the requests whose sender they run.
pub(crate) struct BlockingPool {
    inbox: Arc<Inbox>,
    waiting: Slots<(Key, Job)>,
    threads: Vec<DiskThread>,
}

/// A thread, which ends when this is dropped.
struct DiskThread {
    disk: Weak<Export>,
    sender: Sender<(u64, BlockingOp)>,
}

impl BlockingPool {
    /// None yet; what they have run is told to `inbox`.
    pub(crate) fn new(inbox: Arc<Inbox>) -> Self {
        Self { inbox, waiting: Slots::default(), threads: Vec::new() }
    }

    /// Has an blocking_op run for a request of the connection `owner`, which [`BlockingPool::take_back`] gives back.
    ///
    /// # Errors
    /// There is no thread to be had; the request comes back at once.
    pub(crate) fn send(
        &mut self,
        owner: Key,
        job: Job,
        blocking_op: BlockingOp,
    ) -> Result<(), Job> {
        self.threads.retain(|thread| thread.disk.strong_count() > 0);
        let key = self.waiting.insert((owner, job));
        let thread = self.thread(blocking_op.export());
        if thread.is_some_and(|thread| thread.sender.send((key.number(), blocking_op)).is_ok()) {
            return Ok(());
        }
        self.waiting.remove(key).map_or(Ok(()), |(_, job)| Err(job))
    }

    /// The request whose blocking_op has that number, and its connection.
    pub(crate) fn take_back(&mut self, number: u64) -> Option<(Key, Job)> {
        self.waiting.remove(Key::from_number(number))
    }

    fn thread(&mut self, disk: &Arc<Export>) -> Option<&DiskThread> {
        let of_it = |thread: &DiskThread| thread.disk.as_ptr() == Arc::as_ptr(disk);
        if !self.threads.iter().any(of_it) {
            let sender = start(self.inbox.clone())?;
            self.threads.push(DiskThread { disk: Arc::downgrade(disk), sender });
        }
        self.threads.iter().find(|thread| of_it(thread))
    }
}

fn start(inbox: Arc<Inbox>) -> Option<Sender<(u64, BlockingOp)>> {
    let (way, sender) = mpsc::channel();
    let run = move || run(&sender, &inbox);
    std::thread::Builder::new().name("sender".to_owned()).spawn(run).ok().map(|_| way)
}

fn run(sender: &Receiver<(u64, BlockingOp)>, inbox: &Inbox) {
    while let Ok((number, blocking_op)) = sender.recv() {
        let answer = blocking_op.run();
        // Not kept open by this thread while the request is over.
        drop(blocking_op);
        inbox.push(Message::BlockingOpDone(number, answer));
    }
}
