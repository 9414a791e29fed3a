//! The state of the screen, and key handling.

use std::time::{Duration, Instant};

use crate::{Model, Pairing, instructions};

/// Timeout of a confirmation.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);
/// Number of disks that a page key moves by.
const PAGE: usize = 8;

/// The page shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum View {
    /// All disks, one line each.
    #[default]
    Overview,
    /// One disk.
    Details,
    /// The commands of all tools for one disk.
    Lines,
    /// All messages.
    Messages,
    /// The code in large digits and as a QR code.
    Code,
    /// Help on the keys.
    Keys,
}

/// A key of the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A character: a letter, Enter, Tab.
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

/// An action of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Power the machine off.
    PowerOff,
    /// Restart it.
    Restart,
    /// Detach all hosts and stop serving.
    Detach,
    /// Serve the disks again.
    Lend,
    /// Answer the request for write access.
    Answer(Answer),
    /// Show a new code after a lockout.
    NewCode,
    /// Redraw the screen.
    Redraw,
}

/// The answer to a request for write access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Grant write access.
    Change,
    /// Grant read access.
    Read,
    /// Deny access.
    Nothing,
}

/// An action that needs confirmation while disks are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Confirmation {
    /// To power off.
    PowerOff,
    /// To restart.
    Restart,
    /// To detach all hosts.
    Detach,
}

/// The state of the screen.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub(crate) view: View,
    /// Index of the selected disk; beyond the last means the last.
    pub(crate) selected: usize,
    /// The first paragraph shown of a text longer than the window.
    pub(crate) top: usize,
    /// Index of the selected address, modulo their number.
    pub(crate) address: usize,
    pending: Option<(Confirmation, Instant)>,
}

impl State {
    /// Returns the state with that page shown.
    pub fn showing(view: View) -> Self {
        Self { view, ..Self::default() }
    }

    /// Drops an expired confirmation.
    pub fn expire(&mut self, now: Instant) {
        self.pending.take_if(|(_, until)| *until <= now);
    }

    /// Returns the action that waits for confirmation by a second key press.
    pub(crate) fn confirmation(&self) -> Option<Confirmation> {
        self.pending.map(|(confirmation, _)| confirmation)
    }

    /// Handles a key. Returns the action to perform, if any.
    pub fn press(&mut self, key: Key, model: &Model, now: Instant) -> Option<Command> {
        if let Some(answer) = answer(key, model) {
            return Some(Command::Answer(answer));
        }
        if let Some(confirmation) = confirmable(key, model) {
            return self.ask(confirmation, model, now);
        }
        self.pending = None;
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
                self.address = (self.address + 1) % instructions::addresses(model).len().max(1);
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
            // Ctrl-L, as usual.
            0x0c => return Some(Command::Redraw),
            _ => {}
        }
        None
    }

    /// Shows a page, or the overview if it is shown already.
    fn show(&mut self, view: View) {
        self.view = if self.view == view { View::Overview } else { view };
        self.top = 0;
    }

    /// Moves the selection, or scrolls pages without one.
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
                // A disk has few paragraphs, except for its hosts.
                let hosts = model.disks.iter().map(|disk| disk.attached.len()).max().unwrap_or(0);
                let last = PAGE + hosts;
                self.top = if down { (self.top + 1).min(last) } else { self.top.saturating_sub(1) };
            }
            _ => self.step(model, down, PAGE),
        }
    }

    /// Returns the action if no disk is attached or the key is pressed again; else asks for
    /// confirmation.
    fn ask(&mut self, confirmation: Confirmation, model: &Model, now: Instant) -> Option<Command> {
        let again =
            self.pending.take().is_some_and(|(known, until)| known == confirmation && now < until);
        if again || !model.is_attached() {
            return Some(match confirmation {
                Confirmation::PowerOff => Command::PowerOff,
                Confirmation::Restart => Command::Restart,
                Confirmation::Detach => Command::Detach,
            });
        }
        self.pending = Some((confirmation, now + CONFIRM_TIMEOUT));
        None
    }
}

/// Returns the answer to a pending request for write access.
fn answer(key: Key, model: &Model) -> Option<Answer> {
    let Key::Byte(byte) = key else { return None };
    model.asking.as_ref()?;
    match byte.to_ascii_lowercase() {
        // Z: a German keyboard has it in place of Y, and the kernel's default key map is the US
        // one.
        b'y' | b'z' => Some(Answer::Change),
        b'o' => Some(Answer::Read),
        b'n' => Some(Answer::Nothing),
        _ => None,
    }
}

/// Returns the action of the key in target mode that may need confirmation.
fn confirmable(key: Key, model: &Model) -> Option<Confirmation> {
    let Key::Byte(byte) = key else { return None };
    let mode = model.target_mode.as_ref()?;
    match byte.to_ascii_lowercase() {
        b'p' => Some(Confirmation::PowerOff),
        b'r' => Some(Confirmation::Restart),
        b'd' if mode.lending => Some(Confirmation::Detach),
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
    fn detaching_keys_need_confirmation() {
        let (mut state, mut model, now) =
            (State::default(), example::target_mode(1), Instant::now());
        assert_eq!(press(&mut state, b'p', &model, now), Some(Command::PowerOff));
        model.disks[0].attached = vec![example::host("vm")];
        assert_eq!(press(&mut state, b'R', &model, now), None);
        assert_eq!(press(&mut state, b'p', &model, now), None, "other key");
        assert_eq!(press(&mut state, b'p', &model, now), Some(Command::PowerOff));
        assert_eq!(press(&mut state, b'p', &model, now), None, "confirmed before");
        assert_eq!(press(&mut state, b'p', &model, now + CONFIRM_TIMEOUT), None, "expired");
        assert_eq!(press(&mut state, b'x', &model, now + CONFIRM_TIMEOUT), None);
        assert_eq!(press(&mut state, b'p', &model, now + CONFIRM_TIMEOUT), None, "cancelled by x");
    }

    #[test]
    fn detached_disks_can_be_served_again() {
        let (mut state, mut model, now) =
            (State::default(), example::target_mode(1), Instant::now());
        assert_eq!(press(&mut state, b'l', &model, now), None);
        assert_eq!(press(&mut state, b'd', &model, now), Some(Command::Detach));
        model.target_mode.as_mut().unwrap().lending = false;
        assert_eq!(press(&mut state, b'd', &model, now), None);
        assert_eq!(press(&mut state, b'l', &model, now), Some(Command::Lend));
    }

    #[test]
    fn power_keys_work_in_target_mode_only() {
        let (mut state, model, now) = (State::default(), example::serve(1), Instant::now());
        for key in *b"prdl" {
            assert_eq!(press(&mut state, key, &model, now), None);
        }
    }

    #[test]
    fn answer_keys_need_a_pending_request() {
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
    fn new_code_key_works_only_without_a_code() {
        let (mut state, mut model, now) = (State::default(), example::serve(1), Instant::now());
        assert_eq!(press(&mut state, b'c', &model, now), None);
        assert_eq!(state.view, View::Code);
        model.pairing = Some(Pairing::Stopped);
        assert_eq!(press(&mut state, b'c', &model, now), Some(Command::NewCode));
    }

    #[test]
    fn selection_stays_within_the_disks() {
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
