//! Rate limit for Diffie-Hellman calculations of unauthenticated peers: each takes milliseconds of
//! a thread that serves other connections.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Limit of one address. A host that authenticates 17 queues with the largest group takes 0.8 s.
const PER_ADDRESS: BucketConfig = BucketConfig { capacity: Duration::from_secs(2), tenths: 1 };

/// Limit of all addresses together.
const TOTAL: BucketConfig = BucketConfig { capacity: Duration::from_secs(4), tenths: 3 };

/// Maximum number of addresses with a bucket of their own.
const MAX_ADDRESSES: usize = 64;

/// Parameters of a token bucket. Tokens are calculation time: up to `capacity`, refilled with
/// `tenths` tenths of the time that passes.
#[derive(Debug, Clone, Copy)]
struct BucketConfig {
    capacity: Duration,
    tenths: u32,
}

#[derive(Debug, Clone, Copy)]
struct TokenBucket {
    config: BucketConfig,
    tokens: Duration,
    refilled_at: Instant,
}

impl TokenBucket {
    fn new(config: BucketConfig, now: Instant) -> Self {
        Self { config, tokens: config.capacity, refilled_at: now }
    }

    fn refill(&mut self, now: Instant) {
        let refilled = now.saturating_duration_since(self.refilled_at) * self.config.tenths / 10;
        self.tokens = self.tokens.saturating_add(refilled).min(self.config.capacity);
        self.refilled_at = self.refilled_at.max(now);
    }
}

/// The token buckets of all peers.
#[derive(Debug, Default)]
pub(super) struct RateLimiter {
    total: Option<TokenBucket>,
    addresses: Vec<(IpAddr, TokenBucket)>,
}

impl RateLimiter {
    /// Takes `cost` from the bucket of the address and from the common one. Returns whether both
    /// had enough; otherwise takes nothing.
    pub(super) fn try_take(&mut self, address: IpAddr, cost: Duration, now: Instant) -> bool {
        let total = self.total.get_or_insert_with(|| TokenBucket::new(TOTAL, now));
        total.refill(now);
        let own = bucket_of(&mut self.addresses, network(address), now);
        own.refill(now);
        let enough = own.tokens >= cost && total.tokens >= cost;
        if enough {
            own.tokens -= cost;
            total.tokens -= cost;
        }
        enough
    }

    /// Refunds `cost` after the peer has authenticated.
    pub(super) fn refund(&mut self, address: IpAddr, cost: Duration, now: Instant) {
        let own = bucket_of(&mut self.addresses, network(address), now);
        for bucket in self.total.iter_mut().chain([own]) {
            bucket.tokens = (bucket.tokens + cost).min(bucket.config.capacity);
        }
    }
}

/// Returns the bucket of an address. If there are too many, evicts the fullest one.
fn bucket_of(
    addresses: &mut Vec<(IpAddr, TokenBucket)>,
    address: IpAddr,
    now: Instant,
) -> &mut TokenBucket {
    let index = addresses.iter().position(|(known, _)| *known == address).unwrap_or_else(|| {
        if addresses.len() == MAX_ADDRESSES {
            addresses.sort_by_key(|(_, bucket)| bucket.tokens);
            addresses.truncate(MAX_ADDRESSES - 1);
        }
        addresses.push((address, TokenBucket::new(PER_ADDRESS, now)));
        addresses.len() - 1
    });
    &mut addresses[index].1
}

/// Returns the network that counts as one peer: an IPv4 address, an IPv6 /64, or a link-local
/// address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) if !ip.is_unicast_link_local() => {
            Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into()
        }
        ip => ip,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const COST: Duration = Duration::from_millis(100);

    fn address(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    /// X54: a flooding address uses up its own bucket, and all addresses share a common limit.
    #[test]
    fn x54_one_address_is_limited_to_its_own_bucket() {
        let (mut limiter, now) = (RateLimiter::default(), Instant::now());
        let taken = (0..100).filter(|_| limiter.try_take(address(1), COST, now)).count();
        assert_eq!(taken, 20);
        assert!(limiter.try_take(address(2), COST, now));
        assert!(!limiter.try_take(address(1), COST, now + Duration::from_millis(900)));
        assert!(limiter.try_take(address(1), COST, now + Duration::from_millis(1000)));
        let others = (3..250).filter(|n| limiter.try_take(address(*n), COST, now)).count();
        assert_eq!(others, 21, "what is left of four seconds and of 0.3 since");
        assert!(limiter.addresses.len() <= MAX_ADDRESSES);
    }

    #[test]
    fn authenticated_peer_gets_a_refund() {
        let (mut limiter, now) = (RateLimiter::default(), Instant::now());
        for _ in 0..100 {
            assert!(limiter.try_take(address(1), COST, now));
            limiter.refund(address(1), COST, now);
        }
    }

    #[test]
    fn ipv6_addresses_of_one_network_share_a_bucket() {
        let network_of = |text: &str| network(text.parse().unwrap());
        assert_eq!(network_of("2001:db8::1"), network_of("2001:db8::2:3"));
        assert_ne!(network_of("2001:db8::1"), network_of("2001:db8:0:1::1"));
        assert_ne!(network_of("fe80::1"), network_of("fe80::2"));
        assert_eq!(network_of("::ffff:10.0.0.1"), address(1));
    }
}
