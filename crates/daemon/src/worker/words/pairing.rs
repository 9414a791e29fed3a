//! What the two processes say of pairing. It knows no socket.

use std::time::{Duration, Instant};

use export::{Access, Secret};
use pair::{Code, Codes, FailedAttempts, ServerStatus, Verdict};
use serde::{Deserialize, Serialize};

use super::{AccessWord, Hidden};

/// The owner's answer to a host that has shown the code.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::worker) enum VerdictWord {
    Granted(GrantWord),
    Denied,
    Full,
    Unkept,
}

#[derive(Debug, Serialize, Deserialize)]
pub(in crate::worker) struct GrantWord {
    #[serde(with = "AccessWord")]
    access: Access,
    disks: Vec<DiskWord>,
}

#[derive(Debug, Serialize, Deserialize)]
struct DiskWord {
    nqn: String,
    name: String,
    model: String,
    bytes: u64,
    #[serde(with = "AccessWord")]
    access: Access,
}

impl From<Verdict> for VerdictWord {
    fn from(verdict: Verdict) -> Self {
        let word = |disk: pair::Disk| {
            let pair::Disk { nqn, name, model, bytes, access } = disk;
            DiskWord { nqn, name, model, bytes, access }
        };
        match verdict {
            Verdict::Granted { access, disks } => {
                Self::Granted(GrantWord { access, disks: disks.into_iter().map(word).collect() })
            }
            Verdict::Denied => Self::Denied,
            Verdict::NoSpace => Self::Full,
            Verdict::NotStored => Self::Unkept,
        }
    }
}

impl From<VerdictWord> for Verdict {
    fn from(word: VerdictWord) -> Self {
        let disk = |word: DiskWord| {
            let DiskWord { nqn, name, model, bytes, access } = word;
            pair::Disk { nqn, name, model, bytes, access }
        };
        match word {
            VerdictWord::Granted(GrantWord { access, disks }) => {
                Self::Granted { access, disks: disks.into_iter().map(disk).collect() }
            }
            VerdictWord::Denied => Self::Denied,
            VerdictWord::Full => Self::NoSpace,
            VerdictWord::Unkept => Self::NotStored,
        }
    }
}

/// What the screen shows of pairing. The two processes have clocks of their own: times are how long it is until then, in
/// milliseconds.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::worker) struct ViewWord {
    shown: Option<ShownWord>,
    wait: Option<u64>,
    stopped: bool,
    failures: u32,
    stops: u32,
    waiting: Vec<u64>,
}

/// The wrong codes that were tried before a worker was started; how long nobody may try, in milliseconds.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::worker) struct TriesWord {
    failures: u32,
    stops: u32,
    wait: Option<u64>,
}

impl TriesWord {
    /// As they count from `now` on.
    pub(in crate::worker) fn new(tries: &FailedAttempts, now: Instant) -> Self {
        let wait = tries.wait_until.map(|until| left(until, now));
        Self { failures: tries.failures, stops: tries.lockouts, wait }
    }

    /// As they count from `now` on.
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
struct ShownWord {
    digits: Hidden,
    long: Hidden,
    expires: u64,
}

impl ViewWord {
    /// What is to be shown from `now` on.
    pub(in crate::worker) fn new(view: &ServerStatus, now: Instant) -> Self {
        let code = |code: &Code| Hidden(Secret::new(code.text().as_bytes().to_vec()));
        let shown = view.codes.as_ref().map(|shown| ShownWord {
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

    /// What is to be shown from `now` on. Nothing if its codes are none.
    pub(in crate::worker) fn view(self, now: Instant) -> Option<ServerStatus> {
        let at = |milliseconds: u64| now.checked_add(Duration::from_millis(milliseconds));
        let shown = match self.shown {
            Some(word) => Some(Codes {
                digits: code(&word.digits)?,
                long: code(&word.long)?,
                expires: at(word.expires)?,
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

fn code(hidden: &Hidden) -> Option<Code> {
    Code::parse(std::str::from_utf8(hidden.0.bytes()).ok()?).ok()
}
