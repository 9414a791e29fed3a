//! Arbitrary bytes as choices. It knows not what is chosen.

/// Bytes that are used up from the front; when they are, every choice is zero.
#[derive(Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Choices from `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether choices are left.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// A bit.
    pub fn bit(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    /// Two bytes.
    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// Four bytes.
    pub fn dword(&mut self) -> u32 {
        u32::from(self.word()) | u32::from(self.word()) << 16
    }

    /// One of the `count` numbers from zero on; `count` is not zero.
    pub fn below(&mut self, count: usize) -> usize {
        usize::from(self.word()) % count
    }

    /// The next `len` bytes, or all there are.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (front, back) = self.0.split_at(len.min(self.0.len()));
        self.0 = back;
        front
    }
}
