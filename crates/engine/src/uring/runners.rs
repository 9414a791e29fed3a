//! Threads beside a ring's, for what no ring does: one for each disk, so that a slow one delays no other. They are given an
//! errand, which may travel; the request that it is of, which may not, stays here until it is run.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Weak};

use export::Export;

use super::slots::{Key, Slots};
use crate::disk::Job;
use crate::errand::Errand;
use crate::mailbox::{Mailbox, Message};

/// The threads, and the requests whose errands they run.
pub(crate) struct Runners {
    mailbox: Arc<Mailbox>,
    waiting: Slots<(Key, Job)>,
    threads: Vec<Runner>,
}

/// A thread, which ends when this is dropped.
struct Runner {
    disk: Weak<Export>,
    errands: Sender<(u64, Errand)>,
}

impl Runners {
    /// None yet; what they have run is told to `mailbox`.
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox, waiting: Slots::default(), threads: Vec::new() }
    }

    /// Has an errand run for a request of the connection `owner`, which [`Runners::take_back`] gives back.
    ///
    /// # Errors
    /// There is no thread to be had; the request comes back at once.
    pub(crate) fn send(&mut self, owner: Key, job: Job, errand: Errand) -> Result<(), Job> {
        self.threads.retain(|thread| thread.disk.strong_count() > 0);
        let key = self.waiting.insert((owner, job));
        let thread = self.thread(errand.export());
        if thread.is_some_and(|thread| thread.errands.send((key.number(), errand)).is_ok()) {
            return Ok(());
        }
        self.waiting.remove(key).map_or(Ok(()), |(_, job)| Err(job))
    }

    /// The request whose errand has that number, and its connection.
    pub(crate) fn take_back(&mut self, number: u64) -> Option<(Key, Job)> {
        self.waiting.remove(Key::from_number(number))
    }

    fn thread(&mut self, disk: &Arc<Export>) -> Option<&Runner> {
        let of_it = |thread: &Runner| thread.disk.as_ptr() == Arc::as_ptr(disk);
        if !self.threads.iter().any(of_it) {
            let errands = start(self.mailbox.clone())?;
            self.threads.push(Runner { disk: Arc::downgrade(disk), errands });
        }
        self.threads.iter().find(|thread| of_it(thread))
    }
}

fn start(mailbox: Arc<Mailbox>) -> Option<Sender<(u64, Errand)>> {
    let (way, errands) = mpsc::channel();
    let run = move || run(&errands, &mailbox);
    std::thread::Builder::new().name("errands".to_owned()).spawn(run).ok().map(|_| way)
}

fn run(errands: &Receiver<(u64, Errand)>, mailbox: &Mailbox) {
    while let Ok((number, errand)) = errands.recv() {
        let answer = errand.run();
        // Not kept open by this thread while the request is over.
        drop(errand);
        mailbox.put(Message::Ran(number, answer));
    }
}
