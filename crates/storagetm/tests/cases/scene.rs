//! The program under test, its directory and its commands.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde_json::Value;
use testkit::Scratch;

pub(crate) use crate::process::{LONG, PROGRAM, find};
use crate::process::{listening, proc, worker_of};

/// All addresses of the network namespace of a test. Unlike the loopback addresses, these require a
/// key.
pub(crate) const KEYED: &str = "0.0.0.0:0";
/// A host of the tests.
pub(crate) const LAPTOP: &str =
    "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
/// Another one.
pub(crate) const DESK: &str =
    "nqn.2014-08.org.nvmexpress:uuid:66666666-2222-3333-4444-555555555555";
/// Bytes of a disk of the tests.
pub(crate) const SIZE: usize = 1 << 20;

/// A temporary directory with keys and images.
pub(crate) struct Folder(pub(crate) Scratch);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(Scratch::new())
    }

    /// Creates an image in which all bytes are `byte`.
    pub(crate) fn image(&self, name: &str, byte: u8) -> String {
        let path = self.path(name);
        fs::write(&path, vec![byte; SIZE]).unwrap();
        path
    }

    pub(crate) fn path(&self, inside: &str) -> String {
        self.0.0.join(inside).to_str().unwrap().to_owned()
    }

    /// The state directory.
    pub(crate) fn keys(&self) -> String {
        self.path("state")
    }

    /// Runs a key or host command that must succeed; returns its output.
    pub(crate) fn run_command(&self, args: &[&str]) -> String {
        run_ok(&[args, &["--keys", &self.keys()]].concat(), "")
    }

    /// Authorizes a host with a new key of that kind (`tls`, `chap`). Returns the text of the key.
    pub(crate) fn authorize(&self, host: &str, name: &str, kind: &str, more: &[&str]) -> String {
        self.run_command(&["key", "generate", kind, "--name", name]);
        let option = format!("--{kind}-key");
        let add = ["host", "add", host, "--name", name, &option, name];
        self.run_command(&[&add[..], more].concat());
        self.key(name)
    }

    pub(crate) fn key(&self, name: &str) -> String {
        self.run_command(&["key", "export", name]).trim().to_owned()
    }
}

/// Runs the program and returns its output.
pub(crate) fn run(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(PROGRAM)
        .args(args)
        .env_remove("CREDENTIALS_DIRECTORY")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The program may end without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// Runs the program, which must succeed. Returns its standard output.
pub(crate) fn run_ok(args: &[&str], input: &str) -> String {
    let output = run(args, input);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The program as a server; killed when dropped.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    output: Arc<Mutex<Vec<u8>>>,
}

impl Running {
    /// Starts the program with `--json`.
    pub(crate) fn serve(args: &[&str]) -> Self {
        Self::start(&[&["serve", "--json"], args].concat())
    }

    pub(crate) fn start(args: &[&str]) -> Self {
        Self::of(Command::new(PROGRAM).args(args).stdin(Stdio::null()))
    }

    pub(crate) fn of(command: &mut Command) -> Self {
        let mut child = command
            .env_remove("NOTIFY_SOCKET")
            .env_remove("CREDENTIALS_DIRECTORY")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Arc::<Mutex<Vec<u8>>>::default();
        let (send, lines) = channel();
        listen(child.stdout.take().unwrap(), output.clone(), Some(send));
        listen(child.stderr.take().unwrap(), output.clone(), None);
        Self { child, lines, output }
    }

    pub(crate) fn event(&self) -> Value {
        let line = self.lines.recv_timeout(LONG).expect("an event");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    /// Returns the events up to the next one of that name.
    pub(crate) fn until(&self, name: &str) -> Vec<Value> {
        let mut events = vec![self.event()];
        while events.last().unwrap()["event"] != name {
            events.push(self.event());
        }
        events
    }

    /// Returns the next event of that name.
    pub(crate) fn next(&self, name: &str) -> Value {
        self.until(name).pop().unwrap()
    }

    /// Returns the names of the events that arrive within `time`.
    pub(crate) fn names_within(&self, time: Duration) -> Vec<String> {
        let end = Instant::now() + time;
        let left = || end.saturating_duration_since(Instant::now());
        let lines = std::iter::from_fn(|| self.lines.recv_timeout(left()).ok());
        let name = |line: String| {
            let event: Value = serde_json::from_str(&line).unwrap();
            event["event"].as_str().unwrap().to_owned()
        };
        lines.map(name).collect()
    }

    /// Returns the address of the listener (at 127.0.0.1) and the names of the exports.
    pub(crate) fn ready(&self) -> (SocketAddr, Vec<String>) {
        listening(&self.until("ready"))
    }

    /// As [`Running::settled`] with `--pair`, once the worker has the access rules and the disks:
    /// the code comes last.
    pub(crate) fn settled(&self) -> (SocketAddr, Vec<String>, String) {
        let (address, names) = self.ready();
        (address, names, self.code())
    }

    /// Waits for a new pairing code and returns it: eight digits.
    pub(crate) fn code(&self) -> String {
        self.next("pairing")["code"].as_str().unwrap().to_owned()
    }

    /// Returns all output on standard output and standard error.
    pub(crate) fn output(&self) -> Vec<u8> {
        self.output.lock().unwrap().clone()
    }

    pub(crate) fn process(&self) -> PathBuf {
        proc(Pid::from_child(&self.child))
    }

    /// Returns the folder of the worker process in `/proc`.
    pub(crate) fn worker(&self) -> PathBuf {
        proc(find(|| worker_of(Pid::from_child(&self.child))).expect("a worker"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listen(
    from: impl Read + Send + 'static,
    output: Arc<Mutex<Vec<u8>>>,
    to: Option<Sender<String>>,
) {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            output.lock().unwrap().extend_from_slice(&line);
            let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
            let _ = to.as_ref().is_some_and(|to| to.send(text).is_ok());
            line.clear();
        }
    });
}

/// Returns whether the bytes contain the text, ignoring case.
pub(crate) fn contains(bytes: &[u8], text: &str) -> bool {
    assert!(!text.is_empty());
    bytes.windows(text.len()).any(|part| part.eq_ignore_ascii_case(text.as_bytes()))
}
