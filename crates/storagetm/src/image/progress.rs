//! Progress on standard error: a line that is updated on a terminal, one line per step elsewhere.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use linux::tty;

/// Carriage return, erase line.
const CLEAR: &str = "\r\x1b[K";

/// Progress of the current step. Thread-safe.
#[derive(Debug)]
pub(super) struct Progress {
    terminal: bool,
    step: Mutex<(&'static str, usize)>,
}

impl Progress {
    pub(super) fn open() -> Self {
        Self { terminal: tty::is_terminal(&io::stderr()), step: Mutex::new(("", 0)) }
    }

    /// Reports that `done` of `total` units are done.
    pub(super) fn update(&self, step: &'static str, done: usize, total: usize) {
        let mut last = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = last.0 != step;
        if self.terminal && (is_new || done > last.1) {
            let _ = write!(io::stderr(), "{CLEAR}{step} {done}/{total}");
        } else if is_new {
            let _ = writeln!(io::stderr(), "{step} ({total})");
        }
        *last = (step, done);
    }

    /// Erases the line.
    pub(super) fn clear(&self) {
        if self.terminal {
            let _ = write!(io::stderr(), "{CLEAR}");
        }
    }
}
