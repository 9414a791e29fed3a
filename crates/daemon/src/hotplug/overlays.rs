//! Overlays of disks that are exported with `--all` or in target mode: by boot parameters, or as chosen
//! at the console.

use std::sync::{Arc, Weak};
use std::time::Instant;

use export::Export;
use failure::Failure;
use linux::in_use::Machine;

use super::Hotplug;
use crate::device::Device;
use crate::lend::{ExaminedDisk, LentDisk, Writes};
use crate::overlay;

/// Least memory of an overlay, in bytes. Below that the disk is exported read-only.
const MIN_LIMIT: u64 = 16 << 20;

/// The overlays that exist, and what was chosen at the console.
#[derive(Debug, Default)]
pub(super) struct ConsoleOverlays {
    /// Exports with an overlay, and the most memory that each may take.
    pub(super) exports: Vec<(Weak<Export>, u64)>,
    choices: Vec<Choice>,
}

/// Whether a disk has an overlay, as chosen at the console.
#[derive(Debug)]
struct Choice {
    device: Option<Device>,
    fingerprint: Option<[u8; 16]>,
    is_wanted: bool,
}

impl Hotplug {
    /// Sets whether a disk has an overlay, as chosen at the console. It is exported again once it was
    /// withdrawn and released.
    pub fn choose_overlay(&mut self, lent: &LentDisk, is_wanted: bool, now: Instant) {
        let (device, fingerprint) = (lent.device.clone(), lent.fingerprint);
        let is_same = |choice: &Choice| {
            choice.device == device || (fingerprint.is_some() && choice.fingerprint == fingerprint)
        };
        self.overlays.choices.retain(|choice| !is_same(choice));
        let name = device.as_ref().map(|device| device.name.clone());
        self.overlays.choices.push(Choice { device, fingerprint, is_wanted });
        name.into_iter().for_each(|name| self.schedule(name, now));
    }

    /// Returns whether a disk that is not writable is to have an overlay.
    pub(super) fn wants_overlay(&self, examined: &ExaminedDisk<'_>) -> bool {
        let choices = &self.overlays.choices;
        let fingerprint =
            (!choices.is_empty()).then(|| self.options.fingerprint(examined)).flatten();
        let is_it = |choice: &&Choice| {
            let is_still = |device: &Device| device.is_still(examined.disk);
            choice.device.as_ref().is_some_and(is_still)
                || (fingerprint.is_some() && choice.fingerprint == fingerprint)
        };
        match choices.iter().find(is_it) {
            Some(choice) => choice.is_wanted,
            None => self.filter.as_ref().is_some_and(|filter| filter.has_overlay(examined.disk)),
        }
    }

    /// Exports a disk with an overlay in memory; read-only, if there is no room for one.
    ///
    /// # Errors
    /// Fails with a message for the user if it cannot be exported read-only either.
    pub(super) fn lend_with_overlay(
        &mut self,
        examined: &ExaminedDisk<'_>,
    ) -> Result<LentDisk, Failure> {
        let limit = self.overlay_limit(examined.machine);
        let lent = match limit >= MIN_LIMIT {
            true => {
                self.options.overlay.limit = limit;
                self.lend_with(examined, Writes::ToOverlay)
            }
            false => Err(Failure::new("there is no memory left for its overlay")),
        };
        match lent {
            Ok(lent) => {
                self.overlays.exports.push((Arc::downgrade(&lent.export), limit));
                Ok(lent)
            }
            Err(failure) => {
                let mut lent = self.lend_with(examined, Writes::Refused)?;
                lent.notes.push(format!("{} is lent read-only: {failure}", lent.export.name));
                Ok(lent)
            }
        }
    }

    /// Returns the limit of another overlay: equal parts of what the others leave, for it, for the disks
    /// that are to have one, and for a disk that is plugged in later.
    pub(super) fn overlay_limit(&mut self, machine: &Machine) -> u64 {
        self.overlays.exports.retain(|(export, _)| export.strong_count() > 0);
        let exports = &self.overlays.exports;
        let wanted = machine.disks.iter().filter(|disk| {
            let filter = self.filter.as_ref();
            !disk.is_partition() && filter.is_some_and(|filter| filter.has_overlay(disk))
        });
        let waiting = wanted.count().saturating_sub(exports.len()).max(1) as u64;
        let taken = exports.iter().fold(0u64, |sum, (_, limit)| sum.saturating_add(*limit));
        overlay::console_budget(&self.options.tree).saturating_sub(taken) / (waiting + 1)
    }
}
