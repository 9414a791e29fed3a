//! Reads any bytes of a place, for who looks at what is on its disk. It knows no disk and waits for each answer.

use std::cell::RefCell;
use std::io;
use std::time::{Duration, Instant};

use ::copy::{Disk, Lane, Place, Waits, Work};
use export::{Account, Pool};
use linux::medium::ReadAt;
use rustix::event::{PollFd, Timespec, poll};

/// Bytes that are read at once at most.
const MOST: u64 = 256 << 10;
/// How long one read may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a lane that waits for nothing in particular is left alone.
const LOOK: Duration = Duration::from_millis(20);

/// One way to a disk, read at any offset.
pub(super) struct Reading {
    disk: Disk,
    lane: RefCell<Box<dyn Lane>>,
    memory: Account,
}

impl Reading {
    /// Of that place.
    ///
    /// # Errors
    /// A sentence: there is no way to it.
    pub(super) fn open(place: &dyn Place) -> Result<Self, String> {
        let (disk, lane) = place.open().map_err(|error| error.to_string())?;
        let memory = Pool::new(1 << 20).open();
        Ok(Self { disk, lane: RefCell::new(lane), memory })
    }

    /// Bytes of the disk.
    pub(super) fn bytes(&self) -> u64 {
        self.disk.bytes
    }

    /// Reads whole blocks.
    fn blocks(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let size = usize::try_from(len).unwrap_or(0);
        let buffer = self.memory.take(size).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut lane = self.lane.borrow_mut();
        lane.submit(0, Work::Read { offset, buffer });
        let until = Instant::now() + PATIENCE;
        loop {
            lane.advance().map_err(|lost| io::Error::other(lost.reason))?;
            if let Some(ended) = lane.ended() {
                ended.result.map_err(io::Error::other)?;
                let buffer = ended.buffer.ok_or(io::ErrorKind::UnexpectedEof)?;
                return Ok(buffer.bytes().to_vec());
            }
            if Instant::now() > until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let timeout = Timespec::try_from(LOOK).ok();
            if let Waits::For(fd, flags) = lane.waits() {
                let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
                let _ = poll(&mut fds, timeout.as_ref());
            }
        }
    }
}

impl ReadAt for Reading {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let block = u64::from(self.disk.block).max(1);
        let most = MOST.min(self.disk.largest.into());
        let end = offset.saturating_add(buffer.len() as u64).min(self.disk.bytes);
        let start = offset - offset % block;
        let len = end.saturating_sub(start).min(most).next_multiple_of(block);
        if offset >= end {
            return Ok(0);
        }
        let bytes = self.blocks(start, len.min(self.disk.bytes - start))?;
        let skip = usize::try_from(offset - start).unwrap_or(usize::MAX);
        let bytes = bytes.get(skip..).unwrap_or_default();
        let count = bytes.len().min(buffer.len());
        buffer.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Ok(count)
    }
}
