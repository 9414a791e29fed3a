//! One direction of a connection.

use export::{DirectRecv, Segment};

use crate::Xorshift64;

/// The sizes of the chunks in which bytes arrive.
#[derive(Debug, Clone, Copy)]
pub enum Chunks {
    /// This many bytes.
    Fixed(usize),
    /// Up to this many bytes.
    UpTo(usize),
    /// Up to 32 KiB, of all orders of magnitude.
    Random,
}

impl Chunks {
    fn next(self, random: &mut Xorshift64) -> usize {
        match self {
            Self::Fixed(n) => n,
            Self::UpTo(max) => random.below(max) + 1,
            Self::Random => {
                let max = 1 << random.below(16);
                random.below(max) + 1
            }
        }
    }
}

/// Bytes on their way to one end of a connection.
#[derive(Debug, Default)]
pub struct Stream {
    bytes: Vec<u8>,
    /// Number of bytes that have arrived and were not consumed.
    arrived: usize,
}

impl Stream {
    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends the bytes of a segment.
    pub fn push_segment(&mut self, segment: &Segment) {
        segment.parts().iter().for_each(|part| self.push(part));
    }

    /// Returns the number of bytes not consumed.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns whether all bytes were consumed.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Drops all bytes.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Lets the next chunk arrive. Returns its length in bytes.
    pub fn arrive(&mut self, chunks: Chunks, random: &mut Xorshift64) -> usize {
        let fresh = chunks.next(random).min(self.bytes.len() - self.arrived);
        self.arrived += fresh;
        fresh
    }

    /// Returns the bytes that have arrived.
    pub fn arrived(&self) -> &[u8] {
        &self.bytes[..self.arrived]
    }

    /// Removes bytes that were consumed.
    ///
    /// # Panics
    /// Panics if they have not arrived.
    pub fn consume(&mut self, len: usize) {
        assert!(len <= self.arrived, "consumed what has not arrived");
        self.bytes.drain(..len);
        self.arrived -= len;
    }

    /// Moves bytes that have arrived to the memory of a direct receive. Returns how many.
    pub fn fill(&mut self, window: &mut DirectRecv) -> usize {
        let got = self.arrived.min(window.end - window.start);
        let range = window.start..window.start + got;
        window.buffer.bytes_mut()[range].copy_from_slice(&self.bytes[..got]);
        self.consume(got);
        got
    }
}
