//! Flushes disks in helper processes (`storagetm flush`): a process that is blocked in a flush
//! cannot exit.

use std::io;
use std::os::fd::AsFd;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use failure::Failure;
use ipc::spawn;

/// Poll interval.
const PAUSE: Duration = Duration::from_millis(10);

/// Exit status for errors whose number does not fit.
const FAILED: u8 = 255;

/// A flush in progress. It continues when this is dropped.
#[derive(Debug)]
pub struct Flush(Child);

impl Flush {
    /// Starts to flush `disk` to stable storage.
    ///
    /// # Errors
    /// Fails if descriptors, memory or processes are exhausted.
    pub fn start(disk: impl AsFd) -> io::Result<Self> {
        spawn::with_stdin("flush", disk.as_fd().try_clone_to_owned()?).map(Self)
    }

    /// Returns the result, or `None` if the flush is in progress. Does not block.
    pub fn ended(&mut self) -> Option<io::Result<()>> {
        let status = self.0.try_wait().transpose()?;
        Some(status.and_then(outcome))
    }

    /// Blocks until the flush is complete and returns the result.
    pub fn outcome(mut self) -> io::Result<()> {
        self.0.wait().and_then(outcome)
    }

    /// Waits for the result until `end`.
    ///
    /// Fails with `TimedOut` if it has not.
    pub fn wait(&mut self, end: Instant) -> io::Result<()> {
        loop {
            match self.ended() {
                Some(result) => return result,
                None if Instant::now() >= end => return Err(io::ErrorKind::TimedOut.into()),
                None => std::thread::sleep(PAUSE),
            }
        }
    }
}

/// Errors of fdatasync(2). Any other exit status means that the process failed before that.
const KNOWN: [Errno; 10] = [
    Errno::IO,
    Errno::NOSPC,
    Errno::DQUOT,
    Errno::ROFS,
    Errno::INVAL,
    Errno::NXIO,
    Errno::NODEV,
    Errno::NOMEDIUM,
    Errno::TIMEDOUT,
    Errno::STALE,
];

fn outcome(status: ExitStatus) -> io::Result<()> {
    if status.success() {
        return Ok(());
    }
    let is_it = |errno: &&Errno| Some(errno.raw_os_error()) == status.code();
    let known = KNOWN.iter().find(is_it);
    Err((*known.unwrap_or(&Errno::IO)).into())
}

/// `storagetm flush`: flushes the disk that is its standard input. The exit status is the errno, or
/// 0.
///
/// # Errors
/// Does not fail: the exit status has the error.
pub fn work() -> Result<(), Failure> {
    let status = match rustix::fs::fdatasync(io::stdin()) {
        Ok(()) => 0,
        Err(error) => u8::try_from(error.raw_os_error()).unwrap_or(FAILED),
    };
    std::process::exit(status.into())
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn unknown_exit_status_is_an_io_error() {
        let of = |code: i32| outcome(ExitStatus::from_raw(code << 8)).unwrap_err().raw_os_error();
        let (io, full) = (Errno::IO.raw_os_error(), Errno::NOSPC.raw_os_error());
        // Usage errors (2) and panics (101) are not errnos of fdatasync.
        assert_eq!([28, 2, 101, 255].map(of), [full, io, io, io].map(Some));
        let killed = outcome(ExitStatus::from_raw(9)).unwrap_err();
        assert_eq!(killed.raw_os_error(), Some(io));
        assert!(outcome(ExitStatus::from_raw(0)).is_ok());
    }
}
