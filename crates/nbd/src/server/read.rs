//! Reads: each piece is answered when it comes, cut to the bytes that were asked for. It knows no header.

use export::Buffer;

use super::answer::{Part, To};
use super::session::Session;
use super::slots::Slot;

/// Where the part of a piece that was asked for begins on the disk, and where it lies in its buffer.
pub(super) fn clip(slot: &Slot, piece: u32, held: usize) -> (u64, usize, usize) {
    let start = slot.start_of(piece);
    let from = slot.offset.max(start);
    let till = slot.offset.saturating_add(slot.len).min(start.saturating_add(held as u64));
    let place = |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(held);
    (from, place(from), place(till).saturating_sub(place(from)))
}

impl Session {
    /// A piece of a read has come, or failed.
    pub(super) fn read_ended(&mut self, at: u8, piece: u32, buffer: Option<Buffer>) {
        let Some(slot) = self.slots.get(at) else { return };
        let (to, done, error, unsaid) = (
            To { cookie: slot.cookie, offset: slot.offset },
            slot.is_done(),
            slot.error,
            slot.unsaid,
        );
        match buffer {
            Some(buffer) => {
                let (offset, start, len) = clip(slot, piece, buffer.len());
                self.count_read(len);
                self.answer_data(to, offset, Part { buffer, start, len }, done && !unsaid);
                if done && unsaid {
                    self.answer(to, error, true);
                }
            }
            None => {
                let (offset, ..) = clip(slot, piece, 0);
                self.answer_failed_part(to, offset, error, done);
            }
        }
        if done { self.release(at) } else { self.advance(at) }
    }

    pub(super) fn count_read(&mut self, len: usize) {
        if let Some(link) = &mut self.link {
            link.read = link.read.saturating_add(len as u64);
        }
    }
}
