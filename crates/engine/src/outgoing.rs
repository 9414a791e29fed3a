//! A message to the host at the bulk endpoint of a USB function, sent in parts.

use std::fmt;

use export::Segment;

/// The message, and how much of it was sent. Owned by the ring while it sends a part.
pub(crate) struct Outgoing {
    segment: Segment,
    sent: usize,
    /// Most bytes of the next part.
    max: usize,
}

impl Outgoing {
    /// Returns a message of which nothing was sent.
    pub(crate) fn new(segment: Segment) -> Box<Self> {
        Box::new(Self { segment, sent: 0, max: 0 })
    }

    /// Limits the next part to `max` bytes.
    pub(crate) fn limit(&mut self, max: usize) {
        self.max = max;
    }

    /// Returns the next part. Empty if everything was sent.
    pub(crate) fn place(&self) -> &[u8] {
        let mut start = self.sent;
        for part in self.segment.parts() {
            if let Some(rest) = part.get(start..).filter(|rest| !rest.is_empty()) {
                return &rest[..rest.len().min(self.max)];
            }
            start -= part.len();
        }
        &[]
    }

    /// Adds `len` bytes of the part to those sent.
    pub(crate) fn sent(&mut self, len: usize) {
        self.sent += len.min(self.place().len());
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outgoing({} of {} bytes)", self.sent, self.segment.len())
    }
}

#[cfg(test)]
mod test {
    use std::sync::Arc;

    use export::Head;

    use super::*;

    #[test]
    fn parts_end_with_head_body_and_limit() {
        let segment =
            Segment::with_shared(Head::new(&[1, 2]), Arc::from([3, 4, 5])).with_tail([6; 4]);
        let mut outgoing = Outgoing::new(segment);
        outgoing.limit(2);
        let mut parts = Vec::new();
        while !outgoing.place().is_empty() {
            parts.push(outgoing.place().to_vec());
            outgoing.sent(2);
        }
        assert_eq!(parts, [&[1, 2][..], &[3, 4], &[5], &[6, 6], &[6, 6]]);
    }
}
