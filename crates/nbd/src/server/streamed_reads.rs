//! Reads whose simple reply is sent in several pieces. The reply has one header, followed by the
//! data in order, and no other reply may be sent in between (NBD, Simple reply). Therefore only one
//! such read is active at a time, with its own memory, and other replies wait until it is sent.

use std::collections::VecDeque;

use export::{Account, Buffer, Purpose};

use super::{MAX_PIECES_IN_FLIGHT, PIECE};

/// The streamed reads of a connection.
#[derive(Debug)]
pub(super) struct StreamedReads {
    /// The connection's account.
    account: Account,
    /// Memory for streamed reads, created with the first one. A separate account: the streamed read
    /// must not wait for replies that are delayed until it ends.
    memory: Option<Account>,
    active: Option<Box<StreamedRead>>,
    /// Slots waiting for the active one.
    queue: VecDeque<u8>,
}

/// The active streamed read.
#[derive(Debug)]
struct StreamedRead {
    at: u8,
    account: Account,
    /// Pieces completed before earlier ones.
    out_of_order: [Option<Buffer>; MAX_PIECES_IN_FLIGHT as usize],
    /// The next piece to send.
    next: u32,
}

impl StreamedRead {
    /// Returns whether its header has been sent.
    fn has_begun(&self) -> bool {
        self.next != 0
    }

    fn place(&mut self, piece: u32) -> Option<&mut Option<Buffer>> {
        self.out_of_order.get_mut((piece % u32::from(MAX_PIECES_IN_FLIGHT)) as usize)
    }
}

impl StreamedReads {
    pub(super) fn new(account: Account) -> Self {
        Self { account, memory: None, active: None, queue: VecDeque::new() }
    }

    /// Queues the read in slot `at`.
    pub(super) fn push(&mut self, at: u8) {
        self.queue.push_back(at);
    }

    /// Activates the next read. Returns its slot; `None` if another one is active or none waits.
    pub(super) fn activate(&mut self) -> Option<u8> {
        if self.active.is_some() {
            return None;
        }
        let at = self.queue.pop_front()?;
        let sibling = || self.account.sibling(Purpose::SecondPhase);
        let account = self.memory.get_or_insert_with(sibling).clone();
        let out_of_order = Default::default();
        self.active = Some(Box::new(StreamedRead { at, account, out_of_order, next: 0 }));
        Some(at)
    }

    /// Returns the slot of the active read.
    pub(super) fn active(&self) -> Option<u8> {
        self.active.as_ref().map(|read| read.at)
    }

    /// Returns whether the header of the active read's reply has been sent.
    pub(super) fn has_begun(&self) -> bool {
        self.active.as_ref().is_some_and(|read| read.has_begun())
    }

    /// Allocates memory for a piece of the active read if it is one of the next
    /// [`MAX_PIECES_IN_FLIGHT`].
    pub(super) fn take(&self, piece: u32, len: usize) -> Option<Buffer> {
        let read = self.active.as_ref()?;
        let near = piece.saturating_sub(read.next) < u32::from(MAX_PIECES_IN_FLIGHT);
        let little = (read.account.held() as u64) < u64::from(MAX_PIECES_IN_FLIGHT) * PIECE;
        if near && little { read.account.take(len) } else { None }
    }

    /// Stores a completed piece of the active read.
    pub(super) fn store(&mut self, piece: u32, buffer: Buffer) {
        if let Some(place) = self.active.as_mut().and_then(|read| read.place(piece)) {
            *place = Some(buffer);
        }
    }

    /// Removes the piece to be sent next, if it has completed. Returns its number and its data.
    pub(super) fn next_piece(&mut self) -> Option<(u32, Buffer)> {
        let read = self.active.as_mut()?;
        let piece = read.next;
        let buffer = read.place(piece).and_then(Option::take)?;
        read.next += 1;
        Some((piece, buffer))
    }

    /// Removes the active or a queued read. Returns whether the header of its reply has been sent.
    pub(super) fn end(&mut self, at: u8) -> bool {
        self.queue.retain(|&other| other != at);
        self.active.take_if(|read| read.at == at).is_some_and(|read| read.has_begun())
    }
}
