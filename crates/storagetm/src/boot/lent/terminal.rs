//! The consoles of a boot from a lent disk: shows questions, waits for answers, and keeps the messages about the network
//! and the drivers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use console::escape_lines_to_ascii;
use daemon::inbox::Inbox;
use failure::Failure;
use linux::tree::Tree;

use super::dialogue::{Answer, Dialogue};
use crate::boot::status::{POWER_OFF, RESTART};
use crate::console_ui::screens::Screens;

/// How often the consoles are looked at.
const TICK: Duration = Duration::from_millis(250);

/// Why an attempt ended.
pub(super) enum Stop {
    /// The user goes back.
    Back,
    /// The machine is to be ended, by the exit status for PID 1.
    Exit(i32),
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The consoles of this machine.
pub(super) struct Terminal {
    screens: Screens,
    pub(super) inbox: Inbox,
    /// Messages about the network and the drivers, by what they are about.
    notes: BTreeMap<String, String>,
    /// What the consoles show.
    shown: Vec<String>,
}

impl Terminal {
    pub(super) fn open(tree: &Tree, inbox: Inbox) -> Self {
        Self { screens: Screens::open(tree), inbox, notes: BTreeMap::new(), shown: Vec::new() }
    }

    /// Leaves the consoles to another program.
    pub(super) fn close(&mut self) {
        std::mem::take(&mut self.screens).close("");
    }

    /// Takes the consoles again after [`Terminal::close`].
    pub(super) fn reopen(&mut self, tree: &Tree) {
        self.screens = Screens::open(tree);
        self.shown.clear();
    }

    /// Sets the message about a subject, or removes it.
    pub(super) fn note(&mut self, subject: &str, sentence: Option<String>) {
        match sentence {
            Some(sentence) => drop(self.notes.insert(subject.to_owned(), sentence)),
            None => drop(self.notes.remove(subject)),
        }
    }

    /// Asks until there is an answer.
    pub(super) fn ask(&mut self, mut dialogue: Dialogue) -> Result<Answer, Stop> {
        loop {
            match self.answer_within(&mut dialogue, TICK)? {
                // Only the list of machines offers it.
                None | Some(Answer::Address) => {}
                Some(answer) => return Ok(answer),
            }
        }
    }

    /// Shows a question, and waits for an answer.
    pub(super) fn answer_within(
        &mut self,
        dialogue: &mut Dialogue,
        patience: Duration,
    ) -> Result<Option<Answer>, Stop> {
        let end = Instant::now() + patience;
        loop {
            self.look();
            dialogue.notes.extend(self.notes.values().cloned());
            let lines = dialogue.lines();
            dialogue.notes.clear();
            self.show(&lines);
            self.screens.wait(TICK);
            for key in self.screens.receive() {
                match dialogue.key(key) {
                    None => {}
                    Some(Answer::Back) => return Err(Stop::Back),
                    Some(Answer::PowerOff) => return Err(Stop::Exit(POWER_OFF)),
                    Some(Answer::Restart) => return Err(Stop::Exit(RESTART)),
                    answer => return Ok(answer),
                }
            }
            if Instant::now() >= end {
                return Ok(None);
            }
        }
    }

    /// Waits for a key. Returns whether one was pressed in time.
    pub(super) fn is_key_pressed_within(&mut self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while Instant::now() < end {
            self.look();
            self.screens.wait(TICK);
            if !self.screens.receive().is_empty() {
                return true;
            }
        }
        false
    }

    /// Shows these lines, unless they are shown already.
    pub(super) fn show(&mut self, lines: &[String]) {
        if self.shown != lines {
            let text = escape_lines_to_ascii(&lines.join("\n"));
            self.screens.print(&format!("\x1b[H\x1b[2J{text}\n"));
            self.shown = lines.to_vec();
        }
    }

    /// Takes what the network and the drivers report.
    fn look(&mut self) {
        let pending = self.inbox.receive();
        for note in pending.notes {
            self.notes.insert(note.clone(), note);
        }
        for (subject, sentence) in pending.subjects {
            self.note(&subject, sentence);
        }
    }
}
