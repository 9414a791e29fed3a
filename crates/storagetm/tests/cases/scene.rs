//! The program under test, its directory and its commands.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_storagetm");
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// Every address of a network of the test's own. Unlike the loopback addresses themselves, these ask for a key.
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
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("storagetm-cases-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A disk, all of it that byte.
    pub(crate) fn image(&self, name: &str, byte: u8) -> String {
        let path = self.path(name);
        fs::write(&path, vec![byte; SIZE]).unwrap();
        path
    }

    pub(crate) fn path(&self, inside: &str) -> String {
        self.0.join(inside).to_str().unwrap().to_owned()
    }

    /// The state directory.
    pub(crate) fn keys(&self) -> String {
        self.path("state")
    }

    /// Runs a key or host command that must succeed; returns its output.
    pub(crate) fn run_command(&self, args: &[&str]) -> String {
        run_ok(&[args, &["--keys", &self.keys()]].concat(), "")
    }

    /// Lets a host in, with a new key of that kind (`tls`, `chap`); the key's text.
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

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs the program to its end.
pub(crate) fn run(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(PROGRAM)
        .args(args)
        .env_remove("CREDENTIALS_DIRECTORY")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// What it prints if all goes well.
pub(crate) fn run_ok(args: &[&str], input: &str) -> String {
    let output = run(args, input);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The program, serving; killed at the end.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    output: Arc<Mutex<Vec<u8>>>,
}

impl Running {
    /// With `--json`.
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

    /// The next event of that name, and all that come before it.
    pub(crate) fn until(&self, name: &str) -> Vec<Value> {
        let mut events = vec![self.event()];
        while events.last().unwrap()["event"] != name {
            events.push(self.event());
        }
        events
    }

    /// The next event of that name.
    pub(crate) fn next(&self, name: &str) -> Value {
        self.until(name).pop().unwrap()
    }

    /// The names of the events that come within that time.
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

    /// Where it listens (at 127.0.0.1), and the names of its disks.
    pub(crate) fn ready(&self) -> (SocketAddr, Vec<String>) {
        let events = self.until("ready");
        let port = u16::try_from(events[0]["port"].as_u64().unwrap()).unwrap();
        let names = events.iter().filter_map(|event| event["nqn"].as_str());
        (([127, 0, 0, 1], port).into(), names.map(str::to_owned).collect())
    }

    /// The same with `--pair`, once the worker has the access rules and the disks: the code comes
    /// last.
    pub(crate) fn settled(&self) -> (SocketAddr, Vec<String>, String) {
        let (address, names) = self.ready();
        (address, names, self.code())
    }

    /// The code that is good from now on: eight digits.
    pub(crate) fn code(&self) -> String {
        self.next("pairing")["code"].as_str().unwrap().to_owned()
    }

    /// All output on standard output and standard error.
    pub(crate) fn output(&self) -> Vec<u8> {
        self.output.lock().unwrap().clone()
    }

    pub(crate) fn process(&self) -> PathBuf {
        proc(self.child.id())
    }

    /// The folder in `/proc` of the process that talks to hosts.
    pub(crate) fn worker(&self) -> PathBuf {
        find(|| worker_of(self.child.id())).expect("a worker")
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

/// What comes about, within a while.
pub(crate) fn find<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + LONG;
    loop {
        let found = look();
        if found.is_some() || Instant::now() > end {
            return found;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn proc(id: u32) -> PathBuf {
    Path::new("/proc").join(id.to_string())
}

/// The child of that process that talks to hosts and has given its rights up by now. Another child announces, which
/// gives up the same.
fn worker_of(parent: u32) -> Option<PathBuf> {
    let children = fs::read_dir("/proc").ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let is_it = |path: &PathBuf| {
        let status = fs::read_to_string(path.join("status")).unwrap_or_default();
        field(&status, "PPid") == Some(parent.to_string())
            && field(&status, "Seccomp").as_deref() == Some("2")
            && fs::read(path.join("cmdline")).is_ok_and(|line| line == b"storagetm\0worker\0")
    };
    children.into_iter().find(is_it)
}

/// What stands beside a word in a file of `/proc`.
pub(crate) fn field(status: &str, name: &str) -> Option<String> {
    let line = status.lines().find(|line| line.split(':').next() == Some(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Whether the text is anywhere in the bytes, in capitals or not.
pub(crate) fn contains(bytes: &[u8], text: &str) -> bool {
    assert!(!text.is_empty());
    bytes.windows(text.len()).any(|part| part.eq_ignore_ascii_case(text.as_bytes()))
}
