//! How a card comes to an IPv4 link-local address and keeps it (RFC 3927), as a pure state machine.
//!
//! Does not know the sockets on which its packets travel, nor how an address is given to the kernel.

use super::ether::{Arp, Mac};
use super::random::Random;
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long questions take (RFC 3927 §9).
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Between two probes, at least and at most.
    between: (Duration, Duration),
    /// From the last probe to the use of the address.
    patience: Duration,
}

/// PROBE_MIN, PROBE_MAX and ANNOUNCE_WAIT: 4 to 6 seconds from the first probe to the address.
const BY_THE_BOOK: Pace = Pace {
    between: (Duration::from_secs(1), Duration::from_secs(2)),
    patience: Duration::from_secs(2),
};
/// The first address is the card's own and most cables have two ends: it is asked for faster, in about a second, which
/// is still hundreds of times what a machine needs to answer. Once anybody objected, the pace is the standard's.
const UNCONTESTED: Pace = Pace {
    between: (Duration::from_millis(250), Duration::from_millis(350)),
    patience: Duration::from_millis(500),
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

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Send this to everybody.
    Send(Arp),
    /// The address is ours: use it.
    Claim(Ipv4Addr),
    /// The address is used no longer.
    Release(Ipv4Addr),
    /// Somebody else has the address; another one is tried.
    Conflict(Ipv4Addr, Mac),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody is there to ask.
    Closed,
    /// So many probes were sent.
    Probing(u8),
    /// So many announcements were sent.
    Bound(u8),
}

/// The machine of one card.
#[derive(Debug)]
pub(super) struct LinkLocal {
    mac: Mac,
    addresses: Random,
    pauses: Random,
    candidate: Ipv4Addr,
    /// The address in use; it is kept while the cable is away and while it is asked for again.
    held: Option<Ipv4Addr>,
    state: State,
    due: Option<Instant>,
    conflicts: u32,
    defended: Option<Instant>,
    steps: VecDeque<Step>,
}

impl LinkLocal {
    /// The machine of a card; it does nothing until it is opened. The same card tries the same addresses each time.
    pub(super) fn new(mac: Mac) -> Self {
        let mut addresses = Random::of(mac);
        Self {
            mac,
            candidate: draw(&mut addresses),
            addresses,
            pauses: Random::fresh(),
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

    /// The cable is out. The address stays, so that connections outlive a cable that is put back.
    pub(super) fn close(&mut self) {
        self.state = State::Closed;
        self.due = None;
    }

    /// Takes the address without asking, where packets can be neither sent nor seen.
    pub(super) fn claim_unasked(&mut self) {
        self.claim();
        self.due = None;
    }

    /// A packet came.
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

    /// When [`LinkLocal::tick`] is to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Does what is due.
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

    /// The next thing to do.
    pub(super) fn poll(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    fn pace(&self) -> Pace {
        if self.conflicts == 0 { UNCONTESTED } else { BY_THE_BOOK }
    }

    fn probe(&mut self, now: Instant, sent: u8) {
        self.steps.push_back(Step::Send(Arp::probe(self.mac, self.candidate)));
        let (least, most) = self.pace().between;
        let last = sent + 1 >= PROBE_NUM;
        let wait = if last { self.pace().patience } else { self.pauses.between(least, most) };
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

    /// Somebody has the address, or asks for the same one at the same time (RFC 3927 §2.2.1).
    fn is_contested_by(&self, packet: &Arp) -> bool {
        let asks = packet.request && packet.sender.is_unspecified();
        packet.sender == self.candidate || (asks && packet.target == self.candidate)
    }

    /// Defends once; the second conflict within ten seconds makes it give up (RFC 3927 §2.5).
    fn defend(&mut self, now: Instant, other: Mac) {
        let recent = |then: Instant| now.saturating_duration_since(then) < DEFEND_INTERVAL;
        if self.defended.is_some_and(recent) {
            self.retreat(now, other);
        } else {
            self.defended = Some(now);
            self.steps.push_back(Step::Send(Arp::announcement(self.mac, self.candidate)));
        }
    }

    /// Another address is tried; after ten conflicts only one a minute (RFC 3927 §2.2.1).
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
            self.pauses.between(Duration::ZERO, PROBE_WAIT)
        };
        self.state = State::Probing(0);
        self.due = Some(now + wait);
    }

    fn release(&mut self) {
        self.steps.extend(self.held.take().map(Step::Release));
    }
}

fn draw(addresses: &mut Random) -> Ipv4Addr {
    let number = u32::try_from(addresses.number() % COUNT).unwrap_or_default();
    Ipv4Addr::from_bits(FIRST + number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    const OTHER: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x57]);

    /// A machine and its clock.
    struct Bench {
        machine: LinkLocal,
        start: Instant,
        now: Instant,
    }

    impl Bench {
        fn open() -> Self {
            let now = Instant::now();
            let mut machine = LinkLocal::new(MAC);
            machine.open(now);
            Self { machine, start: now, now }
        }

        fn steps(&mut self) -> Vec<Step> {
            std::iter::from_fn(|| self.machine.poll()).collect()
        }

        /// Runs until the next deadline and gives what is done there.
        fn next(&mut self) -> Vec<Step> {
            self.now = self.machine.deadline().unwrap();
            self.machine.tick(self.now);
            self.steps()
        }

        fn hear(&mut self, packet: Arp) -> Vec<Step> {
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
    fn an_address_is_asked_for_three_times_and_announced_twice() {
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
    fn the_same_card_has_the_same_address_at_every_boot_and_all_are_in_the_range() {
        assert_eq!(Bench::open().bind(), Bench::open().bind());
        let mut addresses = Random::of(MAC);
        for _ in 0..10_000 {
            let [a, b, c, _] = draw(&mut addresses).octets();
            assert!((a, b) == (169, 254) && (1..=254).contains(&c));
        }
    }

    #[test]
    fn a_conflict_leads_to_another_address_by_the_pace_of_the_standard() {
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
            assert_eq!(bench.hear(reply(first)), [Step::Conflict(first, OTHER)]);
            bench.next();
            let then = bench.now;
            assert_ne!(bench.bind(), first);
            assert!((4..=6).contains(&(bench.now - then).as_secs()));
        }
    }

    #[test]
    fn packets_that_do_not_matter_change_nothing() {
        let mut bench = Bench::open();
        let address = bench.machine.candidate;
        assert_eq!(bench.hear(Arp::announcement(OTHER, address)), [], "nothing was asked yet");
        bench.next();
        assert_eq!(bench.hear(Arp::announcement(MAC, address)), [], "our own echo");
        assert_eq!(bench.hear(Arp::probe(OTHER, [169, 254, 0, 1].into())), []);
        let asks =
            Arp { request: true, sender_mac: OTHER, sender: [10, 0, 0, 1].into(), target: address };
        assert_eq!(bench.hear(asks), []);
        assert_eq!(bench.bind(), address);
        assert_eq!(bench.hear(Arp::probe(OTHER, address)), [], "the kernel answers a probe");
    }

    #[test]
    fn an_address_is_defended_once_and_given_up_at_the_second_conflict() {
        let mut bench = Bench::open();
        let address = bench.bind();
        let claim = Arp::announcement(OTHER, address);
        let defence = [Step::Send(Arp::announcement(MAC, address))];
        assert_eq!(bench.hear(claim), defence);
        bench.now += DEFEND_INTERVAL;
        assert_eq!(bench.hear(claim), defence);
        bench.now += Duration::from_secs(9);
        assert_eq!(bench.hear(claim), [Step::Conflict(address, OTHER), Step::Release(address)]);
        assert_ne!(bench.bind(), address);
    }

    #[test]
    fn a_neighbour_that_contests_everything_slows_it_down() {
        let mut bench = Bench::open();
        for _ in 0..MAX_CONFLICTS {
            bench.next();
            let address = bench.machine.candidate;
            bench.hear(Arp::probe(OTHER, address));
        }
        assert_eq!(bench.machine.deadline(), Some(bench.now + RATE_LIMIT_INTERVAL));
    }

    #[test]
    fn the_address_stays_while_the_cable_is_out_and_is_asked_for_again() {
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
        let steps = bench.hear(Arp::announcement(OTHER, address));
        assert_eq!(steps, [Step::Conflict(address, OTHER), Step::Release(address)]);
    }

    #[test]
    fn where_nothing_can_be_sent_the_address_is_taken() {
        let mut machine = LinkLocal::new(MAC);
        let address = machine.candidate;
        machine.claim_unasked();
        assert_eq!(machine.poll(), Some(Step::Claim(address)));
        assert_eq!((machine.poll(), machine.deadline()), (None, None));
        machine.claim_unasked();
        assert_eq!(machine.poll(), None);
    }

    proptest::proptest! {
        /// Whatever comes, steps are bounded, and an address is released before another is claimed.
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
