//! The requests that a connection has under way, each in a slot; a slot's number and that of a piece are the ticket of a
//! disk request. It knows no reply.

use export::{Op, Ticket};

use super::command::Command;
use super::{AHEAD, PIECE, REQUESTS, STRIDE};

/// A request under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    /// The client's name for it.
    pub(super) cookie: u64,
    /// The first byte that the client asked for.
    pub(super) offset: u64,
    /// Bytes that the client asked for.
    pub(super) len: u64,
    pub(super) work: Work,
    /// The first byte of the blocks that are concerned.
    pub(super) first: u64,
    /// Where they end.
    pub(super) end: u64,
    /// Where the part begins that the disk was not asked for yet.
    pub(super) next: u64,
    /// Pieces that were asked for and have not ended.
    pub(super) under_way: u16,
    /// The error of the first piece that failed; zero if none has.
    pub(super) error: u32,
    /// Whether that error must still be said.
    pub(super) unsaid: bool,
    /// Whether its payload is still coming.
    pub(super) filling: bool,
    /// Whether it waits for memory.
    pub(super) starving: bool,
}

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// No request.
    Free,
    /// A command, as it came.
    Command(Command),
    /// A read whose simple reply takes several pieces.
    Long,
    /// The flush that makes a trim durable.
    Settle,
}

/// Bits of a ticket that are the slot's number.
const SLOT_BITS: u32 = 8;

/// The largest number of a piece in a ticket.
const LAST_PIECE: u32 = (1 << (32 - SLOT_BITS)) - 1;

impl Slot {
    const FREE: Self = Self {
        cookie: 0,
        offset: 0,
        len: 0,
        work: Work::Free,
        first: 0,
        end: 0,
        next: 0,
        under_way: 0,
        error: 0,
        unsaid: false,
        filling: false,
        starving: false,
    };

    /// A request for the bytes that the client named, whose blocks are `[first, end)`.
    pub(super) fn new(cookie: u64, asked: (u64, u64), work: Work, blocks: (u64, u64)) -> Self {
        let ((offset, len), (first, end)) = (asked, blocks);
        Self { cookie, offset, len, work, first, end, next: first, ..Self::FREE }
    }

    /// Whether there is nothing more to come.
    pub(super) fn is_done(&self) -> bool {
        self.under_way == 0 && !self.filling && (self.error != 0 || self.next >= self.end)
    }

    /// Whether the disk is to be asked for another piece now.
    pub(super) fn has_more(&self) -> bool {
        self.error == 0 && !self.filling && self.next < self.end && self.under_way < self.ahead()
    }

    fn ahead(&self) -> u16 {
        match self.work {
            Work::Command(Command::Read { .. }) | Work::Long => AHEAD,
            _ => 1,
        }
    }

    /// Bytes of its pieces, but for the last.
    pub(super) fn piece(&self) -> u64 {
        match self.work {
            Work::Command(Command::Read { whole: true } | Command::Status { .. }) => u64::MAX,
            Work::Command(Command::Read { .. } | Command::Write { .. }) | Work::Long => PIECE,
            _ => STRIDE,
        }
    }

    /// The first byte of the blocks of that piece.
    pub(super) fn start_of(&self, piece: u32) -> u64 {
        self.first.saturating_add(self.piece().saturating_mul(piece.into()))
    }

    /// The piece that begins there. Of those that move no data there may be more than a ticket can number.
    pub(super) fn piece_at(&self, start: u64) -> u32 {
        let piece = start.saturating_sub(self.first) / self.piece();
        u32::try_from(piece).map_or(LAST_PIECE, |piece| piece.min(LAST_PIECE))
    }

    /// What it asks of the disk.
    pub(super) fn op(&self) -> Op {
        match self.work {
            Work::Command(command) => command.op(),
            Work::Long => Op::Read,
            Work::Settle | Work::Free => Op::Flush,
        }
    }
}

/// The ticket of a piece of the request in slot `at`.
pub(super) fn ticket(at: u8, piece: u32) -> Ticket {
    Ticket::new(u32::from(at) | piece << SLOT_BITS)
}

/// The slot and the piece of a ticket.
pub(super) fn of_ticket(ticket: &Ticket) -> (u8, u32) {
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
            slots: vec![Slot::FREE; REQUESTS.into()].into(),
            free: (0..REQUESTS).rev().collect(),
        }
    }

    /// Puts a request into a slot; nothing if all are taken.
    pub(super) fn claim(&mut self, slot: Slot) -> Option<u8> {
        let at = self.free.pop()?;
        *self.get(at)? = slot;
        Some(at)
    }

    /// Frees a slot.
    pub(super) fn release(&mut self, at: u8) {
        if let Some(slot) = self.get(at).filter(|slot| slot.work != Work::Free) {
            slot.work = Work::Free;
            self.free.push(at);
        }
    }

    /// The slot of that number, if there is such.
    pub(super) fn get(&mut self, at: u8) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(at))
    }

    /// Whether another request has room.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether no request is under way.
    pub(super) fn are_free(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// The numbers of the slots with a request.
    pub(super) fn busy(&self) -> Vec<u8> {
        let busy =
            |at: &u8| self.slots.get(usize::from(*at)).is_some_and(|slot| slot.work != Work::Free);
        (0..REQUESTS).filter(busy).collect()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_ticket_names_slot_and_piece() {
        assert_eq!(of_ticket(&ticket(127, 130)), (127, 130));
        assert_eq!(of_ticket(&ticket(0, (1 << 24) - 1)), (0, (1 << 24) - 1));
    }

    #[test]
    fn no_more_requests_than_slots() {
        let mut slots = Slots::new();
        let slot = Slot::new(7, (0, 512), Work::Command(Command::Flush), (0, 0));
        let claimed: Vec<u8> = (0..REQUESTS).map(|_| slots.claim(slot).unwrap()).collect();
        assert!(slots.claim(slot).is_none() && !slots.has_room());
        assert_eq!(slots.busy().len(), claimed.len());
        claimed.iter().for_each(|&at| slots.release(at));
        claimed.iter().for_each(|&at| slots.release(at));
        assert!(slots.are_free() && slots.busy().is_empty());
    }
}
