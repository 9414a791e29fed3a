//! The machine's consoles: each shows the same and accepts the same keys.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use console::{Key, Model, State, Style, frame, screen};
use linux::tree::Tree;
use linux::tty::{self, Raw};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use crate::key_parser::KeyParser;
use crate::nonblocking::NonBlockingWriter;

/// Assumed size of a terminal that does not report one, such as a serial line.
const DEFAULT_SIZE: (u16, u16) = (80, 24);

/// Disables blanking of a virtual terminal (console_codes(4)), hides the cursor and clears the
/// screen.
const INIT_SEQUENCE: &str = "\x1b[9;0]\x1b[?25l\x1b[H\x1b[2J";
/// Shows the cursor again, below the screen's content.
const RESTORE_SEQUENCE: &str = "\x1b[?25h\n";

#[derive(Debug)]
struct Screen {
    name: String,
    terminal: File,
    writer: NonBlockingWriter<File>,
    _raw: Option<Raw>,
    utf8: bool,
    keys: KeyParser,
    shown: Vec<String>,
    window: (u16, u16),
}

#[derive(Debug, Default)]
pub(crate) struct Screens(Vec<Screen>);

impl Screens {
    /// Opens the kernel's active consoles, or `/dev/console` if there are none.
    pub(crate) fn open(tree: &Tree) -> Self {
        let active = tree.attribute("sys/class/tty/console/active").unwrap_or_default();
        let mut found: Vec<Screen> =
            active.split_whitespace().filter_map(|name| Screen::open(tree, name)).collect();
        if found.is_empty() {
            found.extend(Screen::open(tree, "console"));
        }
        Self(found)
    }

    /// Draws the screen where it has changed.
    pub(crate) fn show(&mut self, model: &Model, state: &State) {
        for screen in &mut self.0 {
            screen.show(model, state);
        }
    }

    /// Prints `text` below the screen's content, and restores the terminals.
    pub(crate) fn close(mut self, text: &str) {
        let end = Instant::now() + Duration::from_millis(500);
        for screen in &mut self.0 {
            screen.writer.push(RESTORE_SEQUENCE);
            screen.writer.push(text);
            screen.writer.drain(end.saturating_duration_since(Instant::now()));
        }
    }

    /// Prints `text` only.
    pub(crate) fn print(&mut self, text: &str) {
        for screen in &mut self.0 {
            screen.writer.push(text);
        }
    }

    /// Waits for a key, at most `patience`.
    pub(crate) fn wait(&self, patience: Duration) {
        let poll_fds = self.poll_fds();
        let mut poll_fds: Vec<_> =
            poll_fds.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
        let patience = Timespec::try_from(patience).ok();
        let _ = poll(&mut poll_fds, patience.as_ref());
    }

    /// Forces a full redraw: other programs may have written to the consoles.
    pub(crate) fn invalidate(&mut self) {
        for screen in &mut self.0 {
            screen.shown.clear();
        }
    }

    /// File descriptors to poll.
    pub(crate) fn poll_fds(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.0.iter().map(|screen| {
            let write =
                if screen.writer.has_pending() { PollFlags::OUT } else { PollFlags::empty() };
            (screen.terminal.as_fd(), PollFlags::IN | write)
        })
    }

    /// Writes pending output, and returns the keys that were pressed. Drops a terminal that is
    /// gone.
    pub(crate) fn receive(&mut self) -> Vec<Key> {
        let mut keys = Vec::new();
        self.0.retain_mut(|screen| {
            screen.writer.write();
            screen.read(&mut keys)
        });
        keys
    }
}

impl Screen {
    fn open(tree: &Tree, name: &str) -> Option<Self> {
        // `tty0` is the virtual terminal in the foreground.
        let path = tree.path(format!("dev/{name}"));
        let flags = (OFlags::NOCTTY | OFlags::NONBLOCK).bits().cast_signed();
        let terminal =
            OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).ok()?;
        let raw = Raw::enter(&terminal);
        let mut writer = NonBlockingWriter::new(terminal.try_clone().ok()?);
        writer.push(INIT_SEQUENCE);
        Some(Self {
            utf8: is_virtual(name) && tree.flag("sys/module/vt/parameters/default_utf8"),
            name: name.to_owned(),
            terminal,
            writer,
            _raw: raw,
            keys: KeyParser::default(),
            shown: Vec::new(),
            window: (0, 0),
        })
    }

    fn show(&mut self, model: &Model, state: &State) {
        // On a slow line a frame is skipped rather than queued.
        if self.writer.has_pending() {
            return;
        }
        let window = tty::window(&self.terminal).unwrap_or(DEFAULT_SIZE);
        let style =
            Style { width: window.0.into(), color: is_virtual(&self.name), utf8: self.utf8 };
        let lines = screen(model, state, style, window.1.into());
        if lines != self.shown || window != self.window {
            self.writer.push(&frame(&lines, style.width));
            (self.shown, self.window) = (lines, window);
        }
    }

    /// Reads keys. Returns whether the terminal still exists.
    fn read(&mut self, keys: &mut Vec<Key>) -> bool {
        let mut some = [0; 64];
        match self.terminal.read(&mut some) {
            // A serial line that hung up comes back; end of file means that the terminal is gone.
            Ok(0) => false,
            Ok(n) => {
                let some = some.get(..n).unwrap_or_default();
                keys.extend(some.iter().filter_map(|byte| self.keys.receive(*byte)));
                true
            }
            Err(error) => matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
            ),
        }
    }
}

fn is_virtual(name: &str) -> bool {
    name.strip_prefix("tty").is_some_and(|number| number.parse::<u8>().is_ok())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn virtual_terminals_are_known_by_their_numbers() {
        assert!(is_virtual("tty0") && is_virtual("tty63"));
        assert!(!is_virtual("ttyS0") && !is_virtual("console") && !is_virtual("hvc0"));
    }
}
