//! Flushes disks by processes of their own (`storagetm flush`): a flush that never ends would keep the process that
//! waits for it from ending.

use std::io;
use std::os::fd::AsFd;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use failure::Failure;
use ipc::spawn;

/// Between two looks at whether it has ended.
const PAUSE: Duration = Duration::from_millis(10);

/// The exit status for an error that has no number that fits.
const FAILED: u8 = 255;

/// A flush that is under way. One that is dropped goes on by itself.
#[derive(Debug)]
pub struct Flush(Child);

impl Flush {
    /// Starts to put on stable storage what was written to `disk`.
    ///
    /// # Errors
    /// There is no descriptor, no memory, or nothing to start.
    pub fn start(disk: impl AsFd) -> io::Result<Self> {
        spawn::with_stdin("flush", disk.as_fd().try_clone_to_owned()?).map(Self)
    }

    /// Returns how it ended; `None` if it has not. Never waits.
    pub fn ended(&mut self) -> Option<io::Result<()>> {
        let status = self.0.try_wait().transpose()?;
        Some(status.and_then(outcome))
    }

    /// Waits until it has ended, however long that takes; returns how.
    pub fn outcome(mut self) -> io::Result<()> {
        self.0.wait().and_then(outcome)
    }

    /// Waits until it has ended, at most until `end`; returns how it ended.
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

/// What fdatasync(2) fails with. Any other exit status is that of a process that has not got so far.
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

/// `storagetm flush`: flushes what is its standard input. The exit status is the number of the error, or 0.
///
/// # Errors
/// None: the exit status has it.
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
    fn exit_status_of_no_flush_is_an_io_error() {
        let of = |code: i32| outcome(ExitStatus::from_raw(code << 8)).unwrap_err().raw_os_error();
        let (io, full) = (Errno::IO.raw_os_error(), Errno::NOSPC.raw_os_error());
        // Wrong usage (2) and a panic (101) are no numbers of errors.
        assert_eq!([28, 2, 101, 255].map(of), [full, io, io, io].map(Some));
        let killed = outcome(ExitStatus::from_raw(9)).unwrap_err();
        assert_eq!(killed.raw_os_error(), Some(io));
        assert!(outcome(ExitStatus::from_raw(0)).is_ok());
    }
}
