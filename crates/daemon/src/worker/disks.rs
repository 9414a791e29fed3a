//! The disks that the worker process was handed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use export::Export;

use super::messages::{Counts, Report};
use super::usage::usage_of;

/// The disks that this worker has.
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
    /// Another disk.
    pub(super) fn add(&self, disk: u64, export: Arc<Export>) {
        let reported = usage_of(&export);
        self.entries().push(DiskEntry { disk, export, withdrawn: false, reported });
    }

    /// The disk of that number.
    pub(super) fn find(&self, disk: u64) -> Option<Arc<Export>> {
        let entries = self.entries();
        entries.iter().find(|entries| entries.disk == disk).map(|entries| entries.export.clone())
    }

    /// It is lent no longer; sessions may still have it for a while.
    pub(super) fn withdraw(&self, disk: u64) {
        let mut entries = self.entries();
        entries
            .iter_mut()
            .filter(|entries| entries.disk == disk)
            .for_each(|entries| entries.withdrawn = true);
    }

    /// All that are lent.
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
    /// What is to be told, if it is not what was told last.
    pub(super) fn changed_counts(&mut self) -> Option<Report> {
        let counts = usage_of(&self.export);
        let is_news = counts != self.reported;
        self.reported = counts;
        is_news.then_some(Report::Used { disk: self.disk, counts })
    }

    /// Whether a write of it is in flight, or it may be released.
    pub(super) fn may_change(&self) -> bool {
        self.withdrawn || self.reported.being_written
    }

    /// Whether nobody but this table has it any more.
    pub(super) fn is_released(&self) -> bool {
        self.withdrawn && Arc::strong_count(&self.export) == 1
    }
}
