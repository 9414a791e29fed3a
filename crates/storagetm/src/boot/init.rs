//! PID 1: supervises the child process that exports the disks, or that starts a system from a lent disk.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use console::Key;
use daemon::settings::Settings;
use linux::pid1::{self, Exit, Power};
use linux::signal::{Signal, Signals};
use linux::tree::Tree;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, kill_process};

use crate::boot::lent;
use crate::boot::status::{POWER_OFF, RESTART};
use crate::boot::target_mode::TARGET_MODE;
use crate::console_ui::screens::Screens;

/// Time for the child to disconnect its hosts after SIGTERM.
const TERM_TIMEOUT: Duration = Duration::from_secs(15);

/// Time for a process to end after SIGKILL; one that waits for a disk that does not answer may
/// never end.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of the child's standard error that are shown after a crash.
const STDERR_TAIL: usize = 1500;

/// Process id of the child, for the signal thread; 0 if there is none.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// What a signal requested: 0 nothing, 1 power off, 2 restart.
static REQUESTED: AtomicU8 = AtomicU8::new(0);

/// Runs until the machine is powered off or restarted.
pub(super) fn run() -> ! {
    let problems = pid1::mount_all();
    // If this fails, Ctrl-Alt-Del restarts the machine at once.
    let _ = pid1::catch_ctrl_alt_del();
    let tree = Tree::machine();
    handle_signals();
    let mut power = loop {
        let power = std::panic::catch_unwind(|| supervise(&tree, &problems)).ok();
        let power = power.or_else(|| prompt(&tree, "the first program of the machine failed"));
        if let Some(power) = power {
            break power;
        }
    };
    loop {
        // A request is tried once; if the shutdown fails, a new one is needed.
        REQUESTED.store(0, Ordering::SeqCst);
        let error = pid1::shut_down(power);
        let text = format!("The machine cannot be ended by itself ({error}): press its button.");
        power = prompt(&tree, &text).unwrap_or(power);
    }
}

/// Runs the child, and starts it again if the user asks for that after a failure.
fn supervise(tree: &Tree, problems: &[String]) -> Power {
    if !problems.is_empty()
        && let Some(power) = prompt(tree, &problems.join("\n"))
    {
        return power;
    }
    loop {
        let reason = match start(tree) {
            Ok((child, text)) => match wait_for_child(&child, text) {
                Ok(power) => return power,
                Err(reason) => reason,
            },
            Err(error) => format!("the program cannot be started: {error}"),
        };
        if let Some(power) = requested().or_else(|| prompt(tree, &reason)) {
            return power;
        }
    }
}

fn start(tree: &Tree) -> std::io::Result<(Child, thread::JoinHandle<String>)> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("boot").env(TARGET_MODE, "1").stderr(Stdio::piped());
    let becomes_init = lent::is_wanted(tree);
    if becomes_init {
        // systemd does not end a process with this name: the root would lose its network (Root Storage Daemons).
        command.arg0("@storagetm").stdin(Stdio::piped()).stdout(Stdio::piped());
    }
    let mut child = command.spawn()?;
    if let (Some(requests), Some(answers)) = (child.stdout.take(), child.stdin.take()) {
        thread::spawn(move || switch_on_request(requests, answers));
    }
    CHILD.store(child.id().cast_signed(), Ordering::SeqCst);
    if requested().is_some() {
        // The signal came before the child existed.
        signal_child(rustix::process::Signal::TERM);
    }
    let errors = child.stderr.take();
    let text = thread::spawn(move || errors.map(stderr_tail).unwrap_or_default());
    Ok((child, text))
}

/// Becomes the init of the system that the child has prepared, when the child asks for it. The descriptors of the child
/// are closed then; if it fails, the child gets the reason.
fn switch_on_request(requests: ChildStdout, mut answers: ChildStdin) {
    // The words of the kernel command line that are for the first process (`single`, `3`).
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    for line in BufReader::new(requests).lines().map_while(Result::ok) {
        let Some(init) = line.strip_prefix(lent::SWITCH) else { continue };
        let error = linux::root::switch(Path::new(lent::ROOT), init, &words);
        let _ = writeln!(answers, "{error}");
    }
}

/// Returns the last [`STDERR_TAIL`] bytes of the stream.
fn stderr_tail(mut from: impl Read) -> String {
    let mut text = Vec::new();
    let mut some = [0; 1024];
    while let Ok(n @ 1..) = from.read(&mut some) {
        text.extend_from_slice(some.get(..n).unwrap_or_default());
        let surplus = text.len().saturating_sub(STDERR_TAIL);
        text.drain(..surplus);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Waits for the child's end. Returns the requested power state, or the reason for the failure.
fn wait_for_child(child: &Child, text: thread::JoinHandle<String>) -> Result<Power, String> {
    let pid = Pid::from_child(child);
    let ended = pid1::wait_for(pid);
    CHILD.store(0, Ordering::SeqCst);
    if let Some(power) = requested() {
        return Ok(power);
    }
    let text = text.join().unwrap_or_default();
    let cause = match ended {
        Ok(Exit::Exited(POWER_OFF)) => return Ok(Power::Off),
        Ok(Exit::Exited(RESTART)) => return Ok(Power::Restart),
        Ok(Exit::Exited(status)) => format!("the program ended with status {status}"),
        Ok(Exit::Killed(signal)) => format!("the program was ended by signal {signal}"),
        Err(error) => format!("the program is lost: {error}"),
    };
    Err(format!("{}\n({cause})", text.trim()))
}

fn requested() -> Option<Power> {
    match REQUESTED.load(Ordering::SeqCst) {
        1 => Some(Power::Off),
        2 => Some(Power::Restart),
        _ => None,
    }
}

/// Ctrl-Alt-Del is delivered as SIGINT.
fn handle_signals() {
    let Ok(mut signals) = Signals::open() else { return };
    thread::spawn(move || {
        loop {
            let _ = poll(&mut [PollFd::new(&signals, PollFlags::IN)], None);
            for signal in signals.receive() {
                match signal {
                    Signal::Interrupt => begin_shutdown(2, Power::Restart),
                    Signal::Terminate => begin_shutdown(1, Power::Off),
                    Signal::HangUp
                    | Signal::WindowChange
                    | Signal::Continue
                    | Signal::ReopenPairing => {}
                }
            }
        }
    });
}

/// Sends SIGTERM to the child, then SIGKILL after [`TERM_TIMEOUT`], then powers off without it.
fn begin_shutdown(requested: u8, power: Power) {
    REQUESTED.store(requested, Ordering::SeqCst);
    signal_child(rustix::process::Signal::TERM);
    thread::spawn(move || {
        thread::sleep(TERM_TIMEOUT);
        signal_child(rustix::process::Signal::KILL);
        thread::sleep(KILL_TIMEOUT);
        pid1::shut_down(power)
    });
}

fn signal_child(signal: rustix::process::Signal) {
    if let Some(pid) = Pid::from_raw(CHILD.load(Ordering::SeqCst)) {
        let _ = kill_process(pid, signal);
    }
}

/// Shows why no disk is exported, or attached, and waits for a key. Returns `None` to try again. Restarts after
/// the time of `storagetm.return=`, if it is given.
fn prompt(tree: &Tree, reason: &str) -> Option<Power> {
    let mut screens = Screens::open(tree);
    let what = if lent::is_wanted(tree) { "no system has been started" } else { "no disk is lent" };
    screens.print(&format!(
        "storagetm: {what}.\n\n{}\n\nEnter try again   p power off   r restart\n",
        console::escape_lines_to_ascii(reason)
    ));
    let start = Instant::now();
    let limit = Settings::read(tree).return_after;
    loop {
        if let Some(power) = requested() {
            return Some(power);
        }
        if limit.is_some_and(|limit| start.elapsed() >= limit) {
            return Some(Power::Restart);
        }
        screens.wait(Duration::from_secs(1));
        for key in screens.receive() {
            match key {
                Key::Byte(b'p' | b'P') => return Some(Power::Off),
                Key::Byte(b'r' | b'R') => return Some(Power::Restart),
                Key::Byte(b'\r' | b'\n') => return None,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn stderr_tail_is_bounded() {
        let text = format!("{}the end", "x".repeat(5000));
        let text = stderr_tail(text.as_bytes());
        assert_eq!(text.len(), STDERR_TAIL);
        assert!(text.ends_with("xthe end"));
    }
}
