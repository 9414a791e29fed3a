//! Terminals: detection, window size, and raw mode.

use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{
    LocalModes, OptionalActions, QueueSelector, SpecialCodeIndex, Termios, tcflush, tcgetattr,
    tcgetpgrp, tcsetattr,
};

use crate::syscall;

/// Returns whether the descriptor is a terminal.
pub fn is_terminal(descriptor: &impl IsTerminal) -> bool {
    descriptor.is_terminal()
}

/// Returns columns and rows of the terminal; `None` if it is not a terminal or the size is unknown
/// (0 on a serial line).
pub fn window(descriptor: impl AsFd) -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(descriptor).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Returns whether this process is in the background, for example started with `&`: reading from
/// the terminal or changing it would stop the process (POSIX.1-2017 §11.1.4).
pub fn is_in_background(descriptor: impl AsFd) -> bool {
    tcgetpgrp(descriptor).is_ok_and(|group| group.as_raw_pid() != syscall::process_group())
}

/// A terminal in raw mode: without line buffering and echo, restored on drop. Ctrl-C still sends a
/// signal.
#[derive(Debug)]
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Enters raw mode and discards pending input. Returns `None` if it is not a terminal, or in
    /// the background. Does not wait for pending output: on an unconnected serial line that may
    /// never end.
    pub fn enter(terminal: impl AsFd) -> Option<Self> {
        let terminal = terminal.as_fd().try_clone_to_owned().ok()?;
        if is_in_background(&terminal) {
            return None;
        }
        let before = tcgetattr(&terminal).ok()?;
        let mut raw = before.clone();
        raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        // VMIN=1: a read without input must block or fail; otherwise it would look like the end of
        // the file.
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(&terminal, OptionalActions::Now, &raw).ok()?;
        let _ = tcflush(&terminal, QueueSelector::IFlush);
        Some(Self { terminal, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The foreground job has set the mode that it needs.
        if !is_in_background(&self.terminal) {
            let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_not_a_terminal() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(!is_terminal(&null));
        assert_eq!(window(&null), None);
        assert!(!is_in_background(&null));
    }
}
