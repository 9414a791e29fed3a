//! Pauses between attempts at a request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::Error;

/// Pause after a failure, at first and at most.
pub(crate) const PAUSE: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(10)];
/// How often it is looked whether to stop.
const LOOK: Duration = Duration::from_millis(100);

/// Returns what `open` returns, which is called again for `patience` while its error is temporary.
///
/// # Errors
/// Fails with the last error of `open`.
pub(crate) fn waiting<T>(
    patience: Duration,
    open: impl Fn() -> Result<T, Error>,
) -> Result<T, Error> {
    let mut retries = Retries::new(patience, &[]);
    loop {
        match open() {
            Ok(opened) => return Ok(opened),
            Err(error) => retries.wait(error)?,
        }
    }
}

/// Decides whether a request is made again.
#[derive(Debug)]
pub(crate) struct Retries<'a> {
    patience: Duration,
    /// `patience` after the first failure.
    end: Option<Instant>,
    pause: Duration,
    stops: &'a [&'a AtomicBool],
}

impl<'a> Retries<'a> {
    /// Requests are made again for this time after the first failure, however long that request took, unless one of
    /// `stops` is set.
    pub(crate) fn new(patience: Duration, stops: &'a [&'a AtomicBool]) -> Self {
        Self { patience, end: None, pause: PAUSE[0], stops }
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// Fails with the error of the last attempt if there is to be no other one.
    pub(crate) fn wait(&mut self, error: Error) -> Result<(), Error> {
        let now = Instant::now();
        let (resume, end) = (now + self.pause, *self.end.get_or_insert(now + self.patience));
        if !error.is_temporary() || resume > end {
            return Err(error);
        }
        self.pause = (self.pause * 2).min(PAUSE[1]);
        while Instant::now() < resume {
            if self.stops.iter().any(|stop| stop.load(Ordering::Acquire)) {
                return Err(error);
            }
            thread::sleep(LOOK.min(resume.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }
}
