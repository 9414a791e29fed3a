//! The disks that the worker received.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use export::Export;

use super::messages::{Counts, Report};
use super::usage::usage_of;

/// Table of the disks.
#[derive(Debug, Default)]
pub(super) struct Disks(Mutex<Vec<DiskEntry>>);

#[derive(Debug)]
pub(super) struct DiskEntry {
    pub(super) disk: u64,
    export: Arc<Export>,
    withdrawn: bool,
    reported: Counts,
}

impl Disks {
    /// Adds a disk.
    pub(super) fn add(&self, disk: u64, export: Arc<Export>) {
        let reported = usage_of(&export);
        self.entries().push(DiskEntry { disk, export, withdrawn: false, reported });
    }

    /// Returns the export of a disk number.
    pub(super) fn find(&self, disk: u64) -> Option<Arc<Export>> {
        let entries = self.entries();
        entries.iter().find(|entries| entries.disk == disk).map(|entries| entries.export.clone())
    }

    /// Marks a disk as withdrawn; sessions may hold the export for a while.
    pub(super) fn withdraw(&self, disk: u64) {
        let mut entries = self.entries();
        entries
            .iter_mut()
            .filter(|entries| entries.disk == disk)
            .for_each(|entries| entries.withdrawn = true);
    }

    /// Returns all exports that are not withdrawn.
    pub(super) fn lent(&self) -> Vec<Arc<Export>> {
        let entries = self.entries();
        entries
            .iter()
            .filter(|entries| !entries.withdrawn)
            .map(|entries| entries.export.clone())
            .collect()
    }

    pub(super) fn number(&self, export: &Arc<Export>) -> Option<u64> {
        let entries = self.entries();
        entries
            .iter()
            .find(|entries| Arc::ptr_eq(&entries.export, export))
            .map(|entries| entries.disk)
    }

    pub(super) fn entries(&self) -> MutexGuard<'_, Vec<DiskEntry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DiskEntry {
    /// Returns a report of the counters if they changed since the last one.
    pub(super) fn changed_counts(&mut self) -> Option<Report> {
        let counts = usage_of(&self.export);
        let is_news = counts != self.reported;
        self.reported = counts;
        is_news.then_some(Report::Used { disk: self.disk, counts })
    }

    /// Returns whether a write is in flight or the disk waits for its release.
    pub(super) fn may_change(&self) -> bool {
        self.withdrawn || self.reported.being_written
    }

    /// Returns whether the disk is withdrawn and no session holds the export.
    pub(super) fn is_released(&self) -> bool {
        self.withdrawn && Arc::strong_count(&self.export) == 1
    }
}
