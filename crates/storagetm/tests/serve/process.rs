//! The program as a process.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_storagetm");
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A process, killed at the end if it still runs.
pub(crate) struct Running {
    pub(crate) child: Child,
    /// Lines of its standard output.
    pub(crate) lines: Receiver<String>,
}

impl Running {
    /// Starts `storagetm serve`.
    pub(crate) fn serve(arguments: &[&str]) -> Self {
        Self::start(Command::new(PROGRAM).arg("serve").args(arguments))
    }

    /// Starts a process without standard input.
    pub(crate) fn start(command: &mut Command) -> Self {
        let command = command.env_remove("NOTIFY_SOCKET").env_remove("CREDENTIALS_DIRECTORY");
        Self::of(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Reads the standard output of a process, if it is a pipe.
    pub(crate) fn of(mut child: Child) -> Self {
        let (send, lines) = channel();
        if let Some(output) = child.stdout.take() {
            let output = BufReader::new(output).lines().map_while(Result::ok);
            thread::spawn(move || output.into_iter().try_for_each(|line| send.send(line)));
        }
        Self { child, lines }
    }

    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(LONG).expect("a line on standard output")
    }

    pub(crate) fn event(&self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// Returns the events up to the next one of that name.
    pub(crate) fn until(&self, name: &str) -> Vec<Value> {
        let mut events = vec![self.event()];
        while events.last().unwrap()["event"] != name {
            events.push(self.event());
        }
        events
    }

    /// Returns the address of the listener (at 127.0.0.1) and the names of the exports.
    pub(crate) fn ready(&self) -> (SocketAddr, Vec<String>) {
        listening(&self.until("ready"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        find(|| self.child.try_wait().unwrap()).expect("it ends")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first address (at 127.0.0.1) in the events of a start, and the names of all disks.
pub(crate) fn listening(events: &[Value]) -> (SocketAddr, Vec<String>) {
    let port = u16::try_from(events[0]["port"].as_u64().unwrap()).unwrap();
    let names = events.iter().filter_map(|event| event["nqn"].as_str());
    (([127, 0, 0, 1], port).into(), names.map(str::to_owned).collect())
}

/// Polls until the result is `Some`. Returns `None` after a time limit.
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

/// The folder of a process in `/proc`.
pub(crate) fn proc(process: Pid) -> PathBuf {
    Path::new("/proc").join(process.as_raw_nonzero().to_string())
}

/// The child of that process that is a worker and has dropped its privileges by now. Another child
/// announces, which drops the same.
pub(crate) fn worker_of(parent: Pid) -> Option<Pid> {
    let children = fs::read_dir("/proc").ok()?.filter_map(Result::ok).filter(|entry| {
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        field(&status, "PPid") == Some(parent.as_raw_nonzero().to_string())
            && field(&status, "Seccomp").as_deref() == Some("2")
            && line == b"storagetm\0worker\0"
    });
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    children.filter_map(number).find_map(Pid::from_raw)
}

/// The value of a field in a file of `/proc`.
pub(crate) fn field(status: &str, name: &str) -> Option<String> {
    let line = status.lines().find(|line| line.split(':').next() == Some(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
