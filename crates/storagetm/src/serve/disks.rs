//! The disks of `storagetm serve` as they come, go, change and come to rest. It knows no address and no key.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use export::{Access, Event, Export};

use super::flushes::Flushes;
use super::{COALESCE, SIZES, Server};
use crate::desk::Desk;
use daemon::device::Device;
use daemon::flush::Flush;
use daemon::follow::Change;
use daemon::happening::Happening;
use daemon::lend::{Loan, check_unlike};
use daemon::worker::Writes;
use failure::spawn_error;

impl Server {
    /// Has what hosts wrote be on the disk when the last of them has let go: it may be unplugged then.
    pub(super) fn settle(&mut self, export: &Arc<Export>) {
        let used = self.ledger.is_attached(export);
        if self.desk.is_none() || used || export.access == Access::ReadOnly {
            return;
        }
        if !self.flushes.begin(export) {
            return;
        }
        let (of, flushes, mailbox) = (export.clone(), self.flushes.clone(), self.mailbox.clone());
        let writes = self.worker.writes(export);
        let flush = move || {
            if let Err(error) = flush(&of, &writes, &flushes) {
                // No later flush may report success: this one has taken the error.
                writes.fail_flush();
                let sentence = unflushed(&of, &error);
                mailbox.note(sentence.clone());
                flushes.fail(&of, sentence);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("flush".to_owned()).spawn(flush) {
            let sentence = unflushed(export, &spawn_error(&error));
            self.say(&Happening::note(&sentence));
            self.flushes.fail(export, sentence);
        }
    }

    /// Lends nothing any more, until somebody wants it.
    pub(super) fn take_back(&mut self) {
        self.desk.iter_mut().for_each(|desk| desk.mode().lending = false);
        for loan in std::mem::take(&mut self.loans) {
            self.withdraw_loan(&loan, "it was taken back at the machine");
            self.settle(&loan.export);
        }
    }

    pub(super) fn follow_disks(&mut self, now: Instant) {
        for change in self.follow.look(&self.loans, now) {
            let lending = self.desk.as_ref().is_none_or(Desk::is_lending);
            match change {
                Change::Came(loan) if lending => self.lend(*loan),
                Change::Came(_) => {}
                Change::Went(device) => self.withdraw(&device),
                Change::Resized(device, bytes) => self.resize(&device, bytes),
                Change::Note(note) => self.say(&Happening::note(note)),
            }
        }
    }

    fn lend(&mut self, loan: Loan) {
        let unlike = |known: &Loan| check_unlike(&known.export, &loan.export);
        if let Err(failure) = self.loans.iter().try_for_each(unlike) {
            self.say(&Happening::note(failure));
            return;
        }
        let loan = loan.named_apart(&self.loans);
        let export = loan.export.clone();
        if let Err(failure) = self.worker.lend(&export) {
            self.say(&Happening::note(failure));
            return;
        }
        self.keep(loan);
        self.say_lent(&export);
        self.draw_soon(true);
    }

    fn withdraw(&mut self, device: &Device) {
        let of_it = |loan: &mut Loan| loan.device.as_ref() == Some(device);
        let gone: Vec<Loan> = self.loans.extract_if(.., of_it).collect();
        for loan in gone {
            self.withdraw_loan(&loan, "the disk or its medium is gone");
        }
    }

    fn withdraw_loan(&mut self, loan: &Loan, reason: &'static str) {
        self.follow.release(loan);
        self.worker.withdraw(&loan.export);
        self.ledger.withdraw(&loan.export);
        self.say(&Happening::withdrawn(&loan.export, reason));
    }

    fn resize(&mut self, device: &Device, bytes: u64) {
        let loan = self.loans.iter().find(|loan| loan.device.as_ref() == Some(device));
        let Some(export) = loan.map(|loan| loan.export.clone()) else { return };
        self.resize_export(&export, bytes);
    }

    fn resize_export(&mut self, export: &Arc<Export>, bytes: u64) {
        let before = export.bytes();
        if export.resize(bytes) {
            self.worker.resize(export);
            self.say(&Happening::resized(export, before));
        }
    }

    /// Follows image files as they grow and shrink.
    pub(super) fn follow_sizes(&mut self, now: Instant) {
        let sizes =
            self.loans.iter().filter_map(|loan| Some((loan.export.clone(), loan.file_bytes()?)));
        let sizes: Vec<(Arc<Export>, u64)> = sizes.collect();
        self.alerts.sizes = (!sizes.is_empty()).then(|| now + SIZES);
        sizes.into_iter().for_each(|(export, bytes)| self.resize_export(&export, bytes));
    }

    /// The size of an image file that has become shorter, if that is why a read failed.
    pub(super) fn file_end_before(&self, event: &Event) -> Option<u64> {
        let Event::Fault { export, op: "read", offset, len, .. } = event else { return None };
        let loan = self.loans.iter().find(|loan| Arc::ptr_eq(&loan.export, export))?;
        let bytes = loan.file_bytes()?;
        let end = export.geometry.blocks_for(bytes) << export.geometry.shift();
        (offset.saturating_add(*len) > end).then_some(bytes)
    }
}

/// Flushes a disk until nothing has been written to it since.
fn flush(export: &Arc<Export>, writes: &Writes, flushes: &Flushes) -> io::Result<()> {
    loop {
        // What a host has asked for before it went may still be on its way to the disk.
        while writes.are_under_way() {
            std::thread::sleep(COALESCE);
        }
        Flush::start(&**export).and_then(Flush::outcome)?;
        if !flushes.end(export) {
            return Ok(());
        }
    }
}

fn unflushed(export: &Export, why: &dyn std::fmt::Display) -> String {
    format!("{} could not be flushed ({why}): what was written to it last may be lost", export.name)
}
