//! Wire types of pairing.

use std::time::{Duration, Instant};

use export::Secret;
use pair::{Code, Codes, FailedAttempts, ServerStatus};
use serde::{Deserialize, Serialize};

/// The pairing state. Times are sent as milliseconds from now: `Instant`s are not comparable
/// between processes.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::worker) struct ViewWire {
    shown: Option<ShownWire>,
    wait: Option<u64>,
    stopped: bool,
    failures: u32,
    stops: u32,
    waiting: Vec<u64>,
}

/// Failed pairing attempts of previous workers; `wait` is the remaining lockout in milliseconds.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::worker) struct TriesWire {
    failures: u32,
    stops: u32,
    wait: Option<u64>,
}

impl TriesWire {
    pub(in crate::worker) fn new(tries: &FailedAttempts, now: Instant) -> Self {
        let wait = tries.wait_until.map(|until| left(until, now));
        Self { failures: tries.failures, stops: tries.lockouts, wait }
    }

    pub(in crate::worker) fn tries(&self, now: Instant) -> FailedAttempts {
        let until = |wait| now.checked_add(Duration::from_millis(wait));
        let wait_until = self.wait.and_then(until);
        FailedAttempts { failures: self.failures, lockouts: self.stops, wait_until }
    }
}

/// Milliseconds from `now` to `at`.
fn left(at: Instant, now: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX)
}

#[derive(Debug, Serialize, Deserialize)]
struct ShownWire {
    digits: Secret,
    long: Secret,
    expires: u64,
}

impl ViewWire {
    pub(in crate::worker) fn new(view: &ServerStatus, now: Instant) -> Self {
        let code = |code: &Code| Secret::new(code.text().as_bytes().to_vec());
        let shown = view.codes.as_ref().map(|shown| ShownWire {
            digits: code(&shown.digits),
            long: code(&shown.long),
            expires: left(shown.expires, now),
        });
        Self {
            shown,
            wait: view.wait_until.map(|until| left(until, now)),
            stopped: view.locked,
            failures: view.failures,
            stops: view.lockouts,
            waiting: view.waiting.clone(),
        }
    }

    /// Returns `None` if a code is malformed.
    pub(in crate::worker) fn view(self, now: Instant) -> Option<ServerStatus> {
        let at = |milliseconds: u64| now.checked_add(Duration::from_millis(milliseconds));
        let shown = match self.shown {
            Some(wire) => Some(Codes {
                digits: code(&wire.digits)?,
                long: code(&wire.long)?,
                expires: at(wire.expires)?,
            }),
            None => None,
        };
        let wait_until = self.wait.and_then(at);
        let Self { stopped, failures, stops, waiting, .. } = self;
        Some(ServerStatus {
            codes: shown,
            wait_until,
            locked: stopped,
            failures,
            lockouts: stops,
            waiting,
        })
    }
}

fn code(hidden: &Secret) -> Option<Code> {
    Code::parse(std::str::from_utf8(hidden.bytes()).ok()?).ok()
}
