//! I/O counters of a disk, summed over all workers that served it.

use std::sync::Arc;

use export::{Export, Keeper, MAX_TEXT};

use super::messages::{Counts, Request};
use super::{AssignedDisk, Shared};

impl AssignedDisk {
    /// Adds the worker's counters to those of previous workers.
    ///
    /// # Errors
    /// Fails if an uncompromised worker would not report them.
    pub(super) fn count(&mut self, counts: Counts) -> Result<(), ()> {
        let is_valid = |keeper: &Keeper| {
            self.export.is_for_one_host() && keeper.host.text().len() <= MAX_TEXT && keeper.lost > 0
        };
        if !counts.keeper.iter().all(is_valid) {
            return Err(());
        }
        self.export.set_keeper(counts.keeper);
        self.export.set_usage(self.before.plus(counts.usage));
        self.being_written = counts.being_written;
        if counts.flush_failed {
            self.export.flush_failed();
        }
        Ok(())
    }
}

/// Reports whether writes of hosts to a disk are in flight; usable on any thread.
#[derive(Debug)]
pub struct WriteTracker {
    pub(super) shared: Arc<Shared>,
    pub(super) export: Arc<Export>,
}

impl WriteTracker {
    /// Returns whether writes are in flight, or may be because the disk is withheld.
    pub fn in_flight(&self) -> bool {
        let mut state = self.shared.state();
        // Unknown for a withheld disk.
        state.withheld.contains(&self.export.id)
            || state.assigned(&self.export).is_some_and(|assigned| assigned.being_written)
    }

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
        keeper: export.keeper(),
    }
}
