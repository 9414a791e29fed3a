//! Says how far the work is, on standard error: a line that changes on a terminal, a line a step elsewhere.
//! It knows no image.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use linux::tty;

/// Back to the start of the line, and clear it.
const CLEAR: &str = "\r\x1b[K";

/// Where it is said. Several threads may say it.
#[derive(Debug)]
pub(super) struct Progress {
    terminal: bool,
    step: Mutex<(&'static str, usize)>,
}

impl Progress {
    /// Finds out whether there is a terminal.
    pub(super) fn open() -> Self {
        Self { terminal: tty::is_terminal(&io::stderr()), step: Mutex::new(("", 0)) }
    }

    /// So much of a step is done.
    pub(super) fn update(&self, step: &'static str, done: usize, all: usize) {
        let mut last = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = last.0 != step;
        if self.terminal && (is_new || done > last.1) {
            let _ = write!(io::stderr(), "{CLEAR}{step} {done}/{all}");
        } else if is_new {
            let _ = writeln!(io::stderr(), "{step} ({all})");
        }
        *last = (step, done);
    }

    /// Takes the line away.
    pub(super) fn clear(&self) {
        if self.terminal {
            let _ = write!(io::stderr(), "{CLEAR}");
        }
    }
}
