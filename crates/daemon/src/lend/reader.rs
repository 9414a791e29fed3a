//! A process that reads an image or a disk for this one, and writes a message to standard error.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, ChildStderr};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Longest message of the process.
const MAX_MESSAGE: usize = 4096;
/// Longest time that reading takes: less than services may take to start.
const TIMEOUT: Duration = Duration::from_secs(240);

/// The process; killed when dropped.
pub(super) struct Reader(pub(super) Child);

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads what the process writes until it ends.
///
/// # Errors
/// Fails if it does not end in time.
pub(super) fn message(mut from: ChildStderr) -> std::io::Result<Vec<u8>> {
    let deadline = Instant::now() + TIMEOUT;
    let mut message = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        let mut fds = [PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN)];
        if rustix::io::retry_on_intr(|| poll(&mut fds, timeout.as_ref()))? == 0 {
            return Err(std::io::Error::other("reading it takes too long"));
        }
        let mut piece = [0; 512];
        match from.read(&mut piece)? {
            0 => return Ok(message),
            _ if message.len() >= MAX_MESSAGE => {}
            len => message.extend_from_slice(piece.get(..len).unwrap_or_default()),
        }
    }
}
