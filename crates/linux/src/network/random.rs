//! A deterministic pseudo-random generator. Not for secrets.

use super::ether::Mac;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    /// Returns a generator with a random seed.
    pub(super) fn fresh() -> Self {
        Self(RandomState::new().hash_one(std::process::id()))
    }

    /// Returns a generator seeded by a MAC address.
    pub(super) fn of(mac: Mac) -> Self {
        let [a, b, c, d, e, f] = mac.0;
        Self(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }

    /// SplitMix64 (Steele, Lea and Flood, 2014).
    pub(super) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns the upper half of the next number.
    pub(super) fn word(&mut self) -> u32 {
        let [a, b, c, d, ..] = self.number().to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }

    /// Returns a duration in `least..=most`, in whole milliseconds; `least` if the range is empty.
    pub(super) fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let span = u64::try_from(most.saturating_sub(least).as_millis()).unwrap_or(u64::MAX);
        least + Duration::from_millis(self.number() % span.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_of_a_mac_address_is_stable() {
        let mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        assert_eq!(Random::of(mac).number(), Random::of(mac).number());
        assert_ne!(Random::of(mac).number(), Random::of(Mac::BROADCAST).number());
        assert_ne!(Random::fresh().number(), Random::fresh().number());
    }

    #[test]
    fn durations_are_within_their_bounds() {
        let mut random = Random::of(Mac([2; 6]));
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(2));
        for _ in 0..100 {
            assert!((least..=most).contains(&random.between(least, most)));
        }
        assert_eq!(random.between(least, least), least);
        assert_eq!(random.between(most, least), most);
    }
}
