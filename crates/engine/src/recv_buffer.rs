//! Receive buffer: bytes from a socket that a session has not consumed yet.

use export::DirectRecv;
use zerocopy::FromZeros;

/// Size in bytes: a batch of small commands with their data fits into one receive.
pub(crate) const RECV_BUFFER: usize = 128 << 10;

/// A buffer of fixed size that is filled at the end and consumed from the start.
#[derive(Debug)]
pub(crate) struct RecvBuffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl RecvBuffer {
    /// Returns an empty buffer of `len` bytes, or `None` if memory cannot be allocated.
    pub(crate) fn new(len: usize) -> Option<Self> {
        let bytes = <[u8]>::new_box_zeroed_with_elems(len).ok()?;
        Some(Self { bytes, start: 0, end: 0 })
    }

    /// Returns a buffer of at least [`RECV_BUFFER`] bytes that contains `received`, or `None` if
    /// memory cannot be allocated.
    pub(crate) fn with_bytes(received: &[u8]) -> Option<Self> {
        let mut recv_buffer = Self::new(RECV_BUFFER.max(received.len()))?;
        recv_buffer.spare().get_mut(..received.len()).unwrap_or_default().copy_from_slice(received);
        recv_buffer.fill(received.len());
        Some(recv_buffer)
    }

    /// Returns the unread bytes.
    pub(crate) fn unread(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// Returns whether all bytes have been read.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Removes the first `taken` unread bytes.
    pub(crate) fn consume(&mut self, taken: usize) {
        self.start = self.start.saturating_add(taken).min(self.end);
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Moves unread bytes into `into`, as many as fit. Returns how many.
    pub(crate) fn read_into(&mut self, into: &mut [u8]) -> usize {
        let len = into.len().min(self.unread().len());
        if let (Some(into), Some(from)) = (into.get_mut(..len), self.unread().get(..len)) {
            into.copy_from_slice(from);
        }
        self.consume(len);
        len
    }

    /// Removes all bytes.
    pub(crate) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Returns the free space after the unread bytes, which are first moved to the start if less
    /// than half of the buffer would be free. Empty only if the buffer is full.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        if self.start > 0 && self.bytes.len() - self.end < self.bytes.len() / 2 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// Adds the first `received` bytes of the free space to the unread ones.
    pub(crate) fn fill(&mut self, received: usize) {
        self.end = self.end.saturating_add(received).min(self.bytes.len());
    }
}

/// Returns the memory that is to be received into.
pub(crate) fn window(direct_recv: &mut DirectRecv) -> &mut [u8] {
    direct_recv.buffer.bytes_mut().get_mut(direct_recv.start..direct_recv.end).unwrap_or_default()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn bytes_stay_in_order_when_consumed_and_moved() {
        let mut recv_buffer = RecvBuffer::new(10).unwrap();
        let (mut next_in, mut next_out) = (0u8, 0u8);
        for step in 0..1000 {
            let room = recv_buffer.spare();
            let received = room.len().min(1 + step % 7);
            for byte in &mut room[..received] {
                *byte = next_in;
                next_in = next_in.wrapping_add(1);
            }
            recv_buffer.fill(received);
            let taken = recv_buffer.unread().len().min(step % 5);
            for &byte in &recv_buffer.unread()[..taken] {
                assert_eq!(byte, next_out);
                next_out = next_out.wrapping_add(1);
            }
            recv_buffer.consume(taken);
        }
        assert!(next_out > 0);
    }

    #[test]
    fn only_a_full_buffer_has_no_free_space() {
        let mut recv_buffer = RecvBuffer::new(8).unwrap();
        recv_buffer.fill(8);
        assert!(recv_buffer.spare().is_empty());
        recv_buffer.consume(1);
        assert_eq!(recv_buffer.spare().len(), 1);
        recv_buffer.clear();
        assert_eq!(recv_buffer.spare().len(), 8);
    }
}
