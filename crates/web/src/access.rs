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

/// Wrong codes of all addresses together. While there have been more, no code is looked at.
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
    /// It was not looked at: too many wrong ones. Others are, after this time.
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
    /// Tokens for wrong codes of all addresses.
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
        let mut state = self.state();
        if let Some(left) = state.locked(source, now) {
            return Err(Rejected::Locked(left));
        }
        let all = state.all.get_or_insert_with(|| TokenBucket::full(ALL, now));
        if !all.take(1, now) {
            return Err(Rejected::Locked(Duration::from_secs(1)));
        }
        let is_right = Code::parse(text).is_some_and(|code| state.code.as_ref() == Some(&code));
        if is_right {
            state.all.iter_mut().for_each(|all| all.refund(1));
            state.sources.remove(&source);
            return Ok(());
        }
        state.failed(source, now);
        Err(Rejected::Wrong)
    }

    /// Begins a session. Returns its cookie.
    pub(crate) fn begin(&self, now: Instant) -> String {
        let cookie: String =
            self.random::<COOKIE_BYTES>().iter().map(|byte| format!("{byte:02x}")).collect();
        let mut state = self.state();
        if state.sessions.len() >= MAX_SESSIONS {
            let oldest = state.sessions.iter().enumerate().min_by_key(|(_, session)| session.used);
            let oldest = oldest.map(|(at, _)| at);
            oldest.into_iter().for_each(|at| drop(state.sessions.swap_remove(at)));
        }
        let secret = Secret::new(cookie.clone().into_bytes());
        state.sessions.push(Session { cookie: secret, used: now });
        cookie
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
    fn wrong_codes_of_all_addresses_are_limited() {
        let (access, now) = access();
        let wrong = (0..2000)
            .filter(|&n| access.check("x", network(n), now).is_err_and(|it| it == Rejected::Wrong));
        assert_eq!(wrong.count(), 100);
        let locked = Err(Rejected::Locked(Duration::from_secs(1)));
        assert_eq!(access.check(RIGHT, network(5000), now), locked);
        let later = now + Duration::from_secs(1);
        assert_eq!(access.check(RIGHT, network(5000), later), Ok(()));
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
    fn sessions_are_bounded_and_expire() {
        let (access, mut now) = access();
        let first = access.begin(now);
        assert_eq!(first.len(), 32);
        now += Duration::from_secs(1);
        let second = access.begin(now);
        for _ in 2..MAX_SESSIONS {
            access.begin(now);
        }
        now += Duration::from_secs(1);
        assert!(access.is_session(&first, now), "used last");
        access.begin(now);
        assert!(access.is_session(&first, now));
        assert_eq!(access.state().sessions.len(), MAX_SESSIONS);
        assert!(!access.is_session("", now) && !access.is_session(&first[1..], now));
        let _ = second;
        assert!(!access.is_session(&first, now + SESSION_TIMEOUT));
    }

    #[test]
    fn new_code_ends_sessions_and_lockouts() {
        let (access, now) = access();
        let (cookie, before) = (access.begin(now), access.generation());
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
