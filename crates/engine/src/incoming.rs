//! A transfer from the host at the bulk endpoint of a USB function, received in parts.

use std::fmt;

use export::DirectRecv;

use crate::recv_buffer::window;

/// Largest packet of a bulk endpoint. Transfers are cut at multiples of it: some controllers receive
/// whole packets only. The kernel aligns the last one, as it knows the packets of the speed.
pub(crate) const PACKET: usize = 1024;

/// The memory of a transfer. Owned by the ring while it receives a part.
pub(crate) struct Incoming {
    /// For a transfer that no window is lent for.
    packet: Box<[u8; PACKET]>,
    /// Memory of the session for data.
    pub(crate) window: Option<DirectRecv>,
    /// Bytes received so far, and how many the next part may have.
    filled: usize,
    part: usize,
}

impl Incoming {
    /// Returns the memory for a transfer of one packet.
    pub(crate) fn new() -> Box<Self> {
        Box::new(Self { packet: Box::new([0; PACKET]), window: None, filled: 0, part: 0 })
    }

    /// Begins a transfer: into the window, if there is one.
    pub(crate) fn begin(&mut self, window: Option<DirectRecv>) {
        (self.window, self.filled) = (window, 0);
    }

    /// Limits the next part to `max` bytes.
    pub(crate) fn limit(&mut self, max: usize) {
        self.part = max;
        self.part = self.place().len();
    }

    /// Returns the memory for the next part.
    pub(crate) fn place(&mut self) -> &mut [u8] {
        let whole = match &mut self.window {
            Some(direct_recv) => window(direct_recv),
            None => &mut self.packet[..],
        };
        let end = whole.len().min(self.filled.saturating_add(self.part));
        whole.get_mut(self.filled..end).unwrap_or_default()
    }

    /// Adds a part of `len` bytes. Returns whether the transfer has ended: by its length, or by a short
    /// packet.
    pub(crate) fn received(&mut self, len: usize) -> bool {
        let is_short = len < self.part;
        self.filled = self.filled.saturating_add(len.min(self.part));
        is_short || self.place().is_empty()
    }

    /// Returns the number of bytes received.
    pub(crate) fn len(&self) -> usize {
        self.filled
    }

    /// Returns the transfer that no window was lent for.
    pub(crate) fn packet(&self) -> &[u8] {
        &self.packet[..self.filled.min(PACKET)]
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incoming({} bytes of {:?})", self.filled, self.window)
    }
}
