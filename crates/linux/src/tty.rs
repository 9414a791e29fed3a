//! Whether a descriptor is a terminal, how large its window is, and its keys one by one.
//!
//! Does not know what is drawn there.

use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{
    LocalModes, OptionalActions, QueueSelector, SpecialCodeIndex, Termios, tcflush, tcgetattr,
    tcgetpgrp, tcsetattr,
};

/// Whether the descriptor leads to a terminal.
pub fn is_terminal(descriptor: &impl IsTerminal) -> bool {
    descriptor.is_terminal()
}

/// Columns and rows of the terminal's window; `None` if it is no terminal or does not know (a serial line says 0).
pub fn window(descriptor: impl AsFd) -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(descriptor).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Whether another job has the terminal just now, as when this one was started with `&`: to read from it or to change it
/// would stop this process (POSIX.1-2017 §11.1.4).
pub fn is_in_background(descriptor: impl AsFd) -> bool {
    tcgetpgrp(descriptor).is_ok_and(|group| group != rustix::process::getpgrp())
}

/// A terminal that gives each key at once and shows none of them, until this is dropped. Ctrl-C stays a signal.
#[derive(Debug)]
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Changes the terminal, and forgets the keys that were pressed before; `None` if it is none, or if another job has it.
    /// It does not wait until the terminal has taken what was written: a serial line with nobody at its other end may
    /// never.
    pub fn enter(terminal: impl AsFd) -> Option<Self> {
        let terminal = terminal.as_fd().try_clone_to_owned().ok()?;
        if is_in_background(&terminal) {
            return None;
        }
        let before = tcgetattr(&terminal).ok()?;
        let mut raw = before.clone();
        raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        // A read that finds nothing must say so: without the first, it would look like the end.
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(&terminal, OptionalActions::Now, &raw).ok()?;
        let _ = tcflush(&terminal, QueueSelector::IFlush);
        Some(Self { terminal, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Who has it meanwhile has made it as it needs it.
        if !is_in_background(&self.terminal) {
            let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_no_terminal() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(!is_terminal(&null));
        assert_eq!(window(&null), None);
        assert!(!is_in_background(&null));
    }
}
