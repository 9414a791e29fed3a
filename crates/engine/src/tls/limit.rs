//! How many handshakes an address may have us do, so that nobody can keep this machine busy without a key. It knows
//! addresses and time, and no cipher.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use export::Network;

/// How many TLS handshakes an address may have us do. For IPv6 a /64 counts as one address, unless it is link-local.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// At once. One more ends the one that has waited longest.
    pub at_once: usize,
    /// Each second, in the long run. Those that succeed with a key of the owner's are not counted.
    pub each_second: u32,
    /// In a row.
    pub burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { at_once: 8, each_second: 20, burst: 40 }
    }
}

/// Addresses that are remembered. Beyond these the one that was heard of least lately is forgotten.
const MOST: usize = 1024;

/// What each address has left.
#[derive(Debug)]
pub(crate) struct HandshakeLimiter {
    limits: Limits,
    left: HashMap<Network, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Handshakes, in thousandths.
    millis: u64,
    at: Instant,
}

impl HandshakeLimiter {
    /// Nobody has had any.
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, left: HashMap::new() }
    }

    /// Takes one handshake of what the address has left. Tells whether there was one.
    pub(crate) fn take(&mut self, source: Network, now: Instant) -> bool {
        if self.left.len() >= MOST && !self.left.contains_key(&source) {
            self.forget(now);
        }
        let limits = self.limits;
        let bucket = self.left.entry(source).or_insert_with(|| Bucket::full(limits, now));
        *bucket = bucket.filled(limits, now);
        let Some(left) = bucket.millis.checked_sub(1000) else { return false };
        bucket.millis = left;
        true
    }

    /// Gives one back: it succeeded.
    pub(crate) fn give_back(&mut self, source: Network) {
        if let Some(bucket) = self.left.get_mut(&source) {
            bucket.millis = bucket.millis.saturating_add(1000).min(full(self.limits));
        }
    }

    /// Makes room: forgets those that have all they may have, and if there are none the one heard of least lately.
    fn forget(&mut self, now: Instant) {
        let limits = self.limits;
        self.left.retain(|_, bucket| bucket.filled(limits, now).millis < full(limits));
        if self.left.len() >= MOST {
            let oldest = self.left.iter().min_by_key(|(_, bucket)| bucket.at);
            if let Some(oldest) = oldest.map(|(source, _)| *source) {
                self.left.remove(&oldest);
            }
        }
    }
}

impl Bucket {
    fn full(limits: Limits, at: Instant) -> Self {
        Self { millis: full(limits), at }
    }

    fn filled(self, limits: Limits, now: Instant) -> Self {
        let passed = now.saturating_duration_since(self.at);
        let passed = u64::try_from(passed.min(Duration::from_secs(3600)).as_micros()).unwrap_or(0);
        let gained = passed.saturating_mul(limits.each_second.into()) / 1000;
        if gained == 0 {
            // Else who asks all the time would never get anything.
            return self;
        }
        Self { millis: self.millis.saturating_add(gained).min(full(limits)), at: now }
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
    fn a_flood_is_cut_and_others_are_not() {
        let mut limiter = HandshakeLimiter::new(Limits { at_once: 1, each_second: 10, burst: 3 });
        let now = Instant::now();
        let (flood, other) = (source("192.0.2.1"), source("192.0.2.2"));
        assert_eq!((0..5).filter(|_| limiter.take(flood, now)).count(), 3);
        assert!(limiter.take(other, now));
        let later = now + Duration::from_millis(250);
        assert_eq!((0..5).filter(|_| limiter.take(flood, later)).count(), 2);
        // A whole night does not save up more than a burst.
        let morning = later + Duration::from_secs(1 << 20);
        assert_eq!((0..5).filter(|_| limiter.take(flood, morning)).count(), 3);
    }

    #[test]
    fn who_asks_all_the_time_gets_its_share_all_the_same() {
        let mut limiter = HandshakeLimiter::new(Limits { at_once: 1, each_second: 10, burst: 1 });
        let (now, flood) = (Instant::now(), source("192.0.2.1"));
        let times = (0..20_000).map(|n| now + Duration::from_micros(n * 100));
        let got = times.filter(|&at| limiter.take(flood, at)).count();
        assert!((20..=21).contains(&got), "{got} in two seconds");
    }

    #[test]
    fn what_succeeds_costs_nothing() {
        let mut limiter = HandshakeLimiter::new(Limits { at_once: 1, each_second: 0, burst: 1 });
        let (now, host) = (Instant::now(), source("192.0.2.1"));
        for _ in 0..1000 {
            assert!(limiter.take(host, now));
            limiter.give_back(host);
        }
    }

    #[test]
    fn one_network_is_one_address_and_the_cable_is_not() {
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:2"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("fe80::1"), source("fe80::2"));
    }

    #[test]
    fn memory_is_bounded_however_many_addresses_come() {
        let mut limiter = HandshakeLimiter::new(Limits::default());
        let now = Instant::now();
        for n in 0..5000u32 {
            let at = Network::of(SocketAddr::new(IpAddr::from(n.to_be_bytes()), 1));
            assert!(limiter.take(at, now + Duration::from_micros(n.into())));
        }
        assert!(limiter.left.len() <= MOST);
    }
}
