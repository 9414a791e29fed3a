//! Flushes disks by processes of their own (`storagetm flush`): a flush that never ends would keep the process that
//! waits for it from ending.

use std::io;
use std::os::fd::AsFd;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::failure::Failure;
use crate::helper;

/// Between two looks at whether it has ended.
const PAUSE: Duration = Duration::from_millis(10);

/// The exit status for an error that has no number that fits.
const FAILED: u8 = 255;

/// A flush that is under way. One that is dropped goes on by itself.
#[derive(Debug)]
pub(crate) struct Flush(Child);

impl Flush {
    /// Starts to put on stable storage what was written to `disk`.
    ///
    /// # Errors
    /// There is no descriptor, no memory, or nothing to start.
    pub(crate) fn start(disk: impl AsFd) -> io::Result<Self> {
        helper::start("flush", disk.as_fd().try_clone_to_owned()?).map(Self)
    }

    /// Returns how it ended; `None` if it has not. Never waits.
    pub(crate) fn ended(&mut self) -> Option<io::Result<()>> {
        let status = self.0.try_wait().transpose()?;
        Some(status.and_then(outcome))
    }

    /// Waits until it has ended, however long that takes; returns how.
    pub(crate) fn outcome(mut self) -> io::Result<()> {
        self.0.wait().and_then(outcome)
    }

    /// Waits until it has ended, at most until `end`; returns how it ended.
    ///
    /// Fails with `TimedOut` if it has not.
    pub(crate) fn wait(&mut self, end: Instant) -> io::Result<()> {
        loop {
            match self.ended() {
                Some(result) => return result,
                None if Instant::now() >= end => return Err(io::ErrorKind::TimedOut.into()),
                None => std::thread::sleep(PAUSE),
            }
        }
    }
}

fn outcome(status: ExitStatus) -> io::Result<()> {
    match status.code() {
        Some(0) => Ok(()),
        Some(code) if code != i32::from(FAILED) => Err(io::Error::from_raw_os_error(code)),
        _ => Err(Errno::IO.into()),
    }
}

/// `storagetm flush`: flushes what is its standard input. The exit status is the number of the error, or 0.
///
/// # Errors
/// None: the exit status has it.
pub(crate) fn work() -> Result<(), Failure> {
    let status = match rustix::fs::fdatasync(io::stdin()) {
        Ok(()) => 0,
        Err(error) => u8::try_from(error.raw_os_error()).unwrap_or(FAILED),
    };
    std::process::exit(status.into())
}
