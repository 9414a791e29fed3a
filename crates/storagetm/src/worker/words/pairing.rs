//! What the two processes say of pairing. It knows no socket.

use std::time::{Duration, Instant};

use export::{Access, Secret};
use pair::{Code, Shown, Verdict, View};
use serde::{Deserialize, Serialize};

use super::{AccessWord, Hidden};

/// What the owner says to a host that has shown the code; nothing if he does not let it in.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::worker) struct VerdictWord(Option<GrantWord>);

#[derive(Debug, Serialize, Deserialize)]
struct GrantWord {
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
                Self(Some(GrantWord { access, disks: disks.into_iter().map(word).collect() }))
            }
            Verdict::Denied => Self(None),
        }
    }
}

impl From<VerdictWord> for Verdict {
    fn from(word: VerdictWord) -> Self {
        let disk = |word: DiskWord| {
            let DiskWord { nqn, name, model, bytes, access } = word;
            pair::Disk { nqn, name, model, bytes, access }
        };
        match word.0 {
            Some(GrantWord { access, disks }) => {
                Self::Granted { access, disks: disks.into_iter().map(disk).collect() }
            }
            None => Self::Denied,
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
    waiting: Vec<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ShownWord {
    digits: Hidden,
    long: Hidden,
    expires: u64,
}

impl ViewWord {
    /// What is to be shown from `now` on.
    pub(in crate::worker) fn new(view: &View, now: Instant) -> Self {
        let left = |at: Instant| {
            u64::try_from(at.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX)
        };
        let code = |code: &Code| Hidden(Secret::new(code.text().as_bytes().to_vec()));
        let shown = view.shown.as_ref().map(|shown| ShownWord {
            digits: code(&shown.digits),
            long: code(&shown.long),
            expires: left(shown.expires),
        });
        Self {
            shown,
            wait: view.wait_until.map(left),
            stopped: view.stopped,
            failures: view.failures,
            waiting: view.waiting.clone(),
        }
    }

    /// What is to be shown from `now` on. Nothing if its codes are none.
    pub(in crate::worker) fn view(self, now: Instant) -> Option<View> {
        let at = |milliseconds: u64| now.checked_add(Duration::from_millis(milliseconds));
        let shown = match self.shown {
            Some(word) => Some(Shown {
                digits: code(&word.digits)?,
                long: code(&word.long)?,
                expires: at(word.expires)?,
            }),
            None => None,
        };
        let wait_until = self.wait.and_then(at);
        let Self { stopped, failures, waiting, .. } = self;
        Some(View { shown, wait_until, stopped, failures, waiting })
    }
}

fn code(hidden: &Hidden) -> Option<Code> {
    Code::parse(std::str::from_utf8(hidden.0.bytes()).ok()?).ok()
}
