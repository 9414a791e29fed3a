//! Queue of data to send on a connection: small parts are copied together, large ones are sent
//! without a copy.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Write};

use export::Segment;

/// Parts up to this many bytes are copied.
const COPY_MAX: usize = 1024;

/// Sent bytes of copied parts that are kept at most. They are dropped when everything was sent, which
/// may never happen while a copy keeps the socket full.
const MAX_SENT: usize = 64 << 10;

/// Slices per `writev`.
const MAX_IOV: usize = 64;

/// Data to send on one connection.
#[derive(Debug, Default)]
pub struct SendQueue {
    /// Copied parts, of which the first `start` bytes have been sent.
    copied: Vec<u8>,
    start: usize,
    pieces: VecDeque<Piece>,
}

#[derive(Debug)]
enum Piece {
    /// The next bytes of `copied`.
    Copied(usize),
    /// The body of a segment, from this byte on.
    Body(Segment, usize),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Copied(len) => *len,
            Self::Body(segment, from) => segment.body().len().saturating_sub(*from),
        }
    }
}

impl SendQueue {
    /// Queues a segment.
    pub fn push(&mut self, segment: Segment) {
        let [head, body, tail] = segment.parts();
        self.copy_in(head);
        if body.len() <= COPY_MAX {
            self.copy_in(body);
            self.copy_in(tail);
        } else {
            let tail = tail.to_vec();
            self.pieces.push_back(Piece::Body(segment, 0));
            self.copy_in(&tail);
        }
    }

    fn copy_in(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.copied.extend_from_slice(bytes);
        match self.pieces.back_mut() {
            Some(Piece::Copied(len)) => *len += bytes.len(),
            _ => self.pieces.push_back(Piece::Copied(bytes.len())),
        }
    }

    /// Whether everything was sent.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Sends as much as possible without blocking.
    pub fn flush(&mut self, to: &mut dyn Write) -> io::Result<()> {
        while !self.pieces.is_empty() {
            match self.send_once(to) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => {
                    self.advance(sent);
                    self.drop_sent();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.copied.clear();
        self.start = 0;
        Ok(())
    }

    fn drop_sent(&mut self) {
        if self.start > MAX_SENT {
            self.copied.drain(..self.start);
            self.start = 0;
        }
    }

    fn send_once(&self, to: &mut dyn Write) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); MAX_IOV];
        let (mut at, mut count) = (self.start, 0);
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            let bytes = match piece {
                Piece::Copied(len) => {
                    at += len;
                    self.copied.get(at - len..at)
                }
                Piece::Body(segment, from) => segment.body().get(*from..),
            };
            *slice = IoSlice::new(bytes.unwrap_or_default());
            count += 1;
        }
        to.write_vectored(slices.get(..count).unwrap_or_default())
    }

    fn advance(&mut self, sent: usize) {
        let mut left = sent;
        while let Some(piece) = self.pieces.front_mut() {
            let len = piece.len();
            let gone = left.min(len);
            left -= gone;
            match piece {
                Piece::Copied(len) => {
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

    /// Accepts a few bytes per write.
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
    fn short_writes_keep_order_and_data() {
        let mut queue = SendQueue::default();
        let mut expected = Vec::new();
        for (len, fill) in [(16, 1), (5000, 2), (1024, 3), (3000, 4)] {
            let mut buffer = Pool::new(1 << 20).open().take(len).unwrap();
            buffer.bytes_mut().fill(fill);
            expected.extend_from_slice(b"head");
            expected.extend_from_slice(buffer.bytes());
            expected.extend_from_slice(b"tail");
            let body = Body::Whole(buffer);
            queue.push(Segment::with_body(Head::new(b"head"), body, 0, len).with_tail(*b"tail"));
        }
        let mut narrow = Narrow(Vec::new());
        queue.flush(&mut narrow).unwrap();
        assert!(queue.is_empty());
        assert_eq!(narrow.0, expected);
    }

    /// Accepts a number of bytes, then none.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(self.0);
            self.0 -= n;
            if n == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(n) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn memory_is_bounded_while_the_socket_stays_full() {
        let mut queue = SendQueue::default();
        for _ in 0..20_000 {
            queue.push(Segment::head(Head::new(&[0; 47])));
            // All but the newest segment.
            let pending = queue.copied.len() - queue.start;
            queue.flush(&mut Full(pending - 24)).unwrap();
            assert!(!queue.is_empty());
        }
        assert!(queue.copied.len() <= MAX_SENT + 1024, "{}", queue.copied.len());
    }
}
