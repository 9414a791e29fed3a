//! Test environment: a directory, images, and the program run to its end.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::Scratch;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_storagetm");
pub(crate) const MIB: u64 = 1 << 20;
/// Time limit of what is waited for.
const LONG: Duration = Duration::from_secs(60);

/// A temporary folder; removed when dropped.
pub(crate) struct Folder(pub(crate) Scratch);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(Scratch::new())
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.0.join(name).to_str().unwrap().to_owned()
    }

    /// Creates an image of that size in which every second MiB is a hole.
    pub(crate) fn image(&self, name: &str, bytes: u64) -> String {
        let path = self.path(name);
        fill(&path, bytes, bytes);
        path
    }
}

/// Fills every second MiB with pseudo-random bytes of the seed.
pub(crate) fn fill(path: &str, bytes: u64, seed: u64) {
    let file = File::create(path).unwrap();
    file.set_len(bytes).unwrap();
    for (number, offset) in (0..bytes).step_by(1 << 20).enumerate() {
        if number % 2 == 0 {
            let len = usize::try_from(MIB.min(bytes - offset)).unwrap();
            file.write_all_at(&random_bytes(seed ^ offset, len), offset).unwrap();
        }
    }
}

/// Marsaglia's xorshift64.
pub(crate) fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let args = (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes());
    args.take(len).collect()
}

/// Returns the command, without environment variables that other tests set.
pub(crate) fn copy(args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("copy").args(args).stdin(Stdio::null());
    command.env_remove("CREDENTIALS_DIRECTORY").env_remove("STATE_DIRECTORY");
    command.env("HOME", "/nonexistent").env_remove("XDG_STATE_HOME");
    command
}

/// Runs the command.
pub(crate) fn run(args: &[&str]) -> Output {
    copy(args).output().unwrap()
}

/// Runs the program, which must exit with `status`. Returns its standard error.
#[track_caller]
pub(crate) fn run_expecting(status: i32, args: &[&str]) -> String {
    let output = run(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
    message
}

/// Returns the events, the last of which must be `finished`.
#[track_caller]
pub(crate) fn events(output: &Output) -> Vec<Value> {
    let message = std::str::from_utf8(&output.stdout).unwrap();
    let events: Vec<Value> = message
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
        .collect();
    assert_eq!(
        events.last().map(|event| &event["event"]),
        Some(&Value::from("finished")),
        "{message}"
    );
    events
}

#[track_caller]
pub(crate) fn assert_equal(one: impl AsRef<Path>, other: impl AsRef<Path>) {
    let (one, other) = (fs::read(one).unwrap(), fs::read(other).unwrap());
    assert_eq!(one.len(), other.len());
    let differs = one.iter().zip(&other).position(|(one, other)| one != other);
    assert_eq!(differs, None);
}

/// Returns the allocated bytes of a file.
pub(crate) fn allocated(path: &str) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// Returns the bytes of the blocks of 4 KiB that are not zero. What is allocated of a lent file in memory says
/// less: reading its holes through a mapping allocates them.
fn written(path: &str) -> u64 {
    let contents = fs::read(path).unwrap_or_default();
    contents.chunks(4096).filter(|block| block.iter().any(|byte| *byte != 0)).count() as u64 * 4096
}

/// Waits until a copy has written this much of the file. The time depends on the machine.
#[track_caller]
pub(crate) fn until_arrived(path: &str, bytes: u64) {
    let end = Instant::now() + LONG;
    while written(path) < bytes {
        assert!(Instant::now() < end, "{path} does not come");
        sleep(Duration::from_millis(5));
    }
}

/// Waits until a server listens on the socket.
#[track_caller]
pub(crate) fn until_listens(socket: &str) {
    let end = Instant::now() + LONG;
    while UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < end, "nobody listens at {socket}");
        sleep(Duration::from_millis(10));
    }
}

/// Returns whether the program is installed; prints a note if not.
pub(crate) fn has(program: &str) -> bool {
    !programs::lacks(&format!("a copy with {program}"), &[program])
}

/// A loop device over a file; detached when dropped.
pub(crate) struct Attached(pub(crate) String);

impl Attached {
    /// Attaches the file with logical blocks of that size.
    pub(crate) fn new(path: &str, block: u32) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skip a copy to a block device: only root makes loop devices");
            return None;
        }
        if programs::lacks("a copy to a block device", &["losetup"]) {
            return None;
        }
        let size = ["--find", "--show", "--sector-size", &block.to_string(), path];
        let run = programs::command("losetup").args(size).output();
        let run = run.ok().filter(|run| run.status.success());
        if run.is_none() {
            println!("skip a copy to a block device: no loop devices here");
        }
        Some(Self(String::from_utf8(run?.stdout).unwrap().trim().to_owned()))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = programs::command("losetup").args(["--detach", &self.0]).status();
    }
}
