//! Whether a descriptor is a terminal, how large its window is, and its keys one by one.
//!
//! Does not know what is drawn there.

use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{
    LocalModes, OptionalActions, QueueSelector, SpecialCodeIndex, Termios, tcflush, tcgetattr,
    tcsetattr,
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

/// A terminal that gives each key at once and shows none of them, until this is dropped. Ctrl-C stays a signal.
#[derive(Debug)]
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Changes the terminal, and forgets the keys that were pressed before; `None` if it is none. It does not wait until
    /// the terminal has taken what was written: a serial line with nobody at its other end may never.
    pub fn enter(terminal: impl AsFd) -> Option<Self> {
        let terminal = terminal.as_fd().try_clone_to_owned().ok()?;
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
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
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
    }
}
