//! A process that reads an image or a disk for this one, and writes a message to standard error.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{Child, ChildStderr, ExitStatus};
use std::time::{Duration, Instant};

use ipc::spawn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Longest message of the process.
const MAX_MESSAGE: usize = 4096;
/// Longest time that reading takes: less than services may take to start.
const TIMEOUT: Duration = Duration::from_secs(240);

/// Reads what the process writes until it ends. Returns that, and how it ended. A process that is not read to its end is
/// killed, which takes effect when the disk responds on which it may be blocked.
///
/// # Errors
/// Fails if it does not end in time.
pub(super) fn message(mut child: Child) -> io::Result<(Vec<u8>, io::Result<ExitStatus>)> {
    let read = child.stderr.take().map_or_else(|| Ok(Vec::new()), read_to_end);
    match read {
        Ok(message) => Ok((message, child.wait())),
        Err(error) => {
            let _ = child.kill();
            spawn::reap(child);
            Err(error)
        }
    }
}

fn read_to_end(mut from: ChildStderr) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + TIMEOUT;
    let mut message = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        let mut fds = [PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN)];
        if rustix::io::retry_on_intr(|| poll(&mut fds, timeout.as_ref()))? == 0 {
            return Err(io::Error::other("reading it takes too long"));
        }
        let mut piece = [0; 512];
        match from.read(&mut piece)? {
            0 => return Ok(message),
            _ if message.len() >= MAX_MESSAGE => {}
            len => message.extend_from_slice(piece.get(..len).unwrap_or_default()),
        }
    }
}
