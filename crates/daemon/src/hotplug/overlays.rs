//! Overlays of disks that are exported with `--all` or in target mode: by boot parameters, or as chosen
//! at the console.

use std::sync::{Arc, Weak};
use std::time::Instant;

use export::Export;
use linux::reason::Code;

use super::{Hotplug, boots_target_mode};
use crate::device::Device;
use crate::disk_filter::Selection;
use crate::lend::{ExaminedDisk, LentDisk};
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
    /// `None` while the disk is being opened.
    pub(super) export: Option<Weak<Export>>,
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

impl ConsoleOverlays {
    /// Records that a disk has been opened, or ends the reservation for it if it has no overlay.
    pub(super) fn settle(&mut self, device: &Device, lent: Option<&LentDisk>) {
        let is_it =
            |given: &GivenOverlay| given.export.is_none() && given.device.as_ref() == Some(device);
        let Some(at) = self.given.iter().position(is_it) else { return };
        let lent = lent.filter(|lent| lent.export.backing().overlay().is_some());
        match (lent, self.given.get_mut(at)) {
            (Some(lent), Some(given)) => given.export = Some(Arc::downgrade(&lent.export)),
            _ => drop(self.given.remove(at)),
        }
    }
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

    /// Reserves memory for the overlay of a disk that is about to be opened. Returns how much it may take, in bytes, or a
    /// note if there is no room.
    pub(super) fn reserve_overlay(&mut self, examined: &ExaminedDisk<'_>) -> Result<u64, String> {
        let limit = self.overlay_limit(examined);
        if limit < MIN_LIMIT {
            let path = examined.disk.path(&self.options.tree);
            let path = path.display();
            return Err(format!(
                "{path} is lent read-only: there is no memory left for its overlay"
            ));
        }
        let device = Some(Device::of(examined.disk));
        self.overlays.given.push(GivenOverlay { export: None, device, limit });
        Ok(limit)
    }

    /// Returns the limit of another overlay: equal parts of what the others leave, for it, for the disks
    /// that are to have one, and for a disk that is plugged in later.
    pub(super) fn overlay_limit(&mut self, examined: &ExaminedDisk<'_>) -> u64 {
        let is_kept = |export: &Option<Weak<Export>>| {
            export.as_ref().is_none_or(|export| export.strong_count() > 0)
        };
        self.overlays.given.retain(|given| is_kept(&given.export));
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
