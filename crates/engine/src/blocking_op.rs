//! The disk requests that take more than one system call, of kinds that no ring carries out: what of a disk is data, and
//! reading ahead. An blocking_op may be run on any thread. It knows no session and no buffer.

use std::num::NonZeroU64;
use std::sync::Arc;

use export::{Admitted, Export, Extent, Op};
use rustix::fs::{Advice, FileType, OFlags, SeekFrom};
use rustix::io::Errno;

/// What came of an blocking_op: the extents that were asked for, or none.
pub(crate) type Answer = Vec<Extent>;

/// Bytes that are read ahead by one call: the kernel makes little more of a longer one.
const STEP: u64 = 1 << 20;

/// The most bytes that are read ahead for one request.
const AHEAD: u64 = 64 << 20;

/// Such a request.
#[derive(Debug)]
pub(crate) struct BlockingOp {
    export: Arc<Export>,
    op: Op,
    start: u64,
    end: u64,
    /// How many extents there is room for.
    room: usize,
}

impl BlockingOp {
    /// What that request asks for, with room for so many extents.
    pub(crate) fn new(admitted: &Admitted, room: usize) -> Self {
        let (start, len) = (admitted.offset(), admitted.len());
        let export = admitted.export().clone();
        Self { export, op: admitted.op(), start, end: start.saturating_add(len), room }
    }

    /// The disk.
    pub(crate) fn export(&self) -> &Arc<Export> {
        &self.export
    }

    /// Does it, waiting for the disk. What cannot be found out is data, and what cannot be read ahead is not.
    pub(crate) fn run(&self) -> Answer {
        if self.op == Op::Extents {
            return self.map();
        }
        if !self.is_uncached() {
            self.read_ahead();
        }
        Vec::new()
    }

    fn is_uncached(&self) -> bool {
        rustix::fs::fcntl_getfl(&self.export).is_ok_and(|flags| flags.contains(OFlags::DIRECT))
    }

    fn read_ahead(&self) {
        let (mut at, end) = (self.start, self.end.min(self.start.saturating_add(AHEAD)));
        while let Some(left) = NonZeroU64::new((end - at).min(STEP)) {
            if rustix::fs::fadvise(&self.export, at, Some(left), Advice::WillNeed).is_err() {
                return;
            }
            at += left.get();
        }
    }

    fn map(&self) -> Answer {
        let stat = rustix::fs::fstat(&self.export);
        let file =
            stat.ok().filter(|s| FileType::from_raw_mode(s.st_mode) == FileType::RegularFile);
        let size = file.and_then(|stat| u64::try_from(stat.st_size).ok());
        match size {
            Some(size) => self.map_file(size.min(self.end)),
            None => vec![Extent::data(self.end - self.start)],
        }
    }

    /// Maps up to `size`, where the file ends; what is lent behind that cannot be read, so it is no hole.
    fn map_file(&self, size: u64) -> Answer {
        let mut extents = Vec::new();
        let mut at = self.start;
        while at < size && extents.len() < self.room {
            let data = self.seek(SeekFrom::Data(at), at, size);
            if data > at {
                extents.push(Extent::hole(data - at));
            }
            let hole = self.seek(SeekFrom::Hole(data), data + 1, size);
            if data < size && extents.len() < self.room {
                extents.push(Extent::data(hole - data));
            }
            at = hole;
        }
        if at < self.end && extents.len() < self.room {
            extents.push(Extent::data(self.end - at));
        }
        extents
    }

    /// Where the next data or the next hole begins: from `least` on, and at `size` at the latest. A file system that does not
    /// tell has only data.
    fn seek(&self, to: SeekFrom, least: u64, size: u64) -> u64 {
        match rustix::fs::seek(&self.export, to) {
            Ok(found) => found.max(least).min(size),
            // There are no data from there on.
            Err(Errno::NXIO) => size,
            Err(_) if matches!(to, SeekFrom::Data(_)) => least.min(size),
            Err(_) => size,
        }
    }
}
