//! I/O counters of a disk, summed over all workers that served it.

use export::Export;

use super::messages::{Counts, Request};
use super::{AssignedDisk, WriteTracker};

impl AssignedDisk {
    /// Adds the worker's counters to those of previous workers.
    pub(super) fn count(&mut self, counts: Counts) {
        self.export.set_usage(self.before.plus(counts.usage));
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
    Counts {
        usage: export.usage(),
        being_written: export.is_being_written(),
        flush_failed: export.has_failed_flush(),
    }
}
