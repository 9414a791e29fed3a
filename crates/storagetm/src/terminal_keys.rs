//! Keys of the terminal that `storagetm serve` runs in.

use std::io::stdin;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use console::Key;
use linux::tty::{self, Raw};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::key_parser::KeyParser;

/// Terminal input in raw mode; Ctrl-C still raises a signal. While another job is in the
/// foreground, nothing is read, and the terminal modes are left alone.
#[derive(Debug)]
pub(crate) struct TerminalKeys {
    terminal: OwnedFd,
    raw: Option<Raw>,
    keys: KeyParser,
    gone: bool,
    /// Whether another job was in the foreground since the last call.
    was_away: bool,
}

impl TerminalKeys {
    /// Opens standard input. Returns `None` if it is not a terminal.
    pub(crate) fn open() -> Option<Self> {
        let terminal = tty::is_terminal(&stdin()).then(|| stdin().as_fd().try_clone_to_owned());
        terminal?.ok().map(Self::at)
    }

    fn at(terminal: OwnedFd) -> Self {
        let raw = Raw::enter(&terminal);
        Self { terminal, raw, keys: KeyParser::default(), gone: false, was_away: false }
    }

    /// Returns whether the terminal has hung up.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Returns the descriptor to poll; `None` while another job is in the foreground, the end of
    /// which must be polled for.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        (!tty::is_in_background(&self.terminal)).then(|| self.terminal.as_fd())
    }

    /// Returns the keys that were pressed. Never blocks.
    pub(crate) fn receive(&mut self) -> Vec<Key> {
        if self.descriptor().is_none() {
            self.raw = None;
            self.was_away = true;
            return Vec::new();
        }
        if self.raw.is_none() {
            self.raw = Raw::enter(&self.terminal);
        }
        let mut pressed = Vec::new();
        while self.is_readable() && self.read(&mut pressed) {}
        pressed
    }

    /// Enters raw mode again after SIGCONT: the shell has changed the terminal modes.
    pub(crate) fn resume(&mut self) {
        self.raw = None;
    }

    /// Returns whether another job, which may have written to the terminal, has left the
    /// foreground.
    pub(crate) fn regained_terminal(&mut self) -> bool {
        self.raw.is_some() && std::mem::take(&mut self.was_away)
    }

    /// Returns whether there may be more input.
    fn read(&mut self, pressed: &mut Vec<Key>) -> bool {
        let mut bytes = [0; 64];
        match rustix::io::read(&self.terminal, &mut bytes) {
            Ok(n) if n > 0 => {
                pressed.extend(bytes.iter().take(n).filter_map(|byte| self.keys.receive(*byte)));
                return true;
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            // Hang-up: without SIGHUP the descriptor would stay readable forever.
            _ => self.gone = true,
        }
        false
    }

    fn is_readable(&self) -> bool {
        let mut fds = [PollFd::new(&self.terminal, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn hung_up_terminal_is_detected_after_its_last_keys() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut terminal_keys = TerminalKeys::at(reader.into());
        assert!(terminal_keys.receive().is_empty() && !terminal_keys.is_gone());
        rustix::io::write(&writer, b"y\x1b[Dn").unwrap();
        drop(writer);
        assert_eq!(terminal_keys.receive(), [Key::Byte(b'y'), Key::Byte(b'n')]);
        assert!(terminal_keys.is_gone());
    }
}
