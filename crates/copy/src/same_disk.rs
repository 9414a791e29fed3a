//! Checks that a reconnected disk is the same as before and answers, by reading samples again.

use std::time::{Duration, Instant};

use export::{Buffer, Pool};
use rustix::event::{PollFd, Timespec, poll};

use crate::connection::until;
use crate::sample::Sample;
use crate::{Connection, ConnectionLost, Interest, Request, RequestError};

/// Maximum time of one read: long enough for a disk to spin up.
const READ_TIMEOUT: Duration = Duration::from_secs(40);

/// Maximum time of one poll.
const WAIT: Duration = Duration::from_millis(100);

/// Reads samples over a new connection and drops those that are unchanged. Stops at the first
/// changed one and returns the difference. An unreadable sample is ignored if another one is
/// unchanged.
///
/// # Errors
/// Fails if the connection is lost, or if no sample can be read; then no sample is left.
pub(crate) fn check_samples(
    connection: &mut dyn Connection,
    samples: &mut Vec<Sample>,
) -> Result<Option<String>, ConnectionLost> {
    let (some, mut confirmed, mut unread) = (!samples.is_empty(), false, Vec::new());
    while let Some(sample) = samples.pop() {
        let at = sample.range.start;
        let len = usize::try_from(sample.range.end - at).unwrap_or(usize::MAX);
        match read_sync(connection, at, len) {
            Ok(Ok(buffer)) if sample.matches(buffer.bytes()) => confirmed = true,
            Ok(Ok(_)) => {
                return Ok(Some(format!("its data at byte {at} has changed")));
            }
            Ok(Err(_)) => unread.push(sample),
            Err(lost) => {
                // A sample that was confirmed also vouches for the unreadable ones on the next
                // connection.
                let unread = if confirmed { Vec::new() } else { unread };
                samples.splice(0..0, unread);
                samples.push(sample);
                return Err(lost);
            }
        }
    }
    if some && !confirmed {
        return Err(ConnectionLost::new(
            "none of the samples can be read, so it may be another disk",
        ));
    }
    Ok(None)
}

/// Reads `len` bytes at `offset` over a connection with nothing in flight, and waits for them. The
/// inner result is that of the read.
///
/// # Errors
/// Fails if the connection is lost, or if the reply does not arrive in time.
pub fn read_sync(
    connection: &mut dyn Connection,
    offset: u64,
    len: usize,
) -> Result<Result<Buffer, RequestError>, ConnectionLost> {
    let memory = Pool::new(len.next_multiple_of(4096)).open();
    let buffer = memory.take(len).ok_or_else(|| ConnectionLost::new("out of memory"))?;
    let end = Instant::now() + READ_TIMEOUT;
    connection.submit(0, Request::Read { offset, buffer });
    loop {
        connection.advance()?;
        if let Some(completion) = connection.next_completion() {
            let buffer = completion.buffer.ok_or(RequestError::Refused);
            return Ok(completion.result.and(buffer));
        }
        if Instant::now() > end {
            return Err(ConnectionLost::silent(READ_TIMEOUT));
        }
        wait(connection);
    }
}

fn wait(connection: &dyn Connection) {
    let timeout = until(connection.deadline(), Instant::now(), WAIT);
    match connection.interest() {
        Interest::Fd(fd, flags) => {
            let timeout = Timespec::try_from(timeout).unwrap_or_default();
            // Interrupted or out of memory: the caller tries again.
            let _ = poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&timeout));
        }
        Interest::None => {}
    }
}
