//! Stops a copy on SIGINT, SIGTERM or SIGHUP.

use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use linux::signal::{Signal, Signals};
use rustix::event::{PollFd, PollFlags, poll};

use failure::Failure;

/// Exit status after a second signal.
const INTERRUPTED_STATUS: i32 = 6;

/// What is done before the program ends by the second signal. Returns a sentence for the user, if something is left.
type LastAct = Box<dyn FnOnce() -> Option<String> + Send>;

/// What signals do.
#[derive(Clone)]
pub(super) struct Interrupt {
    /// Set by the first signal.
    pub(super) stop: Arc<AtomicBool>,
    last: Arc<Mutex<Option<LastAct>>>,
}

impl Interrupt {
    /// Has the second signal do this before the program ends. The third one does not wait for it.
    pub(super) fn before_end(&self, act: impl FnOnce() -> Option<String> + Send + 'static) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(act));
    }

    fn end(&self) {
        let act = self.last.lock().unwrap_or_else(PoisonError::into_inner).take();
        let exit = || std::process::exit(INTERRUPTED_STATUS);
        let Some(act) = act else { exit() };
        let act = move || {
            if let Some(sentence) = act() {
                let _ = writeln!(io::stderr(), "storagetm: {sentence}");
            }
            std::process::exit(INTERRUPTED_STATUS)
        };
        if thread::Builder::new().name("end".to_owned()).spawn(act).is_err() {
            exit()
        }
    }
}

/// Starts the signal thread. The flag is set by the first signal; the second ends the program.
///
/// # Errors
/// Fails if no descriptor or thread is available.
pub(super) fn watch_signals() -> Result<Interrupt, Failure> {
    let cannot = |error| Failure::new(format!("signals cannot be received: {error}"));
    let mut signals = Signals::open().map_err(cannot)?;
    let interrupt = Interrupt { stop: Arc::default(), last: Arc::default() };
    let told = interrupt.clone();
    let watch = move || loop {
        let _ = poll(&mut [PollFd::new(&signals, PollFlags::IN)], None);
        for signal in signals.receive() {
            let ends =
                !matches!(signal, Signal::WindowChange | Signal::Continue | Signal::ReopenPairing);
            if ends && told.stop.swap(true, Ordering::Release) {
                told.end();
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(watch).map_err(cannot)?;
    Ok(interrupt)
}
