//! Whether what was reached again is the same disk, and answers: samples of what it held are read once more.

use std::io;
use std::time::{Duration, Instant};

use export::{Buffer, Pool};
use rustix::event::{PollFd, Timespec, poll};

use crate::lane::until;
use crate::sample::Sample;
use crate::{Failed, Lane, Lost, Waits, Work};

/// How long one read may take: as long as a disk that is being woken.
const PATIENCE: Duration = Duration::from_secs(40);

/// How long to wait at once.
const WAIT: Duration = Duration::from_millis(100);

/// Reads samples of the disk again over a new connection, and drops those that are as before. Stops at one that is not, and
/// returns in what the disk differs. A sample that cannot be read any more proves nothing, unless another one is as before.
///
/// # Errors
/// The connection was lost; or none of the samples can be read, and then none is left.
pub(crate) fn prove(
    lane: &mut dyn Lane,
    samples: &mut Vec<Sample>,
) -> Result<Option<String>, Lost> {
    let (some, mut proven, mut unread) = (!samples.is_empty(), false, Vec::new());
    while let Some(sample) = samples.pop() {
        let at = sample.range.start;
        let len = usize::try_from(sample.range.end - at).unwrap_or(usize::MAX);
        match read_now(lane, at, len) {
            Ok(Ok(buffer)) if sample.is_of(buffer.bytes()) => proven = true,
            Ok(Ok(_)) => {
                return Ok(Some(format!("at byte {at} it holds something else than before")));
            }
            Ok(Err(_)) => unread.push(sample),
            Err(lost) => {
                // One that was read proves the next connection no less than this one.
                let unread = if proven { Vec::new() } else { unread };
                samples.splice(0..0, unread);
                samples.push(sample);
                return Err(lost);
            }
        }
    }
    if some && !proven {
        return Err(Lost::new("nothing of what it held can be read, so it may be another disk"));
    }
    Ok(None)
}

/// Reads `len` bytes at `offset` over a connection with nothing in flight, and waits for them.
///
/// # Errors
/// The connection was lost, or there was no answer in time; inside, the disk failed the read.
pub fn read_now(
    lane: &mut dyn Lane,
    offset: u64,
    len: usize,
) -> Result<Result<Buffer, Failed>, Lost> {
    let memory = Pool::new(len.next_multiple_of(4096)).open();
    let buffer = memory.take(len).ok_or_else(|| Lost::new("there is no memory for a read"))?;
    let end = Instant::now() + PATIENCE;
    lane.submit(0, Work::Read { offset, buffer });
    loop {
        lane.advance()?;
        if let Some(ended) = lane.ended() {
            let buffer = ended.buffer.ok_or(Failed::Refused);
            return Ok(ended.result.and(buffer));
        }
        if Instant::now() > end {
            return Err(Lost::new(io::Error::from(io::ErrorKind::TimedOut)));
        }
        wait(lane);
    }
}

fn wait(lane: &dyn Lane) {
    let timeout = until(lane.deadline(), Instant::now(), WAIT);
    match lane.waits() {
        Waits::For(fd, flags) => {
            let timeout = Timespec::try_from(timeout).unwrap_or_default();
            // Interrupted, or out of memory for a moment: the caller looks again.
            let _ = poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&timeout));
        }
        Waits::Nothing => {}
    }
}
