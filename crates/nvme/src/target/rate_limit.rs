//! Rate limit for Diffie-Hellman calculations of unauthenticated peers: each takes milliseconds of
//! a thread that serves other connections.

use std::time::{Duration, Instant};

use export::{Network, NetworkBuckets, TokenBucket, TokenRate};

/// Limit of one address, in microseconds of calculation. A host that authenticates 17 queues with
/// the largest group takes 0.8 s.
const PER_ADDRESS: TokenRate = TokenRate { per_second: 100_000, burst: 2_000_000 };

/// Limit of all addresses together.
const TOTAL: TokenRate = TokenRate { per_second: 300_000, burst: 4_000_000 };

/// Maximum number of addresses with a bucket of their own.
const MAX_ADDRESSES: usize = 64;

/// The token buckets of all peers.
#[derive(Debug)]
pub(super) struct RateLimiter {
    total: TokenBucket,
    addresses: NetworkBuckets,
}

impl RateLimiter {
    pub(super) fn new(now: Instant) -> Self {
        let addresses = NetworkBuckets::new(PER_ADDRESS, MAX_ADDRESSES);
        Self { total: TokenBucket::full(TOTAL, now), addresses }
    }

    /// Takes `cost` from the bucket of the address and from the common one. Returns whether both
    /// had enough; otherwise takes nothing.
    pub(super) fn try_take(&mut self, from: Network, cost: Duration, now: Instant) -> bool {
        let cost = tokens(cost);
        self.total.has(cost, now)
            && self.addresses.of(from, now).take(cost, now)
            && self.total.take(cost, now)
    }

    /// Refunds `cost` after the peer has authenticated.
    pub(super) fn refund(&mut self, to: Network, cost: Duration, now: Instant) {
        self.total.refund(tokens(cost));
        self.addresses.of(to, now).refund(tokens(cost));
    }
}

fn tokens(cost: Duration) -> u64 {
    u64::try_from(cost.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod test {
    use super::*;

    const COST: Duration = Duration::from_millis(100);

    fn address(n: u8) -> Network {
        Network::of(([10, 0, 0, n], 1).into())
    }

    /// X54: a flooding address uses up its own bucket, and all addresses share a common limit.
    #[test]
    fn x54_one_address_is_limited_to_its_own_bucket() {
        let now = Instant::now();
        let mut limiter = RateLimiter::new(now);
        let taken = (0..100).filter(|_| limiter.try_take(address(1), COST, now)).count();
        assert_eq!(taken, 20);
        assert!(limiter.try_take(address(2), COST, now));
        assert!(!limiter.try_take(address(1), COST, now + Duration::from_millis(900)));
        assert!(limiter.try_take(address(1), COST, now + Duration::from_millis(1000)));
        let others = (3..250).filter(|n| limiter.try_take(address(*n), COST, now)).count();
        assert_eq!(others, 21, "what is left of four seconds and of 0.3 since");
    }

    #[test]
    fn authenticated_peer_gets_a_refund() {
        let now = Instant::now();
        let mut limiter = RateLimiter::new(now);
        for _ in 0..100 {
            assert!(limiter.try_take(address(1), COST, now));
            limiter.refund(address(1), COST, now);
        }
    }
}
