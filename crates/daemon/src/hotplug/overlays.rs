//! Overlays of disks that are exported with `--all` or in target mode: by boot parameters, or as chosen
//! at the console.

use std::sync::{Arc, Weak};
use std::time::Instant;

use export::Export;
use failure::Failure;
use linux::reason::Code;

use super::{Hotplug, boots_target_mode};
use crate::device::Device;
use crate::disk_filter::Selection;
use crate::lend::{ExaminedDisk, LentDisk, Writes};
use crate::overlay;

/// Least memory of an overlay, in bytes. Below that the disk is exported read-only.
const MIN_LIMIT: u64 = 16 << 20;

/// The overlays that exist, and what was chosen at the console.
#[derive(Debug, Default)]
pub(super) struct ConsoleOverlays {
    pub(super) given: Vec<GivenOverlay>,
    choices: Vec<Choice>,
}

/// A disk that is exported with an overlay.
#[derive(Debug)]
pub(super) struct GivenOverlay {
    pub(super) export: Weak<Export>,
    pub(super) device: Option<Device>,
    /// The most memory that it may take, in bytes.
    pub(super) limit: u64,
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
        let limit = self.overlay_limit(examined);
        let lent = match limit >= MIN_LIMIT {
            true => {
                self.options.overlay.limit = limit;
                self.lend_with(examined, Writes::ToOverlay)
            }
            false => Err(Failure::new("there is no memory left for its overlay")),
        };
        match lent {
            Ok(lent) => {
                let (export, device) = (Arc::downgrade(&lent.export), lent.device.clone());
                self.overlays.given.push(GivenOverlay { export, device, limit });
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
    pub(super) fn overlay_limit(&mut self, examined: &ExaminedDisk<'_>) -> u64 {
        self.overlays.given.retain(|given| given.export.strong_count() > 0);
        let ExaminedDisk { machine, findings, .. } = *examined;
        let all = machine.disks.iter().map(|disk| ExaminedDisk { machine, disk, findings });
        let waiting = all.filter(|other| self.awaits_overlay(other)).count().max(1) as u64;
        let given = self.overlays.given.iter();
        let taken = given.fold(0u64, |sum, given| sum.saturating_add(given.limit));
        overlay::console_budget(&self.options.tree).saturating_sub(taken) / (waiting + 1)
    }

    /// Returns whether a disk is to be exported with an overlay, and has none yet.
    fn awaits_overlay(&self, examined: &ExaminedDisk<'_>) -> bool {
        let ExaminedDisk { machine, disk, findings } = *examined;
        let device = Some(Device::of(disk));
        if self.overlays.given.iter().any(|given| given.device == device)
            || !self.wants_overlay(examined)
        {
            return false;
        }
        let Some((selection, _)) = self.select(examined) else { return false };
        let mut verdict = machine.judge(disk, findings);
        if self.examining.contains(&disk.name) {
            // Its answer is still expected.
            verdict.reasons.retain(|reason| reason.code != Code::Silent);
        }
        let is_stick = selection == Selection::Any && boots_target_mode(examined);
        selection != Selection::Writable && self.allowed(&verdict, selection) && !is_stick
    }
}
