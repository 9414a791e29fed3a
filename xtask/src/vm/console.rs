//! A guest's serial console: parses the messages of its scripts.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// A message of a guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// A test passed.
    Passed(String),
    /// A test failed; the notes before say how.
    Failed(String),
    /// A line for the report of the next result.
    Note(String),
    /// A request to the host.
    Ask(String),
    /// A value for the host, by name.
    Value(String, String),
    /// A JSON event of the storagetm that runs in the guest.
    Event(String),
    /// The scripts have ended.
    End,
}

impl Message {
    /// Parses a line; `None` for output of the kernel or firmware.
    fn parse(line: &str) -> Option<Self> {
        if line.starts_with('{') {
            return Some(Self::Event(line.to_owned()));
        }
        let rest = line.strip_prefix("vmtest ")?;
        let (word, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let rest = rest.to_owned();
        Some(match word {
            "ok" => Self::Passed(rest),
            "failed" => Self::Failed(rest),
            "note" => Self::Note(rest),
            "ask" => Self::Ask(rest),
            "value" => {
                rest.split_once('=').map(|(k, v)| Self::Value(k.to_owned(), v.to_owned()))?
            }
            "end" => Self::End,
            _ => return None,
        })
    }
}

/// The receiving end of a console.
#[derive(Debug)]
pub(super) struct Console {
    name: String,
    lines: Receiver<String>,
}

impl Console {
    /// Reads the output of a machine, and logs it with times.
    pub(super) fn follow(name: &str, stream: impl Read + Send + 'static, log: File) -> Self {
        let (sender, lines) = channel();
        thread::spawn(move || copy(stream, log, &sender));
        Self { name: name.to_owned(), lines }
    }

    /// Returns the next message.
    ///
    /// # Errors
    /// Fails at the deadline, or if the machine has ended.
    pub(super) fn next(&self, deadline: Instant) -> Result<Message> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some(message) = Message::parse(&line) {
                        return Ok(message);
                    }
                }
                Err(RecvTimeoutError::Timeout) => bail!("{} did not end in time", self.name),
                Err(RecvTimeoutError::Disconnected) => bail!("{} ended early", self.name),
            }
        }
    }

    /// Returns all pending messages. Does not block.
    pub(super) fn pending(&self) -> Vec<Message> {
        self.lines.try_iter().filter_map(|line| Message::parse(&line)).collect()
    }
}

fn copy(stream: impl Read, mut log: File, lines: &Sender<String>) {
    let start = Instant::now();
    let mut stream = BufReader::new(stream);
    let mut bytes = Vec::new();
    while matches!(stream.read_until(b'\n', &mut bytes), Ok(read) if read > 0) {
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        bytes.clear();
        // Failure to write the log must not fail the test.
        let _ = writeln!(log, "{:8.3} {line}", seconds(start.elapsed()));
        if lines.send(line).is_err() {
            return;
        }
    }
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_marked_lines_are_messages() {
        let parse = |line| Message::parse(line);
        assert_eq!(parse("vmtest ok discover"), Some(Message::Passed("discover".into())));
        assert_eq!(parse("vmtest failed a b"), Some(Message::Failed("a b".into())));
        assert_eq!(parse("vmtest value k=v=w"), Some(Message::Value("k".into(), "v=w".into())));
        assert_eq!(parse("vmtest end"), Some(Message::End));
        assert_eq!(parse("[ 1.0] vmtest ok discover"), None);
        assert_eq!(parse("vmtest okay"), None);
        assert_eq!(
            parse(r#"{"event":"ready"}"#),
            Some(Message::Event(r#"{"event":"ready"}"#.into()))
        );
    }

    #[test]
    fn end_of_a_machine_is_an_error() {
        let log = File::options().write(true).open("/dev/null").unwrap();
        let console = Console::follow("guest", &b"boot\nvmtest note x\r\n"[..], log);
        let deadline = Instant::now() + Duration::from_secs(30);
        assert_eq!(console.next(deadline).unwrap(), Message::Note("x".into()));
        assert_eq!(console.next(deadline).unwrap_err().to_string(), "guest ended early");
    }
}
