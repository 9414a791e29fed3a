//! IPv4 link-local address configuration (RFC 3927), as a pure state machine.

use super::ether::{Arp, Mac};
use super::random::SplitMix64;
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Timing of probes (RFC 3927 §9).
#[derive(Debug, Clone, Copy)]
struct Timing {
    /// Minimum and maximum interval between two probes.
    between: (Duration, Duration),
    /// Delay from the last probe to the claim of the address.
    announce_wait: Duration,
}

/// PROBE_MIN, PROBE_MAX and ANNOUNCE_WAIT: 4 to 6 seconds from the first probe to the claim.
const STANDARD: Timing = Timing {
    between: (Duration::from_secs(1), Duration::from_secs(2)),
    announce_wait: Duration::from_secs(2),
};
/// The first candidate is derived from the MAC address, and most cables have two ends: it is probed
/// faster, in about a second, which is still hundreds of times what a machine needs to answer.
/// After a conflict, the timing of the standard is used.
const UNCONTESTED: Timing = Timing {
    between: (Duration::from_millis(250), Duration::from_millis(350)),
    announce_wait: Duration::from_millis(500),
};

/// The longest pause before the first probe after a conflict; at the start there is none, since one machine was started.
const PROBE_WAIT: Duration = Duration::from_secs(1);
const PROBE_NUM: u8 = 3;
const ANNOUNCE_NUM: u8 = 2;
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(2);
const MAX_CONFLICTS: u32 = 10;
const RATE_LIMIT_INTERVAL: Duration = Duration::from_secs(60);
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);
/// 169.254.1.0 to 169.254.254.255 (RFC 3927 §2.1).
const FIRST: u32 = 0xa9fe_0100;
const COUNT: u64 = 254 * 256;

/// An action for the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Broadcast this packet.
    Send(Arp),
    /// The address is ours: use it.
    Claim(Ipv4Addr),
    /// Remove the address.
    Release(Ipv4Addr),
    /// Another machine has the address; another candidate is tried.
    Conflict(Ipv4Addr, Mac),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No carrier.
    Closed,
    /// The number of probes sent.
    Probing(u8),
    /// The number of announcements sent.
    Bound(u8),
}

/// The state machine of one interface.
#[derive(Debug)]
pub(super) struct LinkLocal {
    mac: Mac,
    addresses: SplitMix64,
    pauses: SplitMix64,
    candidate: Ipv4Addr,
    /// The address in use; kept without carrier and while it is probed again.
    held: Option<Ipv4Addr>,
    state: State,
    due: Option<Instant>,
    conflicts: u32,
    defended: Option<Instant>,
    steps: VecDeque<Step>,
}

impl LinkLocal {
    /// Creates the state machine, which does nothing until it is opened. The same MAC address and
    /// name give the same sequence of candidates. The name is empty unless another interface of this
    /// machine has the MAC address.
    pub(super) fn new(mac: Mac, name: &str) -> Self {
        let mut addresses = SplitMix64::from_mac(mac, name);
        Self {
            mac,
            candidate: draw(&mut addresses),
            addresses,
            pauses: SplitMix64::from_random_seed(),
            held: None,
            state: State::Closed,
            due: None,
            conflicts: 0,
            defended: None,
            steps: VecDeque::new(),
        }
    }

    /// The cable is in: asks for the address, also for one that is in use already, since the cable may be another one.
    pub(super) fn open(&mut self, now: Instant) {
        self.state = State::Probing(0);
        self.due = Some(now);
    }

    /// The interface has lost its carrier. The address is kept, so that connections survive.
    pub(super) fn close(&mut self) {
        self.state = State::Closed;
        self.due = None;
    }

    /// Claims the address without probing, if packets can be neither sent nor received.
    pub(super) fn claim_unasked(&mut self) {
        self.claim();
        self.due = None;
    }

    /// Handles a received packet.
    pub(super) fn receive(&mut self, now: Instant, packet: &Arp) {
        if packet.sender_mac == self.mac {
            return;
        }
        match self.state {
            State::Probing(sent) if sent > 0 && self.is_contested_by(packet) => {
                self.retreat(now, packet.sender_mac);
            }
            State::Bound(_) if packet.sender == self.candidate => {
                self.defend(now, packet.sender_mac)
            }
            _ => {}
        }
    }

    /// Returns when to call [`LinkLocal::tick`].
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Handles expired timers.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.due.is_none_or(|due| now < due) {
            return;
        }
        match self.state {
            State::Closed => self.due = None,
            State::Probing(PROBE_NUM) => {
                self.claim();
                self.announce(now, 0);
            }
            State::Probing(sent) => self.probe(now, sent),
            State::Bound(sent) => self.announce(now, sent),
        }
    }

    /// Returns the next action.
    pub(super) fn poll(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    fn timing(&self) -> Timing {
        if self.conflicts == 0 { UNCONTESTED } else { STANDARD }
    }

    fn probe(&mut self, now: Instant, sent: u8) {
        self.steps.push_back(Step::Send(Arp::probe(self.mac, self.candidate)));
        let (min, max) = self.timing().between;
        let last = sent + 1 >= PROBE_NUM;
        let wait =
            if last { self.timing().announce_wait } else { self.pauses.duration_between(min, max) };
        self.state = State::Probing(sent + 1);
        self.due = Some(now + wait);
    }

    fn claim(&mut self) {
        self.state = State::Bound(0);
        if self.held != Some(self.candidate) {
            self.release();
            self.held = Some(self.candidate);
            self.steps.push_back(Step::Claim(self.candidate));
        }
    }

    fn announce(&mut self, now: Instant, sent: u8) {
        self.steps.push_back(Step::Send(Arp::announcement(self.mac, self.candidate)));
        self.state = State::Bound(sent.saturating_add(1));
        self.due = (sent + 1 < ANNOUNCE_NUM).then(|| now + ANNOUNCE_INTERVAL);
    }

    /// Returns whether another machine has the address, or probes for it at the same time (RFC 3927
    /// §2.2.1).
    fn is_contested_by(&self, packet: &Arp) -> bool {
        let asks = packet.request && packet.sender.is_unspecified();
        packet.sender == self.candidate || (asks && packet.target == self.candidate)
    }

    /// Defends the address once; gives it up at the second conflict within ten seconds (RFC 3927
    /// §2.5).
    fn defend(&mut self, now: Instant, other: Mac) {
        let recent = |then: Instant| now.saturating_duration_since(then) < DEFEND_INTERVAL;
        if self.defended.is_some_and(recent) {
            self.retreat(now, other);
        } else {
            self.defended = Some(now);
            self.steps.push_back(Step::Send(Arp::announcement(self.mac, self.candidate)));
        }
    }

    /// Tries another candidate; after ten conflicts only one a minute (RFC 3927 §2.2.1).
    fn retreat(&mut self, now: Instant, other: Mac) {
        self.steps.push_back(Step::Conflict(self.candidate, other));
        self.release();
        self.conflicts = self.conflicts.saturating_add(1);
        self.defended = None;
        self.candidate = draw(&mut self.addresses);
        let many = self.conflicts >= MAX_CONFLICTS;
        let wait = if many {
            RATE_LIMIT_INTERVAL
        } else {
            self.pauses.duration_between(Duration::ZERO, PROBE_WAIT)
        };
        self.state = State::Probing(0);
        self.due = Some(now + wait);
    }

    fn release(&mut self) {
        self.steps.extend(self.held.take().map(Step::Release));
    }
}

fn draw(addresses: &mut SplitMix64) -> Ipv4Addr {
    let number = u32::try_from(addresses.next_u64() % COUNT).unwrap_or_default();
    Ipv4Addr::from_bits(FIRST + number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    const OTHER: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x57]);

    /// A state machine and its clock.
    struct Bench {
        machine: LinkLocal,
        start: Instant,
        now: Instant,
    }

    impl Bench {
        fn open() -> Self {
            let now = Instant::now();
            let mut machine = LinkLocal::new(MAC, "");
            machine.open(now);
            Self { machine, start: now, now }
        }

        fn steps(&mut self) -> Vec<Step> {
            std::iter::from_fn(|| self.machine.poll()).collect()
        }

        /// Advances to the next deadline. Returns the actions.
        fn next(&mut self) -> Vec<Step> {
            self.now = self.machine.deadline().unwrap();
            self.machine.tick(self.now);
            self.steps()
        }

        fn receive(&mut self, packet: Arp) -> Vec<Step> {
            self.machine.receive(self.now, &packet);
            self.steps()
        }

        fn elapsed(&self) -> Duration {
            self.now - self.start
        }

        /// Runs until an address is claimed.
        fn bind(&mut self) -> Ipv4Addr {
            for _ in 0..10 {
                for step in self.next() {
                    if let Step::Claim(address) = step {
                        return address;
                    }
                }
            }
            panic!("no address");
        }
    }

    #[test]
    fn address_is_probed_three_times_and_announced_twice() {
        let mut bench = Bench::open();
        let address = bench.machine.candidate;
        let probe = Step::Send(Arp::probe(MAC, address));
        let announcement = Step::Send(Arp::announcement(MAC, address));
        for _ in 0..3 {
            assert_eq!(bench.next(), [probe]);
        }
        assert_eq!(bench.next(), [Step::Claim(address), announcement]);
        assert!((1000..=1200).contains(&bench.elapsed().as_millis()), "{:?}", bench.elapsed());
        assert_eq!(bench.next(), [announcement]);
        assert_eq!(bench.machine.deadline(), None);
    }

    #[test]
    fn candidates_are_stable_and_within_the_range() {
        assert_eq!(Bench::open().bind(), Bench::open().bind());
        let mut addresses = SplitMix64::from_mac(MAC, "");
        for _ in 0..10_000 {
            let [a, b, c, _] = draw(&mut addresses).octets();
            assert!((a, b) == (169, 254) && (1..=254).contains(&c));
        }
    }

    #[test]
    fn conflict_leads_to_another_candidate_with_standard_timing() {
        for reply in [
            |address| Arp {
                request: false,
                sender_mac: OTHER,
                sender: address,
                target: Ipv4Addr::UNSPECIFIED,
            },
            |address| Arp::probe(OTHER, address),
        ] {
            let mut bench = Bench::open();
            let first = bench.machine.candidate;
            bench.next();
            assert_eq!(bench.receive(reply(first)), [Step::Conflict(first, OTHER)]);
            bench.next();
            let then = bench.now;
            assert_ne!(bench.bind(), first);
            assert!((4..=6).contains(&(bench.now - then).as_secs()));
        }
    }

    #[test]
    fn unrelated_packets_are_ignored() {
        let mut bench = Bench::open();
        let address = bench.machine.candidate;
        assert_eq!(bench.receive(Arp::announcement(OTHER, address)), [], "nothing was asked yet");
        bench.next();
        assert_eq!(bench.receive(Arp::announcement(MAC, address)), [], "our own echo");
        assert_eq!(bench.receive(Arp::probe(OTHER, [169, 254, 0, 1].into())), []);
        let asks =
            Arp { request: true, sender_mac: OTHER, sender: [10, 0, 0, 1].into(), target: address };
        assert_eq!(bench.receive(asks), []);
        assert_eq!(bench.bind(), address);
        assert_eq!(bench.receive(Arp::probe(OTHER, address)), [], "the kernel answers a probe");
    }

    #[test]
    fn address_is_defended_once_and_then_given_up() {
        let mut bench = Bench::open();
        let address = bench.bind();
        let claim = Arp::announcement(OTHER, address);
        let defence = [Step::Send(Arp::announcement(MAC, address))];
        assert_eq!(bench.receive(claim), defence);
        bench.now += DEFEND_INTERVAL;
        assert_eq!(bench.receive(claim), defence);
        bench.now += Duration::from_secs(9);
        assert_eq!(bench.receive(claim), [Step::Conflict(address, OTHER), Step::Release(address)]);
        assert_ne!(bench.bind(), address);
    }

    #[test]
    fn vlan_and_its_card_have_different_candidates() {
        let candidate = |name| LinkLocal::new(MAC, name).candidate;
        assert_ne!(candidate(""), candidate("vlan5"));
        assert_ne!(candidate("vlan5"), candidate("vlan6"));
    }

    #[test]
    fn repeated_conflicts_are_rate_limited() {
        let mut bench = Bench::open();
        for _ in 0..MAX_CONFLICTS {
            bench.next();
            let address = bench.machine.candidate;
            bench.receive(Arp::probe(OTHER, address));
        }
        assert_eq!(bench.machine.deadline(), Some(bench.now + RATE_LIMIT_INTERVAL));
    }

    #[test]
    fn address_is_kept_without_carrier_and_probed_again() {
        let mut bench = Bench::open();
        let address = bench.bind();
        bench.machine.close();
        assert_eq!((bench.machine.deadline(), bench.steps()), (None, vec![]));
        bench.machine.open(bench.now);
        assert_eq!(bench.next(), [Step::Send(Arp::probe(MAC, address))]);
        bench.next();
        bench.next();
        assert_eq!(
            bench.next(),
            [Step::Send(Arp::announcement(MAC, address))],
            "not claimed twice"
        );
        bench.machine.open(bench.now);
        bench.next();
        let steps = bench.receive(Arp::announcement(OTHER, address));
        assert_eq!(steps, [Step::Conflict(address, OTHER), Step::Release(address)]);
    }

    #[test]
    fn address_is_claimed_if_nothing_can_be_sent() {
        let mut machine = LinkLocal::new(MAC, "");
        let address = machine.candidate;
        machine.claim_unasked();
        assert_eq!(machine.poll(), Some(Step::Claim(address)));
        assert_eq!((machine.poll(), machine.deadline()), (None, None));
        machine.claim_unasked();
        assert_eq!(machine.poll(), None);
    }

    proptest::proptest! {
        /// Any packets at any time: the number of actions is bounded, and an address is released
        /// before another is claimed.
        #[test]
        fn any_packets_at_any_time(
            events in proptest::collection::vec((0..4u8, 0..30_000u64), 0..200)
        ) {
            let mut bench = Bench::open();
            let mut held = None;
            for (kind, wait) in events {
                bench.now += Duration::from_millis(wait);
                let address = bench.machine.candidate;
                match kind {
                    0 => bench.machine.receive(bench.now, &Arp::announcement(OTHER, address)),
                    1 => bench.machine.receive(bench.now, &Arp::probe(OTHER, address)),
                    2 => bench.machine.open(bench.now),
                    _ => bench.machine.close(),
                }
                bench.machine.tick(bench.now);
                let steps = bench.steps();
                assert!(steps.len() <= 4);
                for step in steps {
                    match step {
                        Step::Claim(address) => assert_eq!(held.replace(address), None),
                        Step::Release(address) => assert_eq!(held.take(), Some(address)),
                        _ => {}
                    }
                }
            }
        }
    }
}
