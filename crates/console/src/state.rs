//! What a person has chosen to see on the screen, and what the keys do.

use std::time::{Duration, Instant};

use crate::{Model, Pairing, ways};

/// How long a question stands.
const PATIENCE: Duration = Duration::from_secs(10);
/// Disks that a page key moves by.
const PAGE: usize = 8;

/// What the screen shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum View {
    /// All disks, a line each.
    #[default]
    Overview,
    /// One disk.
    Details,
    /// The lines of all tools for one disk.
    Lines,
    /// All messages.
    Messages,
    /// The code, large and for a camera.
    Code,
    /// What the keys do.
    Keys,
}

/// A key of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A byte that stands for itself: a letter, Enter, Tab.
    Byte(u8),
    /// Arrow up.
    Up,
    /// Arrow down.
    Down,
    /// Page up.
    PageUp,
    /// Page down.
    PageDown,
    /// Home.
    Home,
    /// End.
    End,
}

/// What is wanted of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Power the machine off.
    PowerOff,
    /// Restart it.
    Restart,
    /// Detach all hosts, and lend nothing any more.
    Detach,
    /// Lend the disks again.
    Lend,
    /// Answer the machine that asks for write access.
    Answer(Answer),
    /// Show a new code, after too many wrong ones.
    NewCode,
    /// Draw all of the screen anew.
    Redraw,
}

/// What a machine that asks for write access gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Write access.
    Change,
    /// Read access.
    Read,
    /// Nothing.
    Nothing,
}

/// What takes a second press of its key while disks are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// To power off.
    PowerOff,
    /// To restart.
    Restart,
    /// To detach all hosts.
    Detach,
}

/// What a person has chosen to see.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub(crate) view: View,
    /// Which disk is selected; one beyond the last is the last.
    pub(crate) selected: usize,
    /// The first paragraph that is shown of what is longer than the window.
    pub(crate) top: usize,
    /// Which address the lines are for; counted on beyond the last.
    pub(crate) address: usize,
    asked: Option<(Question, Instant)>,
}

impl State {
    /// The screen with that view.
    pub fn showing(view: View) -> Self {
        Self { view, ..Self::default() }
    }

    /// Drops a question that was not answered in time.
    pub fn expire(&mut self, now: Instant) {
        self.asked.take_if(|(_, until)| *until <= now);
    }

    /// A key that was pressed and does something only when it is pressed again.
    pub(crate) fn question(&self) -> Option<Question> {
        self.asked.map(|(question, _)| question)
    }

    /// Takes a key; returns what is wanted of the program, if anything is.
    pub fn press(&mut self, key: Key, model: &Model, now: Instant) -> Option<Command> {
        if let Some(answer) = answer(key, model) {
            return Some(Command::Answer(answer));
        }
        if let Some(question) = asked_for(key, model) {
            return self.ask(question, model, now);
        }
        self.asked = None;
        match key {
            Key::Up => self.step(model, false, 1),
            Key::Down => self.step(model, true, 1),
            Key::PageUp => self.page(model, false),
            Key::PageDown => self.page(model, true),
            Key::Home => self.step(model, false, usize::MAX),
            Key::End => self.step(model, true, usize::MAX),
            Key::Byte(byte) => return self.byte(byte.to_ascii_lowercase(), model),
        }
        None
    }

    fn byte(&mut self, byte: u8, model: &Model) -> Option<Command> {
        match byte {
            b'k' => self.step(model, false, 1),
            b'j' => self.step(model, true, 1),
            b' ' => self.page(model, true),
            b'\t' | b'a' => {
                self.address = (self.address + 1) % ways::addresses(model).len().max(1);
            }
            b'\r' | b'\n' if self.view == View::Overview => self.show(View::Details),
            b'\r' | b'\n' | 0x08 | 0x7f => self.show(View::Overview),
            b't' => self.show(View::Lines),
            b'n' => self.show(View::Messages),
            b'?' | b'h' => self.show(View::Keys),
            b'c' if model.pairing == Some(Pairing::Stopped) => return Some(Command::NewCode),
            b'c' if matches!(model.pairing, Some(Pairing::Code { .. })) => self.show(View::Code),
            b'l' if model.target_mode.as_ref().is_some_and(|mode| !mode.lending) => {
                return Some(Command::Lend);
            }
            // Ctrl-L, as everywhere.
            0x0c => return Some(Command::Redraw),
            _ => {}
        }
        None
    }

    /// Shows that, or the overview if it is shown already.
    fn show(&mut self, view: View) {
        self.view = if self.view == view { View::Overview } else { view };
        self.top = 0;
    }

    /// Moves the selection; where no disk is shown, what is longer than the window.
    fn step(&mut self, model: &Model, down: bool, by: usize) {
        let (at, count) = match self.view {
            View::Messages => (&mut self.top, model.notes.len()),
            View::Keys | View::Code => (&mut self.top, PAGE),
            View::Overview | View::Details | View::Lines => (&mut self.selected, model.disks.len()),
        };
        let last = count.saturating_sub(1);
        let from = (*at).min(last);
        *at = if down { from.saturating_add(by).min(last) } else { from.saturating_sub(by) };
    }

    fn page(&mut self, model: &Model, down: bool) {
        match self.view {
            View::Details | View::Lines => {
                // The paragraphs of a disk are few, but for its hosts.
                let hosts = model.disks.iter().map(|disk| disk.attached.len()).max().unwrap_or(0);
                let last = PAGE + hosts;
                self.top = if down { (self.top + 1).min(last) } else { self.top.saturating_sub(1) };
            }
            _ => self.step(model, down, PAGE),
        }
    }

    /// Does it at once if no disk is attached, else when the key is pressed again.
    fn ask(&mut self, question: Question, model: &Model, now: Instant) -> Option<Command> {
        let again =
            self.asked.take().is_some_and(|(known, until)| known == question && now < until);
        if again || !model.is_attached() {
            return Some(match question {
                Question::PowerOff => Command::PowerOff,
                Question::Restart => Command::Restart,
                Question::Detach => Command::Detach,
            });
        }
        self.asked = Some((question, now + PATIENCE));
        None
    }
}

/// The answer to the machine that asks, if one does.
fn answer(key: Key, model: &Model) -> Option<Answer> {
    let Key::Byte(byte) = key else { return None };
    model.asking.as_ref()?;
    match byte.to_ascii_lowercase() {
        // Where Y stands on a US keyboard, German ones have Z, and the kernel's own key map is the US one.
        b'y' | b'z' => Some(Answer::Change),
        b'o' => Some(Answer::Read),
        b'n' => Some(Answer::Nothing),
        _ => None,
    }
}

/// What the key would do to the machine in target mode.
fn asked_for(key: Key, model: &Model) -> Option<Question> {
    let Key::Byte(byte) = key else { return None };
    let mode = model.target_mode.as_ref()?;
    match byte.to_ascii_lowercase() {
        b'p' => Some(Question::PowerOff),
        b'r' => Some(Question::Restart),
        b'd' if mode.lending => Some(Question::Detach),
        _ => None,
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::example;

    fn press(state: &mut State, key: u8, model: &Model, now: Instant) -> Option<Command> {
        state.press(Key::Byte(key), model, now)
    }

    #[test]
    fn a_key_that_detaches_hosts_is_pressed_twice() {
        let (mut state, mut model, now) =
            (State::default(), example::target_mode(1), Instant::now());
        assert_eq!(press(&mut state, b'p', &model, now), Some(Command::PowerOff));
        model.disks[0].attached = vec![example::host("vm")];
        assert_eq!(press(&mut state, b'R', &model, now), None);
        assert_eq!(press(&mut state, b'p', &model, now), None, "another key, another question");
        assert_eq!(press(&mut state, b'p', &model, now), Some(Command::PowerOff));
        assert_eq!(press(&mut state, b'p', &model, now), None, "the question was answered");
        assert_eq!(press(&mut state, b'p', &model, now + PATIENCE), None, "too late");
        assert_eq!(press(&mut state, b'x', &model, now + PATIENCE), None);
        assert_eq!(press(&mut state, b'p', &model, now + PATIENCE), None, "x said no");
    }

    #[test]
    fn disks_that_were_detached_can_be_lent_again() {
        let (mut state, mut model, now) =
            (State::default(), example::target_mode(1), Instant::now());
        assert_eq!(press(&mut state, b'l', &model, now), None);
        assert_eq!(press(&mut state, b'd', &model, now), Some(Command::Detach));
        model.target_mode.as_mut().unwrap().lending = false;
        assert_eq!(press(&mut state, b'd', &model, now), None);
        assert_eq!(press(&mut state, b'l', &model, now), Some(Command::Lend));
    }

    #[test]
    fn keys_that_end_the_machine_are_for_target_mode() {
        let (mut state, model, now) = (State::default(), example::serve(1), Instant::now());
        for key in *b"prdl" {
            assert_eq!(press(&mut state, key, &model, now), None);
        }
    }

    #[test]
    fn a_key_answers_only_what_was_asked() {
        let (mut state, mut model, now) = (State::default(), example::serve(1), Instant::now());
        assert_eq!(press(&mut state, b'y', &model, now), None);
        assert_eq!(press(&mut state, b'n', &model, now), None);
        assert_eq!(state.view, View::Messages);
        model.asking = Some(example::asking());
        for (key, answer) in [
            (b'Y', Answer::Change),
            (b'z', Answer::Change),
            (b'o', Answer::Read),
            (b'n', Answer::Nothing),
        ] {
            let wanted = Some(Command::Answer(answer));
            assert_eq!(press(&mut state, key, &model, now), wanted);
        }
        assert_eq!(press(&mut state, b'\n', &model, now), None);
    }

    #[test]
    fn a_new_code_is_asked_for_only_when_there_is_none() {
        let (mut state, mut model, now) = (State::default(), example::serve(1), Instant::now());
        assert_eq!(press(&mut state, b'c', &model, now), None);
        assert_eq!(state.view, View::Code);
        model.pairing = Some(Pairing::Stopped);
        assert_eq!(press(&mut state, b'c', &model, now), Some(Command::NewCode));
    }

    #[test]
    fn the_selection_stays_within_the_disks() {
        let (mut state, mut model, now) = (State::default(), example::serve(12), Instant::now());
        for (key, at) in [
            (Key::Up, 0),
            (Key::Down, 1),
            (Key::Byte(b'j'), 2),
            (Key::Byte(b'k'), 1),
            (Key::PageDown, 9),
            (Key::PageDown, 11),
            (Key::Home, 0),
            (Key::End, 11),
            (Key::Down, 11),
        ] {
            state.press(key, &model, now);
            assert_eq!(state.selected, at, "{key:?}");
        }
        model.disks.truncate(3);
        state.press(Key::Up, &model, now);
        assert_eq!(state.selected, 1);
        model.disks.clear();
        state.press(Key::Down, &model, now);
        assert_eq!(state.selected, 0);
    }
}
