//! The send queue of a connection: copies small parts together, and sends large ones without a
//! copy.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};

use export::Segment;

/// Parts up to this size are copied.
const SMALL: usize = 1024;

/// Pieces in one gathered send.
const GATHER: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Small parts one after the other, of which `start` bytes have been sent.
    staged: Vec<u8>,
    start: usize,
    pieces: VecDeque<Piece>,
}

#[derive(Debug)]
enum Piece {
    /// So many bytes of what is staged.
    Staged(usize),
    /// The body of a segment from that byte on.
    Body(Segment, usize),
}

impl Outbox {
    /// Appends a segment.
    pub(crate) fn push(&mut self, segment: Segment) {
        let [head, body, tail] = segment.parts();
        self.stage(head);
        if body.len() <= SMALL {
            self.stage(body);
            self.stage(tail);
        } else {
            let (mut kept, len) = ([0; 4], tail.len().min(4));
            kept[..len].copy_from_slice(&tail[..len]);
            self.pieces.push_back(Piece::Body(segment, 0));
            self.stage(&kept[..len]);
        }
    }

    /// Appends bytes.
    pub(crate) fn stage(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.staged.extend_from_slice(bytes);
        match self.pieces.back_mut() {
            Some(Piece::Staged(len)) => *len += bytes.len(),
            _ => self.pieces.push_back(Piece::Staged(bytes.len())),
        }
    }

    /// Returns whether everything was sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Sends as much as possible without blocking.
    pub(crate) fn flush(&mut self, to: &mut impl Write) -> io::Result<()> {
        while !self.pieces.is_empty() {
            match self.send_once(to) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => self.advance(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.staged.clear();
        self.start = 0;
        Ok(())
    }

    fn send_once(&self, to: &mut impl Write) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); GATHER];
        let mut at = self.start;
        let count = self.pieces.len().min(GATHER);
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(match piece {
                Piece::Staged(len) => {
                    at += len;
                    &self.staged[at - len..at]
                }
                Piece::Body(segment, from) => &segment.body()[*from..],
            });
        }
        to.write_vectored(&slices[..count])
    }

    fn advance(&mut self, sent: usize) {
        let mut left = sent;
        while let Some(piece) = self.pieces.front_mut() {
            let len = match piece {
                Piece::Staged(len) => *len,
                Piece::Body(segment, from) => segment.body().len() - *from,
            };
            let gone = left.min(len);
            left -= gone;
            match piece {
                Piece::Staged(len) => {
                    *len -= gone;
                    self.start += gone;
                }
                Piece::Body(_, from) => *from += gone,
            }
            if gone < len {
                return;
            }
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use export::{Body, Head, Pool};

    /// Accepts a few bytes at a time.
    struct Narrow(Vec<u8>);

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(7);
            self.0.extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn partial_sends_preserve_the_data() {
        let mut outbox = Outbox::default();
        let mut expected = Vec::new();
        for (len, fill) in [(16, 1), (5000, 2), (1024, 3), (3000, 4)] {
            let mut buffer = Pool::new(1 << 20).open().take(len).unwrap();
            buffer.bytes_mut().fill(fill);
            expected.extend_from_slice(b"head");
            expected.extend_from_slice(buffer.bytes());
            expected.extend_from_slice(b"tail");
            let body = Body::Whole(buffer);
            outbox.push(Segment::with_body(Head::new(b"head"), body, 0, len).with_tail(*b"tail"));
        }
        let mut narrow = Narrow(Vec::new());
        outbox.flush(&mut narrow).unwrap();
        assert!(outbox.is_empty());
        assert_eq!(narrow.0, expected);
    }
}
