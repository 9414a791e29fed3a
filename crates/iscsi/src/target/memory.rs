//! Memory for data, given to the commands of a session in turn.

use std::collections::VecDeque;

use export::{Account, Buffer, Purpose};

use super::MAX_MEMORY;

/// The accounts of a session, and the commands that wait for memory.
#[derive(Debug)]
pub(super) struct Memory {
    /// For reads, and for data that is requested by R2T.
    transfer: Account,
    /// For data that follows its command. A separate account: a command that waits for it stops
    /// reception, and must not wait for what the peer has to receive first.
    stream: Account,
    /// For the second buffer of a command, created with the first one.
    second: Option<Account>,
    /// The slots that wait, in order.
    starved: VecDeque<u8>,
}

impl Memory {
    pub(super) fn new(account: &Account) -> Self {
        let stream = account.sibling(Purpose::Stream);
        Self { transfer: account.clone(), stream, second: None, starved: VecDeque::new() }
    }

    /// Allocates memory for a transfer of slot `at`, which waits in line if there is none. Returns
    /// `None` while other commands wait, to prevent starvation, and while too much is in use.
    pub(super) fn take(&mut self, at: u8, len: usize) -> Option<Buffer> {
        let turn = self.starved.front().is_none_or(|&first| first == at);
        let may = turn && self.transfer.held() < MAX_MEMORY;
        let buffer = if may { self.transfer.take(len) } else { None };
        if buffer.is_none() {
            self.wait(at);
        }
        buffer
    }

    /// Allocates memory for data that follows its command.
    pub(super) fn take_for_stream(&self, len: usize) -> Option<Buffer> {
        self.stream.take(len)
    }

    /// Allocates memory for a command in slot `at` that holds some already.
    pub(super) fn take_second(&mut self, at: u8, len: usize) -> Option<Buffer> {
        let sibling = || self.transfer.sibling(Purpose::SecondPhase);
        let buffer = self.second.get_or_insert_with(sibling).take(len);
        if buffer.is_none() {
            self.wait(at);
        }
        buffer
    }

    fn wait(&mut self, at: u8) {
        if !self.starved.contains(&at) {
            self.starved.push_back(at);
        }
    }

    /// Takes all slots that wait, in order.
    pub(super) fn take_starved(&mut self) -> VecDeque<u8> {
        std::mem::take(&mut self.starved)
    }

    /// Returns whether a command waits.
    pub(super) fn is_short(&self) -> bool {
        !self.starved.is_empty()
    }

    /// Puts slots into line again, behind those that wait.
    pub(super) fn wait_behind(&mut self, slots: VecDeque<u8>) {
        slots.into_iter().for_each(|at| self.wait(at));
    }

    /// Removes a slot from the line.
    pub(super) fn forget(&mut self, at: u8) {
        self.starved.retain(|&other| other != at);
    }
}
