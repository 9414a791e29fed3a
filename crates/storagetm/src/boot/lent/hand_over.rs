//! The change from this program to the init of a prepared system.

use std::io::{self, BufRead, Write};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use daemon::inbox::Inbox;
use failure::Failure;

/// What is asked of PID 1, followed by the path of the system's init.
pub(crate) const SWITCH: &str = "switch-root ";

/// How long a driver that is being loaded is waited for before the system starts.
const LOADING: Duration = Duration::from_secs(5);

/// The pause before a lock is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// Has PID 1 become the init of the prepared system. Returns only if that fails.
pub(super) fn hand_over(inbox: &Inbox, init: &str) -> Failure {
    // Without this process the system would lose its root when the kernel connects again.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = linux::memory::lock();
    let mut output = io::stdout().lock();
    let told = writeln!(output, "{SWITCH}{init}").and_then(|()| output.flush());
    if let Err(error) = told {
        return Failure::new(format!("PID 1 cannot be told: {error}"));
    }
    let mut answer = String::new();
    match io::stdin().lock().read_line(&mut answer) {
        // PID 1 is another program now, and its end of the pipe is closed.
        Ok(0) => stay(inbox),
        Ok(_) => Failure::new(format!("the system does not start: {}", answer.trim())),
        Err(error) => Failure::new(format!("PID 1 does not answer: {error}")),
    }
}

/// Holds the network and does handshakes on the threads of this process, for as long as the system runs.
fn stay(inbox: &Inbox) -> ! {
    loop {
        // The consoles are those of the system now.
        drop(inbox.receive());
        std::thread::sleep(Duration::from_secs(60));
    }
}

/// Returns the lock, unless it is held by another for longer: by a driver that waits for its hardware.
pub(super) fn lock(lock: &Mutex<()>) -> Option<MutexGuard<'_, ()>> {
    let end = Instant::now() + LOADING;
    loop {
        match lock.try_lock() {
            Ok(held) => return Some(held),
            Err(_) if Instant::now() >= end => return None,
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}
