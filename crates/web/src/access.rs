//! Access where a code is required: the code, the sessions of browsers that had it, and the
//! limits on wrong codes.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use export::{Network, Secret, TokenBucket, TokenRate};

use crate::Code;

/// Fills a slice with random bytes from a CSPRNG.
pub type Random = Box<dyn FnMut(&mut [u8]) + Send>;

/// Wrong codes from one address after which it is locked.
const MAX_FAILURES: u32 = 10;

/// How long an address is locked first. Each further time is twice as long as the one before.
const FIRST_LOCKOUT: Duration = Duration::from_secs(60);

/// Maximum number of doublings: the longest lockout is about an hour.
const MAX_DOUBLINGS: u32 = 6;

/// Wrong codes of all addresses together that are reported. Right codes need none of these tokens.
const ALL: TokenRate = TokenRate { per_second: 10, burst: 100 };

/// Maximum number of addresses whose wrong codes are counted.
const MAX_SOURCES: usize = 1024;

/// Maximum number of sessions. One more ends the one that was not used for the longest time.
const MAX_SESSIONS: usize = 64;

/// How long a session is valid after its last use.
const SESSION_TIMEOUT: Duration = Duration::from_hours(12);

/// Random bytes in the cookie of a session.
const COOKIE_BYTES: usize = 16;

/// Why a code was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// It is wrong.
    Wrong,
    /// Too many wrong ones. Others are looked at after this time.
    Locked(Duration),
}

/// The state of access, shared by all connections.
pub(crate) struct Access(Mutex<State>);

struct State {
    random: Random,
    /// `None`: no client is admitted.
    code: Option<Code>,
    /// How often the code was set.
    generation: u64,
    sessions: Vec<Session>,
    sources: HashMap<Network, Source>,
    /// Tokens for reports of wrong codes of all addresses.
    all: Option<TokenBucket>,
}

/// A session of a browser.
struct Session {
    cookie: Secret,
    used: Instant,
}

/// Wrong codes from an address.
#[derive(Debug, Clone, Copy, Default)]
struct Source {
    /// Since the last right one.
    failures: u32,
    locked_until: Option<Instant>,
}

impl Access {
    pub(crate) fn new(random: Random) -> Self {
        Self(Mutex::new(State {
            random,
            code: None,
            generation: 0,
            sessions: Vec::new(),
            sources: HashMap::new(),
            all: None,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns random bytes.
    pub(crate) fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        (self.state().random)(&mut bytes);
        bytes
    }

    /// Replaces the code. Ends all sessions, and forgets wrong codes.
    pub(crate) fn set_code(&self, code: Code) {
        let mut state = self.state();
        if state.code.as_ref() == Some(&code) {
            return;
        }
        state.code = Some(code);
        state.generation += 1;
        state.sessions.clear();
        state.sources.clear();
    }

    /// Returns a number that is another one after the code was replaced.
    pub(crate) fn generation(&self) -> u64 {
        self.state().generation
    }

    /// Checks a code that came from `source`.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub(crate) fn check(&self, text: &str, source: Network, now: Instant) -> Result<(), Rejected> {
        self.state().check(text, source, now)
    }

    /// Returns whether a code is right, also if its address is locked, and counts nothing.
    pub(crate) fn is_right(&self, text: &str) -> bool {
        self.state().is_right(text)
    }

    /// Checks a code that came from `source`, and begins a session: under one lock, as a session must
    /// not be that of an earlier code. Returns its cookie.
    ///
    /// # Errors
    /// Why the code is not accepted.
    pub(crate) fn log_in(
        &self,
        text: &str,
        source: Network,
        now: Instant,
    ) -> Result<String, Rejected> {
        let mut state = self.state();
        state.check(text, source, now)?;
        Ok(state.begin(now))
    }

    /// Returns whether a cookie is that of a session. It is compared with all of them, each in constant
    /// time.
    pub(crate) fn is_session(&self, cookie: &str, now: Instant) -> bool {
        let cookie = Secret::new(cookie.as_bytes().to_vec());
        let mut state = self.state();
        state
            .sessions
            .retain(|session| now.saturating_duration_since(session.used) < SESSION_TIMEOUT);
        let mut is_known = false;
        for session in &mut state.sessions {
            if session.cookie == cookie {
                (session.used, is_known) = (now, true);
            }
        }
        is_known
    }
}

impl State {
    fn is_right(&self, text: &str) -> bool {
        Code::parse(text).is_some_and(|code| self.code.as_ref() == Some(&code))
    }

    fn check(&mut self, text: &str, source: Network, now: Instant) -> Result<(), Rejected> {
        if let Some(left) = self.locked(source, now) {
            return Err(Rejected::Locked(left));
        }
        if self.is_right(text) {
            self.sources.remove(&source);
            return Ok(());
        }
        self.failed(source, now);
        let all = self.all.get_or_insert_with(|| TokenBucket::full(ALL, now));
        Err(if all.take(1, now) {
            Rejected::Wrong
        } else {
            Rejected::Locked(Duration::from_secs(1))
        })
    }

    /// Begins a session. Returns its cookie.
    fn begin(&mut self, now: Instant) -> String {
        let mut random = [0; COOKIE_BYTES];
        (self.random)(&mut random);
        let cookie: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        if self.sessions.len() >= MAX_SESSIONS {
            let oldest = self.sessions.iter().enumerate().min_by_key(|(_, session)| session.used);
            let oldest = oldest.map(|(at, _)| at);
            oldest.into_iter().for_each(|at| drop(self.sessions.swap_remove(at)));
        }
        let secret = Secret::new(cookie.clone().into_bytes());
        self.sessions.push(Session { cookie: secret, used: now });
        cookie
    }

    /// Returns how long no code of this address is looked at, if so.
    fn locked(&self, source: Network, now: Instant) -> Option<Duration> {
        let until = self.sources.get(&source)?.locked_until?;
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Counts a wrong code.
    fn failed(&mut self, source: Network, now: Instant) {
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            // One that is locked is kept as long as there are others.
            let least = self.sources.iter().min_by_key(|(_, source)| source.failures);
            let least = least.map(|(network, _)| *network);
            if let Some(network) = least {
                self.sources.remove(&network);
            }
        }
        let source = self.sources.entry(source).or_default();
        source.failures = source.failures.saturating_add(1);
        if source.failures.is_multiple_of(MAX_FAILURES) {
            let doublings = (source.failures / MAX_FAILURES - 1).min(MAX_DOUBLINGS);
            source.locked_until = Some(now + FIRST_LOCKOUT.saturating_mul(1 << doublings));
        }
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        write!(f, "Access({} sessions, {} sources)", state.sessions.len(), state.sources.len())
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::net::{IpAddr, SocketAddr};

    const RIGHT: &str = "0000-0000-0000";

    fn network(n: u32) -> Network {
        Network::of(SocketAddr::new(IpAddr::from(n.to_be_bytes()), 1))
    }

    fn access() -> (Access, Instant) {
        let mut last = 0_u64;
        let access = Access::new(Box::new(move |bytes| {
            last += 1;
            bytes.fill(0);
            let some = bytes.len().min(8);
            bytes[..some].copy_from_slice(&last.to_le_bytes()[..some]);
        }));
        access.set_code(Code::new([0; 8]));
        (access, Instant::now())
    }

    #[test]
    fn address_is_locked_after_ten_wrong_codes() {
        let (access, mut now) = access();
        let (guesser, other) = (network(1), network(2));
        for minutes in [1, 2, 4, 8, 16, 32, 64, 64] {
            for _ in 0..MAX_FAILURES {
                assert_eq!(access.check("x", guesser, now), Err(Rejected::Wrong));
                now += Duration::from_millis(200);
            }
            let Err(Rejected::Locked(left)) = access.check(RIGHT, guesser, now) else {
                panic!("it is not locked");
            };
            assert_eq!(left, Duration::from_secs(minutes * 60) - Duration::from_millis(200));
            assert_eq!(access.check(RIGHT, other, now), Ok(()), "another address is not");
            now += left;
        }
        assert_eq!(access.check(RIGHT, guesser, now), Ok(()));
        assert_eq!(access.check("x", guesser, now), Err(Rejected::Wrong));
        assert_eq!(access.check(RIGHT, guesser, now), Ok(()), "it counts from zero again");
    }

    #[test]
    fn right_code_needs_no_token_of_all_addresses() {
        let (access, now) = access();
        let wrong = (0..2000)
            .filter(|&n| access.check("x", network(n), now).is_err_and(|it| it == Rejected::Wrong));
        assert_eq!(wrong.count(), 100);
        let locked = Err(Rejected::Locked(Duration::from_secs(1)));
        assert_eq!(access.check("x", network(5000), now), locked);
        assert_eq!(access.check(RIGHT, network(5000), now), Ok(()), "a right one needs no token");
        for _ in 0..MAX_FAILURES {
            let _ = access.check("x", network(6000), now);
        }
        let Err(Rejected::Locked(left)) = access.check(RIGHT, network(6000), now) else {
            panic!("wrong codes without a token are counted for their address");
        };
        assert_eq!(left, FIRST_LOCKOUT);
        assert!(access.state().sources.len() <= MAX_SOURCES);
    }

    #[test]
    fn locked_address_is_not_forgotten_for_others() {
        let (access, mut now) = access();
        for _ in 0..MAX_FAILURES {
            let _ = access.check("x", network(1), now);
        }
        for n in 2..3000 {
            now += Duration::from_millis(100);
            access.state().sources.get_mut(&network(1)).unwrap().locked_until =
                Some(now + Duration::from_secs(60));
            let _ = access.check("x", network(n), now);
        }
        assert_eq!(access.state().sources.len(), MAX_SOURCES);
        assert!(matches!(access.check(RIGHT, network(1), now), Err(Rejected::Locked(_))));
    }

    #[test]
    fn wrong_code_begins_no_session() {
        let (access, now) = access();
        assert_eq!(access.log_in("x", network(1), now), Err(Rejected::Wrong));
        assert!(access.state().sessions.is_empty());
        let cookie = access.log_in(RIGHT, network(1), now).unwrap();
        assert!(access.is_session(&cookie, now));
    }

    #[test]
    fn sessions_are_bounded_and_expire() {
        let (access, mut now) = access();
        let begin = |now| access.log_in(RIGHT, network(1), now).unwrap();
        let first = begin(now);
        assert_eq!(first.len(), 32);
        now += Duration::from_secs(1);
        let second = begin(now);
        for _ in 2..MAX_SESSIONS {
            begin(now);
        }
        now += Duration::from_secs(1);
        assert!(access.is_session(&first, now), "used last");
        begin(now);
        assert!(access.is_session(&first, now));
        assert_eq!(access.state().sessions.len(), MAX_SESSIONS);
        assert!(!access.is_session("", now) && !access.is_session(&first[1..], now));
        let _ = second;
        assert!(!access.is_session(&first, now + SESSION_TIMEOUT));
    }

    #[test]
    fn new_code_ends_sessions_and_lockouts() {
        let (access, now) = access();
        let cookie = access.log_in(RIGHT, network(1), now).unwrap();
        let before = access.generation();
        for _ in 0..MAX_FAILURES {
            let _ = access.check("x", network(1), now);
        }
        access.set_code(Code::new([0; 8]));
        assert_eq!(access.generation(), before, "the same code changes nothing");
        assert!(access.is_session(&cookie, now));
        access.set_code(Code::new([255; 8]));
        assert!(!access.is_session(&cookie, now) && access.generation() != before);
        assert_eq!(access.check(RIGHT, network(1), now), Err(Rejected::Wrong));
        assert_eq!(access.check("zzzz-zzzz-zzzz", network(1), now), Ok(()));
    }

    #[test]
    fn no_client_is_admitted_without_a_code() {
        let access = Access::new(Box::new(|bytes| bytes.fill(0)));
        let now = Instant::now();
        assert_eq!(access.check("", network(1), now), Err(Rejected::Wrong));
        assert_eq!(access.check(RIGHT, network(1), now), Err(Rejected::Wrong));
    }
}
