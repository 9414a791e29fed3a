//! Reads of a disk for a check, which go on after a lost connection as those of the copy do.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use export::{Account, Pool};

use crate::compare;
use crate::sync_io::{SyncIo, SyncIoError};
use crate::thread_io::OpenedEndpoint;
use crate::{CopyError, RequestError};

/// Largest read, in bytes.
const PIECE: u64 = 256 << 10;

/// A disk that is read, one request at a time. A lost connection is made again for as long as in the copy.
pub struct Reader<'a> {
    end: OpenedEndpoint,
    io: SyncIo<'a>,
    memory: Account,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(
        end: OpenedEndpoint,
        reconnect_timeout: Duration,
        stop: &'a AtomicBool,
    ) -> Self {
        let io = SyncIo::new(&end, reconnect_timeout, stop);
        Self { end, io, memory: Pool::new(Pool::MAX_BUFFER).open() }
    }

    /// Has reads return what is on the disk rather than what the kernel has kept of it.
    ///
    /// # Errors
    /// Fails if the disk cannot be reached.
    pub fn drop_caches(&mut self) -> Result<(), CopyError> {
        self.io.drop_caches().map_err(error)
    }

    /// Reads from `offset`, a multiple of the disk's blocks, into the start of `bytes`. Returns how many bytes were read: 0 at
    /// the end of the disk.
    ///
    /// # Errors
    /// Fails if the disk cannot be reached, is another one, or cannot be read there, or if the copy is to end.
    pub fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<usize, CopyError> {
        let disk = &*self.end.disk;
        let max = PIECE.min(disk.max_transfer.into());
        let end = offset.saturating_add(max.min(bytes.len() as u64));
        let end = end.next_multiple_of(disk.block.max(1).into()).min(disk.bytes);
        let range = Range { start: offset, end };
        if range.is_empty() {
            return Ok(0);
        }
        let Some(buffer) = compare::read(&mut self.io, &self.memory, &range).map_err(error)? else {
            let failed = self.io.failed(&range, Err(RequestError::Media));
            return Err(error(failed));
        };
        let count = buffer.len().min(bytes.len());
        bytes.iter_mut().zip(buffer.bytes()).for_each(|(to, from)| *to = *from);
        Ok(count)
    }
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("disk", &self.end.disk.name).finish_non_exhaustive()
    }
}

fn error(error: SyncIoError) -> CopyError {
    match error {
        SyncIoError::Failed(error) => error,
        // The caller of the check knows that it was cancelled.
        SyncIoError::Cancelled | SyncIoError::Disconnected => CopyError::Internal,
    }
}
