//! The pairing server of the target: issues codes, limits attempts, and holds requests until the
//! administrator decides.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use export::{Access, Peer};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::message::{Disk, RefusalReason, to_machine_name};
use crate::{Code, CodeKind, PairingSession};

/// Lifetime of a code.
const CODE_LIFETIME: Duration = Duration::from_mins(10);
/// Number of consecutive wrong codes that locks the server.
const MAX_FAILURES: u32 = 10;
/// Duration of the first lockout. Each further one is twice as long as the one before: this allows
/// 140 attempts in a year, 230 in ten years.
const FIRST_LOCKOUT: Duration = Duration::from_hours(1);
/// Maximum number of doublings: the last lockout takes eleven months.
const MAX_DOUBLINGS: u32 = 13;
/// Maximum delay after a wrong code, in seconds.
const MAX_DELAY_SECS: u64 = 64;
/// Maximum number of hosts that wait for a verdict.
pub const MAX_WAITING: usize = 8;
/// Rejected attempts are reported at most once in this time.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Fills a slice with random bytes from a CSPRNG.
pub type Random = Box<dyn FnMut(&mut [u8]) + Send>;

/// The decision about a host that had the code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Access is granted.
    Granted {
        /// The maximum access.
        access: Access,
        /// The disks that the host may access now; the first [`crate::MAX_DISKS`] are sent.
        disks: Vec<Disk>,
    },
    /// Access is denied.
    Denied,
    /// The host is known, and its access has expired.
    Expired,
    /// The key could not be stored: no space left on device.
    NoSpace,
    /// The key could not be stored for another reason.
    NotStored,
}

/// The valid codes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Codes {
    /// To be typed.
    pub digits: Code,
    /// To be scanned as part of an [`crate::Invite`].
    pub long: Code,
    /// End of their validity.
    pub expires: Instant,
}

/// The state of the server, for display.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerStatus {
    /// The codes; `None` while the server is locked or closed.
    pub codes: Option<Codes>,
    /// Attempts are rejected until then, because of a wrong code.
    pub wait_until: Option<Instant>,
    /// Too many wrong codes: locked until `wait_until`, or [`PairingServer::unlock`].
    pub locked: bool,
    /// Wrong codes since the last right one, lockout, or [`PairingServer::unlock`].
    pub failures: u32,
    /// Lockouts since the last right code, or [`PairingServer::unlock`].
    pub lockouts: u32,
    /// The numbers of the [`export::PairingRequest`]s that wait for [`PairingServer::answer`].
    pub waiting: Vec<u64>,
}

impl ServerStatus {
    /// Returns the failed attempts.
    pub fn failed_attempts(&self) -> FailedAttempts {
        FailedAttempts {
            failures: self.failures,
            lockouts: self.lockouts,
            wait_until: self.wait_until,
        }
    }
}

/// Failed attempts since the last right code. Survives a crash of the process if a new server
/// [resumes](PairingServer::resume) from it, so that a crash gains an attacker no attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FailedAttempts {
    /// Consecutive wrong codes since the last lockout.
    pub failures: u32,
    /// Number of lockouts.
    pub lockouts: u32,
    /// Attempts are rejected until then.
    pub wait_until: Option<Instant>,
}

impl FailedAttempts {
    /// Records a wrong code.
    pub fn fail(&mut self, now: Instant) {
        if self.is_locked() {
            return;
        }
        let delay = 1_u64.checked_shl(self.failures).unwrap_or(MAX_DELAY_SECS).min(MAX_DELAY_SECS);
        self.failures = self.failures.saturating_add(1);
        let delay = if self.is_locked() {
            let doubled = FIRST_LOCKOUT * (1 << self.lockouts.min(MAX_DOUBLINGS));
            self.lockouts = self.lockouts.saturating_add(1);
            doubled
        } else {
            Duration::from_secs(delay)
        };
        self.wait_until = Some(now + delay);
    }

    /// Returns whether the limit of wrong codes is reached.
    pub fn is_locked(&self) -> bool {
        self.failures >= MAX_FAILURES
    }

    /// Ends an expired lockout. Returns whether it did.
    fn resume(&mut self, now: Instant) -> bool {
        let is_over = self.is_locked() && self.wait_until.is_none_or(|until| until <= now);
        if is_over {
            (self.failures, self.wait_until) = (0, None);
        }
        is_over
    }
}

/// The pairing server, shared by its sessions and the program.
pub struct PairingServer {
    name: String,
    state: Mutex<State>,
}

struct State {
    random: Random,
    /// The codes. An attempt in progress may use them beyond their expiry.
    codes: Option<Codes>,
    open: bool,
    failed_attempts: FailedAttempts,
    /// The attempt in progress.
    attempt_in_progress: Option<u64>,
    waiting: Vec<(u64, Option<Verdict>)>,
    next: u64,
    generation: u64,
    next_report: Option<Instant>,
}

impl fmt::Debug for PairingServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PairingServer({})", self.name)
    }
}

impl PairingServer {
    /// Creates a server that issues codes from `now` on. `name` is this machine's name, which is
    /// sent only to hosts that had the code.
    pub fn new(name: &str, now: Instant, random: Random) -> Arc<Self> {
        Self::resume(name, now, random, FailedAttempts::default())
    }

    /// Creates a server that continues with the failed attempts counted by another one.
    pub fn resume(
        name: &str,
        now: Instant,
        random: Random,
        failed_attempts: FailedAttempts,
    ) -> Arc<Self> {
        let mut state = State {
            random,
            codes: None,
            open: true,
            failed_attempts,
            attempt_in_progress: None,
            waiting: Vec::new(),
            next: 1,
            generation: 0,
            next_report: None,
        };
        state.issue_codes(now);
        Arc::new(Self { name: to_machine_name(name), state: Mutex::new(state) })
    }

    /// Creates the session of a connection. It closes at once unless the channel's identity is
    /// [`crate::IDENTITY`].
    pub fn open_session(self: &Arc<Self>, peer: Peer, now: Instant) -> PairingSession {
        PairingSession::new(self.clone(), peer, now)
    }

    /// Returns the state for display; replaces expired codes.
    pub fn status(&self, now: Instant) -> ServerStatus {
        let mut state = self.state();
        state.refresh(now);
        ServerStatus {
            codes: state.codes.clone(),
            wait_until: state.failed_attempts.wait_until.filter(|until| *until > now),
            locked: state.failed_attempts.is_locked(),
            failures: state.failed_attempts.failures,
            lockouts: state.failed_attempts.lockouts,
            waiting: state.unanswered().collect(),
        }
    }

    /// Returns a counter of the changes of [`PairingServer::status`], except those due to time
    /// alone.
    pub fn generation(&self) -> u64 {
        self.state().generation
    }

    /// Returns when [`PairingServer::status`] next changes due to time alone.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let state = self.state();
        let expires = state.codes.as_ref().map(|codes| codes.expires);
        // An expired code in use is replaced when the attempt ends, which counts as a change.
        let expires = expires.filter(|at| state.attempt_in_progress.is_none() || *at > now);
        let pause = state.failed_attempts.wait_until.filter(|until| *until > now);
        [expires, pause].into_iter().flatten().min()
    }

    /// Enables pairing with new codes and resets the failed attempts.
    pub fn unlock(&self, now: Instant) {
        let mut state = self.state();
        state.open = true;
        state.failed_attempts = FailedAttempts::default();
        state.attempt_in_progress = None;
        state.issue_codes(now);
    }

    /// Disables pairing until [`PairingServer::unlock`]. Requests that wait for a verdict stay.
    pub fn close(&self) {
        let mut state = self.state();
        state.open = false;
        state.attempt_in_progress = None;
        state.codes = None;
        state.changed();
    }

    /// Sets the verdict on the [`export::PairingRequest`] with that number; notify the sessions
    /// with [`export::Notice::StateChanged`] afterwards. Returns whether the request was still
    /// waiting: if not, no access should be stored for it.
    pub fn answer(&self, number: u64, verdict: Verdict) -> bool {
        let mut state = self.state();
        let found = state
            .waiting
            .iter_mut()
            .find(|(other, decision)| *other == number && decision.is_none());
        let Some((_, decision)) = found else { return false };
        *decision = Some(verdict);
        state.changed();
        true
    }

    /// Returns whether the request with that number waits for a verdict.
    pub fn is_waiting(&self, number: u64) -> bool {
        self.state().unanswered().any(|other| other == number)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Starts an attempt, if one is allowed now. From here on it counts. Costs no public-key
    /// operations.
    pub(crate) fn begin(
        self: &Arc<Self>,
        kind: CodeKind,
        now: Instant,
    ) -> Result<Attempt, Rejection> {
        let mut state = self.state();
        state.refresh(now);
        let codes = match state.admit(now) {
            Ok(codes) => codes,
            Err((reason, seconds)) => return Err(state.rejection(reason, seconds, now)),
        };
        let number = state.next;
        state.next = state.next.saturating_add(1);
        state.attempt_in_progress = Some(number);
        let mut random = Zeroizing::new([0; 32]);
        (state.random)(&mut *random);
        let code = if kind == CodeKind::Digits { codes.digits } else { codes.long };
        let server = self.clone();
        Ok(Attempt { server, number, code, random, started: now, finished: false })
    }

    /// Takes the verdict, if there is one.
    pub(crate) fn verdict(&self, number: u64) -> Option<Verdict> {
        let mut state = self.state();
        let at = state
            .waiting
            .iter()
            .position(|(other, decision)| *other == number && decision.is_some())?;
        state.waiting.remove(at).1
    }

    /// Removes the request with that number.
    pub(crate) fn withdraw_request(&self, number: u64) {
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
        self.waiting.iter().filter(|(_, decision)| decision.is_none()).map(|(number, _)| *number)
    }

    fn changed(&mut self) {
        self.generation = self.generation.saturating_add(1);
    }

    /// Ends an expired lockout, and replaces expired codes unless an attempt uses them.
    fn refresh(&mut self, now: Instant) {
        if self.failed_attempts.resume(now) {
            self.issue_codes(now);
        }
        let old = self.codes.as_ref().is_some_and(|codes| codes.expires <= now);
        if old && self.attempt_in_progress.is_none() {
            self.issue_codes(now);
        }
    }

    fn issue_codes(&mut self, now: Instant) {
        let may = self.open && !self.failed_attempts.is_locked();
        self.codes = may.then(|| {
            let (mut digits, mut long) = (Zeroizing::new([0; 8]), Zeroizing::new([0; 16]));
            (self.random)(&mut *digits);
            (self.random)(&mut *long);
            let (digits, long) = (Code::digits(*digits), Code::long(*long));
            Codes { digits, long, expires: now + CODE_LIFETIME }
        });
        self.changed();
    }

    fn admit(&self, now: Instant) -> Result<Codes, (RefusalReason, u64)> {
        let left =
            self.failed_attempts.wait_until.map(|until| until.saturating_duration_since(now));
        let left = left.filter(|left| !left.is_zero()).map(|left| left.as_secs() + 1);
        if self.open && self.failed_attempts.is_locked() {
            return Err((RefusalReason::Locked, left.unwrap_or_default()));
        }
        let codes = self.codes.clone().ok_or((RefusalReason::PairingOff, 0))?;
        if let Some(left) = left {
            return Err((RefusalReason::RateLimited, left));
        }
        if self.attempt_in_progress.is_some() || self.waiting.len() >= MAX_WAITING {
            return Err((RefusalReason::Busy, 5));
        }
        Ok(codes)
    }

    fn rejection(&mut self, reason: RefusalReason, seconds: u64, now: Instant) -> Rejection {
        let report = self.next_report.is_none_or(|until| until <= now);
        if report {
            self.next_report = Some(now + REPORT_INTERVAL);
        }
        Rejection { reason, seconds: u16::try_from(seconds).unwrap_or(u16::MAX), report }
    }

    fn failed(&mut self, now: Instant) {
        self.failed_attempts.fail(now);
        self.issue_codes(now);
    }
}

/// Why an attempt is not allowed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) reason: RefusalReason,
    /// Number of seconds after which to retry.
    pub(crate) seconds: u16,
    /// Whether to report it: reports are rate-limited.
    pub(crate) report: bool,
}

/// An attempt in progress. Counts as failed when dropped, unless it [succeeded](Attempt::succeed).
pub(crate) struct Attempt {
    server: Arc<PairingServer>,
    number: u64,
    pub(crate) code: Code,
    /// Randomness for this attempt only.
    pub(crate) random: Zeroizing<[u8; 32]>,
    started: Instant,
    finished: bool,
}

impl Attempt {
    /// Ends the attempt with the right code, which is thereby used up. Returns the number of the
    /// pairing request, or `None` if the code was withdrawn meanwhile.
    pub(crate) fn succeed(mut self, now: Instant) -> Option<u64> {
        self.finished = true;
        let mut state = self.server.state();
        if state.attempt_in_progress != Some(self.number) {
            return None;
        }
        state.attempt_in_progress = None;
        state.failed_attempts = FailedAttempts::default();
        state.waiting.push((self.number, None));
        state.issue_codes(now);
        Some(self.number)
    }

    /// Ends the attempt as failed.
    pub(crate) fn fail(mut self, now: Instant) {
        self.end(now);
    }

    fn end(&mut self, now: Instant) {
        let finished = std::mem::replace(&mut self.finished, true);
        let mut state = self.server.state();
        if !finished && state.attempt_in_progress == Some(self.number) {
            state.attempt_in_progress = None;
            state.failed(now);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        // Reached only if a bug ends the session. The current time is unknown; the start is close
        // enough.
        self.end(self.started);
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attempt({})", self.number)
    }
}
