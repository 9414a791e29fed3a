//! The lines on a machine's serial terminal, without control sequences, with the time at which each
//! was complete.

use std::fs::File;
use std::io::{Read, Write};
use std::mem;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// A line, and the time from power on until it was complete.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) at: Duration,
    pub(super) text: String,
}

/// The terminal of one machine. Keeps lines that were overwritten.
#[derive(Debug)]
pub(super) struct Screen {
    lines: Receiver<Line>,
    seen: Vec<Line>,
}

impl Screen {
    /// Reads the output of a machine that was started at `start`, and logs it.
    pub(super) fn follow(stream: impl Read + Send + 'static, start: Instant, log: File) -> Self {
        let (sender, lines) = channel();
        thread::spawn(move || copy(stream, start, log, &sender));
        Self { lines, seen: Vec::new() }
    }

    /// Returns the number of complete lines.
    pub(super) fn now(&mut self) -> usize {
        self.seen.extend(self.lines.try_iter());
        self.seen.len()
    }

    /// Returns the lines from this number on that were found so far.
    pub(super) fn since(&mut self, since: usize) -> String {
        self.now();
        let lines = self.seen.get(since..).unwrap_or_default();
        lines.iter().map(|line| format!("{}\n", line.text)).collect()
    }

    /// Waits for the first line from number `since` on for which `wanted` returns a value.
    pub(super) fn find<T>(
        &mut self,
        what: &str,
        since: usize,
        patience: Duration,
        wanted: impl Fn(&str) -> Option<T>,
    ) -> Result<(Duration, T)> {
        let deadline = Instant::now() + patience;
        let mut next = since;
        loop {
            while let Some(line) = self.seen.get(next) {
                if let Some(found) = wanted(&line.text) {
                    return Ok((line.at, found));
                }
                next += 1;
            }
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{what} was not on the screen within {} s", patience.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => bail!("the machine ended before {what}"),
            }
        }
    }

    /// Waits for a line that contains a text.
    pub(super) fn shows(
        &mut self,
        text: &str,
        since: usize,
        patience: Duration,
    ) -> Result<Duration> {
        let found = self.find(text, since, patience, |line| line.contains(text).then_some(()));
        found.map(|(at, ())| at)
    }
}

fn copy(mut stream: impl Read, start: Instant, mut log: File, lines: &Sender<Line>) {
    let mut terminal = Terminal::default();
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut bytes) {
        for &byte in bytes.get(..read).unwrap_or_default() {
            let Some(text) = terminal.receive(byte) else { continue };
            let line = Line { at: start.elapsed(), text };
            // Failure to write the log must not fail the test.
            let _ = writeln!(log, "{:8.3} {}", line.at.as_secs_f64(), line.text);
            if lines.send(line).is_err() {
                return;
            }
        }
    }
}

/// Separates text from control sequences (ECMA-48).
#[derive(Debug, Default)]
struct Terminal {
    state: State,
    line: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// After ESC and a byte that announces one more, such as a character set.
    Designation,
    /// After ESC [: until the final byte.
    Control,
    /// After ESC ] and similar: until BEL or ESC \.
    Message,
}

impl Terminal {
    /// Processes a byte; returns the line that it completes.
    fn receive(&mut self, byte: u8) -> Option<String> {
        let (state, ends) = self.step(byte);
        self.state = state;
        if !ends || self.line.is_empty() {
            return None;
        }
        Some(String::from_utf8_lossy(&mem::take(&mut self.line)).trim_end().to_owned())
    }

    fn step(&mut self, byte: u8) -> (State, bool) {
        match (self.state, byte) {
            (_, 0x1b) => (State::Escape, false),
            (State::Text, byte) => (State::Text, self.text(byte)),
            (State::Escape, b'[') => (State::Control, false),
            (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => (State::Message, false),
            (State::Escape, b' '..=b'/') => (State::Designation, false),
            // A reset clears the terminal.
            (State::Escape, byte) => (State::Text, byte == b'c'),
            (State::Designation, _) | (State::Message, 0x07) => (State::Text, false),
            // Moving the cursor completes a line.
            (State::Control, b'@'..=b'~') => (State::Text, b"HfJABEFd".contains(&byte)),
            (State::Control | State::Message, _) => (self.state, false),
        }
    }

    fn text(&mut self, byte: u8) -> bool {
        match byte {
            b'\n' => return true,
            b'\r' | 0 => {}
            byte => self.line.push(byte),
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        let mut terminal = Terminal::default();
        text.bytes().filter_map(|byte| terminal.receive(byte)).collect()
    }

    #[test]
    fn screen_is_read_as_lines() {
        let drawn =
            "\x1b[H\x1b[2J\x1b[1mtitle\x1b[0m\r\n\r\n    \x1b[32mnvme connect-all\x1b[0m -s 1\r\n";
        assert_eq!(lines(drawn), ["title", "    nvme connect-all -s 1"]);
    }

    #[test]
    fn line_is_complete_when_the_cursor_leaves_it() {
        assert_eq!(lines("a\x1b[2;1Hb\x1b]3008;x=y\x1b\\c\x1b(B\n"), ["a", "bc"]);
        assert_eq!(lines("nvme connect -s 3"), Vec::<String>::new());
        assert_eq!(lines("\x1b]0;t\x07x\x1bcy\n"), ["x", "y"]);
    }

    #[test]
    fn lines_are_found_again_and_waited_for() {
        let log = File::options().write(true).open("/dev/null").unwrap();
        let mut screen = Screen::follow(&b"one\ntwo 2\n"[..], Instant::now(), log);
        let second = Duration::from_secs(30);
        screen.shows("two", 0, second).unwrap();
        screen.shows("one", 0, second).unwrap();
        let since = screen.now();
        let missing = screen.shows("one", since, second).unwrap_err().to_string();
        assert_eq!(missing, "the machine ended before one");
    }
}
