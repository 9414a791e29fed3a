//! `storagetm serve --json` as a program that reads its events.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::foreign::wait_for;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_storagetm");
const LONG: Duration = Duration::from_secs(120);

/// A running program; killed when dropped.
pub(crate) struct Serve {
    pub(crate) child: Child,
    lines: Receiver<String>,
    errors: Option<JoinHandle<String>>,
}

impl Serve {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_with(args, |command| command)
    }

    /// The same; `prepare` changes the command before the start.
    pub(crate) fn start_with(
        args: &[&str],
        prepare: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Self {
        let own = ["serve", "--json", "--no-announce", "--listen", "127.0.0.1:0"];
        let mut command = Command::new(PROGRAM);
        let mut child = prepare(command.args(own).args(args))
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| send.send(line))
        });
        let mut errors = child.stderr.take().unwrap();
        let errors = thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        Self { child, lines, errors: Some(errors) }
    }

    pub(crate) fn event(&self) -> Value {
        let line = self.lines.recv_timeout(LONG).expect("an event");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// Returns the events up to the first for which `is_it` is true.
    pub(crate) fn until(&self, is_it: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut events = vec![self.event()];
        while !is_it(events.last().unwrap()) {
            events.push(self.event());
        }
        events
    }

    /// Returns the events up to one of that name.
    pub(crate) fn until_named(&self, name: &str) -> Vec<Value> {
        self.until(|event| event["event"] == name)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn end(&mut self) -> ExitStatus {
        wait_for("the program's end", || self.child.try_wait().unwrap())
    }

    /// Returns the standard error, after the end of the program.
    pub(crate) fn errors(&mut self) -> String {
        self.errors.take().unwrap().join().unwrap()
    }

    /// Sends SIGTERM. Returns the exit status and the time until the end.
    pub(crate) fn terminate(&mut self) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        kill_process(self.pid(), Signal::TERM).unwrap();
        let status = self.end();
        (status, begun.elapsed())
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
