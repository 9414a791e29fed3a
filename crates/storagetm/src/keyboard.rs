//! The keys by which somebody at the screen lets other machines in, and the terminal of `storagetm serve` that they come
//! from. It knows no disk and no host.

use std::io::stdin;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use console::{Model, Pairing};
use linux::tty::{self, Raw};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

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

/// The keys of the terminal that `storagetm serve` runs in. Ctrl-C stays a signal. While another job has
/// the terminal, no key is this program's, and the terminal is left as it is.
#[derive(Debug)]
pub(crate) struct Keyboard {
    terminal: OwnedFd,
    raw: Option<Raw>,
    keys: Keys,
    gone: bool,
}

impl Keyboard {
    /// That of standard input; nothing if that is no terminal.
    pub(crate) fn open() -> Option<Self> {
        let terminal = tty::is_terminal(&stdin()).then(|| stdin().as_fd().try_clone_to_owned());
        terminal?.ok().map(Self::at)
    }

    fn at(terminal: OwnedFd) -> Self {
        let raw = Raw::enter(&terminal);
        Self { terminal, raw, keys: Keys::default(), gone: false }
    }

    /// Whether the terminal is gone for good, and no key will come any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Readable when keys were pressed; nothing while another job has the terminal, and nobody says when that ends.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        (!tty::is_with_another(&self.terminal)).then(|| self.terminal.as_fd())
    }

    /// The keys that were pressed, without waiting.
    pub(crate) fn receive(&mut self) -> Vec<u8> {
        if self.descriptor().is_none() {
            self.raw = None;
            return Vec::new();
        }
        if self.raw.is_none() {
            self.raw = Raw::enter(&self.terminal);
        }
        let mut pressed = Vec::new();
        while self.is_readable() && self.read(&mut pressed) {}
        pressed
    }

    /// Whether there may be more.
    fn read(&mut self, pressed: &mut Vec<u8>) -> bool {
        let mut bytes = [0; 64];
        match rustix::io::read(&self.terminal, &mut bytes) {
            Ok(n) if n > 0 => {
                pressed.extend(bytes.iter().take(n).filter_map(|byte| self.keys.receive(*byte)));
                return true;
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            // It has hung up. Where that is no signal, it would be readable for ever.
            _ => self.gone = true,
        }
        false
    }

    fn is_readable(&self) -> bool {
        let mut ends = [PollFd::new(&self.terminal, PollFlags::IN)];
        poll(&mut ends, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
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

    #[test]
    fn a_terminal_that_is_gone_is_noticed_and_its_last_keys_are_heard() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut keyboard = Keyboard::at(reader.into());
        assert!(keyboard.receive().is_empty() && !keyboard.is_gone());
        rustix::io::write(&writer, b"y\x1b[Dn").unwrap();
        drop(writer);
        assert_eq!(keyboard.receive(), b"yn");
        assert!(keyboard.is_gone());
    }
}
