//! Data to be sent: a small inline header, and optionally a payload that is sent without copying.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use crate::{Buffer, InPlace};

/// Up to [`Head::MAX`] bytes, stored inline.
#[derive(Clone, Copy)]
pub struct Head {
    len: u8,
    bytes: [u8; Self::MAX],
}

impl Head {
    /// Capacity in bytes: the longest header that is followed by payload (iSCSI: a basic header
    /// segment).
    pub const MAX: usize = 48;

    /// Returns a head of `bytes`. At most [`Head::MAX`] bytes: the rest is cut off, and debug
    /// builds panic.
    pub fn new(bytes: &[u8]) -> Self {
        let mut head = Self { len: 0, bytes: [0; Self::MAX] };
        head.push(bytes);
        head
    }

    /// Appends `bytes`. What exceeds [`Head::MAX`] is cut off, and debug builds panic.
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

    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Head({:02x?})", self.bytes())
    }
}

/// A payload that is sent without copying.
#[derive(Debug)]
pub enum Body {
    /// No payload.
    None,
    /// A buffer, freed when sent.
    Whole(Buffer),
    /// A buffer shared with other segments, freed when the last of them is sent.
    Part(Rc<Buffer>),
    /// Shared immutable bytes.
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

    fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Whole(buffer) => buffer.len(),
            Self::Part(buffer) => buffer.len(),
            Self::Shared(bytes) => bytes.len(),
        }
    }
}

/// Data to be sent, in the order head, body, tail.
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
    /// Returns a segment that consists of `head` only.
    pub fn head(head: Head) -> Self {
        Self { head, tail: Tail { len: 0, bytes: [0; 4] }, body: Body::None, start: 0, len: 0 }
    }

    /// Returns a segment of `head` and the bytes `[start, start + len)` of `body`. The range is
    /// clamped to the body.
    pub fn with_body(head: Head, body: Body, start: usize, len: usize) -> Self {
        let (start, len) = cut(start, len, body.len());
        Self { body, start, len, ..Self::head(head) }
    }

    /// Returns a segment of `head` and the whole `body`.
    pub fn with_shared(head: Head, body: Arc<[u8]>) -> Self {
        let len = body.len();
        Self::with_body(head, Body::Shared(body), 0, len)
    }

    /// Adds a tail of four bytes, such as the digest of the body.
    #[must_use]
    pub fn with_tail(mut self, bytes: [u8; 4]) -> Self {
        self.tail = Tail { len: 4, bytes };
        self
    }

    /// Returns head, body and tail, any of which may be empty. The body is empty if it is
    /// [in place](Segment::in_place).
    pub fn parts(&self) -> [&[u8]; 3] {
        [self.head.bytes(), self.body(), &self.tail.bytes[..usize::from(self.tail.len)]]
    }

    /// Returns where the body is, if it is in memory of the driver, and its length in bytes.
    pub fn in_place(&self) -> Option<(InPlace, usize)> {
        let in_place = match &self.body {
            Body::Whole(buffer) => buffer.in_place(),
            Body::Part(buffer) => buffer.in_place(),
            Body::None | Body::Shared(_) => None,
        };
        let InPlace { memory, start } = in_place?;
        let start = start.saturating_add(self.start as usize);
        Some((InPlace { memory: memory.clone(), start }, self.len as usize))
    }

    /// Returns the body.
    pub fn body(&self) -> &[u8] {
        let start = self.start as usize;
        self.body.bytes().get(start..start + self.len as usize).unwrap_or_default()
    }

    /// Returns the total length in bytes.
    pub fn len(&self) -> usize {
        usize::from(self.head.len) + self.len as usize + usize::from(self.tail.len)
    }

    /// Returns whether the total length is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "a buffer is at most 1 MiB; anything above 4 GiB is cut"
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
    fn parts_are_ordered_and_the_range_is_clamped_to_the_body() {
        let mut buffer = Pool::new(1 << 16).open().take(8).unwrap();
        buffer.bytes_mut().copy_from_slice(b"abcdefgh");
        let segment =
            Segment::with_body(Head::new(b"head"), Body::Whole(buffer), 2, 100).with_tail(*b"tail");
        assert_eq!(segment.parts(), [&b"head"[..], b"cdefgh", b"tail"]);
        assert_eq!(segment.len(), 14);
    }
}
