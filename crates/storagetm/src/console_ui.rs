//! What a machine in target mode is operated by: its consoles, their keys, the power button.

pub(crate) mod screens;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use console::{Key, Model, State, TargetMode};
use linux::battery;
use linux::button::Buttons;
use linux::tree::Tree;
use rustix::event::PollFlags;

use crate::console_ui::screens::Screens;

/// Consoles, keys and the power button.
#[derive(Debug)]
pub(crate) struct ConsoleUi {
    tree: Tree,
    screens: Screens,
    buttons: Buttons,
    mode: TargetMode,
}

/// How long the last warning is shown before the machine ends.
pub(crate) const WARNING_TIME: Duration = Duration::from_secs(3);

/// Shows a last warning on the screens, after [`ConsoleUi::close`].
pub(crate) fn warn(text: &str) {
    let mut screens = Screens::open(&Tree::machine());
    screens.print(&format!("storagetm: {}\n", console::printable_lines(text)));
    std::thread::sleep(WARNING_TIME);
}

impl ConsoleUi {
    /// Those of this machine.
    pub(crate) fn open(tree: &Tree) -> Self {
        Self {
            tree: tree.clone(),
            screens: Screens::open(tree),
            buttons: Buttons::open(tree),
            mode: TargetMode {
                hardware: linux::machine::describe(tree),
                lending: true,
                flushing: false,
            },
        }
    }

    /// What the machine does now.
    pub(crate) fn mode(&mut self) -> &mut TargetMode {
        &mut self.mode
    }

    /// The same, to be shown.
    pub(crate) fn current_mode(&self) -> TargetMode {
        self.mode.clone()
    }

    /// What is worth knowing of the machine itself.
    pub(crate) fn note(&self) -> Option<String> {
        let percent = battery::charge(&self.tree)?;
        Some(format!("This machine runs on its battery ({percent} %): plug it in."))
    }

    /// Whether the disks are lent.
    pub(crate) fn is_lending(&self) -> bool {
        self.mode.lending
    }

    /// Draws what has changed.
    pub(crate) fn show(&mut self, model: &Model, state: &State) {
        self.screens.show(model, state);
    }

    /// Has all be drawn anew: the kernel may have written there.
    pub(crate) fn redraw(&mut self) {
        self.screens.invalidate();
    }

    /// Buttons that have come since.
    pub(crate) fn refresh_buttons(&mut self) {
        self.buttons.refresh();
    }

    /// The last words.
    pub(crate) fn close(self, text: &str) {
        self.screens.close(text);
    }

    /// What to wait for.
    pub(crate) fn poll_fds(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let buttons = self.buttons.descriptors().map(|button| (button, PollFlags::IN));
        self.screens.poll_fds().chain(buttons)
    }

    /// Whether the power button was pressed.
    pub(crate) fn is_power_pressed(&mut self) -> bool {
        self.buttons.receive()
    }

    /// The keys that were pressed.
    pub(crate) fn keys(&mut self) -> Vec<Key> {
        self.screens.receive()
    }
}
