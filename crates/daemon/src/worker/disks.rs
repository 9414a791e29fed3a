//! The disks that the worker received, and the check of their descriptors.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use export::{Catalogue, Export};
use rustix::fs::{OFlags, SealFlags, fcntl_get_seals, fcntl_getfl};

use super::messages::{Counts, Report};
use super::reservations::UnreportedReservations;
use super::usage::usage_of;

/// Table of the disks.
#[derive(Debug, Default)]
pub(super) struct Disks(Mutex<Vec<DiskEntry>>);

#[derive(Debug)]
pub(super) struct DiskEntry {
    pub(super) disk: u64,
    export: Arc<Export>,
    withdrawn: bool,
    publication_reported: bool,
    reported: Counts,
    /// `None` if its reservations are not stored.
    reservations: Option<Arc<UnreportedReservations>>,
}

impl Disks {
    /// Adds a disk and publishes it. The reporter sees it when both are done.
    pub(super) fn add(
        &self,
        disk: u64,
        export: Arc<Export>,
        reservations: Option<Arc<UnreportedReservations>>,
        catalogue: &Catalogue,
    ) {
        let mut entries = self.entries();
        entries.push(DiskEntry {
            disk,
            export: export.clone(),
            withdrawn: false,
            publication_reported: false,
            reported: usage_of(&export),
            reservations,
        });
        catalogue.publish(export);
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
    /// Returns a report that the disk is published; once.
    pub(super) fn publication(&mut self) -> Option<Report> {
        let was_reported = std::mem::replace(&mut self.publication_reported, true);
        (!was_reported).then_some(Report::Published { disk: self.disk })
    }

    /// Returns a report of the counters if they changed since the last one.
    pub(super) fn changed_counts(&mut self) -> Option<Report> {
        let counts = usage_of(&self.export);
        let is_news = counts != self.reported;
        self.reported = counts.clone();
        is_news.then_some(Report::Used { disk: self.disk, counts })
    }

    /// Returns a report of the reservations if they are to be stored.
    pub(super) fn reservations_to_store(&self) -> Option<Report> {
        self.reservations.as_ref()?.take(self.disk)
    }

    /// Returns whether a write is in flight or the disk waits for its release.
    pub(super) fn may_change(&self) -> bool {
        self.withdrawn || self.reported.being_written
    }

    /// Returns whether it was reported as kept for a host.
    pub(super) fn is_kept(&self) -> bool {
        self.reported.keeper.is_some()
    }

    /// Returns whether the disk is withdrawn and no session holds the export.
    pub(super) fn is_released(&self) -> bool {
        self.withdrawn && Arc::strong_count(&self.export) == 1
    }
}

/// Refuses an export whose descriptor is writable although it is only read: that of a read-only
/// export, or the disk under an overlay. Checked on both sides of the channel.
///
/// # Errors
/// Fails with a message for the user.
pub(super) fn check_locked(export: &Export) -> Result<(), String> {
    if export.backing().only_read(export.access).all(is_locked) {
        return Ok(());
    }
    let name = &export.name;
    Err(format!("{name} must not be written to, but is open for writing; it is not lent"))
}

/// Returns whether the descriptor cannot be written to: opened read-only, or sealed memory.
fn is_locked(descriptor: impl AsFd) -> bool {
    let mode = fcntl_getfl(&descriptor).map(|flags| flags & OFlags::ACCMODE);
    let seals = fcntl_get_seals(&descriptor);
    mode == Ok(OFlags::RDONLY) || seals.is_ok_and(|seals| seals.contains(SealFlags::WRITE))
}
