//! Reads whose simple reply is sent in several pieces. The reply has one header, followed by the
//! data in order, and no other reply may be sent in between (NBD, Simple reply). Therefore only one
//! such read is active at a time, with its own memory, and other replies wait until it is sent.

use export::{Account, Buffer, Head, Purpose, Reason, Step};

use super::read::clip;
use super::reply::{BufferPart, ReplyTo, simple};
use super::session::Session;
use super::{MAX_PIECES_IN_FLIGHT, PIECE};

/// The active streamed read.
#[derive(Debug)]
pub(super) struct StreamedRead {
    at: u8,
    account: Account,
    /// Pieces completed before earlier ones.
    out_of_order: [Option<Buffer>; MAX_PIECES_IN_FLIGHT as usize],
    /// The next piece to send.
    next: u32,
}

impl StreamedRead {
    fn new(at: u8, account: Account) -> Self {
        Self { at, account, out_of_order: Default::default(), next: 0 }
    }

    pub(super) fn slot(&self) -> u8 {
        self.at
    }

    /// Returns whether its header has been sent.
    pub(super) fn has_begun(&self) -> bool {
        self.next != 0
    }

    /// Allocates memory for a piece if it is one of the next [`MAX_PIECES_IN_FLIGHT`].
    pub(super) fn take(&self, piece: u32, len: usize) -> Option<Buffer> {
        let near = piece.saturating_sub(self.next) < u32::from(MAX_PIECES_IN_FLIGHT);
        let little = (self.account.held() as u64) < u64::from(MAX_PIECES_IN_FLIGHT) * PIECE;
        if near && little { self.account.take(len) } else { None }
    }

    fn piece_slot(&mut self, piece: u32) -> Option<&mut Option<Buffer>> {
        self.out_of_order.get_mut((piece % u32::from(MAX_PIECES_IN_FLIGHT)) as usize)
    }
}

impl Session {
    /// Queues a streamed read.
    pub(super) fn queue_streamed_read(&mut self, at: u8) {
        self.streamed_queue.push_back(at);
        self.next_streamed_read();
    }

    fn next_streamed_read(&mut self) {
        if self.streamed.is_some() {
            return;
        }
        if let Some(at) = self.streamed_queue.pop_front() {
            let account = self
                .streamed_memory
                .get_or_insert_with(|| self.read_memory.sibling(Purpose::SecondPhase))
                .clone();
            self.streamed = Some(Box::new(StreamedRead::new(at, account)));
            self.advance(at);
        }
    }

    /// Completes a piece of the active streamed read; `buffer` is `None` if it failed.
    pub(super) fn streamed_read_ended(&mut self, at: u8, piece: u32, buffer: Option<Buffer>) {
        let Some(read) = &mut self.streamed else { return };
        match buffer {
            Some(buffer) => {
                if let Some(place) = read.piece_slot(piece) {
                    *place = Some(buffer);
                }
                self.send_ready_pieces(at);
            }
            // The reply has begun, so the error cannot be sent.
            None if read.has_begun() => return self.close(Reason::Ended),
            None => {}
        }
        self.advance(at);
    }

    /// Sends the pieces that are next in order.
    fn send_ready_pieces(&mut self, at: u8) {
        let Some(slot) = self.slots.get(at).filter(|slot| slot.error == 0) else { return };
        let (slot, to) = (*slot, ReplyTo { cookie: slot.cookie, offset: slot.offset });
        while let Some(read) = &mut self.streamed {
            let piece = read.next;
            let Some(buffer) = read.piece_slot(piece).and_then(Option::take) else { return };
            read.next += 1;
            let head = if piece == 0 { simple(to, 0) } else { Head::new(&[]) };
            let (_, start, len) = clip(&slot, piece, buffer.len());
            self.count_read(len);
            let segment = BufferPart { buffer, start, len }.with_head(head);
            self.send_backlog += segment.len();
            self.out.push_back(Step::Send(segment));
        }
    }

    /// Ends the active or a queued streamed read, which has been sent or has failed.
    pub(super) fn end_streamed_read(&mut self, at: u8) {
        let Some(slot) = self.slots.get(at) else { return };
        let (to, error) = (ReplyTo { cookie: slot.cookie, offset: slot.offset }, slot.error);
        let begun =
            self.streamed.take_if(|read| read.at == at).is_some_and(|read| read.has_begun());
        if begun && error != 0 {
            return self.close(Reason::Ended);
        }
        if !begun {
            self.send_result(to, error, true);
        }
        self.streamed_queue.retain(|&other| other != at);
        self.release(at);
        if self.streamed.is_none() {
            self.out.extend(self.delayed.drain(..).map(Step::Send));
        }
        self.next_streamed_read();
    }
}
