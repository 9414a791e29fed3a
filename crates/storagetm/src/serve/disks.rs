//! Exported disks of `storagetm serve`: hot-plug, size changes, and flushes after the last host has
//! detached.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use export::{Access, Event, Export};

use super::flushes::Flushes;
use super::{COALESCE, SIZE_INTERVAL, Server};
use crate::console_ui::ConsoleUi;
use daemon::device::Device;
use daemon::event::ServeEvent;
use daemon::flush::Flush;
use daemon::hotplug::Change;
use daemon::lend::{LentDisk, check_distinct};
use daemon::worker::WriteTracker;
use failure::spawn_error;

impl Server {
    /// In target mode, flushes a writable disk when its last host has detached: it may be unplugged
    /// then.
    pub(super) fn flush_when_detached(&mut self, export: &Arc<Export>) {
        let used = self.status.is_attached(export);
        if self.console_ui.is_none() || used || export.access == Access::ReadOnly {
            return;
        }
        if !self.flushes.begin(export) {
            return;
        }
        let (of, flushes, inbox) = (export.clone(), self.flushes.clone(), self.inbox.clone());
        let writes = self.worker.writes(export);
        let flush = move || {
            if let Err(error) = flush(&of, &writes, &flushes) {
                // The kernel reports a write-back error once: no later flush may report success.
                writes.fail_flush();
                let sentence = unflushed(&of, &error);
                inbox.note(sentence.clone());
                flushes.fail(&of, sentence);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("flush".to_owned()).spawn(flush) {
            let sentence = unflushed(export, &spawn_error(&error));
            self.report(&ServeEvent::note(&sentence));
            self.flushes.fail(export, sentence);
        }
    }

    /// Withdraws all disks.
    pub(super) fn withdraw_all(&mut self) {
        self.console_ui.iter_mut().for_each(|console_ui| console_ui.mode().serving = false);
        for lent in std::mem::take(&mut self.lent_disks) {
            self.withdraw_disk(&lent, "it was taken back at the machine");
            self.flush_when_detached(&lent.export);
        }
    }

    pub(super) fn apply_hotplug(&mut self, now: Instant) {
        for change in self.hotplug.look(&self.lent_disks, now) {
            let serving = self.console_ui.as_ref().is_none_or(ConsoleUi::is_serving);
            match change {
                Change::Added(lent) if serving => self.lend(*lent),
                Change::Added(_) => {}
                Change::Removed(device) => self.withdraw(&device),
                Change::Resized(device, bytes) => self.resize(&device, bytes),
                Change::Note(note) => self.report(&ServeEvent::note(note)),
            }
        }
    }

    fn lend(&mut self, lent: LentDisk) {
        let unlike = |known: &LentDisk| check_distinct(&known.export, &lent.export);
        if let Err(failure) = self.lent_disks.iter().try_for_each(unlike) {
            self.report(&ServeEvent::note(failure));
            return;
        }
        let lent = lent.with_unique_name(&self.lent_disks);
        let export = lent.export.clone();
        if let Err(failure) = self.worker.lend(&export) {
            self.report(&ServeEvent::note(failure));
            return;
        }
        self.add_lent_disk(lent);
        self.report_lent(&export);
        self.draw_soon(true);
    }

    fn withdraw(&mut self, device: &Device) {
        let of_it = |lent: &mut LentDisk| lent.device.as_ref() == Some(device);
        let gone: Vec<LentDisk> = self.lent_disks.extract_if(.., of_it).collect();
        for lent in gone {
            self.withdraw_disk(&lent, "the disk or its medium is gone");
        }
    }

    fn withdraw_disk(&mut self, lent: &LentDisk, reason: &'static str) {
        self.hotplug.release(lent);
        self.worker.withdraw(&lent.export);
        self.status.remove_disk(&lent.export);
        self.report(&ServeEvent::withdrawn(&lent.export, reason));
    }

    fn resize(&mut self, device: &Device, bytes: u64) {
        let lent = self.lent_disks.iter().find(|lent| lent.device.as_ref() == Some(device));
        let Some(export) = lent.map(|lent| lent.export.clone()) else { return };
        self.resize_export(&export, bytes);
    }

    fn resize_export(&mut self, export: &Arc<Export>, bytes: u64) {
        let before = export.bytes();
        if export.resize(bytes) {
            self.worker.resize(export);
            self.report(&ServeEvent::resized(export, before));
        }
    }

    /// Polls the sizes of image files.
    pub(super) fn update_file_sizes(&mut self, now: Instant) {
        let sizes = self
            .lent_disks
            .iter()
            .filter_map(|lent| Some((lent.export.clone(), lent.file_bytes()?)));
        let sizes: Vec<(Arc<Export>, u64)> = sizes.collect();
        self.timers.sizes = (!sizes.is_empty()).then(|| now + SIZE_INTERVAL);
        sizes.into_iter().for_each(|(export, bytes)| self.resize_export(&export, bytes));
    }

    /// Returns the size of an image file that was truncated, if that is why a read failed.
    pub(super) fn file_end_before(&self, event: &Event) -> Option<u64> {
        let Event::Fault { export, op: "read", offset, len, .. } = event else { return None };
        let lent = self.lent_disks.iter().find(|lent| Arc::ptr_eq(&lent.export, export))?;
        let bytes = lent.file_bytes()?;
        let end = export.geometry.blocks_for(bytes) << export.geometry.shift();
        (offset.saturating_add(*len) > end).then_some(bytes)
    }
}

/// Flushes a disk until nothing has been written since.
fn flush(export: &Arc<Export>, writes: &WriteTracker, flushes: &Flushes) -> io::Result<()> {
    loop {
        // Writes of a disconnected host may still be in flight.
        while writes.in_flight() {
            std::thread::sleep(COALESCE);
        }
        Flush::start(export.backing().written()).and_then(Flush::outcome)?;
        if !flushes.end(export) {
            return Ok(());
        }
    }
}

fn unflushed(export: &Export, reason: &dyn std::fmt::Display) -> String {
    format!(
        "{} could not be flushed ({reason}): what was written to it last may be lost",
        export.name
    )
}
