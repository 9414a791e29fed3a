//! Synchronous byte-granular access to an endpoint, one request at a time, for examining and
//! patching a disk outside of the copy.

use std::cell::RefCell;
use std::io;
use std::time::{Duration, Instant};

use ::copy::{Completion, Connection, Disk, Endpoint, Interest, Request};
use export::{Account, Pool};
use linux::medium::ReadAt;
use rustix::event::{PollFd, Timespec, poll};

/// Maximum size of one request.
const MAX_TRANSFER: u64 = 256 << 10;
/// Timeout of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// Poll interval of a connection without an event of its own.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// One connection to a disk.
pub(super) struct SyncDisk {
    disk: Disk,
    connection: RefCell<Box<dyn Connection>>,
    memory: Account,
}

impl SyncDisk {
    /// Connects to the endpoint.
    ///
    /// # Errors
    /// Fails with a sentence.
    pub(super) fn open(place: &dyn Endpoint) -> Result<Self, String> {
        let (disk, connection) = place.open().map_err(|error| error.to_string())?;
        let memory = Pool::new(1 << 20).open();
        Ok(Self { disk, connection: RefCell::new(connection), memory })
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Writes whole blocks, flushes, and reads them back with caches dropped.
    ///
    /// # Errors
    /// Fails if a request fails, or if the data differ.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let most = usize::try_from(MAX_TRANSFER.min(self.disk.max_transfer.into())).unwrap_or(512);
        let pieces = || (offset..).step_by(most.max(1)).zip(bytes.chunks(most.max(1)));
        for (at, piece) in pieces() {
            let mut buffer = self.memory.take(piece.len()).ok_or(io::ErrorKind::OutOfMemory)?;
            buffer.bytes_mut().copy_from_slice(piece);
            self.run(Request::Write { offset: at, buffer, part: 0..piece.len() })?;
        }
        self.run(Request::Flush)?;
        self.connection.borrow_mut().drop_caches();
        for (at, piece) in pieces() {
            if self.blocks(at, piece.len() as u64)? != piece {
                return Err(io::Error::other("what is read back is not what was written"));
            }
        }
        Ok(())
    }

    fn blocks(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let size = usize::try_from(len).unwrap_or(0);
        let buffer = self.memory.take(size).ok_or(io::ErrorKind::OutOfMemory)?;
        let completion = self.run(Request::Read { offset, buffer })?;
        let buffer = completion.buffer.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(buffer.bytes().to_vec())
    }

    /// Executes one request.
    fn run(&self, request: Request) -> io::Result<Completion> {
        let mut connection = self.connection.borrow_mut();
        connection.submit(0, request);
        let until = Instant::now() + REQUEST_TIMEOUT;
        loop {
            connection.advance().map_err(|lost| io::Error::other(lost.reason))?;
            if let Some(completion) = connection.next_completion() {
                completion.result.map_err(io::Error::other)?;
                return Ok(completion);
            }
            if Instant::now() > until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let timeout = Timespec::try_from(POLL_INTERVAL).ok();
            if let Interest::Fd(fd, flags) = connection.interest() {
                let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
                let _ = poll(&mut fds, timeout.as_ref());
            }
        }
    }
}

impl ReadAt for SyncDisk {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let block = u64::from(self.disk.block).max(1);
        let most = MAX_TRANSFER.min(self.disk.max_transfer.into());
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
