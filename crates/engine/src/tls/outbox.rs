//! Queue of segments to be encrypted: cuts them into records. Small pieces are coalesced, large
//! ones are encrypted without copying.

use std::collections::VecDeque;

use export::Segment;

use super::record::{CONTENT, Kind, OVERHEAD, Sealer};

/// A piece from this size on is not copied. Copying less costs less than a record, at both ends.
pub(super) const LARGE: usize = 8 << 10;

/// The queue.
pub(super) struct Outbox {
    segments: VecDeque<Segment>,
    /// The current part of the first segment, and how many of its bytes are encrypted.
    part: usize,
    done: usize,
    /// Bytes in the queue.
    len: usize,
    /// Coalesced small pieces.
    scratch: Box<[u8]>,
}

impl Outbox {
    pub(super) fn new() -> Self {
        let scratch = vec![0; CONTENT].into_boxed_slice();
        Self { segments: VecDeque::new(), part: 0, done: 0, len: 0, scratch }
    }

    pub(super) fn push(&mut self, segment: Segment) {
        self.len += segment.len();
        self.segments.push_back(segment);
    }

    /// Returns the number of bytes in the queue.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns the number of segments in the queue.
    pub(super) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Empties the queue.
    pub(super) fn clear(&mut self) {
        self.segments.clear();
        (self.part, self.done, self.len) = (0, 0, 0);
    }

    /// Encrypts as much as fits into `out`. Returns the number of bytes written.
    pub(super) fn seal(&mut self, sealer: &mut Sealer, out: &mut [u8]) -> usize {
        let mut filled = 0;
        while self.len > 0 {
            let room = out.get_mut(filled..).unwrap_or_default();
            // Do not put a short record into the rest of `out` if the next buffer has room for a
            // full one.
            if room.len() < OVERHEAD + self.len.min(LARGE) {
                break;
            }
            filled += self.seal_one(sealer, room);
        }
        filled
    }

    /// Encrypts one record.
    fn seal_one(&mut self, sealer: &mut Sealer, out: &mut [u8]) -> usize {
        let max = (out.len() - OVERHEAD).min(CONTENT);
        if let Some(piece) = self.piece().filter(|piece| piece.len() >= LARGE) {
            let piece = piece.get(..max).unwrap_or(piece);
            let sealed = sealer.seal(Kind::Data, piece, out);
            let len = piece.len();
            self.advance(len);
            return sealed;
        }
        let len = self.coalesce(max);
        sealer.seal(Kind::Data, self.scratch.get(..len).unwrap_or_default(), out)
    }

    /// Copies small pieces together, at most `max` bytes. Returns their length.
    fn coalesce(&mut self, max: usize) -> usize {
        let mut len = 0;
        let mut scratch = std::mem::take(&mut self.scratch);
        while let Some(piece) = self.piece().filter(|piece| piece.len() < LARGE) {
            let some = piece.len().min(max - len);
            if let (Some(room), Some(piece)) = (scratch.get_mut(len..len + some), piece.get(..some))
            {
                room.copy_from_slice(piece);
            }
            len += some;
            self.advance(some);
            if len == max {
                break;
            }
        }
        self.scratch = scratch;
        len
    }

    /// Returns the rest of the current part.
    fn piece(&self) -> Option<&[u8]> {
        let parts = self.segments.front()?.parts();
        parts.get(self.part)?.get(self.done..)
    }

    /// Marks `bytes` of the current part as encrypted.
    fn advance(&mut self, bytes: usize) {
        self.len -= bytes;
        self.done += bytes;
        while let Some(segment) = self.segments.front() {
            match segment.parts().get(self.part) {
                Some(part) if part.len() > self.done => return,
                Some(_) => (self.part, self.done) = (self.part + 1, 0),
                None => {
                    self.segments.pop_front();
                    self.part = 0;
                }
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::super::record::{OPENED, Opener};
    use super::super::suite::Suite;
    use super::*;
    use export::{Body, Head, Pool};
    use zeroize::Zeroizing;

    #[test]
    fn segments_round_trip_at_any_buffer_size() {
        let secret = Zeroizing::new(vec![3; 32]);
        for room in [LARGE + 100, 20_000, 1 << 18] {
            let mut sealer = Sealer::new(Suite::Aes128, secret.clone()).unwrap();
            let mut opener = Opener::new(Suite::Aes128, secret.clone()).unwrap();
            let (mut outbox, mut expected) = (Outbox::new(), Vec::new());
            for (len, fill) in [(0, 1), (300, 2), (LARGE, 3), (100_000, 4), (LARGE - 1, 5), (0, 6)]
            {
                let mut buffer = Pool::new(1 << 22).open().take(len).unwrap();
                buffer.bytes_mut().fill(fill);
                let segment =
                    Segment::with_body(Head::new(&[fill; 24]), Body::Whole(buffer), 0, len);
                let segment = segment.with_tail([fill; 4]);
                expected.extend(segment.parts().concat());
                outbox.push(segment);
            }
            assert_eq!(outbox.len(), expected.len());
            let mut opened = Vec::new();
            while outbox.len() > 0 {
                let mut out = vec![0; room];
                let filled = outbox.seal(&mut sealer, &mut out);
                assert!(filled > 0);
                let mut at = 0;
                while at < filled {
                    let body = Opener::body(&out[at..filled]).unwrap().unwrap();
                    let mut into = vec![0; OPENED];
                    let (kind, len) = opener.open(body, &mut into).unwrap();
                    assert_eq!(kind, Kind::Data);
                    opened.extend_from_slice(&into[..len]);
                    at += 5 + body.len();
                }
            }
            assert!(opened == expected);
            assert_eq!(outbox.segments(), 0);
        }
    }

    #[test]
    fn small_answers_share_a_record() {
        let secret = Zeroizing::new(vec![3; 32]);
        let mut sealer = Sealer::new(Suite::Aes128, secret).unwrap();
        let mut outbox = Outbox::new();
        for _ in 0..3 {
            let buffer = Pool::new(1 << 22).open().take(4096).unwrap();
            let head = Head::new(&[1; 24]);
            outbox.push(Segment::with_body(head, Body::Whole(buffer), 0, 4096));
        }
        let mut out = vec![0; 1 << 18];
        assert_eq!(outbox.seal(&mut sealer, &mut out), 3 * (24 + 4096) + OVERHEAD);
    }
}
