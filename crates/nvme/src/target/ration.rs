//! How much calculation peers that have proven nothing yet may have of us: a Diffie-Hellman exchange takes milliseconds of
//! the thread that serves others. It knows no key and no message.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// What one address may have: a host that authenticates seventeen queues in the largest group needs 0.8 s.
const ADDRESS: Terms = Terms { most: Duration::from_secs(2), tenths: 1 };

/// What all may have together.
const ALL: Terms = Terms { most: Duration::from_secs(4), tenths: 3 };

/// Addresses that are remembered.
const ADDRESSES: usize = 64;

/// The terms of an allowance: it grows by so many tenths of the time that passes, up to the most.
#[derive(Debug, Clone, Copy)]
struct Terms {
    most: Duration,
    tenths: u32,
}

#[derive(Debug, Clone, Copy)]
struct Allowance {
    terms: Terms,
    left: Duration,
    at: Instant,
}

impl Allowance {
    fn new(terms: Terms, now: Instant) -> Self {
        Self { terms, left: terms.most, at: now }
    }

    fn grow(&mut self, now: Instant) {
        let grown = now.saturating_duration_since(self.at) * self.terms.tenths / 10;
        self.left = self.left.saturating_add(grown).min(self.terms.most);
        self.at = self.at.max(now);
    }
}

/// The allowances of all peers.
#[derive(Debug, Default)]
pub(super) struct Ration {
    all: Option<Allowance>,
    addresses: Vec<(IpAddr, Allowance)>,
}

impl Ration {
    /// Takes so much calculation for a peer at that address. Tells whether it may have it.
    pub(super) fn take(&mut self, address: IpAddr, cost: Duration, now: Instant) -> bool {
        let all = self.all.get_or_insert_with(|| Allowance::new(ALL, now));
        all.grow(now);
        let own = own(&mut self.addresses, network(address), now);
        own.grow(now);
        let enough = own.left >= cost && all.left >= cost;
        if enough {
            own.left -= cost;
            all.left -= cost;
        }
        enough
    }

    /// Gives it back: the peer was who it said it is.
    pub(super) fn give_back(&mut self, address: IpAddr, cost: Duration, now: Instant) {
        let own = own(&mut self.addresses, network(address), now);
        for allowance in self.all.iter_mut().chain([own]) {
            allowance.left = (allowance.left + cost).min(allowance.terms.most);
        }
    }
}

/// The allowance of an address; the one with the most left is forgotten for a new one.
fn own(addresses: &mut Vec<(IpAddr, Allowance)>, address: IpAddr, now: Instant) -> &mut Allowance {
    let at = addresses.iter().position(|(known, _)| *known == address).unwrap_or_else(|| {
        if addresses.len() == ADDRESSES {
            addresses.sort_by_key(|(_, allowance)| allowance.left);
            addresses.truncate(ADDRESSES - 1);
        }
        addresses.push((address, Allowance::new(ADDRESS, now)));
        addresses.len() - 1
    });
    &mut addresses[at].1
}

/// What one owner of addresses has at least: an IPv4 address, or 64 bits of an IPv6 one.
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

    /// X54: one that floods has used up its own, and all have theirs bounded together.
    #[test]
    fn x54_one_address_takes_its_own_and_no_more() {
        let (mut ration, now) = (Ration::default(), Instant::now());
        let taken = (0..100).filter(|_| ration.take(address(1), COST, now)).count();
        assert_eq!(taken, 20);
        assert!(ration.take(address(2), COST, now));
        assert!(!ration.take(address(1), COST, now + Duration::from_millis(900)));
        assert!(ration.take(address(1), COST, now + Duration::from_millis(1000)));
        let others = (3..250).filter(|n| ration.take(address(*n), COST, now)).count();
        assert_eq!(others, 21, "what is left of four seconds and of 0.3 since");
        assert!(ration.addresses.len() <= ADDRESSES);
    }

    #[test]
    fn who_is_who_it_said_it_is_gets_it_back() {
        let (mut ration, now) = (Ration::default(), Instant::now());
        for _ in 0..100 {
            assert!(ration.take(address(1), COST, now));
            ration.give_back(address(1), COST, now);
        }
    }

    #[test]
    fn a_household_of_ipv6_addresses_counts_as_one() {
        let at = |text: &str| network(text.parse().unwrap());
        assert_eq!(at("2001:db8::1"), at("2001:db8::2:3"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_ne!(at("fe80::1"), at("fe80::2"));
        assert_eq!(at("::ffff:10.0.0.1"), address(1));
    }
}
