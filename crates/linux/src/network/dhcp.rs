//! DHCPv4 client (RFC 2131 §4.4), as a pure state machine.
//!
//! It accepts the first offer, starts at once instead of after 1 to 10 seconds, and relies on the
//! server for conflict detection.

mod message;

use super::ether::Mac;
use super::random::SplitMix64;
use message::{Answer, Ask, Question, Terms};
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// The client port (RFC 2131 §4.1).
pub(super) const CLIENT_PORT: u16 = 68;
/// The server port.
pub(super) const SERVER_PORT: u16 = 67;

/// The delay before the first retransmission, doubled each time (RFC 2131 §4.1), ± 1 second.
const FIRST_PAUSE: Duration = Duration::from_secs(4);
const LONGEST_PAUSE: Duration = Duration::from_secs(64);
const SECOND: Duration = Duration::from_secs(1);
/// Unanswered DISCOVERs after which [`Step::NoAnswer`] is emitted, which is after 12 seconds.
const NO_ANSWER_AFTER: u32 = 2;
/// Transmissions of a REQUEST for an offered address.
const REQUESTS: u32 = 4;
/// Transmissions of a REQUEST for the previous address after a new carrier (INIT-REBOOT).
const REBOOT_REQUESTS: u32 = 2;
/// The delay after a NAK.
const AFTER_REFUSAL: Duration = Duration::from_secs(10);
/// The minimum interval between renewals (RFC 2131 §4.4.5).
const SHORTEST_RENEWAL: Duration = Duration::from_secs(60);
/// Shorter leases are extended to this, so that a server cannot keep the machine busy.
const SHORTEST_LEASE: Duration = Duration::from_secs(10);

/// A leased address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Addr,
    /// The prefix length, in bits.
    pub prefix: u8,
    pub server: Ipv4Addr,
    pub router: Option<Ipv4Addr>,
    /// The MTU in bytes, if the server announces one of at least 1280.
    pub mtu: Option<u32>,
}

/// An action for the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Broadcast the message from this source address.
    Broadcast(Ipv4Addr, Vec<u8>),
    /// Send the message to this server.
    Send(Ipv4Addr, Vec<u8>),
    /// Assign the address.
    Take(Lease),
    /// Remove the address.
    Drop(Lease),
    /// No server answers; the client continues to try.
    NoAnswer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    /// INIT and SELECTING, with the number of DISCOVERs sent.
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

/// A lease and its times; `None` for an infinite lease.
#[derive(Debug, Clone, Copy)]
struct Binding {
    lease: Lease,
    ends: Option<Ends>,
}

#[derive(Debug, Clone, Copy)]
struct Ends {
    renewal: Instant,
    rebinding: Instant,
    expiry: Instant,
}

/// The client of one interface.
#[derive(Debug)]
pub(super) struct Dhcp {
    mac: Mac,
    hostname: Option<String>,
    random: SplitMix64,
    state: State,
    xid: u32,
    began: Instant,
    asked: Instant,
    due: Option<Instant>,
    held: Option<Binding>,
    no_answer_reported: bool,
    steps: VecDeque<Step>,
}

impl Dhcp {
    /// Creates a client, which does nothing until it is opened. `hostname` is sent to the server.
    pub(super) fn new(now: Instant, mac: Mac, hostname: Option<String>) -> Self {
        Self {
            mac,
            hostname,
            random: SplitMix64::from_random_seed(),
            state: State::Closed,
            xid: 0,
            began: now,
            asked: now,
            due: None,
            held: None,
            no_answer_reported: false,
            steps: VecDeque::new(),
        }
    }

    /// The interface has a carrier: requests the previous address, or any.
    pub(super) fn open(&mut self, now: Instant) {
        let state = self.held.map_or(State::Selecting(0), |held| State::Requesting {
            address: held.lease.address,
            server: None,
            sent: 0,
        });
        self.no_answer_reported = false;
        self.begin(now, state);
    }

    /// The interface has lost its carrier. The address is kept until the lease expires.
    pub(super) fn close(&mut self) {
        self.state = State::Closed;
        self.due = None;
    }

    /// Returns when to call [`Dhcp::tick`].
    pub(super) fn deadline(&self) -> Option<Instant> {
        let expiry = self.ends().map(|ends| ends.expiry);
        [self.due, expiry].into_iter().flatten().min()
    }

    /// Returns the next action.
    pub(super) fn poll(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// Handles expired timers.
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

    /// Handles a received datagram, from any sender.
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

    /// Starts an exchange with a new transaction id.
    fn begin(&mut self, now: Instant, state: State) {
        self.xid = self.random.next_u32();
        self.began = now;
        self.state = state;
        self.due = Some(now);
    }

    fn message(&mut self, now: Instant, ask: Ask) -> Vec<u8> {
        self.asked = now;
        let elapsed = now.saturating_duration_since(self.began);
        let hostname = self.hostname.as_deref();
        Question { xid: self.xid, mac: self.mac, elapsed, hostname, ask }.emit()
    }

    fn broadcast(&mut self, now: Instant, source: Ipv4Addr, ask: Ask) {
        let message = self.message(now, ask);
        self.steps.push_back(Step::Broadcast(source, message));
    }

    fn pause(&mut self, sent: u32) -> Duration {
        let doubled = FIRST_PAUSE.saturating_mul(1 << sent.min(4)).min(LONGEST_PAUSE);
        self.random.duration_between(doubled.saturating_sub(SECOND), doubled + SECOND)
    }

    fn discover(&mut self, now: Instant, sent: u32) {
        if sent >= NO_ANSWER_AFTER && !self.no_answer_reported {
            self.no_answer_reported = true;
            self.steps.push_back(Step::NoAnswer);
        }
        self.broadcast(now, Ipv4Addr::UNSPECIFIED, Ask::Discover);
        self.state = State::Selecting(sent.saturating_add(1));
        self.due = Some(now + self.pause(sent));
    }

    fn request(&mut self, now: Instant, address: Ipv4Addr, server: Option<Ipv4Addr>, sent: u32) {
        let max = if server.is_some() { REQUESTS } else { REBOOT_REQUESTS };
        if sent >= max {
            self.begin(now, State::Selecting(0));
            return;
        }
        self.broadcast(now, Ipv4Addr::UNSPECIFIED, Ask::Request { address, server });
        self.state = State::Requesting { address, server, sent: sent.saturating_add(1) };
        self.due = Some(now + self.pause(sent));
    }

    /// Asks the leasing server first, any server later (RFC 2131 §4.4.5).
    fn renew(&mut self, now: Instant) {
        let Some((lease, ends)) = self.held.and_then(|held| Some((held.lease, held.ends?))) else {
            return;
        };
        let ask = Ask::Renew { address: lease.address };
        let until = if now < ends.rebinding {
            self.state = State::Renewing;
            let message = self.message(now, ask);
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
        self.held = Some(Binding { lease, ends });
        self.state = State::Bound;
        self.due = ends.map(|ends| ends.renewal);
        self.no_answer_reported = false;
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

/// T1 and T2 default to 0.5 and 0.875 of the lease (RFC 2131 §4.4.5). The server's values are used
/// if they are in order and do not cause continuous renewal.
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

    /// A client, its clock, and the last message that it sent.
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

        /// Advances to the next deadline. Returns the actions.
        fn next(&mut self) -> Vec<Step> {
            self.now = self.machine.deadline().unwrap();
            self.machine.tick(self.now);
            self.steps()
        }

        fn receive(&mut self, kind: u8, lease: u32) -> Vec<Step> {
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
            self.receive(OFFER, lease);
            match self.receive(ACK, lease)[..] {
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
    fn offered_address_is_requested_and_assigned() {
        let mut bench = Bench::open();
        assert!(matches!(bench.next()[..], [Step::Broadcast(Ipv4Addr::UNSPECIFIED, _)]));
        assert_eq!(bench.asked(), (1, false, [0; 4]));
        assert!(matches!(
            bench.receive(OFFER, 100)[..],
            [Step::Broadcast(Ipv4Addr::UNSPECIFIED, _)]
        ));
        assert_eq!(bench.asked(), (3, true, [0; 4]));
        let lease = Lease {
            address: ADDRESS.into(),
            prefix: 16,
            server: [10, 0, 0, 1].into(),
            router: Some([10, 0, 0, 1].into()),
            mtu: None,
        };
        assert_eq!(bench.receive(ACK, 100), [Step::Take(lease)]);
        assert_eq!(bench.now, bench.start, "nothing waits for a clock");
        assert_eq!(bench.receive(ACK, 100), [], "a second answer is passed over");
    }

    #[test]
    fn discover_backs_off_and_missing_server_is_reported_once() {
        let mut bench = Bench::open();
        let mut pauses = Vec::new();
        let mut no_answers = 0;
        for _ in 0..8 {
            let then = bench.now;
            no_answers += bench.next().iter().filter(|step| **step == Step::NoAnswer).count();
            pauses.push((bench.now - then).as_secs_f32());
        }
        for (pause, expected) in pauses.iter().skip(1).zip([4.0, 8.0, 16.0, 32.0, 64.0, 64.0, 64.0])
        {
            assert!((pause - expected).abs() <= 1.0, "{pauses:?}");
        }
        assert_eq!(no_answers, 1);
    }

    #[test]
    fn lease_is_renewed_at_its_half() {
        let mut bench = Bench::open();
        bench.bind(1000);
        let steps = bench.next();
        assert!(
            matches!(steps[..], [Step::Send(server, _)] if server == Ipv4Addr::new(10, 0, 0, 1))
        );
        assert_eq!(bench.now - bench.start, Duration::from_secs(500));
        assert_eq!(bench.asked(), (3, false, ADDRESS));
        assert_eq!(bench.receive(ACK, 1000), [], "nothing changes");
        assert_eq!(bench.machine.deadline(), Some(bench.now + Duration::from_secs(500)));
    }

    #[test]
    fn server_cannot_cause_continuous_renewal() {
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
    fn lease_is_rebound_and_then_expires() {
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
    fn nak_restarts_after_a_delay() {
        let mut bench = Bench::open();
        bench.next();
        bench.receive(OFFER, 100);
        assert_eq!(bench.receive(NAK, 0), []);
        assert_eq!(bench.machine.deadline(), Some(bench.now + AFTER_REFUSAL));
        let lease = bench.bind(100);
        bench.next();
        assert_eq!(bench.receive(NAK, 0), [Step::Drop(lease)]);
    }

    #[test]
    fn server_that_does_not_acknowledge_is_given_up() {
        let mut bench = Bench::open();
        bench.next();
        bench.receive(OFFER, 100);
        for _ in 1..REQUESTS {
            bench.next();
            assert_eq!(bench.asked().0, 3);
        }
        assert_eq!(bench.next(), []);
        bench.next();
        assert_eq!(bench.asked().0, 1);
    }

    #[test]
    fn new_carrier_verifies_the_lease() {
        let mut bench = Bench::open();
        let lease = bench.bind(1000);
        bench.machine.close();
        assert_eq!(bench.machine.deadline(), Some(bench.start + Duration::from_secs(1000)));
        bench.machine.open(bench.now);
        assert!(matches!(bench.next()[..], [Step::Broadcast(Ipv4Addr::UNSPECIFIED, _)]));
        assert_eq!(bench.asked(), (3, false, [0; 4]));
        assert_eq!(bench.receive(ACK, 1000), [], "it is");
        bench.machine.open(bench.now);
        bench.next();
        assert_eq!(bench.receive(NAK, 0), [Step::Drop(lease)], "it is not");
        bench.bind(1000);
    }

    #[test]
    fn lease_expires_without_carrier() {
        let mut bench = Bench::open();
        let lease = bench.bind(1000);
        bench.machine.close();
        assert_eq!(bench.next(), [Step::Drop(lease)]);
        assert_eq!(bench.machine.deadline(), None);
    }

    #[test]
    fn infinite_and_zero_leases_are_handled() {
        let mut bench = Bench::open();
        bench.bind(u32::MAX);
        assert_eq!(bench.machine.deadline(), None);
        let mut bench = Bench::open();
        bench.bind(0);
        assert!(bench.machine.deadline().unwrap() >= bench.now + Duration::from_secs(5));
    }

    #[test]
    fn acknowledgement_of_another_server_is_ignored() {
        let mut bench = Bench::open();
        bench.next();
        bench.receive(OFFER, 100);
        let options: [(u8, &[u8]); 3] = [(53, &[ACK]), (54, &[10, 0, 0, 9]), (51, &[0, 0, 1, 0])];
        let bytes = answer(&bench.sent, ADDRESS, &options);
        bench.machine.receive(bench.now, &bytes);
        assert_eq!(bench.steps(), []);
    }

    proptest::proptest! {
        /// Any replies at any time: the number of actions is bounded, and every assigned address is
        /// removed at the end.
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
                    2 if !bench.sent.is_empty() => steps.extend(bench.receive(OFFER, lease)),
                    3 if !bench.sent.is_empty() => steps.extend(bench.receive(ACK, lease)),
                    4 if !bench.sent.is_empty() => steps.extend(bench.receive(NAK, lease)),
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
