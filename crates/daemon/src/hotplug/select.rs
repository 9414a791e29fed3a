//! Which added disks are exported, and which of them writable.

use std::collections::HashSet;

use export::Access;
use linux::block::Disk;

use super::Hotplug;
use crate::device::Device;
use crate::disk_filter::Selection;
use crate::lend::{ExaminedDisk, LentDisk};

/// The disk that holds a writable position.
#[derive(Debug)]
pub(super) struct PositionHolder {
    device: Device,
    fingerprint: Option<[u8; 16]>,
}

/// Disks that were exported with an overlay.
#[derive(Debug, Default)]
pub(super) struct Overlaid {
    fingerprints: HashSet<[u8; 16]>,
    /// The paths that the user gave, and names of the kernel.
    names: HashSet<String>,
}

impl Hotplug {
    /// Records which of the disks are writable, and which have an overlay.
    pub(super) fn record_writable(&mut self, lent_disks: &[LentDisk]) {
        let has_overlay = |lent: &&LentDisk| lent.export.backing().overlay().is_some();
        let (overlaid, others): (Vec<_>, Vec<_>) = lent_disks.iter().partition(has_overlay);
        let writable = others.iter().filter(|lent| lent.export.access == Access::Writable);
        self.writable = writable.filter_map(|lent| lent.fingerprint).collect();
        for lent in overlaid {
            self.overlaid.fingerprints.extend(lent.fingerprint);
            self.overlaid.names.insert(lent.export.name.clone());
            self.overlaid.names.extend(lent.device.as_ref().map(|device| device.name.clone()));
        }
    }

    /// Returns how an added disk is selected, and a note if it is not writable although it was named
    /// so. Returns `None` if it is not to be exported.
    pub(super) fn select(
        &self,
        examined: &ExaminedDisk<'_>,
    ) -> Option<(Selection, Option<String>)> {
        let (disk, filter) = (examined.disk, self.filter.as_ref()?);
        let selection = filter.select(disk)?;
        let is_replacement = selection == Selection::Writable && self.is_replacement(examined);
        let selection = if is_replacement { filter.select_read_only(disk)? } else { selection };
        let selection = if self.is_writable(examined) { Selection::Writable } else { selection };
        let note = |why| format!("{} is lent read-only: {why}", disk.node.display());
        if selection != Selection::Writable {
            let why = "another disk was there when it was named writable";
            return Some((selection, is_replacement.then(|| note(why))));
        }
        if self.had_overlay(examined) {
            return Some((Selection::Named, Some(note("its overlay ended when it was removed"))));
        }
        Some((selection, None))
    }

    /// Returns whether the disk, or another one by its name, was exported with an overlay.
    fn had_overlay(&self, examined: &ExaminedDisk<'_>) -> bool {
        let Overlaid { fingerprints, names } = &self.overlaid;
        let is_one = |fingerprint| fingerprints.contains(&fingerprint);
        names.iter().any(|name| examined.disk.has_name(name))
            || (!fingerprints.is_empty() && self.options.fingerprint(examined).is_some_and(is_one))
    }

    pub(super) fn is_writable(&self, examined: &ExaminedDisk<'_>) -> bool {
        let is_one = |fingerprint| self.writable.contains(&fingerprint);
        !self.writable.is_empty() && self.options.fingerprint(examined).is_some_and(is_one)
    }

    /// Returns whether another disk was exported writable at this position before.
    pub(super) fn is_replacement(&self, examined: &ExaminedDisk<'_>) -> bool {
        let position =
            self.filter.as_ref().and_then(|filter| filter.writable_by_position(examined.disk));
        let holder = position.and_then(|position| self.positions.get(&position.to_string()));
        holder.is_some_and(|holder| {
            let fingerprint = self.options.fingerprint(examined);
            let is_same = fingerprint.is_some() && fingerprint == holder.fingerprint;
            !is_same && !holder.device.is_still(examined.disk)
        })
    }

    /// Records the disk that is exported writable because of its position, and its fingerprint.
    pub(super) fn record_position(&mut self, disk: &Disk, fingerprint: Option<[u8; 16]>) {
        let position = self.filter.as_ref().and_then(|filter| filter.writable_by_position(disk));
        let Some(position) = position.map(ToString::to_string) else { return };
        self.positions.insert(position, PositionHolder { device: Device::of(disk), fingerprint });
    }
}
