//! One connection to the disk to which a pipe is copied.

use std::sync::atomic::Ordering;

use export::{Account, Buffer, Pool};

use super::input::{Piece, memory};
use super::{Counters, PIECE};
use crate::hash_tree::{RangeHash, TreeShape, is_zero};
use crate::read_behind::ReadBehind;
use crate::run::{lost, sync_io_error};
use crate::sync_io::{SyncIo, SyncIoError};
use crate::thread_io::OpenedEndpoint;
use crate::{CopyError, Disk, Outcome, Request, RequestError, Settings};

/// Writes pieces of a pipe to a disk.
pub(super) struct Writer<'a> {
    io: SyncIo<'a>,
    end: &'a OpenedEndpoint,
    pub(super) account: Account,
    settings: &'a Settings,
    counters: &'a Counters,
    behind: Option<&'a ReadBehind>,
    /// Whether something is not flushed.
    is_dirty: bool,
    pub(super) hashes: WrittenHashes,
}

/// Hashes of what was written, and of what was read back right after its write.
#[derive(Debug, Default)]
pub(super) struct WrittenHashes {
    pub(super) written: Vec<RangeHash>,
    pub(super) read_back: Vec<RangeHash>,
}

impl WrittenHashes {
    /// Adds those of another thread.
    pub(super) fn append(&mut self, mut other: Self) {
        self.written.append(&mut other.written);
        self.read_back.append(&mut other.read_back);
    }
}

impl<'a> Writer<'a> {
    /// A writer with a connection of its own.
    pub(super) fn new(
        io: SyncIo<'a>,
        end: &'a OpenedEndpoint,
        settings: &'a Settings,
        counters: &'a Counters,
        behind: Option<&'a ReadBehind>,
    ) -> Self {
        let account = Pool::new(4 * PIECE).open();
        let hashes = WrittenHashes::default();
        Self { io, end, account, settings, counters, behind, is_dirty: false, hashes }
    }

    /// Connects to the disk, without a second attempt if that fails.
    pub(super) fn try_connect(&mut self) -> Result<(), SyncIoError> {
        self.io.try_connect()
    }

    /// Keeps the connection alive while nothing is to be written.
    pub(super) fn keep_alive(&mut self) -> Result<(), Outcome> {
        self.io.keep_alive().map_err(|error| outcome(self.disk(), error))
    }

    fn disk(&self) -> &Disk {
        &self.end.disk
    }

    /// Writes a piece; of zeros, nothing if the disk can do without.
    pub(super) fn write(&mut self, piece: Piece) -> Result<(), Outcome> {
        let Piece { offset, buffer, .. } = piece;
        let (len, sparse) = (buffer.len() as u64, self.settings.sparse);
        self.check(offset, len)?;
        let hashes = self.hash(offset, buffer.bytes(), TreeShape::endless());
        if sparse && is_zero(buffer.bytes()) && self.zero(offset, len)? {
            self.counters.zeroes.fetch_add(len, Ordering::Relaxed);
        } else {
            let buffer = self.write_all(offset, buffer)?;
            self.read_back(offset, &buffer, &hashes)?;
            if let Some(behind) = self.behind {
                behind.record_written(offset..offset + len);
            }
        }
        self.hashes.written.extend(hashes);
        self.counters.done.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }

    /// Writes the first or the last piece, even if it is zeros: a new file becomes as long as it has to
    /// be.
    pub(super) fn write_held(
        &mut self,
        offset: u64,
        bytes: &[u8],
        shape: TreeShape,
    ) -> Result<(), Outcome> {
        let mut buffer = memory(&self.account, bytes.len())?;
        buffer.bytes_mut().copy_from_slice(bytes);
        let len = bytes.len() as u64;
        self.check(offset, len)?;
        let hashes = self.hash(offset, bytes, shape);
        self.hashes.written.extend(hashes);
        self.write_all(offset, buffer)?;
        self.counters.done.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }

    /// Fails if the disk ends before. A new file grows; everything else has a fixed size.
    fn check(&self, offset: u64, len: u64) -> Result<(), Outcome> {
        let (bytes, name) = (self.disk().bytes, &self.disk().name);
        if bytes == 0 || offset.saturating_add(len) <= bytes {
            return Ok(());
        }
        let (name, reason) = (name.clone(), RequestError::NoSpace);
        Err(Outcome::Failed(CopyError::Write { name, offset, len, reason }))
    }

    fn hash(&self, offset: u64, bytes: &[u8], shape: TreeShape) -> Vec<RangeHash> {
        let verify = self.settings.verify;
        if verify { shape.hash_range(offset, bytes) } else { Vec::new() }
    }

    /// Zeroes the start of the disk: a partition table that is there describes what is overwritten,
    /// and that of the pipe is written when its data is known to be what was expected.
    pub(super) fn clear_start(&mut self) -> Result<(), Outcome> {
        let len = match self.disk().bytes {
            // A new file.
            0 => return Ok(()),
            bytes => bytes.min(PIECE as u64),
        };
        if self.disk().blank || self.zero(0, len)? {
            return Ok(());
        }
        let mut zeros = memory(&self.account, usize::try_from(len).unwrap_or(PIECE))?;
        zeros.bytes_mut().fill(0);
        self.write_all(0, zeros).map(drop)
    }

    /// Puts what this connection has written on stable storage.
    pub(super) fn flush(&mut self) -> Result<(), Outcome> {
        if !std::mem::take(&mut self.is_dirty) {
            return Ok(());
        }
        self.run(Request::Flush, |name, reason| CopyError::Flush { name, reason }).map(drop)
    }

    /// Reads a piece in memory back, right after its write: see decision 21.
    fn read_back(
        &mut self,
        offset: u64,
        written: &Buffer,
        hashes: &[RangeHash],
    ) -> Result<(), Outcome> {
        if !self.settings.verify || !self.disk().in_memory {
            return Ok(());
        }
        let buffer = memory(&self.account, written.len())?;
        let read = Request::Read { offset, buffer };
        let completion = self.io.run(read).map_err(|error| outcome(self.disk(), error))?;
        // What cannot be read is tried again at the end.
        let Some(there) = completion.buffer.filter(|_| completion.result.is_ok()) else {
            return Ok(());
        };
        let found = match there.bytes() == written.bytes() {
            true => hashes.to_vec(),
            false => TreeShape::endless().hash_range(offset, there.bytes()),
        };
        self.hashes.read_back.extend(found);
        Ok(())
    }

    /// Writes a buffer and returns it.
    fn write_all(&mut self, offset: u64, mut buffer: Buffer) -> Result<Buffer, Outcome> {
        let max = usize::try_from(self.disk().max_transfer).unwrap_or(PIECE).max(512);
        let (mut from, all) = (0, buffer.len());
        while from < all {
            let to = all.min(from + max);
            let at = offset + from as u64;
            let work = Request::Write { offset: at, buffer, part: from..to };
            let len = (to - from) as u64;
            let error = |name, reason| CopyError::Write { name, offset: at, len, reason };
            self.is_dirty = true;
            let written = self.run(work, error)?;
            buffer = written.ok_or(Outcome::Failed(CopyError::Internal))?;
            from = to;
        }
        Ok(buffer)
    }

    /// Zeroes a range without writing. Returns `false` if that is not possible.
    fn zero(&mut self, offset: u64, len: u64) -> Result<bool, Outcome> {
        if self.disk().blank {
            return Ok(true);
        }
        if self.disk().max_zero < len {
            return Ok(false);
        }
        self.is_dirty = true;
        let ended = self.io.run(Request::Zero { offset, len });
        match ended.map_err(|error| outcome(self.disk(), error))?.result {
            Ok(()) => Ok(true),
            Err(RequestError::Unsupported) => Ok(false),
            Err(reason) => {
                let name = self.disk().name.clone();
                Err(Outcome::Failed(CopyError::Write { name, offset, len, reason }))
            }
        }
    }

    fn run(
        &mut self,
        work: Request,
        error: impl FnOnce(String, RequestError) -> CopyError,
    ) -> Result<Option<Buffer>, Outcome> {
        let ended = self.io.run(work).map_err(|error| outcome(self.disk(), error))?;
        let name = self.disk().name.clone();
        ended.result.map_err(|reason| Outcome::Failed(error(name, reason)))?;
        Ok(ended.buffer)
    }
}

/// The outcome of a failed request when the source cannot be read again.
fn outcome(disk: &Disk, error: SyncIoError) -> Outcome {
    match error {
        SyncIoError::Disconnected => {
            lost(&disk.name, &"what came from the pipe cannot be read again")
        }
        other => sync_io_error(other),
    }
}
