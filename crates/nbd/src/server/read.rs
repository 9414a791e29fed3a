//! Reads: each piece is answered as it completes, clipped to the requested bytes.

use export::Buffer;

use super::reply::{BufferPart, ReplyTo};
use super::session::Session;
use super::slots::Slot;

/// Clips a piece to the requested range. Returns its offset on the disk, its offset in the buffer
/// and its length.
pub(super) fn clip(slot: &Slot, piece: u32, held: usize) -> (u64, usize, usize) {
    let start = slot.start_of(piece);
    let from = slot.offset.max(start);
    let till = slot.offset.saturating_add(slot.len).min(start.saturating_add(held as u64));
    let place = |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(held);
    (from, place(from), place(till).saturating_sub(place(from)))
}

impl Session {
    /// Completes a piece of a read; `buffer` is `None` if it failed.
    pub(super) fn read_ended(&mut self, at: u8, piece: u32, buffer: Option<Buffer>) {
        let Some(slot) = self.slots.get(at) else { return };
        let (to, done, error, error_pending) = (
            ReplyTo { cookie: slot.cookie, offset: slot.offset },
            slot.is_done(),
            slot.error,
            slot.error_pending,
        );
        match buffer {
            Some(buffer) => {
                let (offset, start, len) = clip(slot, piece, buffer.len());
                self.count_read(len);
                self.send_data(
                    to,
                    offset,
                    BufferPart { buffer, start, len },
                    done && !error_pending,
                );
                if done && error_pending {
                    self.send_result(to, error, true);
                }
            }
            None => {
                let (offset, ..) = clip(slot, piece, 0);
                self.send_piece_error(to, offset, error, done);
            }
        }
        if done { self.release(at) } else { self.advance(at) }
    }

    pub(super) fn count_read(&mut self, len: usize) {
        if let Some(attachment) = &mut self.attachment {
            attachment.read = attachment.read.saturating_add(len as u64);
        }
    }
}
