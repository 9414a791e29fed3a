//! Payloads: write data is received into buffers, piece by piece; payloads of refused requests are
//! skipped.

use export::{Account, Buffer, DirectRecv};

use super::reply::ReplyTo;
use super::slots::Slots;
use super::{MIN_DIRECT_RECV, PIECE};

/// Receives the payload of one request at a time.
#[derive(Debug)]
pub(super) struct PayloadReceiver {
    /// Memory for the data of writes. A separate account: a write that waits for memory stops
    /// reception, and must not wait for read replies, which the peer may not receive before it has
    /// sent the whole write.
    memory: Account,
    /// The payload being received.
    payload: Option<Payload>,
}

#[derive(Debug)]
enum Payload {
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
struct WritePayload {
    slot: u8,
    /// Bytes not received yet, of this and later pieces.
    left: u64,
    /// The current piece; `None` while no memory is available, while the driver receives into it, or if
    /// the write has failed.
    buffer: Option<Buffer>,
    /// Bytes of the current piece received.
    received_len: usize,
    stalled: bool,
}

/// What has been received.
#[derive(Debug)]
pub(super) enum Received {
    /// A part of a payload that is skipped.
    Skipped,
    /// The last of a payload that is skipped.
    Refused { to: ReplyTo, error: u32 },
    /// A part of the payload of a write.
    Write {
        slot: u8,
        /// A piece that is full.
        piece: Option<Buffer>,
        /// Whether the payload is complete.
        last: bool,
    },
}

impl WritePayload {
    /// Copies bytes into the current piece. Returns how many were consumed.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let count = match &mut self.buffer {
            None => left.min(bytes.len()),
            Some(buffer) => {
                let room = buffer.bytes_mut().get_mut(self.received_len..).unwrap_or_default();
                let count = room.len().min(bytes.len());
                if let (Some(to), Some(from)) = (room.get_mut(..count), bytes.get(..count)) {
                    to.copy_from_slice(from);
                }
                count
            }
        };
        self.advance(count);
        count
    }

    fn advance(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count as u64);
        self.received_len += count;
    }

    /// Takes the current piece if it is full.
    fn take_if_full(&mut self) -> Option<Buffer> {
        let received_len = self.received_len;
        let buffer = self.buffer.take_if(|buffer| received_len >= buffer.len())?;
        self.received_len = 0;
        Some(buffer)
    }
}

impl PayloadReceiver {
    pub(super) fn new(memory: Account) -> Self {
        Self { memory, payload: None }
    }

    /// Starts to receive `len` bytes for the write in `slot`.
    pub(super) fn expect_write(&mut self, slot: u8, len: u64, slots: &Slots) {
        let write = WritePayload { slot, left: len, buffer: None, received_len: 0, stalled: false };
        self.payload = Some(Payload::Write(write));
        self.allocate(slots);
    }

    /// Starts to skip `left` bytes of a request that is answered with `error`.
    pub(super) fn expect_refused(&mut self, left: u64, to: ReplyTo, error: u32) {
        self.payload = Some(Payload::Refused { left, to, error });
    }

    /// Returns whether a payload is incomplete.
    pub(super) fn is_receiving(&self) -> bool {
        self.payload.is_some()
    }

    /// Returns whether the payload waits for memory.
    pub(super) fn is_stalled(&self) -> bool {
        matches!(&self.payload, Some(Payload::Write(write)) if write.stalled)
    }

    /// Allocates memory for the current piece. A write that has failed needs none.
    pub(super) fn allocate(&mut self, slots: &Slots) {
        let Some(Payload::Write(write)) = &mut self.payload else { return };
        if write.buffer.is_some() || slots.has_failed(write.slot) {
            write.stalled = false;
            return;
        }
        let len = usize::try_from(write.left.min(PIECE)).unwrap_or(0);
        write.buffer = self.memory.take(len);
        write.stalled = write.buffer.is_none();
    }

    /// Processes bytes of a payload. Returns how many were consumed.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> (usize, Received) {
        match &mut self.payload {
            None => (0, Received::Skipped),
            Some(Payload::Write(write)) => {
                let count = write.take(bytes);
                (count, self.received())
            }
            Some(Payload::Refused { left, to, error }) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= count as u64;
                let (left, to, error) = (*left, *to, *error);
                if left != 0 {
                    return (count, Received::Skipped);
                }
                self.payload = None;
                (count, Received::Refused { to, error })
            }
        }
    }

    /// Takes the current piece if it is full, and ends the payload if it was the last.
    fn received(&mut self) -> Received {
        let Some(Payload::Write(write)) = &mut self.payload else { return Received::Skipped };
        let (slot, piece, last) = (write.slot, write.take_if_full(), write.left == 0);
        if last {
            self.payload = None;
        }
        Received::Write { slot, piece, last }
    }

    /// Returns the current piece for a direct receive, if enough of it is outstanding.
    pub(super) fn direct_recv(&mut self) -> Option<DirectRecv> {
        let Some(Payload::Write(write)) = &mut self.payload else { return None };
        let start = write.received_len;
        let buffer = write.buffer.take_if(|buffer| buffer.len() - start >= MIN_DIRECT_RECV)?;
        let end = buffer.len();
        Some(DirectRecv { buffer, start, end, token: write.slot.into() })
    }

    /// Returns the buffer of a direct receive, with `received_len` bytes received into it.
    pub(super) fn direct_received(
        &mut self,
        direct_recv: DirectRecv,
        received_len: usize,
    ) -> Received {
        let DirectRecv { buffer, start, end, token } = direct_recv;
        match &mut self.payload {
            Some(Payload::Write(write)) if u32::from(write.slot) == token => {
                write.buffer = Some(buffer);
                write.stalled = false;
                write.advance(received_len.min(end.saturating_sub(start)));
                self.received()
            }
            _ => Received::Skipped,
        }
    }
}
