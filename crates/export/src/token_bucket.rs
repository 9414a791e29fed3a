//! Token buckets: limits on what unauthenticated peers can cause.

use std::collections::HashMap;
use std::time::Instant;

use crate::Network;

/// Parameters of a [`TokenBucket`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenRate {
    /// Tokens gained per second.
    pub per_second: u64,
    /// Capacity of the bucket in tokens: the largest burst.
    pub burst: u64,
}

/// A token bucket.
#[derive(Debug, Clone, Copy)]
pub struct TokenBucket {
    rate: TokenRate,
    /// Billionths of a token: what is gained in a nanosecond is a whole number of them.
    nanos: u128,
    refilled_at: Instant,
}

const NANOS: u128 = 1_000_000_000;

impl TokenBucket {
    /// Returns a full bucket.
    pub fn full(rate: TokenRate, now: Instant) -> Self {
        Self { rate, nanos: u128::from(rate.burst) * NANOS, refilled_at: now }
    }

    /// Returns whether there are this many tokens.
    pub fn has(&mut self, tokens: u64, now: Instant) -> bool {
        self.nanos = self.level(now);
        self.refilled_at = self.refilled_at.max(now);
        self.nanos >= u128::from(tokens) * NANOS
    }

    /// Takes this many tokens, or none. Returns whether there were enough.
    pub fn take(&mut self, tokens: u64, now: Instant) -> bool {
        let enough = self.has(tokens, now);
        if enough {
            self.nanos = self.nanos.saturating_sub(u128::from(tokens) * NANOS);
        }
        enough
    }

    /// Returns tokens to the bucket, up to its capacity.
    pub fn refund(&mut self, tokens: u64) {
        let nanos = self.nanos.saturating_add(u128::from(tokens) * NANOS);
        self.nanos = nanos.min(u128::from(self.rate.burst) * NANOS);
    }

    fn level(&self, now: Instant) -> u128 {
        let passed = now.saturating_duration_since(self.refilled_at).as_nanos();
        let gained = passed.saturating_mul(self.rate.per_second.into());
        self.nanos.saturating_add(gained).min(u128::from(self.rate.burst) * NANOS)
    }
}

/// A token bucket for each network, bounded in number.
#[derive(Debug)]
pub struct NetworkBuckets {
    rate: TokenRate,
    max: usize,
    buckets: HashMap<Network, TokenBucket>,
}

impl NetworkBuckets {
    /// Returns full buckets of this rate, at most `max` of them at a time.
    pub fn new(rate: TokenRate, max: usize) -> Self {
        Self { rate, max, buckets: HashMap::new() }
    }

    /// Returns the bucket of a network. If there would be too many, drops the fullest one, which
    /// loses least.
    pub fn of(&mut self, network: Network, now: Instant) -> &mut TokenBucket {
        if self.buckets.len() >= self.max && !self.buckets.contains_key(&network) {
            let fullest = self.buckets.iter().max_by_key(|(_, bucket)| bucket.level(now));
            if let Some(fullest) = fullest.map(|(network, _)| *network) {
                self.buckets.remove(&fullest);
            }
        }
        let rate = self.rate;
        self.buckets.entry(network).or_insert_with(|| TokenBucket::full(rate, now))
    }
}

#[cfg(test)]
mod test {
    use std::net::{IpAddr, SocketAddr};
    use std::time::Duration;

    use super::*;

    fn network(n: u32) -> Network {
        Network::of(SocketAddr::new(IpAddr::from(n.to_be_bytes()), 1))
    }

    #[test]
    fn burst_is_followed_by_the_rate() {
        let now = Instant::now();
        let mut bucket = TokenBucket::full(TokenRate { per_second: 1, burst: 10 }, now);
        let mut count = |at| (0..1000).filter(|_| bucket.take(1, at)).count();
        assert_eq!(count(now), 10);
        assert_eq!(count(now + Duration::from_millis(900)), 0);
        assert_eq!(count(now + Duration::from_millis(3100)), 3);
        // Idle time earns at most one burst; time that runs back earns nothing.
        assert_eq!(count(now + Duration::from_secs(1 << 30)), 10);
        assert_eq!(count(now), 0);
    }

    #[test]
    fn frequent_attempts_still_get_the_rate() {
        let now = Instant::now();
        let mut bucket = TokenBucket::full(TokenRate { per_second: 10, burst: 1 }, now);
        let times = (0..20_000).map(|n| now + Duration::from_micros(n * 100));
        let got = times.filter(|&at| bucket.take(1, at)).count();
        assert!((20..=21).contains(&got), "{got} in two seconds");
    }

    #[test]
    fn refunded_tokens_can_be_taken_again() {
        let now = Instant::now();
        let mut bucket = TokenBucket::full(TokenRate { per_second: 0, burst: 5 }, now);
        for _ in 0..1000 {
            assert!(bucket.take(5, now) && !bucket.take(1, now));
            bucket.refund(u64::MAX);
        }
        assert!(!bucket.has(6, now));
    }

    #[test]
    fn empty_bucket_outlives_a_flood_of_networks() {
        let now = Instant::now();
        let mut buckets = NetworkBuckets::new(TokenRate { per_second: 1, burst: 3 }, 64);
        assert!(buckets.of(network(0), now).take(3, now));
        for n in 1..5000 {
            assert!(buckets.of(network(n), now).take(1, now));
        }
        assert!(!buckets.of(network(0), now).take(1, now));
        assert_eq!(buckets.buckets.len(), 64);
    }
}
