//! The keys by which somebody at the screen lets other machines in, and the terminal of `storagetm serve` that they come
//! from. It knows no disk and no host.

use std::io::{Stdin, stdin};
use std::os::fd::{AsFd, BorrowedFd};

use console::{Model, Pairing};
use linux::tty::{self, Raw};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::keystroke::Keys;

/// What somebody says to a machine that wants to change disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It may.
    Change,
    /// It may read them.
    Read,
    /// It may have nothing.
    Nothing,
}

/// What a key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stroke {
    /// An answer to the machine that waits for one.
    Answer(Answer),
    /// A new code, after too many wrong ones.
    NewCode,
    /// The code large, or not any more.
    Large,
}

/// What may be answered just now: what the screen shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Question {
    asking: bool,
    stopped: bool,
    code: bool,
}

impl Question {
    /// That of the screen.
    pub(crate) fn of(model: &Model) -> Self {
        Self {
            asking: model.asking.is_some(),
            stopped: model.pairing == Some(Pairing::Stopped),
            code: matches!(model.pairing, Some(Pairing::Code { .. })),
        }
    }

    /// What the key means now; nothing if nothing was asked that it would answer.
    pub(crate) fn meaning(self, key: u8) -> Option<Stroke> {
        match key.to_ascii_lowercase() {
            b'y' if self.asking => Some(Stroke::Answer(Answer::Change)),
            b'o' if self.asking => Some(Stroke::Answer(Answer::Read)),
            b'n' if self.asking => Some(Stroke::Answer(Answer::Nothing)),
            b'c' if self.stopped => Some(Stroke::NewCode),
            b'c' if self.code => Some(Stroke::Large),
            _ => None,
        }
    }
}

/// The keys of the terminal that `storagetm serve` runs in. Ctrl-C stays a signal.
#[derive(Debug)]
pub(crate) struct Keyboard {
    terminal: Stdin,
    _raw: Raw,
    keys: Keys,
}

impl Keyboard {
    /// That of standard input; nothing if that is no terminal.
    pub(crate) fn open() -> Option<Self> {
        let terminal = stdin();
        let raw = tty::is_terminal(&terminal).then(|| Raw::enter(&terminal)).flatten()?;
        Some(Self { terminal, _raw: raw, keys: Keys::default() })
    }

    /// The keys that were pressed, without waiting.
    pub(crate) fn receive(&mut self) -> Vec<u8> {
        let mut bytes = [0; 64];
        let mut pressed = Vec::new();
        while self.is_readable() {
            match rustix::io::read(&self.terminal, &mut bytes) {
                Ok(n) if n > 0 => {
                    let new = bytes.iter().take(n).filter_map(|byte| self.keys.receive(*byte));
                    pressed.extend(new);
                }
                _ => break,
            }
        }
        pressed
    }

    fn is_readable(&self) -> bool {
        let mut ends = [PollFd::new(&self.terminal, PollFlags::IN)];
        let now = poll(&mut ends, Some(&Timespec::default())).is_ok_and(|ready| ready > 0);
        now && ends[0].revents().contains(PollFlags::IN)
    }
}

impl AsFd for Keyboard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.terminal.as_fd()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_key_answers_only_what_was_asked() {
        let nothing = Question::default();
        assert!((0..=255).all(|key| nothing.meaning(key).is_none()));
        let asking = Question { asking: true, ..nothing };
        assert_eq!(asking.meaning(b'Y'), Some(Stroke::Answer(Answer::Change)));
        assert_eq!(asking.meaning(b'o'), Some(Stroke::Answer(Answer::Read)));
        assert_eq!(asking.meaning(b'n'), Some(Stroke::Answer(Answer::Nothing)));
        assert_eq!(asking.meaning(b'\n'), None);
        let stopped = Question { stopped: true, ..nothing };
        assert_eq!(stopped.meaning(b'c'), Some(Stroke::NewCode));
        assert_eq!(stopped.meaning(b'y'), None);
        let code = Question { code: true, ..nothing };
        assert_eq!(code.meaning(b'c'), Some(Stroke::Large));
    }
}
