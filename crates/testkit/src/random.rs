//! Pseudo-random numbers that a seed repeats.

/// A generator of pseudo-random numbers (xorshift64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Creates the generator of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Returns a number below `limit`; zero if that is zero.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit.max(1)
    }
}

impl Default for Random {
    fn default() -> Self {
        Self::new(0x9e37_79b9_7f4a_7c15)
    }
}
