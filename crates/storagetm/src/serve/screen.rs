//! Keys of the screen of `storagetm serve` and of target mode.

use std::time::Instant;

use console::Action;

use super::{Server, StopReason};
use crate::console_ui::ConsoleUi;
use crate::terminal_keys::TerminalKeys;

impl Server {
    /// Handles keys and the power button. Returns the reason to stop, if there is one.
    pub(super) fn read_keys(&mut self, now: Instant) -> Option<StopReason> {
        // The power button needs no confirmation.
        if self.console_ui.as_mut().is_some_and(ConsoleUi::is_power_pressed) {
            return Some(StopReason::PowerOff);
        }
        let mut keys = self.console_ui.as_mut().map(ConsoleUi::keys).unwrap_or_default();
        keys.extend(self.terminal_keys.as_mut().map(TerminalKeys::receive).unwrap_or_default());
        if self.terminal_keys.as_mut().is_some_and(TerminalKeys::regained_terminal) {
            self.redraw_soon();
        }
        self.terminal_keys.take_if(|terminal_keys| terminal_keys.is_gone());
        for key in keys {
            let model = self.model();
            let action = self.screen.handle_key(key, &model, now);
            // The screen is being read: redraw at once.
            self.timers.draw = Some(now);
            let end = action.and_then(|action| self.run_action(action, now));
            if end.is_some() {
                return end;
            }
        }
        None
    }

    /// Sets the terminal up again after SIGCONT.
    pub(super) fn resume_terminal(&mut self) {
        self.terminal_keys.iter_mut().for_each(TerminalKeys::resume);
        self.redraw_soon();
    }

    /// Schedules a full redraw.
    pub(super) fn redraw_soon(&mut self) {
        self.output.invalidate();
        self.draw_soon(false);
    }

    fn run_action(&mut self, action: Action, now: Instant) -> Option<StopReason> {
        match action {
            Action::PowerOff => return Some(StopReason::PowerOff),
            Action::Restart => return Some(StopReason::Restart),
            Action::Detach => self.withdraw_all(),
            Action::Serve => {
                self.console_ui.iter_mut().for_each(|console_ui| console_ui.mode().serving = true);
                self.hotplug.rescan_all(now);
            }
            Action::Answer(answer) => self.answer(answer, now),
            Action::NewCode => self.worker.unlock(),
            Action::Redraw => {
                self.console_ui.iter_mut().for_each(ConsoleUi::redraw);
                self.output.invalidate();
            }
        }
        None
    }
}
