//! A guest's serial console: whole lines, and what the guest's scripts mean by them.
//! Does not know the machine behind it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// What a guest said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Saying {
    /// A test passed.
    Passed(String),
    /// A test failed; the notes before say how.
    Failed(String),
    /// A line that explains the next result.
    Note(String),
    /// The guest wants the host to do something.
    Ask(String),
    /// A value for the host, by name.
    Value(String, String),
    /// A JSON event of the storagetm that runs in the guest.
    Event(String),
    /// The guest's scripts are through.
    End,
}

impl Saying {
    /// Reads one whole line; what the kernel or firmware said means nothing.
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
    /// Follows what comes out of a machine, and keeps it in a log with times.
    pub(super) fn follow(name: &str, stream: impl Read + Send + 'static, log: File) -> Self {
        let (sender, lines) = channel();
        thread::spawn(move || copy(stream, log, &sender));
        Self { name: name.to_owned(), lines }
    }

    /// The next thing the guest says; its silence until the deadline, or its end, is an error.
    pub(super) fn next(&self, deadline: Instant) -> Result<Saying> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some(saying) = Saying::parse(&line) {
                        return Ok(saying);
                    }
                }
                Err(RecvTimeoutError::Timeout) => bail!("{} did not end in time", self.name),
                Err(RecvTimeoutError::Disconnected) => bail!("{} ended early", self.name),
            }
        }
    }

    /// What has been said so far and not been heard yet, without waiting.
    pub(super) fn pending(&self) -> Vec<Saying> {
        self.lines.try_iter().filter_map(|line| Saying::parse(&line)).collect()
    }
}

fn copy(stream: impl Read, mut log: File, lines: &Sender<String>) {
    let start = Instant::now();
    let mut stream = BufReader::new(stream);
    let mut bytes = Vec::new();
    while matches!(stream.read_until(b'\n', &mut bytes), Ok(read) if read > 0) {
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        bytes.clear();
        // A log that cannot be written must not end the test that it is about.
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
    fn only_whole_marked_lines_mean_something() {
        let said = |line| Saying::parse(line);
        assert_eq!(said("vmtest ok discover"), Some(Saying::Passed("discover".into())));
        assert_eq!(said("vmtest failed a b"), Some(Saying::Failed("a b".into())));
        assert_eq!(said("vmtest value k=v=w"), Some(Saying::Value("k".into(), "v=w".into())));
        assert_eq!(said("vmtest end"), Some(Saying::End));
        assert_eq!(said("[ 1.0] vmtest ok discover"), None);
        assert_eq!(said("vmtest okay"), None);
        assert_eq!(
            said(r#"{"event":"ready"}"#),
            Some(Saying::Event(r#"{"event":"ready"}"#.into()))
        );
    }

    #[test]
    fn the_end_of_a_machine_is_noticed() {
        let log = File::options().write(true).open("/dev/null").unwrap();
        let console = Console::follow("guest", &b"boot\nvmtest note x\r\n"[..], log);
        let deadline = Instant::now() + Duration::from_secs(30);
        assert_eq!(console.next(deadline).unwrap(), Saying::Note("x".into()));
        assert_eq!(console.next(deadline).unwrap_err().to_string(), "guest ended early");
    }
}
