//! Payloads: write data is received into buffers and submitted piece by piece; payloads of refused
//! requests are skipped.

use export::{Buffer, DirectRecv};

use super::reply::ReplyTo;
use super::session::Session;
use super::{MIN_DIRECT_RECV, PIECE};

/// A payload being received.
#[derive(Debug)]
pub(super) enum Payload {
    /// Of a refused request: the error is sent after it has been skipped.
    Refused {
        /// Bytes not received yet.
        left: u64,
        to: ReplyTo,
        error: u32,
    },
    /// Of a write.
    Write(WritePayload),
}

/// The payload of a write.
#[derive(Debug)]
pub(super) struct WritePayload {
    at: u8,
    /// Bytes not received yet, of this and later pieces.
    left: u64,
    /// The current piece; `None` while there is no memory, while the driver receives into it, or if
    /// the write has failed.
    buffer: Option<Buffer>,
    /// Bytes of the current piece received.
    got: usize,
    stalled: bool,
}

impl Payload {
    /// Returns whether it waits for memory.
    pub(super) fn is_stalled(&self) -> bool {
        matches!(self, Self::Write(write) if write.stalled)
    }
}

impl WritePayload {
    /// Copies bytes into the current piece. Returns how many were consumed.
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

    /// Takes the current piece if it is full.
    fn take_if_full(&mut self) -> Option<Buffer> {
        let got = self.got;
        let buffer = self.buffer.take_if(|buffer| got >= buffer.len())?;
        self.got = 0;
        Some(buffer)
    }
}

impl Session {
    /// Starts to receive the payload of a write.
    pub(super) fn expect_payload(&mut self, at: u8, len: u64) {
        if len == 0 {
            return self.finish_if_done(at);
        }
        if let Some(slot) = self.slots.get(at) {
            slot.receiving = true;
        }
        let write = WritePayload { at, left: len, buffer: None, got: 0, stalled: false };
        self.payload = Some(Payload::Write(write));
        self.allocate_piece();
    }

    /// Allocates memory for the current piece. A write that has failed needs none.
    pub(super) fn allocate_piece(&mut self) {
        let Some(Payload::Write(write)) = &mut self.payload else { return };
        let failed = self.slots.get(write.at).is_none_or(|slot| slot.error != 0);
        if failed || write.buffer.is_some() {
            write.stalled = false;
            return;
        }
        let len = usize::try_from(write.left.min(PIECE)).unwrap_or(0);
        write.buffer = self.write_memory.take(len);
        write.stalled = write.buffer.is_none();
    }

    /// Processes bytes of a payload. Returns how many were consumed.
    pub(super) fn receive_payload(&mut self, bytes: &[u8]) -> usize {
        match &mut self.payload {
            None => 0,
            Some(Payload::Write(write)) => {
                let n = write.take(bytes);
                self.submit_if_full();
                n
            }
            Some(Payload::Refused { left, to, error }) => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= n as u64;
                let (left, to, error) = (*left, *to, *error);
                if left == 0 {
                    self.payload = None;
                    self.send_result(to, error, true);
                }
                n
            }
        }
    }

    /// Submits the current piece if it is full, and ends the payload if it was the last.
    fn submit_if_full(&mut self) {
        let Some(Payload::Write(write)) = &mut self.payload else { return };
        let (at, left, buffer) = (write.at, write.left, write.take_if_full());
        if let Some(buffer) = buffer {
            self.write_piece(at, buffer);
        }
        if left == 0 {
            self.payload = None;
            if let Some(slot) = self.slots.get(at) {
                slot.receiving = false;
            }
            self.finish_if_done(at);
        } else {
            self.allocate_piece();
        }
    }

    fn write_piece(&mut self, at: u8, buffer: Buffer) {
        let Some(slot) = self.slots.get(at).filter(|slot| slot.error == 0) else { return };
        let (start, len) = (slot.next, buffer.len() as u64);
        slot.next += len;
        let op = slot.op();
        self.submit(at, op, (start, len), Some(buffer));
    }

    /// Returns the current piece for a direct receive, if enough of it is outstanding.
    pub(super) fn offer_direct_recv(&mut self) -> Option<DirectRecv> {
        let Some(Payload::Write(write)) = &mut self.payload else { return None };
        let start = write.got;
        let buffer = write.buffer.take_if(|buffer| buffer.len() - start >= MIN_DIRECT_RECV)?;
        let end = buffer.len();
        Some(DirectRecv { buffer, start, end, token: write.at.into() })
    }

    /// Returns the buffer of a direct receive, with `got` bytes received into it.
    pub(super) fn end_direct_recv(&mut self, window: DirectRecv, got: usize) {
        let DirectRecv { buffer, start, end, token } = window;
        let Some(Payload::Write(write)) = &mut self.payload else { return };
        if u32::from(write.at) == token {
            write.buffer = Some(buffer);
            write.stalled = false;
            write.advance(got.min(end.saturating_sub(start)));
            self.submit_if_full();
        }
    }
}
