//! Arbitrary bytes as a source of choices.

/// Bytes consumed from the front. Once exhausted, every choice is zero.
#[derive(Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Creates a source of choices from `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Returns whether all bytes are consumed.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// Chooses a byte.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// Chooses a bit.
    pub fn bit(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    /// Chooses two bytes.
    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// Chooses four bytes.
    pub fn dword(&mut self) -> u32 {
        u32::from(self.word()) | u32::from(self.word()) << 16
    }

    /// Chooses a number below `count`, which is not zero.
    pub fn below(&mut self, count: usize) -> usize {
        usize::from(self.word()) % count
    }

    /// Takes the next `len` bytes, or all that are left.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (front, back) = self.0.split_at(len.min(self.0.len()));
        self.0 = back;
        front
    }
}
