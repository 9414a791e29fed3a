//! Rate limit on TLS handshakes per address, against exhaustion of the CPU by unauthenticated
//! peers: a token bucket for each.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use export::Network;

/// Limits on TLS handshakes per address. An IPv6 /64 counts as one address, unless it is
/// link-local.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Concurrent handshakes. One more drops the oldest.
    pub at_once: usize,
    /// Handshakes per second on average. Those that authenticate a host do not count.
    pub each_second: u32,
    /// Size of a burst.
    pub burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { at_once: 8, each_second: 20, burst: 40 }
    }
}

/// Number of buckets. Beyond that the least recently used is evicted.
const MAX_BUCKETS: usize = 1024;

/// The buckets of all addresses.
#[derive(Debug)]
pub(super) struct HandshakeLimiter {
    limits: Limits,
    buckets: HashMap<Network, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Thousandths of a token.
    milli_tokens: u64,
    at: Instant,
}

impl HandshakeLimiter {
    /// Returns a limiter with full buckets.
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, buckets: HashMap::new() }
    }

    /// Takes one token from the bucket of an address. Returns whether there was one.
    pub(super) fn take(&mut self, source: Network, now: Instant) -> bool {
        if self.buckets.len() >= MAX_BUCKETS && !self.buckets.contains_key(&source) {
            self.evict(now);
        }
        let limits = self.limits;
        let bucket = self.buckets.entry(source).or_insert_with(|| Bucket::full(limits, now));
        *bucket = bucket.refilled(limits, now);
        let Some(left) = bucket.milli_tokens.checked_sub(1000) else { return false };
        bucket.milli_tokens = left;
        true
    }

    /// Returns the token of a handshake that succeeded.
    pub(super) fn give_back(&mut self, source: Network) {
        if let Some(bucket) = self.buckets.get_mut(&source) {
            bucket.milli_tokens = bucket.milli_tokens.saturating_add(1000).min(full(self.limits));
        }
    }

    /// Evicts full buckets, or else the least recently used one.
    fn evict(&mut self, now: Instant) {
        let limits = self.limits;
        self.buckets.retain(|_, bucket| bucket.refilled(limits, now).milli_tokens < full(limits));
        if self.buckets.len() >= MAX_BUCKETS {
            let oldest = self.buckets.iter().min_by_key(|(_, bucket)| bucket.at);
            if let Some(oldest) = oldest.map(|(source, _)| *source) {
                self.buckets.remove(&oldest);
            }
        }
    }
}

impl Bucket {
    fn full(limits: Limits, at: Instant) -> Self {
        Self { milli_tokens: full(limits), at }
    }

    fn refilled(self, limits: Limits, now: Instant) -> Self {
        let passed = now.saturating_duration_since(self.at);
        let passed = u64::try_from(passed.min(Duration::from_secs(3600)).as_micros()).unwrap_or(0);
        let gained = passed.saturating_mul(limits.each_second.into()) / 1000;
        if gained == 0 {
            // Keep the time, or frequent calls would never gain a token.
            return self;
        }
        Self { milli_tokens: self.milli_tokens.saturating_add(gained).min(full(limits)), at: now }
    }
}

fn full(limits: Limits) -> u64 {
    u64::from(limits.burst) * 1000
}

#[cfg(test)]
mod test {
    use std::net::{IpAddr, SocketAddr};

    use super::*;

    fn source(text: &str) -> Network {
        Network::of(SocketAddr::new(text.parse().unwrap(), 1))
    }

    #[test]
    fn flood_is_limited_and_other_addresses_are_not() {
        let mut limiter = HandshakeLimiter::new(Limits { at_once: 1, each_second: 10, burst: 3 });
        let now = Instant::now();
        let (flood, other) = (source("192.0.2.1"), source("192.0.2.2"));
        assert_eq!((0..5).filter(|_| limiter.take(flood, now)).count(), 3);
        assert!(limiter.take(other, now));
        let later = now + Duration::from_millis(250);
        assert_eq!((0..5).filter(|_| limiter.take(flood, later)).count(), 2);
        // Idle time earns at most one burst.
        let morning = later + Duration::from_secs(1 << 20);
        assert_eq!((0..5).filter(|_| limiter.take(flood, morning)).count(), 3);
    }

    #[test]
    fn frequent_attempts_still_get_their_rate() {
        let mut limiter = HandshakeLimiter::new(Limits { at_once: 1, each_second: 10, burst: 1 });
        let (now, flood) = (Instant::now(), source("192.0.2.1"));
        let times = (0..20_000).map(|n| now + Duration::from_micros(n * 100));
        let got = times.filter(|&at| limiter.take(flood, at)).count();
        assert!((20..=21).contains(&got), "{got} in two seconds");
    }

    #[test]
    fn successful_handshakes_cost_no_tokens() {
        let mut limiter = HandshakeLimiter::new(Limits { at_once: 1, each_second: 0, burst: 1 });
        let (now, host) = (Instant::now(), source("192.0.2.1"));
        for _ in 0..1000 {
            assert!(limiter.take(host, now));
            limiter.give_back(host);
        }
    }

    #[test]
    fn ipv6_prefixes_share_a_bucket_unless_link_local() {
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:2"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("fe80::1"), source("fe80::2"));
    }

    #[test]
    fn number_of_buckets_is_bounded() {
        let mut limiter = HandshakeLimiter::new(Limits::default());
        let now = Instant::now();
        for n in 0..5000u32 {
            let at = Network::of(SocketAddr::new(IpAddr::from(n.to_be_bytes()), 1));
            assert!(limiter.take(at, now + Duration::from_micros(n.into())));
        }
        assert!(limiter.buckets.len() <= MAX_BUCKETS);
    }
}
