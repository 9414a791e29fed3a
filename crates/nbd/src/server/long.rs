//! A read whose simple reply takes several pieces: the reply has one header, its data come in order, and nothing else may
//! come between (NBD, Simple reply). So there is one such read at a time, with memory of its own, and other replies wait
//! until it is over. It knows no disk.

use export::{Account, Buffer, Head, Purpose, Reason, Step};

use super::answer::{Part, To, simple};
use super::read::clip;
use super::session::Session;
use super::{AHEAD, PIECE};

/// Such a read.
#[derive(Debug)]
pub(super) struct Long {
    at: u8,
    account: Account,
    /// Pieces that came before those in front of them.
    parked: [Option<Buffer>; AHEAD as usize],
    /// The piece that is to be sent next.
    next: u32,
}

impl Long {
    fn new(at: u8, account: Account) -> Self {
        Self { at, account, parked: Default::default(), next: 0 }
    }

    pub(super) fn slot(&self) -> u8 {
        self.at
    }

    /// Whether its header is sent.
    pub(super) fn has_begun(&self) -> bool {
        self.next != 0
    }

    /// Memory for a piece, if it is one of the next few.
    pub(super) fn take(&self, piece: u32, len: usize) -> Option<Buffer> {
        let near = piece.saturating_sub(self.next) < u32::from(AHEAD);
        let little = (self.account.held() as u64) < u64::from(AHEAD) * PIECE;
        if near && little { self.account.take(len) } else { None }
    }

    fn place(&mut self, piece: u32) -> Option<&mut Option<Buffer>> {
        self.parked.get_mut((piece % u32::from(AHEAD)) as usize)
    }
}

impl Session {
    /// Such a read has been asked for.
    pub(super) fn queue_long(&mut self, at: u8) {
        self.longs.push_back(at);
        self.next_long();
    }

    fn next_long(&mut self) {
        if self.long.is_some() {
            return;
        }
        if let Some(at) = self.longs.pop_front() {
            let account = self
                .long_reads
                .get_or_insert_with(|| self.reads.sibling(Purpose::SecondPhase))
                .clone();
            self.long = Some(Box::new(Long::new(at, account)));
            self.advance(at);
        }
    }

    /// A piece of it has come, or failed.
    pub(super) fn long_ended(&mut self, at: u8, piece: u32, buffer: Option<Buffer>) {
        let Some(long) = &mut self.long else { return };
        match buffer {
            Some(buffer) => {
                if let Some(place) = long.place(piece) {
                    *place = Some(buffer);
                }
                self.speak(at);
            }
            // There is no way to say so.
            None if long.has_begun() => return self.close(Reason::Ended),
            None => {}
        }
        self.advance(at);
    }

    /// Sends the pieces that are next.
    fn speak(&mut self, at: u8) {
        let Some(slot) = self.slots.get(at).filter(|slot| slot.error == 0) else { return };
        let (slot, to) = (*slot, To { cookie: slot.cookie, offset: slot.offset });
        while let Some(long) = &mut self.long {
            let piece = long.next;
            let Some(buffer) = long.place(piece).and_then(Option::take) else { return };
            long.next += 1;
            let head = if piece == 0 { simple(to, 0) } else { Head::new(&[]) };
            let (_, start, len) = clip(&slot, piece, buffer.len());
            self.count_read(len);
            let segment = Part { buffer, start, len }.behind(head);
            self.owed += segment.len();
            self.out.push_back(Step::Send(segment));
        }
    }

    /// All of it is sent, or it has failed.
    pub(super) fn end_long(&mut self, at: u8) {
        let Some(slot) = self.slots.get(at) else { return };
        let (to, error) = (To { cookie: slot.cookie, offset: slot.offset }, slot.error);
        let begun = self.long.take_if(|long| long.at == at).is_some_and(|long| long.has_begun());
        if begun && error != 0 {
            return self.close(Reason::Ended);
        }
        if !begun {
            self.answer(to, error, true);
        }
        self.longs.retain(|&other| other != at);
        self.release(at);
        if self.long.is_none() {
            self.out.extend(self.later.drain(..).map(Step::Send));
        }
        self.next_long();
    }
}
