//! How a card borrows an IPv4 address from a server (RFC 2131 §4.4), as a pure state machine.
//!
//! Does not know the sockets on which its messages travel, nor how an address is given to the kernel. It takes the
//! first offer, starts at once instead of after 1 to 10 seconds, and leaves it to the server to see that nobody else
//! has the address.

mod message;

use super::ether::Mac;
use super::random::Random;
use message::{Answer, Ask, Question, Terms};
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// The port of clients (RFC 2131 §4.1).
pub(super) const CLIENT_PORT: u16 = 68;
/// The port of servers.
pub(super) const SERVER_PORT: u16 = 67;

/// Before the second sending; doubled each time (RFC 2131 §4.1), give or take a second.
const FIRST_PAUSE: Duration = Duration::from_secs(4);
const LONGEST_PAUSE: Duration = Duration::from_secs(64);
const SECOND: Duration = Duration::from_secs(1);
/// Unanswered questions after which the person at the screen is told, which is after 12 seconds.
const SILENT_AFTER: u32 = 2;
/// How often an offered address is asked for.
const REQUESTS: u32 = 4;
/// How often the server is asked whether an address is still good, when the cable was put back.
const REBOOT_REQUESTS: u32 = 2;
/// A server that offers an address and then refuses it is not asked at once again.
const AFTER_REFUSAL: Duration = Duration::from_secs(10);
/// Between two attempts to renew (RFC 2131 §4.4.5).
const SHORTEST_RENEWAL: Duration = Duration::from_secs(60);
/// Shorter leases are taken for as long as this; else a server could keep the machine busy.
const SHORTEST_LEASE: Duration = Duration::from_secs(10);

/// An address that is lent by a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// The length of the network's prefix, in bits.
    pub prefix: u8,
    /// The server.
    pub server: Ipv4Addr,
    /// The default router.
    pub router: Option<Ipv4Addr>,
    /// The longest packet on this network, in bytes, if the server says so and it is at least 1280.
    pub mtu: Option<u32>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Send the message to every server, from this address.
    Broadcast(Ipv4Addr, Vec<u8>),
    /// Send the message to this server.
    Send(Ipv4Addr, Vec<u8>),
    /// Use the address.
    Take(Lease),
    /// Use the address no longer.
    Drop(Lease),
    /// Nobody answers; it goes on asking.
    Silence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    /// INIT and SELECTING: so many questions were sent.
    Selecting(u32),
    /// REQUESTING; without a server it is REBOOTING.
    Requesting {
        address: Ipv4Addr,
        server: Option<Ipv4Addr>,
        sent: u32,
    },
    Bound,
    Renewing,
    Rebinding,
}

/// A lease and its ends; none of them for one that is for ever.
#[derive(Debug, Clone, Copy)]
struct Held {
    lease: Lease,
    ends: Option<Ends>,
}

#[derive(Debug, Clone, Copy)]
struct Ends {
    renewal: Instant,
    rebinding: Instant,
    expiry: Instant,
}

/// The machine of one card.
#[derive(Debug)]
pub(super) struct Dhcp {
    mac: Mac,
    hostname: Option<String>,
    random: Random,
    state: State,
    xid: u32,
    began: Instant,
    asked: Instant,
    due: Option<Instant>,
    held: Option<Held>,
    silence_told: bool,
    steps: VecDeque<Step>,
}

impl Dhcp {
    /// The machine of a card; it does nothing until it is opened. The name is told to the server.
    pub(super) fn new(now: Instant, mac: Mac, hostname: Option<String>) -> Self {
        Self {
            mac,
            hostname,
            random: Random::fresh(),
            state: State::Closed,
            xid: 0,
            began: now,
            asked: now,
            due: None,
            held: None,
            silence_told: false,
            steps: VecDeque::new(),
        }
    }

    /// The cable is in: asks for the address it had, or for any.
    pub(super) fn open(&mut self, now: Instant) {
        let state = self.held.map_or(State::Selecting(0), |held| State::Requesting {
            address: held.lease.address,
            server: None,
            sent: 0,
        });
        self.silence_told = false;
        self.begin(now, state);
    }

    /// The cable is out. The address stays until the lease ends.
    pub(super) fn close(&mut self) {
        self.state = State::Closed;
        self.due = None;
    }

    /// When [`Dhcp::tick`] is to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let expiry = self.ends().map(|ends| ends.expiry);
        [self.due, expiry].into_iter().flatten().min()
    }

    /// The next thing to do.
    pub(super) fn poll(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.ends().is_some_and(|ends| ends.expiry <= now) {
            self.expire(now);
        }
        if self.due.is_none_or(|due| now < due) {
            return;
        }
        match self.state {
            State::Closed => self.due = None,
            State::Selecting(sent) => self.discover(now, sent),
            State::Requesting { address, server, sent } => self.request(now, address, server, sent),
            State::Bound => {
                self.begin(now, State::Renewing);
                self.renew(now);
            }
            State::Renewing | State::Rebinding => self.renew(now),
        }
    }

    /// A message came, from whomever.
    pub(super) fn receive(&mut self, now: Instant, bytes: &[u8]) {
        let Some(answer) = message::parse(bytes, self.mac, self.xid) else { return };
        match (self.state, answer) {
            (State::Selecting(sent), Answer::Offer { address, server }) if sent > 0 => {
                self.state = State::Requesting { address, server: Some(server), sent: 0 };
                self.request(now, address, Some(server), 0);
            }
            (State::Requesting { server, .. }, Answer::Ack(terms))
                if server.is_none_or(|server| server == terms.server) =>
            {
                self.bind(terms);
            }
            (State::Renewing | State::Rebinding, Answer::Ack(terms)) => self.bind(terms),
            (State::Requesting { server: None, .. }, Answer::Nak) => self.refuse(now, now),
            (State::Requesting { .. } | State::Renewing | State::Rebinding, Answer::Nak) => {
                self.refuse(now, now + AFTER_REFUSAL);
            }
            _ => {}
        }
    }

    fn ends(&self) -> Option<Ends> {
        self.held.and_then(|held| held.ends)
    }

    /// A new exchange, under a new number.
    fn begin(&mut self, now: Instant, state: State) {
        self.xid = self.random.word();
        self.began = now;
        self.state = state;
        self.due = Some(now);
    }

    fn question(&mut self, now: Instant, ask: Ask) -> Vec<u8> {
        self.asked = now;
        let elapsed = now.saturating_duration_since(self.began);
        let hostname = self.hostname.as_deref();
        Question { xid: self.xid, mac: self.mac, elapsed, hostname, ask }.emit()
    }

    fn broadcast(&mut self, now: Instant, source: Ipv4Addr, ask: Ask) {
        let message = self.question(now, ask);
        self.steps.push_back(Step::Broadcast(source, message));
    }

    fn pause(&mut self, sent: u32) -> Duration {
        let doubled = FIRST_PAUSE.saturating_mul(1 << sent.min(4)).min(LONGEST_PAUSE);
        self.random.between(doubled.saturating_sub(SECOND), doubled + SECOND)
    }

    fn discover(&mut self, now: Instant, sent: u32) {
        if sent >= SILENT_AFTER && !self.silence_told {
            self.silence_told = true;
            self.steps.push_back(Step::Silence);
        }
        self.broadcast(now, Ipv4Addr::UNSPECIFIED, Ask::Discover);
        self.state = State::Selecting(sent.saturating_add(1));
        self.due = Some(now + self.pause(sent));
    }

    fn request(&mut self, now: Instant, address: Ipv4Addr, server: Option<Ipv4Addr>, sent: u32) {
        let most = if server.is_some() { REQUESTS } else { REBOOT_REQUESTS };
        if sent >= most {
            self.begin(now, State::Selecting(0));
            return;
        }
        self.broadcast(now, Ipv4Addr::UNSPECIFIED, Ask::Request { address, server });
        self.state = State::Requesting { address, server, sent: sent.saturating_add(1) };
        self.due = Some(now + self.pause(sent));
    }

    /// First the server that lent the address is asked, later any (RFC 2131 §4.4.5).
    fn renew(&mut self, now: Instant) {
        let Some((lease, ends)) = self.held.and_then(|held| Some((held.lease, held.ends?))) else {
            return;
        };
        let ask = Ask::Renew { address: lease.address };
        let until = if now < ends.rebinding {
            self.state = State::Renewing;
            let message = self.question(now, ask);
            self.steps.push_back(Step::Send(lease.server, message));
            ends.rebinding
        } else {
            self.state = State::Rebinding;
            self.broadcast(now, lease.address, ask);
            ends.expiry
        };
        let half = until.saturating_duration_since(now) / 2;
        self.due = Some((now + half.max(SHORTEST_RENEWAL)).min(until));
    }

    fn bind(&mut self, terms: Terms) {
        let ends = terms.lease.map(|lease| ends(self.asked, lease, &terms));
        let lease = Lease {
            address: terms.address,
            prefix: terms.prefix,
            server: terms.server,
            router: terms.router,
            mtu: terms.mtu,
        };
        if self.held.is_none_or(|held| held.lease != lease) {
            self.drop_lease();
            self.steps.push_back(Step::Take(lease));
        }
        self.held = Some(Held { lease, ends });
        self.state = State::Bound;
        self.due = ends.map(|ends| ends.renewal);
        self.silence_told = false;
    }

    fn refuse(&mut self, now: Instant, again: Instant) {
        self.drop_lease();
        self.begin(now, State::Selecting(0));
        self.due = Some(again);
    }

    fn expire(&mut self, now: Instant) {
        self.drop_lease();
        if self.state != State::Closed {
            self.begin(now, State::Selecting(0));
        }
    }

    fn drop_lease(&mut self) {
        self.steps.extend(self.held.take().map(|held| Step::Drop(held.lease)));
    }
}

/// T1 and T2 are a half and seven eighths of the lease unless the server says otherwise (RFC 2131 §4.4.5). What it says
/// is followed if it is in that order, and if the machine is not asked to renew without a pause.
fn ends(asked: Instant, lease: Duration, terms: &Terms) -> Ends {
    let lease = lease.max(SHORTEST_LEASE);
    let soonest = SHORTEST_LEASE / 2;
    let rebinding = terms.rebinding.filter(|given| (soonest..lease).contains(given));
    let rebinding = rebinding.unwrap_or(lease / 8 * 7);
    let half = rebinding.min(lease / 2);
    let renewal = terms.renewal.filter(|given| (soonest..rebinding).contains(given));
    let renewal = renewal.unwrap_or(half);
    Ends { renewal: asked + renewal, rebinding: asked + rebinding, expiry: asked + lease }
}

#[cfg(test)]
mod tests {
    use super::message::server::{answer, read};
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    const OFFER: u8 = 2;
    const ACK: u8 = 5;
    const NAK: u8 = 6;
    const ADDRESS: [u8; 4] = [10, 0, 0, 5];

    /// A machine, its clock, and the last message that it sent.
    struct Bench {
        machine: Dhcp,
        start: Instant,
        now: Instant,
        sent: Vec<u8>,
    }

    impl Bench {
        fn open() -> Self {
            let now = Instant::now();
            let mut machine = Dhcp::new(now, MAC, Some("box".into()));
            machine.open(now);
            Self { machine, start: now, now, sent: Vec::new() }
        }

        fn steps(&mut self) -> Vec<Step> {
            let steps: Vec<_> = std::iter::from_fn(|| self.machine.poll()).collect();
            for step in &steps {
                if let Step::Broadcast(_, bytes) | Step::Send(_, bytes) = step {
                    self.sent.clone_from(bytes);
                }
            }
            steps
        }

        /// Runs until the next deadline; whether and how it asked there.
        fn next(&mut self) -> Vec<Step> {
            self.now = self.machine.deadline().unwrap();
            self.machine.tick(self.now);
            self.steps()
        }

        fn hear(&mut self, kind: u8, lease: u32) -> Vec<Step> {
            let lease = lease.to_be_bytes();
            let options: [(u8, &[u8]); 5] = [
                (53, &[kind]),
                (54, &[10, 0, 0, 1]),
                (51, &lease),
                (1, &[255, 255, 0, 0]),
                (3, &[10, 0, 0, 1]),
            ];
            let bytes = answer(&self.sent, ADDRESS, &options);
            self.machine.receive(self.now, &bytes);
            self.steps()
        }

        fn bind(&mut self, lease: u32) -> Lease {
            self.next();
            self.hear(OFFER, lease);
            match self.hear(ACK, lease)[..] {
                [Step::Take(lease)] => lease,
                ref other => panic!("{other:?}"),
            }
        }

        fn asked(&self) -> (u8, bool, [u8; 4]) {
            let kind = read(&self.sent, 53).unwrap()[0];
            let ciaddr = *self.sent[12..].first_chunk().unwrap();
            (kind, read(&self.sent, 54).is_some(), ciaddr)
        }
    }

    #[test]
    fn an_address_is_offered_requested_and_taken() {
        let mut bench = Bench::open();
        assert!(matches!(bench.next()[..], [Step::Broadcast(Ipv4Addr::UNSPECIFIED, _)]));
        assert_eq!(bench.asked(), (1, false, [0; 4]));
        assert!(matches!(bench.hear(OFFER, 100)[..], [Step::Broadcast(Ipv4Addr::UNSPECIFIED, _)]));
        assert_eq!(bench.asked(), (3, true, [0; 4]));
        let lease = Lease {
            address: ADDRESS.into(),
            prefix: 16,
            server: [10, 0, 0, 1].into(),
            router: Some([10, 0, 0, 1].into()),
            mtu: None,
        };
        assert_eq!(bench.hear(ACK, 100), [Step::Take(lease)]);
        assert_eq!(bench.now, bench.start, "nothing waits for a clock");
        assert_eq!(bench.hear(ACK, 100), [], "a second answer is passed over");
    }

    #[test]
    fn it_asks_ever_more_rarely_and_says_once_that_nobody_answers() {
        let mut bench = Bench::open();
        let mut pauses = Vec::new();
        let mut silences = 0;
        for _ in 0..8 {
            let then = bench.now;
            silences += bench.next().iter().filter(|step| **step == Step::Silence).count();
            pauses.push((bench.now - then).as_secs_f32());
        }
        for (pause, expected) in pauses.iter().skip(1).zip([4.0, 8.0, 16.0, 32.0, 64.0, 64.0, 64.0])
        {
            assert!((pause - expected).abs() <= 1.0, "{pauses:?}");
        }
        assert_eq!(silences, 1);
    }

    #[test]
    fn a_lease_is_renewed_at_its_half() {
        let mut bench = Bench::open();
        bench.bind(1000);
        let steps = bench.next();
        assert!(
            matches!(steps[..], [Step::Send(server, _)] if server == Ipv4Addr::new(10, 0, 0, 1))
        );
        assert_eq!(bench.now - bench.start, Duration::from_secs(500));
        assert_eq!(bench.asked(), (3, false, ADDRESS));
        assert_eq!(bench.hear(ACK, 1000), [], "nothing changes");
        assert_eq!(bench.machine.deadline(), Some(bench.now + Duration::from_secs(500)));
    }

    #[test]
    fn a_server_cannot_have_it_renew_without_a_pause() {
        for (renewal, rebinding) in [(0u32, 800u32), (0, 0), (1, 2)] {
            let mut bench = Bench::open();
            bench.bind(1000);
            bench.next();
            let (now, lease) = (bench.now, 1000u32.to_be_bytes());
            let options: [(u8, &[u8]); 5] = [
                (53, &[ACK]),
                (54, &[10, 0, 0, 1]),
                (51, &lease),
                (58, &renewal.to_be_bytes()),
                (59, &rebinding.to_be_bytes()),
            ];
            let bytes = answer(&bench.sent, ADDRESS, &options);
            bench.machine.receive(now, &bytes);
            let deadline = bench.machine.deadline().unwrap();
            assert!(deadline >= now + SHORTEST_LEASE / 2, "{renewal} and {rebinding}");
        }
    }

    #[test]
    fn a_lease_that_nobody_renews_is_rebound_and_then_lost() {
        let mut bench = Bench::open();
        let lease = bench.bind(1000);
        let mut asked = Vec::new();
        let steps = loop {
            let steps = bench.next();
            match steps[..] {
                [Step::Send(..)] => asked.push('s'),
                [Step::Broadcast(source, _)] if source == lease.address => asked.push('b'),
                _ => break steps,
            }
        };
        assert_eq!(
            asked.iter().collect::<String>(),
            "ssssbbb",
            "60 seconds or half of what remains apart"
        );
        assert!(matches!(steps[..], [Step::Drop(lost), Step::Broadcast(..)] if lost == lease));
        assert_eq!(bench.now - bench.start, Duration::from_secs(1000));
        assert_eq!(bench.asked(), (1, false, [0; 4]));
    }

    #[test]
    fn a_refusal_starts_it_anew_after_a_while() {
        let mut bench = Bench::open();
        bench.next();
        bench.hear(OFFER, 100);
        assert_eq!(bench.hear(NAK, 0), []);
        assert_eq!(bench.machine.deadline(), Some(bench.now + AFTER_REFUSAL));
        let lease = bench.bind(100);
        bench.next();
        assert_eq!(bench.hear(NAK, 0), [Step::Drop(lease)]);
    }

    #[test]
    fn a_server_that_offers_and_is_gone_is_forgotten() {
        let mut bench = Bench::open();
        bench.next();
        bench.hear(OFFER, 100);
        for _ in 1..REQUESTS {
            bench.next();
            assert_eq!(bench.asked().0, 3);
        }
        assert_eq!(bench.next(), []);
        bench.next();
        assert_eq!(bench.asked().0, 1);
    }

    #[test]
    fn a_cable_put_back_asks_whether_the_address_is_still_good() {
        let mut bench = Bench::open();
        let lease = bench.bind(1000);
        bench.machine.close();
        assert_eq!(bench.machine.deadline(), Some(bench.start + Duration::from_secs(1000)));
        bench.machine.open(bench.now);
        assert!(matches!(bench.next()[..], [Step::Broadcast(Ipv4Addr::UNSPECIFIED, _)]));
        assert_eq!(bench.asked(), (3, false, [0; 4]));
        assert_eq!(bench.hear(ACK, 1000), [], "it is");
        bench.machine.open(bench.now);
        bench.next();
        assert_eq!(bench.hear(NAK, 0), [Step::Drop(lease)], "it is not");
        bench.bind(1000);
    }

    #[test]
    fn a_lease_ends_also_while_the_cable_is_out() {
        let mut bench = Bench::open();
        let lease = bench.bind(1000);
        bench.machine.close();
        assert_eq!(bench.next(), [Step::Drop(lease)]);
        assert_eq!(bench.machine.deadline(), None);
    }

    #[test]
    fn a_lease_for_ever_has_no_deadline_and_one_of_no_time_keeps_nobody_busy() {
        let mut bench = Bench::open();
        bench.bind(u32::MAX);
        assert_eq!(bench.machine.deadline(), None);
        let mut bench = Bench::open();
        bench.bind(0);
        assert!(bench.machine.deadline().unwrap() >= bench.now + Duration::from_secs(5));
    }

    #[test]
    fn another_server_s_acknowledgement_is_passed_over() {
        let mut bench = Bench::open();
        bench.next();
        bench.hear(OFFER, 100);
        let options: [(u8, &[u8]); 3] = [(53, &[ACK]), (54, &[10, 0, 0, 9]), (51, &[0, 0, 1, 0])];
        let bytes = answer(&bench.sent, ADDRESS, &options);
        bench.machine.receive(bench.now, &bytes);
        assert_eq!(bench.steps(), []);
    }

    proptest::proptest! {
        /// Whatever a neighbour answers and whenever: few steps at a time, and no lease without an end to the last.
        #[test]
        fn any_answers_at_any_time(
            events in proptest::collection::vec((0..7u8, 0..900_000u64, 0..2000u32), 0..200)
        ) {
            let mut bench = Bench::open();
            let mut held = None;
            for (kind, wait, lease) in events {
                bench.machine.tick(bench.now);
                let mut steps = bench.steps();
                match kind {
                    0 => bench.machine.open(bench.now),
                    1 => bench.machine.close(),
                    2 if !bench.sent.is_empty() => steps.extend(bench.hear(OFFER, lease)),
                    3 if !bench.sent.is_empty() => steps.extend(bench.hear(ACK, lease)),
                    4 if !bench.sent.is_empty() => steps.extend(bench.hear(NAK, lease)),
                    _ => bench.now += Duration::from_millis(wait),
                }
                assert!(steps.len() <= 6);
                for step in steps {
                    match step {
                        Step::Take(lease) => assert_eq!(held.replace(lease), None),
                        Step::Drop(lease) => assert_eq!(held.take(), Some(lease)),
                        _ => {}
                    }
                }
            }
        }
    }
}
