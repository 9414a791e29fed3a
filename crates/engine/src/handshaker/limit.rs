//! Rate limit on TLS handshakes per address, against exhaustion of the CPU by unauthenticated
//! peers: a token bucket for each.

use std::time::Instant;

use export::{Network, NetworkBuckets, TokenRate};

/// Limits on TLS handshakes per address. An IPv6 /64 counts as one address, unless it is
/// link-local.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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

/// Maximum number of addresses with a bucket of their own.
const MAX_BUCKETS: usize = 1024;

/// The buckets of all addresses.
#[derive(Debug)]
pub(super) struct HandshakeLimiter(NetworkBuckets);

impl HandshakeLimiter {
    /// Returns a limiter with full buckets.
    pub(super) fn new(limits: Limits) -> Self {
        let Limits { each_second, burst, .. } = limits;
        let rate = TokenRate { per_second: each_second.into(), burst: burst.into() };
        Self(NetworkBuckets::new(rate, MAX_BUCKETS))
    }

    /// Takes one token from the bucket of an address. Returns whether there was one.
    pub(super) fn take(&mut self, source: Network, now: Instant) -> bool {
        self.0.of(source, now).take(1, now)
    }

    /// Returns the token of a handshake that succeeded.
    pub(super) fn give_back(&mut self, source: Network, now: Instant) {
        self.0.of(source, now).refund(1);
    }
}

#[cfg(test)]
mod test {
    use std::net::SocketAddr;
    use std::time::Duration;

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
    fn successful_handshakes_cost_no_tokens() {
        let mut limiter = HandshakeLimiter::new(Limits { at_once: 1, each_second: 0, burst: 1 });
        let (now, host) = (Instant::now(), source("192.0.2.1"));
        for _ in 0..1000 {
            assert!(limiter.take(host, now));
            limiter.give_back(host, now);
        }
    }

    #[test]
    fn ipv6_prefixes_share_a_bucket_unless_link_local() {
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:2"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("fe80::1"), source("fe80::2"));
    }
}
