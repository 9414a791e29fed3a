//! Runs other programs with a time limit.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use testkit::Scratch;

/// Time limit of a program.
pub(crate) const LONG: Duration = Duration::from_secs(180);
pub(crate) const MIB: usize = 1 << 20;

/// A temporary folder; removed when dropped.
pub(crate) struct Folder(pub(crate) Scratch);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(Scratch::new())
    }

    pub(crate) fn path(&self, inside: &str) -> String {
        self.0.0.join(inside).to_str().unwrap().to_owned()
    }

    /// Creates an image that is one hole.
    pub(crate) fn hole(&self, name: &str, bytes: usize) -> String {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(bytes as u64).unwrap();
        path
    }

    /// Creates an image without two equal blocks.
    pub(crate) fn random_bytes(&self, name: &str, bytes: usize) -> String {
        let path = self.path(name);
        File::create(&path).unwrap().write_all(&random_bytes(bytes)).unwrap();
        path
    }

    /// Creates an image in which every third MiB is random data and the rest a hole.
    pub(crate) fn sparse(&self, name: &str, bytes: usize) -> String {
        use std::os::unix::fs::FileExt;
        let path = self.hole(name, bytes);
        let file = File::options().write(true).open(&path).unwrap();
        for at in (0..bytes).step_by(3 * MIB) {
            file.write_all_at(&random_bytes(MIB.min(bytes - at)), at as u64).unwrap();
        }
        path
    }
}

/// Bytes that do not repeat.
pub(crate) fn random_bytes(bytes: usize) -> Vec<u8> {
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    (0..bytes.div_ceil(8)).flat_map(|_| next(&mut seed).to_le_bytes()).take(bytes).collect()
}

/// Returns the next number of a pseudo-random sequence.
pub(crate) fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

pub(crate) use programs::{command as program, lacks};

/// Runs the command, which must end by itself.
pub(crate) fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let ended = Watch::on(&child);
    let output = child.wait_with_output().unwrap();
    assert!(!ended.was_late(), "{command:?} does not end: {output:?}");
    output
}

/// Returns the output of a successful run.
pub(crate) fn stdout_of(name: &str, args: &[&str]) -> String {
    let output = run(program(name).args(args));
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{name} {args:?}: {}\n{out}{error}", output.status);
    out
}

/// Runs the program, which must fail. Returns its standard error.
pub(crate) fn stderr_of_failing(name: &str, args: &[&str]) -> String {
    let output = run(program(name).args(args));
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(!output.status.success(), "{name} {args:?} went well:\n{out}");
    out + &error
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether two files hold the same.
pub(crate) fn same(one: impl AsRef<Path>, other: impl AsRef<Path>) {
    stdout_of("cmp", &[one.as_ref().to_str().unwrap(), other.as_ref().to_str().unwrap()]);
}

/// Ends a process that takes too long.
struct Watch {
    done: std::sync::mpsc::Sender<()>,
    thread: thread::JoinHandle<bool>,
}

impl Watch {
    fn on(child: &Child) -> Self {
        let pid = rustix::process::Pid::from_child(child);
        let (done, wait) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let late = wait.recv_timeout(LONG).is_err();
            if late {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            late
        });
        Self { done, thread }
    }

    fn was_late(self) -> bool {
        let _ = self.done.send(());
        self.thread.join().unwrap()
    }
}

/// Polls until the result is `Some`; panics after a time limit.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what} does not come about");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A program in the background; ended when dropped.
pub(crate) struct Background(pub(crate) Child);

impl Background {
    pub(crate) fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn();
        Self(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Sends SIGTERM and waits for the end.
    pub(crate) fn end(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        wait_for("the end of a program", || self.0.try_wait().unwrap());
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
