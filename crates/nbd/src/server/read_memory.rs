//! Memory for the data of reads and block status, given to the requests of a connection in turn.

use std::collections::VecDeque;

use export::{Account, Buffer};

use super::MAX_READ_MEMORY;

/// Memory for data to be sent, and the requests that wait for it.
#[derive(Debug)]
pub(super) struct ReadMemory {
    account: Account,
    /// The slots that wait, in order.
    starved: VecDeque<u8>,
}

impl ReadMemory {
    pub(super) fn new(account: Account) -> Self {
        Self { account, starved: VecDeque::new() }
    }

    /// Allocates memory for a piece of slot `at`. Returns `None` while other requests wait, to
    /// prevent starvation, and while too much read data waits to be sent.
    pub(super) fn take(&self, at: u8, len: usize) -> Option<Buffer> {
        let turn = self.starved.front().is_none_or(|&first| first == at);
        if turn && self.account.held() < MAX_READ_MEMORY { self.account.take(len) } else { None }
    }

    /// Queues slot `at`, unless it waits already.
    pub(super) fn wait(&mut self, at: u8) {
        if !self.starved.contains(&at) {
            self.starved.push_back(at);
        }
    }

    /// Returns the slot that waits for the longest time.
    pub(super) fn first(&self) -> Option<u8> {
        self.starved.front().copied()
    }

    /// Removes slot `at` from the head of the queue, and queues it again if it needs memory for
    /// `more` pieces. Does nothing if another slot is at the head.
    pub(super) fn rotate(&mut self, at: u8, more: bool) {
        if self.starved.pop_front_if(|first| *first == at).is_some() && more {
            self.starved.push_back(at);
        }
    }

    /// Removes a slot from the queue.
    pub(super) fn forget(&mut self, at: u8) {
        self.starved.retain(|&other| other != at);
    }
}
