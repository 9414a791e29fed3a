//! The requests of a connection in flight, one per slot. A ticket consists of the slot number and
//! the piece number.

use export::{Op, Ticket};

use super::command::Command;
use super::{MAX_IN_FLIGHT, MAX_PIECES_IN_FLIGHT, PIECE, PIECE_WITHOUT_DATA};

/// A request in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    /// Chosen by the client, returned in replies.
    pub(super) cookie: u64,
    /// The requested offset.
    pub(super) offset: u64,
    /// The requested length.
    pub(super) len: u64,
    pub(super) task: Task,
    /// Start of the affected blocks, in bytes.
    pub(super) first: u64,
    /// End of the affected blocks, in bytes.
    pub(super) end: u64,
    /// Start of the part not submitted yet.
    pub(super) next: u64,
    /// Number of pieces submitted and not completed.
    pub(super) in_flight: u16,
    /// The error of the first failed piece; zero if none failed.
    pub(super) error: u32,
    /// The error has not been sent yet.
    pub(super) error_pending: bool,
    /// The payload is still being received.
    pub(super) receiving: bool,
    /// Waits for memory.
    pub(super) starving: bool,
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

impl Slot {
    const FREE: Self = Self {
        cookie: 0,
        offset: 0,
        len: 0,
        task: Task::Free,
        first: 0,
        end: 0,
        next: 0,
        in_flight: 0,
        error: 0,
        error_pending: false,
        receiving: false,
        starving: false,
    };

    /// Creates the slot of a request for `asked` (offset, length) that affects the blocks `[first,
    /// end)`.
    pub(super) fn new(cookie: u64, asked: (u64, u64), task: Task, blocks: (u64, u64)) -> Self {
        let ((offset, len), (first, end)) = (asked, blocks);
        Self { cookie, offset, len, task, first, end, next: first, ..Self::FREE }
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
    pub(super) fn piece(&self) -> u64 {
        match self.task {
            Task::Command(Command::Read { whole: true } | Command::Status { .. }) => u64::MAX,
            Task::Command(Command::Read { .. } | Command::Write { .. }) | Task::StreamedRead => {
                PIECE
            }
            _ => PIECE_WITHOUT_DATA,
        }
    }

    /// Returns the start of a piece in bytes.
    pub(super) fn start_of(&self, piece: u32) -> u64 {
        self.first.saturating_add(self.piece().saturating_mul(piece.into()))
    }

    /// Returns the number of the piece that starts at `start`, limited to [`LAST_PIECE`]: only
    /// pieces without data can exceed it.
    pub(super) fn piece_at(&self, start: u64) -> u32 {
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
            slots: vec![Slot::FREE; MAX_IN_FLIGHT.into()].into(),
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

    /// Returns the slot with that number.
    pub(super) fn get(&mut self, at: u8) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(at))
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
        let slot = Slot::new(7, (0, 512), Task::Command(Command::Flush), (0, 0));
        let claimed: Vec<u8> = (0..MAX_IN_FLIGHT).map(|_| slots.claim(slot).unwrap()).collect();
        assert!(slots.claim(slot).is_none() && !slots.has_room());
        assert_eq!(slots.busy().len(), claimed.len());
        claimed.iter().for_each(|&at| slots.release(at));
        claimed.iter().for_each(|&at| slots.release(at));
        assert!(slots.is_idle() && slots.busy().is_empty());
    }
}
