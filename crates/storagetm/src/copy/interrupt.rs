//! Stops a copy on SIGINT, SIGTERM or SIGHUP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use linux::signal::{Signal, Signals};
use rustix::event::{PollFd, PollFlags, poll};

use failure::Failure;

/// Exit status after a second signal.
const INTERRUPTED_STATUS: i32 = 6;

/// Starts the signal thread. The returned flag is set by the first signal; the second ends the
/// program.
///
/// # Errors
/// Fails if no descriptor or thread is available.
pub(super) fn watch_signals() -> Result<Arc<AtomicBool>, Failure> {
    let cannot = |error| Failure::new(format!("signals cannot be received: {error}"));
    let mut signals = Signals::open().map_err(cannot)?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let watch = move || loop {
        let _ = poll(&mut [PollFd::new(&signals, PollFlags::IN)], None);
        for signal in signals.receive() {
            let ends =
                !matches!(signal, Signal::WindowChange | Signal::Continue | Signal::ReopenPairing);
            if ends && told.swap(true, Ordering::Release) {
                std::process::exit(INTERRUPTED_STATUS);
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(watch).map_err(cannot)?;
    Ok(stop)
}
