//! I/O counters of a disk, summed over all workers that served it.

use std::sync::atomic::Ordering;

use export::Export;

use super::messages::{Counts, Request};
use super::{AssignedDisk, WriteTracker};

impl AssignedDisk {
    /// Adds the worker's counters to those of previous workers.
    pub(super) fn count(&mut self, counts: Counts) {
        let (usage, before) = (&self.export.usage, self.before);
        let pairs = [
            (&usage.reads, before.reads, counts.reads),
            (&usage.bytes_read, before.bytes_read, counts.bytes_read),
            (&usage.writes, before.writes, counts.writes),
            (&usage.bytes_written, before.bytes_written, counts.bytes_written),
            (&usage.errors, before.errors, counts.errors),
        ];
        for (total, before, now) in pairs {
            total.store(before.saturating_add(now), Ordering::Relaxed);
        }
        self.being_written = counts.being_written;
        if counts.flush_failed {
            self.export.flush_failed();
        }
    }
}

impl WriteTracker {
    /// Has all later flushes of the disk fail, because one failed in another process.
    pub fn fail_flush(&self) {
        self.export.flush_failed();
        let mut state = self.shared.state();
        let Some(disk) = state.assigned(&self.export).map(|assigned| assigned.disk) else { return };
        state.send(&Request::FailFlush { disk });
    }
}

/// The current counters of an export.
pub(super) fn usage_of(export: &Export) -> Counts {
    let usage = &export.usage;
    Counts {
        reads: usage.reads.load(Ordering::Relaxed),
        bytes_read: usage.bytes_read.load(Ordering::Relaxed),
        writes: usage.writes.load(Ordering::Relaxed),
        bytes_written: usage.bytes_written.load(Ordering::Relaxed),
        errors: usage.errors.load(Ordering::Relaxed),
        being_written: export.is_being_written(),
        flush_failed: export.has_failed_flush(),
    }
}
