//! The requests of a connection in flight, one per slot. A ticket consists of the slot number and
//! the piece number.

use export::{Extent, Fault, Op, PAGE, Ticket};

use super::command::Command;
use super::reply::ReplyTo;
use super::{MAX_IN_FLIGHT, MAX_PIECES_IN_FLIGHT, PIECE, PIECE_WITHOUT_DATA};

/// A request in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    to: ReplyTo,
    /// The requested length.
    len: u64,
    task: Task,
    /// Start of the affected blocks, in bytes.
    first: u64,
    /// End of the affected blocks, in bytes.
    end: u64,
    /// Start of the part not submitted yet.
    next: u64,
    /// Number of pieces submitted and not completed.
    in_flight: u16,
    /// The error of the first failed piece; zero if none failed.
    error: u32,
    /// The error has not been sent yet.
    error_pending: bool,
    /// The payload is still being received.
    receiving: bool,
}

/// What the slot is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    Free,
    /// A command.
    Command(Command),
    /// A read whose simple reply is sent in several pieces.
    StreamedRead,
    /// The flush after a trim with FUA.
    FinalFlush,
}

/// Number of bits of a ticket used for the slot number.
const SLOT_BITS: u32 = 8;

/// The maximum piece number in a ticket.
const LAST_PIECE: u32 = (1 << (32 - SLOT_BITS)) - 1;

impl Task {
    /// Returns how much memory a piece of `len` bytes needs for data to be sent.
    pub(super) fn memory_for(self, len: u64) -> usize {
        match self {
            Self::StreamedRead | Self::Command(Command::Read { .. }) => {
                usize::try_from(len).unwrap_or(usize::MAX)
            }
            Self::Command(Command::Status { one: true }) => Extent::LEN,
            Self::Command(Command::Status { .. }) => PAGE,
            _ => 0,
        }
    }

    /// Ignores that a disk does not support a hint: trim, cache, block status.
    pub(super) fn ignore(self, fault: Fault) -> Result<(), Fault> {
        let hint = matches!(
            self,
            Self::Command(Command::Trim { .. } | Command::Cache | Command::Status { .. })
        );
        if hint && fault == Fault::Unsupported { Ok(()) } else { Err(fault) }
    }
}

impl Slot {
    /// Creates the slot of a request for `len` bytes that affects the blocks `[first, end)`.
    pub(super) fn new(to: ReplyTo, len: u64, task: Task, (first, end): (u64, u64)) -> Self {
        Self {
            to,
            len,
            task,
            first,
            end,
            next: first,
            in_flight: 0,
            error: 0,
            error_pending: false,
            receiving: false,
        }
    }

    fn free() -> Self {
        Self::new(ReplyTo::new(0, 0), 0, Task::Free, (0, 0))
    }

    pub(super) fn reply_to(&self) -> ReplyTo {
        self.to
    }

    /// Returns the requested length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn task(&self) -> Task {
        self.task
    }

    /// Returns the error of the first failed piece; zero if none failed.
    pub(super) fn error(&self) -> u32 {
        self.error
    }

    /// Returns the error that has not been sent yet.
    pub(super) fn pending_error(&self) -> Option<u32> {
        self.error_pending.then_some(self.error)
    }

    /// Returns the requested range inside the affected blocks: the number of bytes before it, and
    /// its length.
    pub(super) fn range_in_blocks(&self) -> (u64, u64) {
        (self.to.offset().saturating_sub(self.first), self.len)
    }

    /// Starts to receive the payload.
    pub(super) fn expect_payload(&mut self) {
        self.receiving = true;
    }

    /// Records that the payload has been received.
    pub(super) fn payload_received(&mut self) {
        self.receiving = false;
    }

    /// Returns the next piece: its start, its length in bytes, and its number.
    pub(super) fn next_piece(&self) -> (u64, u64, u32) {
        let len = self.piece().min(self.end.saturating_sub(self.next));
        (self.next, len, self.piece_at(self.next))
    }

    /// Removes `len` bytes from the part not submitted yet.
    pub(super) fn skip(&mut self, len: u64) {
        self.next = self.next.saturating_add(len);
    }

    /// Counts a piece that starts at `start` as in flight. Returns its number.
    pub(super) fn submitted(&mut self, start: u64) -> u32 {
        self.in_flight += 1;
        self.piece_at(start)
    }

    /// Counts a piece as completed.
    pub(super) fn completed(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Records the failure of a piece. No more pieces are submitted.
    pub(super) fn fail(&mut self, error: u32) {
        if self.error == 0 {
            self.error = error;
        }
    }

    /// Fails the request if it has pieces that are not submitted yet.
    pub(super) fn refuse_rest(&mut self, error: u32) {
        let whole = self.next >= self.end && !self.receiving;
        if self.error == 0 && !whole {
            (self.error, self.error_pending) = (error, true);
        }
    }

    /// Changes a trim to the flush that follows it.
    pub(super) fn flush_next(&mut self) {
        self.task = Task::FinalFlush;
    }

    /// Returns the range of a piece on the disk: its start and its length in bytes.
    pub(super) fn range_of(&self, piece: u32) -> (u64, u64) {
        let start = self.start_of(piece);
        (start, self.piece().min(self.end.saturating_sub(start)))
    }

    /// Clips a piece with `held` bytes to the requested range. Returns its offset on the disk, its
    /// offset in the buffer and its length.
    pub(super) fn clip(&self, piece: u32, held: usize) -> (u64, usize, usize) {
        let (start, offset) = (self.start_of(piece), self.to.offset());
        let from = offset.max(start);
        let till = offset.saturating_add(self.len).min(start.saturating_add(held as u64));
        let place = |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(held);
        (from, place(from), place(till).saturating_sub(place(from)))
    }

    /// Returns whether the request has completed.
    pub(super) fn is_done(&self) -> bool {
        self.in_flight == 0 && !self.receiving && (self.error != 0 || self.next >= self.end)
    }

    /// Returns whether another piece may be submitted now.
    pub(super) fn has_more(&self) -> bool {
        self.error == 0
            && !self.receiving
            && self.next < self.end
            && self.in_flight < self.max_in_flight()
    }

    fn max_in_flight(&self) -> u16 {
        match self.task {
            Task::Command(Command::Read { .. }) | Task::StreamedRead => MAX_PIECES_IN_FLIGHT,
            _ => 1,
        }
    }

    /// Returns the length of a piece in bytes. The last one may be shorter.
    fn piece(&self) -> u64 {
        match self.task {
            Task::Command(Command::Read { whole: true } | Command::Status { .. }) => u64::MAX,
            Task::Command(Command::Read { .. } | Command::Write { .. }) | Task::StreamedRead => {
                PIECE
            }
            _ => PIECE_WITHOUT_DATA,
        }
    }

    /// Returns the start of a piece in bytes.
    fn start_of(&self, piece: u32) -> u64 {
        self.first.saturating_add(self.piece().saturating_mul(piece.into()))
    }

    /// Returns the number of the piece that starts at `start`, limited to [`LAST_PIECE`]: only
    /// pieces without data can exceed it.
    fn piece_at(&self, start: u64) -> u32 {
        let piece = start.saturating_sub(self.first) / self.piece();
        u32::try_from(piece).map_or(LAST_PIECE, |piece| piece.min(LAST_PIECE))
    }

    /// Returns the disk operation.
    pub(super) fn op(&self) -> Op {
        match self.task {
            Task::Command(command) => command.op(),
            Task::StreamedRead => Op::Read,
            Task::FinalFlush | Task::Free => Op::Flush,
        }
    }
}

/// Creates the ticket of a piece of the request in slot `at`.
pub(super) fn ticket(at: u8, piece: u32) -> Ticket {
    Ticket::new(u32::from(at) | piece << SLOT_BITS)
}

/// Returns slot and piece of a ticket.
pub(super) fn split_ticket(ticket: &Ticket) -> (u8, u32) {
    let [at, ..] = ticket.number().to_le_bytes();
    (at, ticket.number() >> SLOT_BITS)
}

/// The slots of one connection.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Box<[Slot]>,
    free: Vec<u8>,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self {
            slots: vec![Slot::free(); MAX_IN_FLIGHT.into()].into(),
            free: (0..MAX_IN_FLIGHT).rev().collect(),
        }
    }

    /// Stores a request. Returns its slot, or `None` if all are in use.
    pub(super) fn claim(&mut self, slot: Slot) -> Option<u8> {
        let at = self.free.pop()?;
        *self.get(at)? = slot;
        Some(at)
    }

    pub(super) fn release(&mut self, at: u8) {
        if let Some(slot) = self.get(at).filter(|slot| slot.task != Task::Free) {
            slot.task = Task::Free;
            self.free.push(at);
        }
    }

    /// Returns whether another piece of the request may be submitted now.
    pub(super) fn has_more(&mut self, at: u8) -> bool {
        self.get(at).is_some_and(|slot| slot.has_more())
    }

    /// Returns the slot with that number.
    pub(super) fn get(&mut self, at: u8) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(at))
    }

    /// Returns whether the request in a slot has failed.
    pub(super) fn has_failed(&self, at: u8) -> bool {
        self.slots.get(usize::from(at)).is_none_or(|slot| slot.error != 0)
    }

    /// Returns whether a slot is free.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Returns whether no request is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Returns the numbers of the slots in use.
    pub(super) fn busy(&self) -> Vec<u8> {
        let busy =
            |at: &u8| self.slots.get(usize::from(*at)).is_some_and(|slot| slot.task != Task::Free);
        (0..MAX_IN_FLIGHT).filter(busy).collect()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn ticket_round_trips() {
        assert_eq!(split_ticket(&ticket(127, 130)), (127, 130));
        assert_eq!(split_ticket(&ticket(0, (1 << 24) - 1)), (0, (1 << 24) - 1));
    }

    #[test]
    fn requests_in_flight_are_bounded() {
        let mut slots = Slots::new();
        let slot = Slot::new(ReplyTo::new(7, 0), 512, Task::Command(Command::Flush), (0, 0));
        let claimed: Vec<u8> = (0..MAX_IN_FLIGHT).map(|_| slots.claim(slot).unwrap()).collect();
        assert!(slots.claim(slot).is_none() && !slots.has_room());
        assert_eq!(slots.busy().len(), claimed.len());
        claimed.iter().for_each(|&at| slots.release(at));
        claimed.iter().for_each(|&at| slots.release(at));
        assert!(slots.is_idle() && slots.busy().is_empty());
    }
}
