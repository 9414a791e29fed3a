//! The state of the screen, and key handling.

use std::time::{Duration, Instant};

use export::ExportId;

use crate::{Disk, Model, Pairing, UsbPort, instructions};

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
    Commands,
    /// All messages.
    Messages,
    /// The code in large digits and as a QR code.
    Code,
    /// How the disks are read in a browser.
    Reading,
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

/// An action that a key requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Power the machine off.
    PowerOff,
    /// Restart it.
    Restart,
    /// Detach all hosts and stop serving.
    Detach,
    /// Serve the disks again.
    Serve,
    /// Serve the disks at the USB port, too.
    ServeUsb,
    /// Unplug the USB port.
    EndUsb,
    /// Keep what hosts write to a disk in an overlay from now on, or no longer.
    SetOverlay {
        /// Identifier of the disk.
        disk: ExportId,
        /// Whether it has an overlay.
        wanted: bool,
    },
    /// Answer the request for write access.
    Answer(Answer),
    /// Show a new code for pairing, after a lockout.
    NewPairingCode,
    /// Show a new code for reading, which ends what was begun with the last one.
    NewReadingCode,
    /// Redraw the screen.
    Redraw,
}

/// The answer to a request for write access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Grant write access.
    GrantWrite,
    /// Grant read access.
    GrantRead,
    /// Deny access.
    Deny,
}

/// An action that needs confirmation while disks are attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Confirmation {
    /// Power the machine off.
    PowerOff,
    /// Restart it.
    Restart,
    /// Detach all hosts.
    Detach,
    /// Unplug the USB port.
    EndUsb,
    /// Keep what hosts write to a disk in an overlay, or no longer.
    SetOverlay { disk: ExportId, title: String, wanted: bool },
}

/// The state of the screen.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub(crate) view: View,
    /// Index of the selected disk; beyond the last means the last.
    pub(crate) selected: usize,
    /// The first paragraph shown of a text longer than the window.
    pub(crate) scroll: usize,
    /// Index of the selected address, modulo their number.
    pub(crate) address: usize,
    pending: Option<(Confirmation, Instant)>,
    /// Path of a disk that is being lent anew, with or without an overlay, and how long to wait for it. It has
    /// another identifier then.
    changing: Option<(String, Instant)>,
}

impl State {
    /// Returns the state with that page shown.
    pub fn with_view(view: View) -> Self {
        Self { view, ..Self::default() }
    }

    /// Drops an expired confirmation.
    pub fn expire(&mut self, now: Instant) {
        self.pending.take_if(|(_, until)| *until <= now);
    }

    /// Returns the action that waits for confirmation by a second key press.
    pub(crate) fn confirmation(&self) -> Option<Confirmation> {
        self.pending.as_ref().map(|(confirmation, _)| confirmation.clone())
    }

    /// Handles a key. Returns the action to perform, if any.
    pub fn handle_key(&mut self, key: Key, model: &Model, now: Instant) -> Option<Action> {
        self.follow_change(model, now);
        if let Some(answer) = answer(key, model) {
            return Some(Action::Answer(answer));
        }
        if let Some(confirmation) = self.confirmable(key, model) {
            return self.confirm(confirmation, model, now);
        }
        self.pending = None;
        match key {
            Key::Up => self.move_by(model, false, 1),
            Key::Down => self.move_by(model, true, 1),
            Key::PageUp => self.move_page(model, false),
            Key::PageDown => self.move_page(model, true),
            Key::Home => self.move_by(model, false, usize::MAX),
            Key::End => self.move_by(model, true, usize::MAX),
            Key::Byte(byte) => return self.handle_byte(byte.to_ascii_lowercase(), model),
        }
        None
    }

    fn handle_byte(&mut self, byte: u8, model: &Model) -> Option<Action> {
        match byte {
            b'k' => self.move_by(model, false, 1),
            b'j' => self.move_by(model, true, 1),
            b' ' => self.move_page(model, true),
            b'\t' | b'a' => {
                self.address = (self.address + 1) % instructions::addresses(model).len().max(1);
            }
            b'\r' | b'\n' if self.view == View::Overview => self.show(View::Details),
            b'\r' | b'\n' | 0x08 | 0x7f => self.show(View::Overview),
            b't' => self.show(View::Commands),
            b'n' => self.show(View::Messages),
            b'?' | b'h' => self.show(View::Keys),
            b'w' if model.reading.is_some() => self.show(View::Reading),
            b'c' if self.view == View::Reading => return Some(Action::NewReadingCode),
            b'c' if model.pairing == Some(Pairing::LockedOut) => {
                return Some(Action::NewPairingCode);
            }
            b'c' if matches!(model.pairing, Some(Pairing::Code { .. })) => self.show(View::Code),
            b'l' if model.target_mode.as_ref().is_some_and(|mode| !mode.serving) => {
                return Some(Action::Serve);
            }
            b'u' => {
                return model.target_mode.as_ref().map(|mode| match mode.usb {
                    UsbPort::Absent | UsbPort::Idle => Action::ServeUsb,
                    UsbPort::Waiting | UsbPort::Serving => Action::EndUsb,
                });
            }
            // Ctrl-L, as usual.
            0x0c => return Some(Action::Redraw),
            _ => {}
        }
        None
    }

    /// Shows a page, or the overview if it is shown already.
    fn show(&mut self, view: View) {
        self.view = if self.view == view { View::Overview } else { view };
        self.scroll = 0;
    }

    /// Moves the selection, or scrolls pages without one.
    fn move_by(&mut self, model: &Model, down: bool, by: usize) {
        let (at, count) = match self.view {
            View::Messages => (&mut self.scroll, model.notes.len()),
            View::Keys | View::Code | View::Reading => (&mut self.scroll, PAGE),
            View::Overview | View::Details | View::Commands => {
                (&mut self.selected, model.disks.len())
            }
        };
        let last = count.saturating_sub(1);
        let from = (*at).min(last);
        *at = if down { from.saturating_add(by).min(last) } else { from.saturating_sub(by) };
    }

    /// Selects the disk that was being lent anew, once it is back.
    fn follow_change(&mut self, model: &Model, now: Instant) {
        let Some((path, until)) = &self.changing else { return };
        let found = model.disks.iter().position(|disk| disk.title == *path);
        if let Some(at) = found {
            self.selected = at;
        }
        if found.is_some() || now >= *until {
            self.changing = None;
        }
    }

    /// Returns the action of the key in target mode that may need confirmation.
    fn confirmable(&self, key: Key, model: &Model) -> Option<Confirmation> {
        let Key::Byte(byte) = key else { return None };
        let mode = model.target_mode.as_ref()?;
        match byte.to_ascii_lowercase() {
            b'p' => Some(Confirmation::PowerOff),
            b'r' => Some(Confirmation::Restart),
            b'd' if mode.serving => Some(Confirmation::Detach),
            b'u' if mode.usb == UsbPort::Serving => Some(Confirmation::EndUsb),
            // Another disk has the place of the one that is being lent anew.
            b'v' if self.changing.is_none() => {
                let disk = model.disks.get(self.selected.min(model.disks.len().checked_sub(1)?))?;
                let (id, title) = (disk.id.clone(), disk.title.clone());
                let wanted = disk.can_set_overlay()?;
                Some(Confirmation::SetOverlay { disk: id, title, wanted })
            }
            _ => None,
        }
    }

    fn move_page(&mut self, model: &Model, down: bool) {
        match self.view {
            View::Details | View::Commands => {
                // A disk has few paragraphs, except for its hosts.
                let hosts = model.disks.iter().map(|disk| disk.attached.len()).max().unwrap_or(0);
                let last = PAGE + hosts;
                self.scroll =
                    if down { (self.scroll + 1).min(last) } else { self.scroll.saturating_sub(1) };
            }
            _ => self.move_by(model, down, PAGE),
        }
    }

    /// Returns the action if nothing is lost by it or the key is pressed again; else asks for
    /// confirmation.
    fn confirm(
        &mut self,
        confirmation: Confirmation,
        model: &Model,
        now: Instant,
    ) -> Option<Action> {
        let again = self
            .pending
            .take()
            .is_some_and(|(pending, until)| pending == confirmation && now < until);
        if again || !confirmation.is_needed(model) {
            return Some(match confirmation {
                Confirmation::SetOverlay { disk, title, wanted } => {
                    self.changing = Some((title, now + CONFIRM_TIMEOUT));
                    Action::SetOverlay { disk, wanted }
                }
                Confirmation::PowerOff => Action::PowerOff,
                Confirmation::Restart => Action::Restart,
                Confirmation::Detach => Action::Detach,
                Confirmation::EndUsb => Action::EndUsb,
            });
        }
        self.pending = Some((confirmation, now + CONFIRM_TIMEOUT));
        None
    }
}

/// Returns the answer to a pending request for write access.
fn answer(key: Key, model: &Model) -> Option<Answer> {
    let Key::Byte(byte) = key else { return None };
    model.access_request.as_ref()?;
    match byte.to_ascii_lowercase() {
        // Z: a German keyboard has it in place of Y, and the kernel's default key map is the US
        // one.
        b'y' | b'z' => Some(Answer::GrantWrite),
        b'o' => Some(Answer::GrantRead),
        b'n' => Some(Answer::Deny),
        _ => None,
    }
}

impl Confirmation {
    /// Returns whether hosts would be detached, or changes in an overlay lost.
    fn is_needed(&self, model: &Model) -> bool {
        let concerned = |shown: &&Disk| match self {
            Self::SetOverlay { disk, .. } => shown.id == *disk,
            _ => true,
        };
        let is_lost = |disk: &Disk| disk.keeps_changes() && *self != Self::EndUsb;
        let mut disks = model.disks.iter().filter(concerned);
        disks.any(|disk| !disk.attached.is_empty() || is_lost(disk))
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::example;

    fn press(state: &mut State, key: u8, model: &Model, now: Instant) -> Option<Action> {
        state.handle_key(Key::Byte(key), model, now)
    }

    #[test]
    fn detaching_keys_need_confirmation() {
        let (mut state, mut model, now) =
            (State::default(), example::target_mode(1), Instant::now());
        assert_eq!(press(&mut state, b'p', &model, now), Some(Action::PowerOff));
        model.disks[0].attached = vec![example::host("vm")];
        assert_eq!(press(&mut state, b'R', &model, now), None);
        assert_eq!(press(&mut state, b'p', &model, now), None, "other key");
        assert_eq!(press(&mut state, b'p', &model, now), Some(Action::PowerOff));
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
        assert_eq!(press(&mut state, b'd', &model, now), Some(Action::Detach));
        model.target_mode.as_mut().unwrap().serving = false;
        assert_eq!(press(&mut state, b'd', &model, now), None);
        assert_eq!(press(&mut state, b'l', &model, now), Some(Action::Serve));
    }

    #[test]
    fn usb_is_served_and_ended_by_its_key() {
        let (mut state, mut model, now) =
            (State::default(), example::target_mode(1), Instant::now());
        // Without a port, the reason is shown.
        assert_eq!(press(&mut state, b'u', &model, now), Some(Action::ServeUsb));
        model.target_mode.as_mut().unwrap().usb = UsbPort::Serving;
        assert_eq!(press(&mut state, b'U', &model, now), Some(Action::EndUsb));
        model.disks[0].attached = vec![example::host("vm")];
        assert_eq!(press(&mut state, b'u', &model, now), None);
        assert_eq!(press(&mut state, b'u', &model, now), Some(Action::EndUsb));
        // Nothing is unplugged, so no confirmation is needed.
        model.target_mode.as_mut().unwrap().usb = UsbPort::Waiting;
        assert_eq!(press(&mut state, b'u', &model, now), Some(Action::EndUsb));
    }

    #[test]
    fn overlay_key_concerns_the_selected_disk() {
        let (mut state, mut model, now) =
            (State::default(), example::target_mode(3), Instant::now());
        state.handle_key(Key::Down, &model, now);
        let id = model.disks[1].id.clone();
        let set = |wanted| Some(Action::SetOverlay { disk: id.clone(), wanted });
        assert_eq!(press(&mut state, b'v', &model, now), set(true));
        // Hosts of other disks are not concerned.
        model.disks[0].attached = vec![example::host("vm")];
        assert_eq!(press(&mut state, b'V', &model, now), set(true));
        let kept = |bytes| Some(crate::KeptChanges { bytes, ..crate::KeptChanges::default() });
        (model.disks[1].access, model.disks[1].kept) = (export::Access::Writable, kept(0));
        assert_eq!(press(&mut state, b'v', &model, now), set(false), "nothing is lost");
        model.disks[1].kept = kept(4096);
        assert_eq!(press(&mut state, b'v', &model, now), None);
        assert_eq!(press(&mut state, b'v', &model, now), set(false));
        // A disk that hosts can change stays as it is.
        model.disks[1].kept = None;
        assert_eq!(press(&mut state, b'v', &model, now), None);
        assert_eq!(state.confirmation(), None);
    }

    #[test]
    fn overlay_key_does_not_hit_the_disk_that_moves_up() {
        let (mut state, mut model, now) =
            (State::default(), example::target_mode(3), Instant::now());
        assert!(press(&mut state, b'v', &model, now).is_some());
        // It is lent anew: until then another disk has its place.
        let changed = model.disks.remove(0);
        assert_eq!(press(&mut state, b'v', &model, now), None);
        assert_eq!(press(&mut state, b'v', &model, now), None);
        model.disks.push(changed);
        let id = model.disks[2].id.clone();
        let wanted = Some(Action::SetOverlay { disk: id, wanted: true });
        assert_eq!(press(&mut state, b'v', &model, now), wanted, "it is selected again");
        model.disks.pop();
        assert!(press(&mut state, b'v', &model, now + CONFIRM_TIMEOUT).is_some(), "it is gone");
    }

    #[test]
    fn confirmation_is_of_the_disk_and_not_of_its_place() {
        let (mut state, mut model, now) =
            (State::default(), example::target_mode(3), Instant::now());
        for disk in &mut model.disks {
            disk.access = export::Access::Writable;
            disk.kept = Some(crate::KeptChanges { bytes: 1, ..Default::default() });
        }
        assert_eq!(press(&mut state, b'v', &model, now), None);
        model.disks.remove(0);
        assert_eq!(press(&mut state, b'v', &model, now), None, "another disk");
    }

    #[test]
    fn changes_in_an_overlay_are_not_lost_by_one_key() {
        let (mut state, mut model, now) =
            (State::default(), example::target_mode(1), Instant::now());
        model.disks[0].access = export::Access::Writable;
        model.disks[0].kept = Some(crate::KeptChanges { bytes: 1, ..Default::default() });
        for (key, action) in
            [(b'p', Action::PowerOff), (b'r', Action::Restart), (b'd', Action::Detach)]
        {
            assert_eq!(press(&mut state, key, &model, now), None);
            assert_eq!(press(&mut state, key, &model, now), Some(action));
        }
    }

    #[test]
    fn power_keys_work_in_target_mode_only() {
        let (mut state, model, now) = (State::default(), example::serve(1), Instant::now());
        for key in *b"prdluv" {
            assert_eq!(press(&mut state, key, &model, now), None);
        }
    }

    #[test]
    fn answer_keys_need_a_pending_request() {
        let (mut state, mut model, now) = (State::default(), example::serve(1), Instant::now());
        assert_eq!(press(&mut state, b'y', &model, now), None);
        assert_eq!(press(&mut state, b'n', &model, now), None);
        assert_eq!(state.view, View::Messages);
        model.access_request = Some(example::access_request());
        for (key, answer) in [
            (b'Y', Answer::GrantWrite),
            (b'z', Answer::GrantWrite),
            (b'o', Answer::GrantRead),
            (b'n', Answer::Deny),
        ] {
            let wanted = Some(Action::Answer(answer));
            assert_eq!(press(&mut state, key, &model, now), wanted);
        }
        assert_eq!(press(&mut state, b'\n', &model, now), None);
    }

    #[test]
    fn new_code_key_works_only_without_a_code() {
        let (mut state, mut model, now) = (State::default(), example::serve(1), Instant::now());
        assert_eq!(press(&mut state, b'c', &model, now), None);
        assert_eq!(state.view, View::Code);
        model.pairing = Some(Pairing::LockedOut);
        assert_eq!(press(&mut state, b'c', &model, now), Some(Action::NewPairingCode));
        state.view = View::Reading;
        assert_eq!(press(&mut state, b'c', &model, now), Some(Action::NewReadingCode));
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
            state.handle_key(key, &model, now);
            assert_eq!(state.selected, at, "{key:?}");
        }
        model.disks.truncate(3);
        state.handle_key(Key::Up, &model, now);
        assert_eq!(state.selected, 1);
        model.disks.clear();
        state.handle_key(Key::Down, &model, now);
        assert_eq!(state.selected, 0);
    }
}
