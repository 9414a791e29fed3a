//! A pseudo-random generator, seeded at random or by a MAC address. Not cryptographically secure.

use super::ether::Mac;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Debug, Clone)]
pub(super) struct SplitMix64(u64);

impl SplitMix64 {
    pub(super) fn from_random_seed() -> Self {
        Self(RandomState::new().hash_one(std::process::id()))
    }

    /// Seeds it by a MAC address, and by the name of one of several interfaces that share it; an
    /// empty name changes nothing.
    pub(super) fn from_mac(mac: Mac, name: &str) -> Self {
        let [a, b, c, d, e, f] = mac.0;
        let seed = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        // FNV-1a.
        let mix = |seed: u64, byte: u8| (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Self(name.bytes().fold(seed, mix))
    }

    pub(super) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn next_u32(&mut self) -> u32 {
        let [a, b, c, d, ..] = self.next_u64().to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }

    /// Returns a duration in `min..=max`, in whole milliseconds; `min` if the range is empty.
    pub(super) fn duration_between(&mut self, min: Duration, max: Duration) -> Duration {
        let span = u64::try_from(max.saturating_sub(min).as_millis()).unwrap_or(u64::MAX);
        min + Duration::from_millis(self.next_u64() % span.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn equal_seeds_give_equal_numbers() {
        let mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        let first = |mac, name| SplitMix64::from_mac(mac, name).next_u64();
        assert_eq!(first(mac, "vlan5"), first(mac, "vlan5"));
        let all = [(mac, ""), (mac, "vlan5"), (mac, "vlan6"), (Mac::BROADCAST, "")];
        let numbers: BTreeSet<u64> = all.map(|(mac, name)| first(mac, name)).into();
        assert_eq!(numbers.len(), all.len());
        assert_ne!(
            SplitMix64::from_random_seed().next_u64(),
            SplitMix64::from_random_seed().next_u64()
        );
    }

    #[test]
    fn durations_are_within_their_bounds() {
        let mut random = SplitMix64::from_mac(Mac([2; 6]), "");
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(2));
        for _ in 0..100 {
            assert!((min..=max).contains(&random.duration_between(min, max)));
        }
        assert_eq!(random.duration_between(min, min), min);
        assert_eq!(random.duration_between(max, min), max);
    }
}
