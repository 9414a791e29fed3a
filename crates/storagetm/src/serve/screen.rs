//! The screen of `storagetm serve` and of target mode: the keys, and what they want.

use std::time::Instant;

use console::Command;

use super::{Server, StopReason};
use crate::console_ui::ConsoleUi;
use crate::terminal_keys::TerminalKeys;

impl Server {
    /// Takes the keys that were pressed, and the power button; returns why the program ends, if it does.
    pub(super) fn read_keys(&mut self, now: Instant) -> Option<StopReason> {
        // The button was pressed on purpose: it asks nothing, as on any machine.
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
            let command = self.screen.press(key, &model, now);
            // A key press means that the screen is being read.
            self.timers.draw = Some(now);
            let end = command.and_then(|command| self.run_command(command, now));
            if end.is_some() {
                return end;
            }
        }
        None
    }

    /// Takes the terminal again, which another program has had meanwhile.
    pub(super) fn resume_terminal(&mut self) {
        self.terminal_keys.iter_mut().for_each(TerminalKeys::resume);
        self.redraw_soon();
    }

    /// Draws all of the screen, whether or not something has changed.
    pub(super) fn redraw_soon(&mut self) {
        self.output.invalidate();
        self.draw_soon(false);
    }

    fn run_command(&mut self, command: Command, now: Instant) -> Option<StopReason> {
        match command {
            Command::PowerOff => return Some(StopReason::PowerOff),
            Command::Restart => return Some(StopReason::Restart),
            Command::Detach => self.withdraw_all(),
            Command::Lend => {
                self.console_ui.iter_mut().for_each(|console_ui| console_ui.mode().lending = true);
                self.hotplug.rescan_all(now);
            }
            Command::Answer(answer) => self.answer(answer, now),
            Command::NewCode => self.worker.unlock(),
            Command::Redraw => {
                self.console_ui.iter_mut().for_each(ConsoleUi::redraw);
                self.output.invalidate();
            }
        }
        None
    }
}
