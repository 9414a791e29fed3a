//! Payloads: those of writes go into buffers, and piece by piece to the disk; those of requests that are refused go nowhere.

use export::{Buffer, DirectRecv};

use super::answer::To;
use super::session::Session;
use super::{LANDING, PIECE};

/// A payload that is coming.
#[derive(Debug)]
pub(super) enum Incoming {
    /// Of a request that is refused: the error is said when it has come.
    Refused {
        /// Bytes still to come.
        left: u64,
        to: To,
        error: u32,
    },
    /// Of a write.
    Fill(Filling),
}

/// The payload of a write.
#[derive(Debug)]
pub(super) struct Filling {
    at: u8,
    /// Bytes still to come, of this piece and those after it.
    left: u64,
    /// The piece; nothing while there is no memory, while the driver receives into it, or if the write has failed already.
    buffer: Option<Buffer>,
    /// Bytes of it that have come.
    got: usize,
    stalled: bool,
}

impl Incoming {
    /// Whether it waits for memory.
    pub(super) fn is_stalled(&self) -> bool {
        matches!(self, Self::Fill(filling) if filling.stalled)
    }
}

impl Filling {
    /// Takes as many bytes as the piece has room for. Tells how many.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let n = match &mut self.buffer {
            None => left.min(bytes.len()),
            Some(buffer) => {
                let room = buffer.bytes_mut().get_mut(self.got..).unwrap_or_default();
                let n = room.len().min(bytes.len());
                if let (Some(to), Some(from)) = (room.get_mut(..n), bytes.get(..n)) {
                    to.copy_from_slice(from);
                }
                n
            }
        };
        self.advance(n);
        n
    }

    fn advance(&mut self, n: usize) {
        self.left = self.left.saturating_sub(n as u64);
        self.got += n;
    }

    /// The piece, if it is full.
    fn full(&mut self) -> Option<Buffer> {
        let got = self.got;
        let buffer = self.buffer.take_if(|buffer| got >= buffer.len())?;
        self.got = 0;
        Some(buffer)
    }
}

impl Session {
    /// The payload of a write is coming.
    pub(super) fn expect_payload(&mut self, at: u8, len: u64) {
        if len == 0 {
            return self.settle(at);
        }
        if let Some(slot) = self.slots.get(at) {
            slot.filling = true;
        }
        let filling = Filling { at, left: len, buffer: None, got: 0, stalled: false };
        self.incoming = Some(Incoming::Fill(filling));
        self.prepare();
    }

    /// Has memory for the piece that is coming, if there is any to be had. A write that has failed needs none.
    pub(super) fn prepare(&mut self) {
        let Some(Incoming::Fill(filling)) = &mut self.incoming else { return };
        let failed = self.slots.get(filling.at).is_none_or(|slot| slot.error != 0);
        if failed || filling.buffer.is_some() {
            filling.stalled = false;
            return;
        }
        let len = usize::try_from(filling.left.min(PIECE)).unwrap_or(0);
        filling.buffer = self.writes.take(len);
        filling.stalled = filling.buffer.is_none();
    }

    /// Bytes of a payload came. Tells how many were taken.
    pub(super) fn payload(&mut self, bytes: &[u8]) -> usize {
        match &mut self.incoming {
            None => 0,
            Some(Incoming::Fill(filling)) => {
                let n = filling.take(bytes);
                self.filled();
                n
            }
            Some(Incoming::Refused { left, to, error }) => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= n as u64;
                let (left, to, error) = (*left, *to, *error);
                if left == 0 {
                    self.incoming = None;
                    self.answer(to, error, true);
                }
                n
            }
        }
    }

    /// Hands a full piece to the disk, and ends the payload if it was the last.
    fn filled(&mut self) {
        let Some(Incoming::Fill(filling)) = &mut self.incoming else { return };
        let (at, left, buffer) = (filling.at, filling.left, filling.full());
        if let Some(buffer) = buffer {
            self.write_piece(at, buffer);
        }
        if left == 0 {
            self.incoming = None;
            if let Some(slot) = self.slots.get(at) {
                slot.filling = false;
            }
            self.settle(at);
        } else {
            self.prepare();
        }
    }

    fn write_piece(&mut self, at: u8, buffer: Buffer) {
        let Some(slot) = self.slots.get(at).filter(|slot| slot.error == 0) else { return };
        let (start, len) = (slot.next, buffer.len() as u64);
        slot.next += len;
        let op = slot.op();
        self.submit(at, op, (start, len), Some(buffer));
    }

    /// The piece that is coming, for the driver to receive into.
    pub(super) fn offer_landing(&mut self) -> Option<DirectRecv> {
        let Some(Incoming::Fill(filling)) = &mut self.incoming else { return None };
        let start = filling.got;
        let buffer = filling.buffer.take_if(|buffer| buffer.len() - start >= LANDING)?;
        let end = buffer.len();
        Some(DirectRecv { buffer, start, end, token: filling.at.into() })
    }

    /// It comes back with `got` bytes more.
    pub(super) fn take_landing(&mut self, landing: DirectRecv, got: usize) {
        let DirectRecv { buffer, start, end, token } = landing;
        let Some(Incoming::Fill(filling)) = &mut self.incoming else { return };
        if u32::from(filling.at) == token {
            filling.buffer = Some(buffer);
            filling.stalled = false;
            filling.advance(got.min(end.saturating_sub(start)));
            self.filled();
        }
    }
}
