//! Disk requests that need several blocking system calls: extents and prefetch, for which io_uring
//! has no operation, flushes, discards and zeroes of an overlay, and reads of a failing disk. They can run on any
//! thread.

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use export::{Admitted, Base, Export, Extent, Fault, Op, Source, Stored, VirtualDisk};
use rustix::fs::{Advice, FileType, SeekFrom};
use rustix::io::Errno;

use super::backing::is_cached_file;
use super::{overlay, rescue};

/// The result of a [`BlockingOp`].
pub(crate) type Answer = Result<Answered, Fault>;

/// What a [`BlockingOp`] returns.
#[derive(Debug)]
pub(crate) enum Answered {
    /// Nothing.
    Done,
    /// The extents of the range.
    Extents(Vec<Extent>),
    /// Bytes of a failing disk from the start of the range on.
    Data(Vec<u8>),
}

/// Bytes per `posix_fadvise` call. The kernel limits read-ahead of longer ones.
const STEP: u64 = 1 << 20;

/// Most bytes that are read ahead for one request.
const AHEAD: u64 = 64 << 20;

/// Such a request.
#[derive(Debug)]
pub(crate) struct BlockingOp {
    export: Arc<Export>,
    /// The state of an overlay.
    state: Option<usize>,
    op: Op,
    start: u64,
    end: u64,
    /// Capacity of the request's buffer, in extents.
    room: usize,
}

impl BlockingOp {
    /// Returns the operation of `admitted`, for a buffer of `room` extents.
    pub(crate) fn new(admitted: &Admitted, room: usize) -> Self {
        let (start, len) = (admitted.offset(), admitted.len());
        let (export, state) = (admitted.export().clone(), admitted.state());
        Self { export, state, op: admitted.op(), start, end: start.saturating_add(len), room }
    }

    /// Returns the operation that reads from a failing disk, from the byte `start` of the export up to `end`.
    pub(crate) fn fetch(admitted: &Admitted, start: u64, end: u64) -> Self {
        Self { start, end, ..Self::new(admitted, 0) }
    }

    /// Returns the operation that makes changes of an overlay durable, `admitted` included.
    pub(crate) fn flush(admitted: &Admitted) -> Self {
        Self { op: Op::Flush, ..Self::new(admitted, 0) }
    }

    /// Returns the disk.
    pub(crate) fn export(&self) -> &Arc<Export> {
        &self.export
    }

    /// Executes the operation, blocking. Errors of extents and a prefetch are not reported: a range with
    /// unknown status counts as data, and a failed prefetch is ignored.
    pub(crate) fn run(&self) -> Answer {
        if self.op.mutates() {
            let range = (self.start, self.end);
            return overlay::clear(&self.export, self.state, self.op, range)
                .map(|()| Answered::Done);
        }
        if self.op == Op::Flush {
            let persisted = overlay::persist_state(&self.export, self.state);
            return persisted.map(|()| Answered::Done);
        }
        if self.op == Op::Read {
            return rescue::fetch(&self.export, self.start, self.end).map(Answered::Data);
        }
        if self.op == Op::Extents {
            return Ok(Answered::Extents(self.map_runs()));
        }
        // The runs of a virtual disk may be anywhere in the image, and a failing disk reads what it must.
        if let Base::Raw(disk) = self.export.backing().base()
            && is_cached_file(disk)
        {
            self.read_ahead(disk);
        }
        Ok(Answered::Done)
    }

    /// Maps the runs of blocks with the same source.
    fn map_runs(&self) -> Vec<Extent> {
        let (mut extents, mut at) = (Vec::new(), self.start);
        while at < self.end && extents.len() < self.room {
            let (source, len) = overlay::run(&self.export, self.state, at, self.end);
            match (source, self.export.backing().base()) {
                (Source::Base, Base::Raw(disk)) => extents.extend(self.map(disk, at, at + len)),
                (Source::Base, Base::Virtual(disk)) => {
                    extents.extend(self.map_virtual(disk, at, at + len));
                }
                (Source::Overlay, _) | (Source::Base, Base::Rescued(_)) => {
                    extents.push(Extent::data(len));
                }
                (Source::Zeros, _) => extents.push(Extent::hole(len)),
            }
            at += len;
        }
        extents
    }

    /// Maps a virtual disk: what its image does not hold are holes.
    fn map_virtual(&self, disk: &VirtualDisk, start: u64, end: u64) -> Vec<Extent> {
        let (mut extents, mut at): (Vec<Extent>, u64) = (Vec::new(), start);
        while at < end && extents.len() < self.room {
            let (stored, len) = disk.find(at, end);
            let extent = match stored {
                Stored::Zeros => Extent::hole(len),
                Stored::Image(_) | Stored::Index(_) => Extent::data(len),
            };
            match extents.last_mut() {
                Some(last) if last.hole == extent.hole => last.len += len,
                _ => extents.push(extent),
            }
            at += len;
        }
        extents
    }

    fn read_ahead(&self, disk: &OwnedFd) {
        let (mut at, end) = (self.start, self.end.min(self.start.saturating_add(AHEAD)));
        while let Some(left) = NonZeroU64::new((end - at).min(STEP)) {
            if rustix::fs::fadvise(disk, at, Some(left), Advice::WillNeed).is_err() {
                return;
            }
            at += left.get();
        }
    }

    fn map(&self, disk: &OwnedFd, start: u64, end: u64) -> Vec<Extent> {
        let stat = rustix::fs::fstat(disk);
        let file =
            stat.ok().filter(|s| FileType::from_raw_mode(s.st_mode) == FileType::RegularFile);
        let size = file.and_then(|stat| u64::try_from(stat.st_size).ok());
        match size {
            Some(size) => self.map_file(disk, start, end, size.min(end)),
            None => vec![Extent::data(end - start)],
        }
    }

    /// Maps the file up to `size`, its end. An export that is longer than its file is not a hole
    /// there, because reads fail.
    fn map_file(&self, disk: &OwnedFd, start: u64, end: u64, size: u64) -> Vec<Extent> {
        let mut extents = Vec::new();
        let mut at = start;
        while at < size && extents.len() < self.room {
            let data = seek(disk, SeekFrom::Data(at), at, size);
            if data > at {
                extents.push(Extent::hole(data - at));
            }
            let hole = seek(disk, SeekFrom::Hole(data), data + 1, size);
            if data < size && extents.len() < self.room {
                extents.push(Extent::data(hole - data));
            }
            at = hole;
        }
        if at < end && extents.len() < self.room {
            extents.push(Extent::data(end - at));
        }
        extents
    }
}

/// Returns the start of the next data or hole, clamped to `least..=size`. Without support by
/// the file system, everything counts as data.
fn seek(disk: &OwnedFd, to: SeekFrom, min: u64, size: u64) -> u64 {
    match rustix::fs::seek(disk, to) {
        Ok(found) => found.max(min).min(size),
        // No data after this offset.
        Err(Errno::NXIO) => size,
        Err(_) if matches!(to, SeekFrom::Data(_)) => min.min(size),
        Err(_) => size,
    }
}
