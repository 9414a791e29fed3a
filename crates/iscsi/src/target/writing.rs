//! Writes: in pieces, each of which is written when it has been received.

use scsi::{Response, Transfer};

use super::{MAX_PIECES_IN_FLIGHT, PIECE};

/// A write in progress.
#[derive(Debug)]
pub(super) struct Writing {
    lba: u64,
    shift: u8,
    pub(super) durable: bool,
    /// The length to be written, in bytes.
    pub(super) len: u32,
    /// Offset of the next piece.
    next: u32,
    pub(super) failed: Option<Response>,
}

impl Writing {
    /// Returns a write of `len` bytes: whole blocks.
    pub(super) fn new(transfer: Transfer, shift: u8, len: u32) -> Self {
        let Transfer { lba, durable, .. } = transfer;
        Self { lba, shift, durable, len, next: 0, failed: None }
    }

    /// Returns offset and length of the next piece if it may be received now. The data up to
    /// `unsolicited` is a piece of its own: its memory may not wait for data that is requested.
    pub(super) fn next(&mut self, in_flight: u16, unsolicited: u32) -> Option<(u32, u32)> {
        let more =
            self.failed.is_none() && self.next < self.len && in_flight < MAX_PIECES_IN_FLIGHT;
        let (start, mut len) = (self.next, PIECE - self.next % PIECE);
        if start < unsolicited {
            len = len.min((unsolicited - start).next_multiple_of(1 << self.shift));
        }
        more.then(|| {
            len = len.min(self.len - start);
            self.next += len;
            (start, len)
        })
    }

    /// Returns first block and number of blocks of `len` bytes at an offset.
    pub(super) fn blocks(&self, offset: u32, len: usize) -> (u64, u64) {
        (self.lba + u64::from(offset >> self.shift), len as u64 >> self.shift)
    }

    /// Returns offset and length on the disk, in bytes, of the piece at `offset`.
    pub(super) fn range(&self, offset: u32) -> (u64, u64) {
        let start = (self.lba << self.shift).saturating_add(offset.into());
        (start, u64::from(self.len.saturating_sub(offset).min(PIECE)))
    }

    /// Returns whether all has been received.
    pub(super) fn is_received(&self) -> bool {
        self.failed.is_some() || self.next >= self.len
    }
}
