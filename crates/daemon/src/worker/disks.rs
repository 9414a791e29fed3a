//! The disks that the worker process was handed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use export::Export;

use super::counting::counted;
use super::words::{Counts, Report};

/// The disks that this worker has.
#[derive(Debug, Default)]
pub(super) struct Disks(Mutex<Vec<Held>>);

#[derive(Debug)]
pub(super) struct Held {
    pub(super) disk: u64,
    export: Arc<Export>,
    withdrawn: bool,
    told: Counts,
}

impl Disks {
    /// Another disk.
    pub(super) fn add(&self, disk: u64, export: Arc<Export>) {
        let told = counted(&export);
        self.held().push(Held { disk, export, withdrawn: false, told });
    }

    /// The disk of that number.
    pub(super) fn find(&self, disk: u64) -> Option<Arc<Export>> {
        let held = self.held();
        held.iter().find(|held| held.disk == disk).map(|held| held.export.clone())
    }

    /// It is lent no longer; sessions may still have it for a while.
    pub(super) fn withdraw(&self, disk: u64) {
        let mut held = self.held();
        held.iter_mut().filter(|held| held.disk == disk).for_each(|held| held.withdrawn = true);
    }

    /// All that are lent.
    pub(super) fn lent(&self) -> Vec<Arc<Export>> {
        let held = self.held();
        held.iter().filter(|held| !held.withdrawn).map(|held| held.export.clone()).collect()
    }

    pub(super) fn number(&self, export: &Arc<Export>) -> Option<u64> {
        let held = self.held();
        held.iter().find(|held| Arc::ptr_eq(&held.export, export)).map(|held| held.disk)
    }

    pub(super) fn held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// What is to be told, if it is not what was told last.
    pub(super) fn news(&mut self) -> Option<Report> {
        let counts = counted(&self.export);
        let is_news = counts != self.told;
        self.told = counts;
        is_news.then_some(Report::Used { disk: self.disk, counts })
    }

    /// Whether a write of it is in flight, or it may be released.
    pub(super) fn may_change(&self) -> bool {
        self.withdrawn || self.told.being_written
    }

    /// Whether nobody but this table has it any more.
    pub(super) fn is_released(&self) -> bool {
        self.withdrawn && Arc::strong_count(&self.export) == 1
    }
}
