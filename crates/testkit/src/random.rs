//! Seedable pseudo-random numbers for reproducible tests.

/// A pseudo-random generator (xorshift64).
#[derive(Debug, Clone)]
pub struct Xorshift64(u64);

impl Xorshift64 {
    pub fn from_seed(seed: u64) -> Self {
        // SplitMix64, so that consecutive seeds give different sequences. The state must not be 0,
        // which xorshift repeats for ever.
        let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((state ^ (state >> 31)).max(1))
    }

    /// Returns a number below `limit`; 0 if `limit` is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit.max(1)
    }
}

impl Default for Xorshift64 {
    fn default() -> Self {
        Self::from_seed(0)
    }
}
