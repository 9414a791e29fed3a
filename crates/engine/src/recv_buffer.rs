//! Bytes that received from a socket and wait to be taken by a session. It knows neither.

use export::DirectRecv;
use zerocopy::FromZeros;

/// Bytes of a recv_buffer: room for a batch of small commands with their data in one receive.
pub(crate) const RECV_BUFFER: usize = 128 << 10;

/// A fixed piece of memory that is filled behind and emptied in front.
#[derive(Debug)]
pub(crate) struct RecvBuffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl RecvBuffer {
    /// An empty recv_buffer of `len` bytes. Nothing if there is no memory for it.
    pub(crate) fn new(len: usize) -> Option<Self> {
        let bytes = <[u8]>::new_box_zeroed_with_elems(len).ok()?;
        Some(Self { bytes, start: 0, end: 0 })
    }

    /// One of [`RECV_BUFFER`] bytes, in which `received` wait. Nothing if there is no memory for it.
    pub(crate) fn with_bytes(received: &[u8]) -> Option<Self> {
        let mut recv_buffer = Self::new(RECV_BUFFER.max(received.len()))?;
        recv_buffer.spare().get_mut(..received.len()).unwrap_or_default().copy_from_slice(received);
        recv_buffer.fill(received.len());
        Some(recv_buffer)
    }

    /// The bytes that wait.
    pub(crate) fn unread(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// Whether none wait.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The first `taken` were taken.
    pub(crate) fn consume(&mut self, taken: usize) {
        self.start = self.start.saturating_add(taken).min(self.end);
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Moves the first of them into `into`, as far as there is room. Tells how many.
    pub(crate) fn read_into(&mut self, into: &mut [u8]) -> usize {
        let len = into.len().min(self.unread().len());
        if let (Some(into), Some(from)) = (into.get_mut(..len), self.unread().get(..len)) {
            into.copy_from_slice(from);
        }
        self.consume(len);
        len
    }

    /// Drops all.
    pub(crate) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Room for more, behind those that wait; they are moved to the front only if less than half would be free. Empty
    /// only when the recv_buffer is full.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        if self.start > 0 && self.bytes.len() - self.end < self.bytes.len() / 2 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// The first `received` bytes of the room were filled.
    pub(crate) fn fill(&mut self, received: usize) {
        self.end = self.end.saturating_add(received).min(self.bytes.len());
    }
}

/// The memory that a direct_recv wants filled.
pub(crate) fn window(direct_recv: &mut DirectRecv) -> &mut [u8] {
    direct_recv.buffer.bytes_mut().get_mut(direct_recv.start..direct_recv.end).unwrap_or_default()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_whatever_is_taken_and_moved() {
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
    fn only_a_full_stage_has_no_room() {
        let mut recv_buffer = RecvBuffer::new(8).unwrap();
        recv_buffer.fill(8);
        assert!(recv_buffer.spare().is_empty());
        recv_buffer.consume(1);
        assert_eq!(recv_buffer.spare().len(), 1);
        recv_buffer.clear();
        assert_eq!(recv_buffer.spare().len(), 8);
    }
}
