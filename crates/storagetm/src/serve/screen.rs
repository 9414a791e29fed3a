//! The screen of `storagetm serve` and of target mode: the keys, and what they want.

use std::time::Instant;

use console::Command;

use super::{End, Server};
use crate::desk::Desk;
use crate::keyboard::Keyboard;

impl Server {
    /// Takes the keys that were pressed, and the power button; returns why the program ends, if it does.
    pub(super) fn read_keys(&mut self, now: Instant) -> Option<End> {
        // The button was pressed on purpose: it asks nothing, as on any machine.
        if self.desk.as_mut().is_some_and(Desk::is_power_pressed) {
            return Some(End::PowerOff);
        }
        let mut keys = self.desk.as_mut().map(Desk::keys).unwrap_or_default();
        keys.extend(self.keyboard.as_mut().map(Keyboard::receive).unwrap_or_default());
        if self.keyboard.as_mut().is_some_and(Keyboard::has_come_back) {
            self.redraw_soon();
        }
        self.keyboard.take_if(|keyboard| keyboard.is_gone());
        for key in keys {
            let model = self.model();
            let command = self.screen.press(key, &model, now);
            // A key press means that the screen is being read.
            self.alerts.draw = Some(now);
            let end = command.and_then(|command| self.obey(command, now));
            if end.is_some() {
                return end;
            }
        }
        None
    }

    /// Takes the terminal again, which another program has had meanwhile.
    pub(super) fn come_back(&mut self) {
        self.keyboard.iter_mut().for_each(Keyboard::resume);
        self.redraw_soon();
    }

    /// Draws all of the screen, whether or not something has changed.
    pub(super) fn redraw_soon(&mut self) {
        self.output.forget();
        self.draw_soon(false);
    }

    fn obey(&mut self, command: Command, now: Instant) -> Option<End> {
        match command {
            Command::PowerOff => return Some(End::PowerOff),
            Command::Restart => return Some(End::Restart),
            Command::Detach => self.take_back(),
            Command::Lend => {
                self.desk.iter_mut().for_each(|desk| desk.mode().lending = true);
                self.hotplug.rescan_all(now);
            }
            Command::Answer(answer) => self.answer(answer, now),
            Command::NewCode => self.worker.unlock(),
            Command::Redraw => {
                self.desk.iter_mut().for_each(Desk::redraw);
                self.output.forget();
            }
        }
        None
    }
}
