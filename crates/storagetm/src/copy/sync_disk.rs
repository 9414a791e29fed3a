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
/// Number of samples of two disks that are compared, and their length in bytes.
const SAMPLES: u64 = 16;
const SAMPLE: u32 = 64 << 10;
/// Maximum time of one poll of the descriptor.
const POLL_TIMEOUT: Duration = Duration::from_millis(20);

/// One connection to a disk.
pub(super) struct SyncDisk {
    disk: Disk,
    /// `None` after a request was lost or timed out: its completion may still come, and must not
    /// be taken for that of a later request.
    connection: RefCell<Option<Box<dyn Connection>>>,
    memory: Account,
    timeout: Duration,
}

impl SyncDisk {
    /// Connects to the endpoint.
    ///
    /// # Errors
    /// Fails if the endpoint cannot be opened.
    pub(super) fn open(endpoint: &dyn Endpoint) -> Result<Self, String> {
        let (disk, connection) = endpoint.open().map_err(|error| error.to_string())?;
        let memory = Pool::new(1 << 20).open();
        let connection = RefCell::new(Some(connection));
        Ok(Self { disk, connection, memory, timeout: REQUEST_TIMEOUT })
    }

    /// Has reads return what is on the disk rather than what the kernel has kept of it.
    pub(super) fn drop_caches(&self) {
        if let Some(connection) = &mut *self.connection.borrow_mut() {
            connection.drop_caches();
        }
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Writes bytes, flushes, and reads them back with caches dropped. The rest of the blocks that they
    /// lie in is read and written again.
    ///
    /// # Errors
    /// Fails if a request fails, or if the data differ.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let block = u64::from(self.disk.block.max(1));
        let start = offset - offset % block;
        let end = offset.saturating_add(bytes.len() as u64).next_multiple_of(block);
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        if size(end - start) == bytes.len() {
            return self.write_blocks(offset, bytes);
        }
        let mut whole = vec![0; size(end - start)];
        for at in [start, end.saturating_sub(block)] {
            let there = self.blocks(at, block)?;
            whole.splice(size(at - start)..size(at - start + block), there);
        }
        let at = size(offset - start);
        whole.splice(at..at + bytes.len(), bytes.iter().copied());
        self.write_blocks(start, &whole)
    }

    /// Returns whether another disk has the same size and the same data at some places, from the
    /// first to the last one. Places that cannot be read do not count.
    ///
    /// # Errors
    /// Fails if a connection is lost.
    pub(super) fn has_same_samples(&self, other: &Self) -> Result<bool, String> {
        let bytes = self.disk.bytes;
        if other.disk.bytes != bytes {
            return Ok(false);
        }
        let last = bytes.saturating_sub(SAMPLE.into());
        for at in (0..SAMPLES).map(|number| last / (SAMPLES - 1) * number) {
            let [here, there] = [self, other].map(|disk| disk.sample(at));
            if let (Some(here), Some(there)) = (here?, there?)
                && here != there
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns a sample from `offset` on; `None` if it cannot be read.
    fn sample(&self, offset: u64) -> Result<Option<Vec<u8>>, String> {
        let mut sample = vec![0; SAMPLE as usize];
        match self.read_at(&mut sample, offset) {
            Ok(count) => {
                sample.truncate(count);
                Ok(Some(sample))
            }
            Err(error) if self.connection.borrow().is_none() => Err(error.to_string()),
            Err(_) => Ok(None),
        }
    }

    fn write_blocks(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let max_len =
            usize::try_from(MAX_TRANSFER.min(self.disk.max_transfer.into())).unwrap_or(512);
        let pieces = || (offset..).step_by(max_len.max(1)).zip(bytes.chunks(max_len.max(1)));
        for (at, piece) in pieces() {
            let mut buffer = self.memory.take(piece.len()).ok_or(io::ErrorKind::OutOfMemory)?;
            buffer.bytes_mut().copy_from_slice(piece);
            self.run(Request::Write { offset: at, buffer, part: 0..piece.len() })?;
        }
        self.run(Request::Flush)?;
        self.connection.borrow_mut().iter_mut().for_each(|connection| connection.drop_caches());
        for (at, piece) in pieces() {
            if self.blocks(at, piece.len() as u64)? != piece {
                let error = format!("verification failed at byte {at}: the data read back differ");
                return Err(io::Error::other(error));
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
    ///
    /// # Errors
    /// Fails if the request fails. If it times out or the connection is lost, all later ones fail,
    /// too.
    fn run(&self, request: Request) -> io::Result<Completion> {
        let mut slot = self.connection.borrow_mut();
        let mut connection = slot.take().ok_or(io::ErrorKind::NotConnected)?;
        let completion = wait_for(&mut *connection, request, self.timeout)?;
        *slot = Some(connection);
        completion.result.map_err(io::Error::other)?;
        Ok(completion)
    }
}

/// Submits a request and waits for its completion.
fn wait_for(
    connection: &mut dyn Connection,
    request: Request,
    timeout: Duration,
) -> io::Result<Completion> {
    connection.submit(0, request);
    let deadline = Instant::now() + timeout;
    loop {
        connection.advance().map_err(|lost| io::Error::other(lost.reason))?;
        if let Some(completion) = connection.next_completion() {
            return Ok(completion);
        }
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = Timespec::try_from(POLL_TIMEOUT).ok();
        if let Interest::Fd(fd, flags) = connection.interest() {
            let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
            let _ = poll(&mut fds, timeout.as_ref());
        }
    }
}

impl ReadAt for SyncDisk {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let block = u64::from(self.disk.block).max(1);
        let max_len = MAX_TRANSFER.min(self.disk.max_transfer.into());
        let end = offset.saturating_add(buffer.len() as u64).min(self.disk.bytes);
        let start = offset - offset % block;
        let len = end.saturating_sub(start).min(max_len).next_multiple_of(block);
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

#[cfg(test)]
mod test {
    use super::*;
    use ::copy::ConnectionLost;
    use export::Buffer;

    /// Completes a request only after the next one was submitted.
    #[derive(Default)]
    struct LateConnection {
        submitted: Vec<Buffer>,
    }

    impl Connection for LateConnection {
        fn submit(&mut self, _: u32, request: Request) {
            let Request::Read { buffer, .. } = request else { panic!("a read") };
            self.submitted.push(buffer);
        }

        fn free_slots(&self) -> usize {
            1
        }

        fn advance(&mut self) -> Result<(), ConnectionLost> {
            Ok(())
        }

        fn next_completion(&mut self) -> Option<Completion> {
            let buffer = (self.submitted.len() > 1).then(|| self.submitted.remove(0));
            let done = |buffer| Completion {
                tag: 0,
                result: Ok(()),
                buffer: Some(buffer),
                extents: Vec::new(),
            };
            buffer.map(done)
        }

        fn interest(&self) -> Interest<'_> {
            Interest::None
        }
    }

    #[test]
    fn late_completion_is_not_taken_for_that_of_the_next_request() {
        let connection: Box<dyn Connection> = Box::new(LateConnection::default());
        let disk = SyncDisk {
            disk: Disk { bytes: 1 << 20, block: 512, max_transfer: 4096, ..Disk::default() },
            connection: RefCell::new(Some(connection)),
            memory: Pool::new(1 << 20).open(),
            timeout: Duration::from_millis(1),
        };
        let late = disk.read_at(&mut [0; 512], 0).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        let next = disk.read_at(&mut [0; 512], 4096).unwrap_err();
        assert_eq!(next.kind(), io::ErrorKind::NotConnected);
    }
}
