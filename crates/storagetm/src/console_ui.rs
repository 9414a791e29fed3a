//! Console UI of target mode: the consoles, their keys, and the power button.

pub(crate) mod screens;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use console::{Key, Model, State};
use linux::battery;
use linux::button::Buttons;
use linux::tree::Tree;
use rustix::event::PollFlags;

use crate::console_ui::screens::Screens;

#[derive(Debug)]
pub(crate) struct ConsoleUi {
    tree: Tree,
    screens: Screens,
    buttons: Buttons,
    hardware: String,
}

/// How long the last warning is shown before the machine is powered off.
pub(crate) const WARNING_TIME: Duration = Duration::from_secs(3);

/// Shows a last warning on the consoles, after [`ConsoleUi::close`].
pub(crate) fn warn(text: &str) {
    let mut screens = Screens::open(&Tree::machine());
    screens.print(&format!("storagetm: {}\n", console::escape_lines_to_ascii(text)));
    std::thread::sleep(WARNING_TIME);
}

impl ConsoleUi {
    /// Opens the consoles and buttons of this machine.
    pub(crate) fn open(tree: &Tree) -> Self {
        Self {
            tree: tree.clone(),
            screens: Screens::open(tree),
            buttons: Buttons::open(tree),
            hardware: linux::machine::describe(tree),
        }
    }

    /// Returns the name and serial number of the machine.
    pub(crate) fn hardware(&self) -> &str {
        &self.hardware
    }

    /// Returns a note about the machine itself: that it runs on its battery.
    pub(crate) fn note(&self) -> Option<String> {
        let percent = battery::charge(&self.tree)?;
        Some(format!("This machine runs on its battery ({percent} %): plug it in."))
    }

    /// Draws what has changed.
    pub(crate) fn show(&mut self, model: &Model, state: &State) {
        self.screens.show(model, state);
    }

    /// Forces a full redraw: the kernel may have written to the consoles.
    pub(crate) fn redraw(&mut self) {
        self.screens.invalidate();
    }

    /// Opens buttons that were plugged in since.
    pub(crate) fn refresh_buttons(&mut self) {
        self.buttons.refresh();
    }

    /// Prints a last text, and restores the terminals.
    pub(crate) fn close(self, text: &str) {
        self.screens.close(text);
    }

    /// File descriptors to poll.
    pub(crate) fn poll_fds(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let buttons = self.buttons.descriptors().map(|button| (button, PollFlags::IN));
        self.screens.poll_fds().chain(buttons)
    }

    pub(crate) fn is_power_pressed(&mut self) -> bool {
        self.buttons.receive()
    }

    /// Returns the keys that were pressed.
    pub(crate) fn keys(&mut self) -> Vec<Key> {
        self.screens.receive()
    }
}
