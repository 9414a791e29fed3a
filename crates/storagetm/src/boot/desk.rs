//! Where somebody sits before a machine that only lends its disks: screens, keys, the power button. It says what they
//! want, and knows no disk.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use console::{Model, Question, Station};
use linux::battery;
use linux::button::Buttons;
use linux::tree::Tree;
use rustix::event::PollFlags;

use crate::boot::screen::Screens;
use crate::keyboard::{self, Stroke};

/// How long a question stands.
const PATIENCE: Duration = Duration::from_secs(10);

/// What somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// That the machine powers off.
    PowerOff,
    /// That it restarts.
    Restart,
    /// That the disks are taken away from the hosts.
    Detach,
    /// That they are lent again.
    Lend,
    /// Something about a machine that wants to be let in.
    Stroke(Stroke),
}

/// Screens, keys and the power button.
#[derive(Debug)]
pub(crate) struct Desk {
    tree: Tree,
    screens: Screens,
    buttons: Buttons,
    station: Station,
    asked: Option<(Question, Instant)>,
    touched: bool,
    /// What the screen asks of machines that want to be let in.
    asks: keyboard::Question,
}

impl Desk {
    /// Those of this machine.
    pub(crate) fn open(tree: &Tree) -> Self {
        Self {
            tree: tree.clone(),
            screens: Screens::open(tree),
            buttons: Buttons::open(tree),
            station: Station {
                hardware: linux::machine::describe(tree),
                lending: true,
                ..Station::default()
            },
            asked: None,
            touched: false,
            asks: keyboard::Question::default(),
        }
    }

    /// What the server does now.
    pub(crate) fn station(&mut self) -> &mut Station {
        &mut self.station
    }

    /// What whoever sits here should know of the machine itself.
    pub(crate) fn note(&self) -> Option<String> {
        let percent = battery::charge(&self.tree)?;
        Some(format!("This machine runs on its battery ({percent} %): plug it in."))
    }

    /// Whether the disks are lent.
    pub(crate) fn is_lending(&self) -> bool {
        self.station.lending
    }

    /// Draws what has changed.
    pub(crate) fn show(&mut self, model: &Model, now: Instant) {
        self.asked.take_if(|(_, until)| *until <= now);
        self.station.question = self.asked.map(|(question, _)| question);
        self.asks = keyboard::Question::of(model);
        self.screens.show(model, &self.station);
    }

    /// Buttons that have come since.
    pub(crate) fn look(&mut self) {
        self.buttons.look();
    }

    /// The last words.
    pub(crate) fn end(self, words: &str) {
        self.screens.end(words);
    }

    /// What to wait for.
    pub(crate) fn ends(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let buttons = self.buttons.descriptors().map(|button| (button, PollFlags::IN));
        self.screens.ends().chain(buttons)
    }

    /// Takes keys and buttons; `used` is whether a disk is attached.
    pub(crate) fn receive(&mut self, used: bool, now: Instant) -> Option<Wish> {
        // The button was pressed on purpose: it asks nothing, as on any machine.
        if self.buttons.receive() {
            return Some(Wish::PowerOff);
        }
        let keys = self.screens.receive();
        self.touched |= !keys.is_empty();
        keys.into_iter().find_map(|key| self.key(key, used, now))
    }

    /// Whether a key was pressed since the last call: something else may be to be shown.
    pub(crate) fn was_touched(&mut self) -> bool {
        std::mem::take(&mut self.touched)
    }

    fn key(&mut self, key: u8, used: bool, now: Instant) -> Option<Wish> {
        match self.asks.meaning(key) {
            Some(Stroke::Large) => {
                self.station.large = !self.station.large;
                return None;
            }
            Some(stroke) => return Some(Wish::Stroke(stroke)),
            None => {}
        }
        match key.to_ascii_lowercase() {
            b'p' => self.ask(Question::PowerOff, Wish::PowerOff, used, now),
            b'r' => self.ask(Question::Restart, Wish::Restart, used, now),
            b'd' if self.station.lending => self.ask(Question::Detach, Wish::Detach, used, now),
            b'l' if !self.station.lending => Some(Wish::Lend),
            b' ' => {
                self.station.page = self.station.page.wrapping_add(1);
                None
            }
            // Ctrl-L, as everywhere.
            0x0c => {
                self.screens.forget();
                None
            }
            _ => {
                self.asked = None;
                None
            }
        }
    }

    /// Does what the key says at once if nobody suffers, else when it is pressed again.
    fn ask(&mut self, question: Question, wish: Wish, used: bool, now: Instant) -> Option<Wish> {
        let again =
            self.asked.take().is_some_and(|(known, until)| known == question && now < until);
        if again || !used {
            return Some(wish);
        }
        self.asked = Some((question, now + PATIENCE));
        None
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn desk() -> Desk {
        Desk::open(&Tree::at("/nonexistent"))
    }

    #[test]
    fn a_key_is_followed_at_once_only_if_nobody_suffers() {
        let (mut desk, now) = (desk(), Instant::now());
        assert_eq!(desk.key(b'p', false, now), Some(Wish::PowerOff));
        assert_eq!(desk.key(b'R', true, now), None);
        assert_eq!(desk.key(b'p', true, now), None, "another key is another question");
        assert_eq!(desk.key(b'p', true, now), Some(Wish::PowerOff));
        assert_eq!(desk.key(b'p', true, now), None, "the question was answered");
        assert_eq!(desk.key(b'p', true, now + PATIENCE), None, "too late");
        assert_eq!(desk.key(b'x', true, now + PATIENCE), None);
        assert_eq!(desk.key(b'p', true, now + PATIENCE), None, "x said no");
    }

    #[test]
    fn what_is_not_lent_can_be_lent_again() {
        let (mut desk, now) = (desk(), Instant::now());
        assert_eq!(desk.key(b'l', false, now), None);
        assert_eq!(desk.key(b'd', false, now), Some(Wish::Detach));
        desk.station().lending = false;
        assert_eq!(desk.key(b'd', false, now), None);
        assert_eq!(desk.key(b'l', false, now), Some(Wish::Lend));
    }
}
