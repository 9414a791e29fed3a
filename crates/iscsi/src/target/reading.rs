//! Reads: in pieces, which are sent in order.

use export::{Buffer, Geometry};
use scsi::{Response, Transfer};

use super::{MAX_PIECES_IN_FLIGHT, PIECE};

/// A read in progress.
#[derive(Debug)]
pub(super) struct Reading {
    lba: u64,
    shift: u8,
    /// The length to be sent, in bytes.
    pub(super) len: u32,
    /// The next piece to be read.
    next: u32,
    /// The next piece to be sent.
    sent: u32,
    /// The next piece to be sent, if it was read.
    ready: Option<Buffer>,
    /// Pieces that were read before earlier ones.
    early: Vec<(u32, Buffer)>,
    pub(super) failed: Option<Box<Response>>,
}

/// A piece of a transfer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) number: u32,
    pub(super) lba: u64,
    pub(super) blocks: u64,
    /// Its length in bytes.
    pub(super) len: usize,
}

impl Reading {
    /// Returns a read of which `len` bytes are sent.
    pub(super) fn new(transfer: Transfer, geometry: Geometry, len: u32) -> Self {
        let (lba, shift) = (transfer.lba, geometry.shift());
        let (next, sent, ready, early, failed) = Default::default();
        Self { lba, shift, len, next, sent, ready, early, failed }
    }

    /// Returns the piece with that number.
    pub(super) fn piece(&self, number: u32) -> Piece {
        let start = u64::from(number) * u64::from(PIECE);
        let len = u64::from(self.len).saturating_sub(start).min(PIECE.into());
        let blocks = len.div_ceil(1 << self.shift);
        let len = usize::try_from(blocks << self.shift).unwrap_or(usize::MAX);
        Piece { number, lba: self.lba + (start >> self.shift), blocks, len }
    }

    /// Returns the next piece if it may be read now.
    pub(super) fn next(&self) -> Option<Piece> {
        let more = self.failed.is_none()
            && self.next < self.len.div_ceil(PIECE)
            && self.next - self.sent < u32::from(MAX_PIECES_IN_FLIGHT);
        more.then(|| self.piece(self.next))
    }

    /// Counts the next piece as being read.
    pub(super) fn advance(&mut self) {
        self.next += 1;
    }

    /// Keeps a piece that was read until it is its turn.
    pub(super) fn store(&mut self, number: u32, buffer: Buffer) {
        match number == self.sent {
            true => self.ready = Some(buffer),
            false => self.early.push((number, buffer)),
        }
    }

    /// Takes the next piece to be sent, if it was read: how many of its bytes are sent, and whether
    /// it is the last one.
    pub(super) fn take_ready(&mut self) -> Option<(Buffer, usize, bool)> {
        let buffer = self.ready.take().or_else(|| {
            let at = self.early.iter().position(|(number, _)| *number == self.sent)?;
            Some(self.early.swap_remove(at).1)
        })?;
        let start = self.sent * PIECE;
        self.sent += 1;
        let left = self.len.saturating_sub(start);
        Some((buffer, left.min(PIECE) as usize, left <= PIECE))
    }

    /// Drops the pieces that were read.
    pub(super) fn fail(&mut self, response: Response) {
        self.failed.get_or_insert_with(|| Box::new(response));
        (self.ready, self.early) = Default::default();
    }
}
