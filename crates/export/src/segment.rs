//! Bytes to be sent: a small head, and perhaps a payload that is sent from where it lies. It knows no protocol.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use crate::Buffer;

/// Up to [`Head::MAX`] bytes, held in place.
#[derive(Clone, Copy)]
pub struct Head {
    len: u8,
    bytes: [u8; Self::MAX],
}

impl Head {
    /// Room for the largest header of a protocol data unit that is followed by a payload, with its digest.
    pub const MAX: usize = 55;

    /// A head of `bytes`; what is beyond [`Head::MAX`] is a mistake of the caller and cut off.
    pub fn new(bytes: &[u8]) -> Self {
        let mut head = Self { len: 0, bytes: [0; Self::MAX] };
        head.push(bytes);
        head
    }

    /// Appends `bytes`, as far as there is room.
    pub fn push(&mut self, bytes: &[u8]) {
        let at = usize::from(self.len);
        let n = bytes.len().min(Self::MAX - at);
        debug_assert_eq!(n, bytes.len(), "a head holds {} bytes", Self::MAX);
        self.bytes[at..at + n].copy_from_slice(&bytes[..n]);
        #[allow(clippy::cast_possible_truncation, reason = "at most MAX")]
        {
            self.len += n as u8;
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Head({:02x?})", self.bytes())
    }
}

/// A payload that is sent from where it lies.
#[derive(Debug)]
pub enum Body {
    /// No payload.
    None,
    /// A buffer that is free again once it is sent.
    Whole(Buffer),
    /// A buffer of which other segments send other parts.
    Part(Rc<Buffer>),
    /// Bytes that exist anyway.
    Shared(Arc<[u8]>),
}

impl Body {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Whole(buffer) => buffer.bytes(),
            Self::Part(buffer) => buffer.bytes(),
            Self::Shared(bytes) => bytes,
        }
    }
}

/// Bytes to be sent, in the order head, body, tail.
#[derive(Debug)]
pub struct Segment {
    head: Head,
    tail: Tail,
    body: Body,
    start: u32,
    len: u32,
}

#[derive(Debug, Clone, Copy)]
struct Tail {
    len: u8,
    bytes: [u8; 4],
}

impl Segment {
    /// A segment that is only a head.
    pub fn head(head: Head) -> Self {
        Self { head, tail: Tail { len: 0, bytes: [0; 4] }, body: Body::None, start: 0, len: 0 }
    }

    /// A segment of `head` and the bytes `[start, start + len)` of `body`; a range outside it is cut to it.
    pub fn with_body(head: Head, body: Body, start: usize, len: usize) -> Self {
        let (start, len) = cut(start, len, body.bytes().len());
        Self { body, start, len, ..Self::head(head) }
    }

    /// A segment of `head` and all of `body`.
    pub fn with_shared(head: Head, body: Arc<[u8]>) -> Self {
        let len = body.len();
        Self::with_body(head, Body::Shared(body), 0, len)
    }

    /// The same with a tail of four bytes, such as a digest of the body.
    #[must_use]
    pub fn with_tail(mut self, bytes: [u8; 4]) -> Self {
        self.tail = Tail { len: 4, bytes };
        self
    }

    /// The three parts, any of which may be empty.
    pub fn parts(&self) -> [&[u8]; 3] {
        [self.head.bytes(), self.body(), &self.tail.bytes[..usize::from(self.tail.len)]]
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        let start = self.start as usize;
        self.body.bytes().get(start..start + self.len as usize).unwrap_or_default()
    }

    /// Bytes of the head, body and tail together.
    pub fn len(&self) -> usize {
        usize::from(self.head.len) + self.len as usize + usize::from(self.tail.len)
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "payloads are far below 4 GiB; a longer one is cut"
)]
fn cut(start: usize, len: usize, whole: usize) -> (u32, u32) {
    let start = start.min(whole);
    (start as u32, len.min(whole - start) as u32)
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::Pool;

    #[test]
    fn parts_come_in_order_and_a_range_is_cut_to_the_body() {
        let mut buffer = Pool::new(1 << 16).open().take(8).unwrap();
        buffer.bytes_mut().copy_from_slice(b"abcdefgh");
        let segment =
            Segment::with_body(Head::new(b"head"), Body::Whole(buffer), 2, 100).with_tail(*b"tail");
        assert_eq!(segment.parts(), [&b"head"[..], b"cdefgh", b"tail"]);
        assert_eq!(segment.len(), 14);
    }
}
