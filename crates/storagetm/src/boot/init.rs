//! The first program of the machine. It knows no disk and no network.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use console::Key;
use linux::pid1::{self, Exit, Power};
use linux::signal::{Signal, Signals};
use linux::tree::Tree;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, kill_process};

use crate::boot::station::{POWER_OFF, RESTART, STATION};
use crate::desk::screens::Screens;

/// How long the station may take to let its hosts go.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long a process may take to be ended; one that waits for a disk that answers no more cannot be.
const MERCY: Duration = Duration::from_secs(5);

/// Bytes of the station's last words that are shown.
const LAST_WORDS: usize = 1500;

/// The station's process, for the thread that hears signals; 0 if there is none.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// What a signal asked for: 0 nothing, 1 to power off, 2 to restart.
static ASKED: AtomicU8 = AtomicU8::new(0);

/// Runs the machine to its end.
pub(super) fn run() -> ! {
    let problems = pid1::mount_all();
    // Without it Ctrl-Alt-Del restarts the machine at once, which is no worse than it always was.
    let _ = pid1::catch_ctrl_alt_del();
    let tree = Tree::machine();
    hear_signals();
    let mut how = loop {
        let how = std::panic::catch_unwind(|| supervise(&tree, &problems)).ok();
        let how = how.or_else(|| ask(&tree, "the first program of the machine failed"));
        if let Some(how) = how {
            break how;
        }
    };
    loop {
        // What was asked for is tried now; if it does not work, somebody must be heard anew.
        ASKED.store(0, Ordering::SeqCst);
        let error = pid1::shut_down(how);
        let words = format!("The machine cannot be ended by itself ({error}): press its button.");
        how = ask(&tree, &words).unwrap_or(how);
    }
}

/// Has a station run, and another one if somebody wants that after a failure.
fn supervise(tree: &Tree, problems: &[String]) -> Power {
    if !problems.is_empty()
        && let Some(power) = ask(tree, &problems.join("\n"))
    {
        return power;
    }
    loop {
        let reason = match start() {
            Ok((child, words)) => match live(&child, words) {
                Ok(power) => return power,
                Err(reason) => reason,
            },
            Err(error) => format!("the program cannot be started: {error}"),
        };
        if let Some(power) = asked().or_else(|| ask(tree, &reason)) {
            return power;
        }
    }
}

fn start() -> std::io::Result<(Child, thread::JoinHandle<String>)> {
    let mut child = Command::new("/proc/self/exe")
        .arg("boot")
        .env(STATION, "1")
        .stderr(Stdio::piped())
        .spawn()?;
    CHILD.store(child.id().cast_signed(), Ordering::SeqCst);
    if asked().is_some() {
        // It was asked for before there was anybody to be told.
        signal_child(rustix::process::Signal::TERM);
    }
    let errors = child.stderr.take();
    let words = thread::spawn(move || errors.map(last_words).unwrap_or_default());
    Ok((child, words))
}

/// The end of all that is said.
fn last_words(mut from: impl Read) -> String {
    let mut words = Vec::new();
    let mut some = [0; 1024];
    while let Ok(n @ 1..) = from.read(&mut some) {
        words.extend_from_slice(some.get(..n).unwrap_or_default());
        let surplus = words.len().saturating_sub(LAST_WORDS);
        words.drain(..surplus);
    }
    String::from_utf8_lossy(&words).into_owned()
}

/// Waits for the station's end: what the machine is to do then, or why nobody knows.
fn live(child: &Child, words: thread::JoinHandle<String>) -> Result<Power, String> {
    let pid = Pid::from_child(child);
    let ended = pid1::wait_for(pid);
    CHILD.store(0, Ordering::SeqCst);
    if let Some(power) = asked() {
        return Ok(power);
    }
    let words = words.join().unwrap_or_default();
    let how = match ended {
        Ok(Exit::Exited(POWER_OFF)) => return Ok(Power::Off),
        Ok(Exit::Exited(RESTART)) => return Ok(Power::Restart),
        Ok(Exit::Exited(status)) => format!("the program ended with status {status}"),
        Ok(Exit::Killed(signal)) => format!("the program was ended by signal {signal}"),
        Err(error) => format!("the program is lost: {error}"),
    };
    Err(format!("{}\n({how})", words.trim()))
}

fn asked() -> Option<Power> {
    match ASKED.load(Ordering::SeqCst) {
        1 => Some(Power::Off),
        2 => Some(Power::Restart),
        _ => None,
    }
}

/// Ctrl-Alt-Del comes as SIGINT; SIGTERM is for whoever can send one.
fn hear_signals() {
    let Ok(mut signals) = Signals::open() else { return };
    thread::spawn(move || {
        loop {
            let _ = poll(&mut [PollFd::new(&signals, PollFlags::IN)], None);
            for signal in signals.receive() {
                match signal {
                    Signal::Interrupt => wind_up(2, Power::Restart),
                    Signal::Terminate => wind_up(1, Power::Off),
                    Signal::HangUp
                    | Signal::WindowChange
                    | Signal::Continue
                    | Signal::ReopenPairing => {}
                }
            }
        }
    });
}

/// Has the station end; if it does not, ends it; if that does not work either, ends the machine.
fn wind_up(asked: u8, how: Power) {
    ASKED.store(asked, Ordering::SeqCst);
    signal_child(rustix::process::Signal::TERM);
    thread::spawn(move || {
        thread::sleep(PATIENCE);
        signal_child(rustix::process::Signal::KILL);
        thread::sleep(MERCY);
        pid1::shut_down(how)
    });
}

fn signal_child(signal: rustix::process::Signal) {
    if let Some(pid) = Pid::from_raw(CHILD.load(Ordering::SeqCst)) {
        let _ = kill_process(pid, signal);
    }
}

/// Shows why nothing is lent, and waits for a key: nothing if it is to be tried again.
fn ask(tree: &Tree, reason: &str) -> Option<Power> {
    let mut screens = Screens::open(tree);
    screens.say(&format!(
        "storagetm: no disk is lent.\n\n{}\n\nEnter try again   p power off   r restart\n",
        console::printable_lines(reason)
    ));
    loop {
        if let Some(power) = asked() {
            return Some(power);
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
    fn last_words_are_the_last() {
        let text = format!("{}the end", "x".repeat(5000));
        let words = last_words(text.as_bytes());
        assert_eq!(words.len(), LAST_WORDS);
        assert!(words.ends_with("xthe end"));
    }
}
