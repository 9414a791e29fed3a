//! Disks that are added while the program runs. Each is opened on a thread: the loop must not wait
//! for a disk that does not answer.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use daemon::inbox::Inbox;
use daemon::lend::{LendOptions, LendRequest, LentDisk};
use failure::{Failure, spawn_error};

use super::config::ServeConfig;
use super::disks::open_one;

/// Disks that are opened at a time.
const MAX_OPENING: usize = 4;

/// Identifies a disk that is being opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// An opened disk, or why it cannot be exported.
pub(super) type Opened = (Ticket, Result<LentDisk, Failure>);

/// Disks that are being opened.
#[derive(Debug)]
pub(super) struct Additions {
    lend: LendOptions,
    any_format: bool,
    opening: usize,
    next: u64,
    sender: Sender<Opened>,
    receiver: Receiver<Opened>,
    /// Wakes the loop.
    inbox: Inbox,
}

impl Additions {
    pub(super) fn new(config: &ServeConfig, inbox: &Inbox) -> Self {
        let (sender, receiver) = channel();
        Self {
            lend: config.lend.clone(),
            any_format: config.any_format,
            opening: 0,
            next: 0,
            sender,
            receiver,
            inbox: inbox.clone(),
        }
    }

    /// Starts to open a disk. Returns `None` if too many are being opened.
    ///
    /// # Errors
    /// Fails if no thread can be started.
    pub(super) fn open(&mut self, request: LendRequest) -> Result<Option<Ticket>, Failure> {
        if self.opening >= MAX_OPENING {
            return Ok(None);
        }
        let ticket = Ticket(self.next);
        let (lend, any_format) = (self.lend.clone(), self.any_format);
        let (sender, inbox) = (self.sender.clone(), self.inbox.clone());
        let open = move || {
            let _ = sender.send((ticket, open_one(&lend, any_format, request)));
            inbox.wake();
        };
        let thread = thread::Builder::new().name("add".to_owned()).spawn(open);
        thread.map_err(|error| Failure::new(spawn_error(&error)))?;
        self.opening += 1;
        self.next += 1;
        Ok(Some(ticket))
    }

    /// Returns the disks that have been opened.
    pub(super) fn take(&mut self) -> Vec<Opened> {
        let opened: Vec<Opened> = self.receiver.try_iter().collect();
        self.opening = self.opening.saturating_sub(opened.len());
        opened
    }
}
