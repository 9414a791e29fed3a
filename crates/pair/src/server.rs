//! The target's server: shows the codes, counts the tries, and holds who has shown a code and waits for the owner. It
//! knows no message and no key; time is told to it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use export::{Access, Peer};
use zeroize::Zeroizing;

use crate::message::{Disk, Why, machine};
use crate::{Code, Kind, PairingSession};

/// How long a code is good for.
const LIFE: Duration = Duration::from_mins(10);
/// Wrong codes in a row, after which nobody may try for a long time, or until [`PairingServer::unlock`].
const FAILURES: u32 = 10;
/// How long nobody may try after the first [`FAILURES`] wrong codes. Each further stop is twice as long as the one before:
/// whoever keeps guessing for a year has 140 guesses, for ten years 230.
const STOP: Duration = Duration::from_hours(1);
/// How often it is doubled at most: then it lasts for eleven months.
const LONGEST_STOP: u32 = 13;
/// The longest time after a wrong code in which nobody may try, in seconds.
const LONGEST_DELAY: u64 = 64;
/// Hosts at most that wait for the owner's answer.
const WAITING: usize = 8;
/// Of those that are told to come again, one in this time is reported.
const QUIET: Duration = Duration::from_secs(1);

/// Fills what it is given with random bytes that nobody can guess.
pub type Random = Box<dyn FnMut(&mut [u8]) + Send>;

/// What the owner says to a host that has shown the code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is let in, from now on.
    Granted {
        /// What it may do, at most.
        access: Access,
        /// The disks that it may have just now; the first [`crate::MOST_DISKS`] are told.
        disks: Vec<Disk>,
    },
    /// It is not.
    Denied,
    /// It would be, but its key cannot be stored: there is no space left where keys are kept.
    Full,
    /// The same, for another reason.
    Unkept,
}

/// The codes that are good just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// To be typed.
    pub digits: Code,
    /// To be scanned, in an [`crate::Invite`].
    pub long: Code,
    /// Until when.
    pub expires: Instant,
}

/// What the screen shows of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The codes; none while the server is stopped or closed.
    pub shown: Option<Shown>,
    /// Nobody may try before that, because of a wrong code.
    pub wait_until: Option<Instant>,
    /// Whether too many wrong codes have stopped the server: until `wait_until`, or [`PairingServer::unlock`].
    pub stopped: bool,
    /// Wrong codes since a right one, a stop, or [`PairingServer::unlock`].
    pub failures: u32,
    /// Stops since a right code, or [`PairingServer::unlock`].
    pub stops: u32,
    /// Those who wait for [`PairingServer::answer`], by the number of their [`export::PairingRequest`].
    pub waiting: Vec<u64>,
}

impl View {
    /// The wrong codes so far.
    pub fn tries(&self) -> Tries {
        Tries { failures: self.failures, stops: self.stops, wait_until: self.wait_until }
    }
}

/// The wrong codes since a right one, and what follows from them. A guesser gains nothing by the death of the process that
/// counts them if another one [goes on](PairingServer::resume) from here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tries {
    /// In a row, since the last stop.
    pub failures: u32,
    /// How often there were too many of them.
    pub stops: u32,
    /// No attempt is accepted before that.
    pub wait_until: Option<Instant>,
}

impl Tries {
    /// Counts a wrong code.
    pub fn fail(&mut self, now: Instant) {
        if self.is_stopped() {
            return;
        }
        let delay = 1_u64.checked_shl(self.failures).unwrap_or(LONGEST_DELAY).min(LONGEST_DELAY);
        self.failures = self.failures.saturating_add(1);
        let delay = if self.is_stopped() {
            let doubled = STOP * (1 << self.stops.min(LONGEST_STOP));
            self.stops = self.stops.saturating_add(1);
            doubled
        } else {
            Duration::from_secs(delay)
        };
        self.wait_until = Some(now + delay);
    }

    /// Whether there were too many.
    pub fn is_stopped(&self) -> bool {
        self.failures >= FAILURES
    }

    /// Begins a new series once a stop is over. Returns whether it does.
    fn resume(&mut self, now: Instant) -> bool {
        let is_over = self.is_stopped() && self.wait_until.is_none_or(|until| until <= now);
        if is_over {
            (self.failures, self.wait_until) = (0, None);
        }
        is_over
    }
}

/// The server. Shared by all its visits and the program.
pub struct PairingServer {
    name: String,
    state: Mutex<State>,
}

struct State {
    random: Random,
    /// Good until the time beside them, unless somebody is trying them then.
    codes: Option<Shown>,
    open: bool,
    tries: Tries,
    /// The try that is under way.
    trying: Option<u64>,
    waiting: Vec<(u64, Option<Verdict>)>,
    next: u64,
    generation: u64,
    quiet_until: Option<Instant>,
}

impl fmt::Debug for PairingServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PairingServer({})", self.name)
    }
}

impl PairingServer {
    /// A server that shows a code from `now` on. `name` is what this machine calls itself: told to nobody who has not
    /// shown a code.
    pub fn new(name: &str, now: Instant, random: Random) -> Arc<Self> {
        Self::resume(name, now, random, Tries::default())
    }

    /// The same, after the wrong codes that another server has counted.
    pub fn resume(name: &str, now: Instant, random: Random, tries: Tries) -> Arc<Self> {
        let mut state = State {
            random,
            codes: None,
            open: true,
            tries,
            trying: None,
            waiting: Vec::new(),
            next: 1,
            generation: 0,
            quiet_until: None,
        };
        state.renew(now);
        Arc::new(Self { name: machine(name), state: Mutex::new(state) })
    }

    /// A connection that came in the channel of [`crate::IDENTITY`]; any other is closed at once.
    pub fn open_session(self: &Arc<Self>, peer: Peer, now: Instant) -> PairingSession {
        PairingSession::new(self.clone(), peer, now)
    }

    /// What the screen is to show; replaces codes that are too old.
    pub fn view(&self, now: Instant) -> View {
        let mut state = self.state();
        state.refresh(now);
        View {
            shown: state.codes.clone(),
            wait_until: state.tries.wait_until.filter(|until| *until > now),
            stopped: state.tries.is_stopped(),
            failures: state.tries.failures,
            stops: state.tries.stops,
            waiting: state.unanswered().collect(),
        }
    }

    /// A number that grows with each change of what [`PairingServer::view`] tells, but for what changes by time alone.
    pub fn generation(&self) -> u64 {
        self.state().generation
    }

    /// When [`PairingServer::view`] tells something else by time alone.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let state = self.state();
        let expires = state.codes.as_ref().map(|codes| codes.expires);
        // While somebody tries an old code, its replacement is a change that is counted.
        let expires = expires.filter(|at| state.trying.is_none() || *at > now);
        let pause = state.tries.wait_until.filter(|until| *until > now);
        [expires, pause].into_iter().flatten().min()
    }

    /// Somebody at this machine wants pairing to go on, or to begin: new codes, and all tries are left.
    pub fn unlock(&self, now: Instant) {
        let mut state = self.state();
        state.open = true;
        state.tries = Tries::default();
        state.trying = None;
        state.renew(now);
    }

    /// No more codes, until [`PairingServer::unlock`]. Those who wait still get their answer.
    pub fn close(&self) {
        let mut state = self.state();
        state.open = false;
        state.trying = None;
        state.codes = None;
        state.changed();
    }

    /// The owner's answer to the [`export::PairingRequest`] of that number; tell the sessions [`export::Notice::StateChanged`] then.
    /// Tells whether anybody still waits for it: if not, no rights should be kept for it.
    pub fn answer(&self, number: u64, verdict: Verdict) -> bool {
        let mut state = self.state();
        let found =
            state.waiting.iter_mut().find(|(other, told)| *other == number && told.is_none());
        let Some((_, told)) = found else { return false };
        *told = Some(verdict);
        state.changed();
        true
    }

    /// Whether the knock of that number still waits for an answer.
    pub fn is_waiting(&self, number: u64) -> bool {
        self.state().unanswered().any(|other| other == number)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Lets somebody try, if it may be now. From here on the try counts. Costs no arithmetic with keys.
    pub(crate) fn begin(self: &Arc<Self>, kind: Kind, now: Instant) -> Result<Attempt, Hold> {
        let mut state = self.state();
        state.refresh(now);
        let codes = match state.admit(now) {
            Ok(codes) => codes,
            Err((why, seconds)) => return Err(state.hold(why, seconds, now)),
        };
        let number = state.next;
        state.next = state.next.saturating_add(1);
        state.trying = Some(number);
        let mut random = Zeroizing::new([0; 32]);
        (state.random)(&mut *random);
        let code = if kind == Kind::Digits { codes.digits } else { codes.long };
        let server = self.clone();
        Ok(Attempt { server, number, code, random, began: now, over: false })
    }

    /// The owner's answer, once, if there is one.
    pub(crate) fn verdict(&self, number: u64) -> Option<Verdict> {
        let mut state = self.state();
        let at =
            state.waiting.iter().position(|(other, told)| *other == number && told.is_some())?;
        state.waiting.remove(at).1
    }

    /// Whoever that was waits no longer.
    pub(crate) fn forget(&self, number: u64) {
        let mut state = self.state();
        let before = state.waiting.len();
        state.waiting.retain(|(other, _)| *other != number);
        if state.waiting.len() != before {
            state.changed();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn unanswered(&self) -> impl Iterator<Item = u64> {
        self.waiting.iter().filter(|(_, told)| told.is_none()).map(|(number, _)| *number)
    }

    fn changed(&mut self) {
        self.generation = self.generation.saturating_add(1);
    }

    /// Ends a stop that has lasted long enough. Codes that are too old are replaced, but not under who is trying them.
    fn refresh(&mut self, now: Instant) {
        if self.tries.resume(now) {
            self.renew(now);
        }
        let old = self.codes.as_ref().is_some_and(|codes| codes.expires <= now);
        if old && self.trying.is_none() {
            self.renew(now);
        }
    }

    fn renew(&mut self, now: Instant) {
        let may = self.open && !self.tries.is_stopped();
        self.codes = may.then(|| {
            let (mut digits, mut long) = (Zeroizing::new([0; 8]), Zeroizing::new([0; 16]));
            (self.random)(&mut *digits);
            (self.random)(&mut *long);
            let (digits, long) = (Code::digits(*digits), Code::long(*long));
            Shown { digits, long, expires: now + LIFE }
        });
        self.changed();
    }

    fn admit(&self, now: Instant) -> Result<Shown, (Why, u64)> {
        let left = self.tries.wait_until.map(|until| until.saturating_duration_since(now));
        let left = left.filter(|left| !left.is_zero()).map(|left| left.as_secs() + 1);
        if self.open && self.tries.is_stopped() {
            return Err((Why::Stopped, left.unwrap_or_default()));
        }
        let codes = self.codes.clone().ok_or((Why::Closed, 0))?;
        if let Some(left) = left {
            return Err((Why::Later, left));
        }
        if self.trying.is_some() || self.waiting.len() >= WAITING {
            return Err((Why::Busy, 5));
        }
        Ok(codes)
    }

    fn hold(&mut self, why: Why, seconds: u64, now: Instant) -> Hold {
        let loud = self.quiet_until.is_none_or(|until| until <= now);
        if loud {
            self.quiet_until = Some(now + QUIET);
        }
        Hold { why, seconds: u16::try_from(seconds).unwrap_or(u16::MAX), loud }
    }

    fn failed(&mut self, now: Instant) {
        self.tries.fail(now);
        self.renew(now);
    }
}

/// Why somebody may not try now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) why: Why,
    /// When it may be of use to come again.
    pub(crate) seconds: u16,
    /// Whether it is to be reported: of a flood only a little is.
    pub(crate) loud: bool,
}

/// A try under way. However it goes away, it counts as a wrong code unless it [succeeded](Attempt::succeed).
pub(crate) struct Attempt {
    server: Arc<PairingServer>,
    number: u64,
    pub(crate) code: Code,
    /// For this try alone.
    pub(crate) random: Zeroizing<[u8; 32]>,
    began: Instant,
    over: bool,
}

impl Attempt {
    /// The code was right: it is used up. The number of the knock, unless the code was withdrawn meanwhile.
    pub(crate) fn succeed(mut self, now: Instant) -> Option<u64> {
        self.over = true;
        let mut state = self.server.state();
        if state.trying != Some(self.number) {
            return None;
        }
        state.trying = None;
        state.tries = Tries::default();
        state.waiting.push((self.number, None));
        state.renew(now);
        Some(self.number)
    }

    /// The code was wrong, or might have been.
    pub(crate) fn fail(mut self, now: Instant) {
        self.end(now);
    }

    fn end(&mut self, now: Instant) {
        let over = std::mem::replace(&mut self.over, true);
        let mut state = self.server.state();
        if !over && state.trying == Some(self.number) {
            state.trying = None;
            state.failed(now);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        // Only if a mistake of ours ends the session: the time is not known, that of the beginning is near.
        self.end(self.began);
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attempt({})", self.number)
    }
}
