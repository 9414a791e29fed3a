//! Fencing of a lost worker's writes. A request that io_uring passed to a disk outlives the
//! process, and a process blocked on a disk survives SIGKILL; without fencing, such a write could
//! overwrite newer data.
//!
//! Writable disks are withheld from the next worker until no write of the old one can be in flight:
//! a flush has completed, and the kernel counts no write in flight to the device. If the kernel
//! does not count them, the old process must have exited, unless it had reported that no write was
//! in flight. Read-only disks are not withheld.

use std::process::Child;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use export::{Access, Export, ExportId};
use linux::block::{DeviceNumber, writes_in_flight};
use linux::tree::Tree;
use rustix::fs::{FileType, fstat};

use super::{Shared, State};
use crate::flush::Flush;
use crate::inbox::WorkerEvent;

/// Poll interval.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a disk is withheld before the user is told.
const QUIET: Duration = Duration::from_secs(1);

/// A withheld disk.
pub(super) struct Withheld {
    pub(super) export: Arc<Export>,
    /// Whether the worker had reported writes in flight.
    pub(super) was_written: bool,
}

impl State {
    /// Handles the loss of the worker. Its writes may still be in flight, so its writable disks are
    /// withheld until they are released, and so is one whose reservations are being stored.
    pub(super) fn worker_lost(&mut self) -> Vec<Withheld> {
        (self.sender, self.process) = (None, None);
        self.worker += 1;
        self.unanswered.clear();
        // The worker may have died before reporting a failed attempt.
        if self.pairing.is_some() {
            self.tries.fail(Instant::now());
        }
        // Another worker cannot continue a session.
        if let Some(connection) = self.adopted.take() {
            let _ = rustix::net::shutdown(connection, rustix::net::Shutdown::Both);
        }
        self.lent.retain(|assigned| !assigned.withdrawn);
        for assigned in &mut self.lent {
            assigned.before = assigned.export.usage();
            (assigned.is_sent, assigned.is_published) = (false, false);
        }
        let lent = self.lent.iter();
        let writable = lent.filter(|assigned| assigned.export.access == Access::Writable);
        let withheld: Vec<Withheld> = writable
            .map(|assigned| Withheld {
                export: assigned.export.clone(),
                was_written: assigned.being_written,
            })
            .collect();
        // Nothing releases them once no worker will follow.
        if !self.stopping {
            self.withheld.extend(withheld.iter().map(|withheld| withheld.export.id.clone()));
            self.withheld.extend(self.storing.take());
        }
        withheld
    }

    /// Releases one hold on a withheld disk, and sends the disk to the worker when there is no
    /// other.
    pub(super) fn release(&mut self, id: &ExportId) {
        if let Some(at) = self.withheld.iter().position(|withheld| withheld == id) {
            self.withheld.swap_remove(at);
        }
        if self.withheld.iter().any(|withheld| withheld == id) {
            return;
        }
        for assigned in self.lent.iter_mut().filter(|assigned| assigned.export.id == *id) {
            assigned.being_written = false;
        }
        let lent = self.lent.iter();
        let held = lent.filter(|it| it.export.id == *id && !it.withdrawn && !it.is_sent);
        let held: Vec<u64> = held.map(|assigned| assigned.disk).collect();
        held.into_iter().for_each(|disk| self.send_disk(disk));
    }
}

struct Check {
    withheld: Withheld,
    flush: Option<Flush>,
    is_reported: bool,
}

/// Releases the disks as soon as it is safe, on a thread of its own. `stuck` is the old process if
/// it could not be killed.
pub(super) fn start(shared: Arc<Shared>, stuck: Option<Child>, withheld: Vec<Withheld>) {
    if stuck.is_none() && withheld.is_empty() {
        return;
    }
    let check = |withheld| Check { withheld, flush: None, is_reported: false };
    let checks = withheld.into_iter().map(check).collect();
    // If the thread cannot be started, the disks stay withheld, which is safe.
    let watch = move || watch(&shared, stuck, checks);
    drop(thread::Builder::new().name("fence".to_owned()).spawn(watch));
}

fn watch(shared: &Shared, mut stuck: Option<Child>, mut checks: Vec<Check>) {
    let begun = Instant::now();
    loop {
        let is_gone = stuck.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
        checks.retain_mut(|check| {
            let is_free = check.is_free(is_gone);
            if is_free {
                check.release(shared);
            } else if begun.elapsed() >= QUIET {
                check.report(shared);
            }
            !is_free
        });
        // The process must be reaped in any case.
        if is_gone && checks.is_empty() {
            return;
        }
        thread::sleep(PAUSE);
    }
}

impl Check {
    /// Returns whether no write of the old process can be in flight. Does not block on the disk.
    fn is_free(&mut self, is_gone: bool) -> bool {
        let export = &self.withheld.export;
        let in_flight = || writes_in_flight(&Tree::machine(), device(export)?);
        if self.flush.is_none() {
            // A flush only counts if it starts after the last write completed.
            if in_flight().is_some_and(|count| count > 0) {
                return false;
            }
            self.flush = Flush::start(export.backing().written()).ok();
        }
        match self.flush.as_mut().and_then(Flush::ended) {
            None => return false,
            // The disk responded, but this flush consumed the error: later ones must fail, too.
            Some(Err(_)) => export.flush_failed(),
            Some(Ok(())) => {}
        }
        match in_flight() {
            Some(0) => true,
            Some(_) => {
                // Writes in flight now may be the old ones: flush again.
                self.flush = None;
                false
            }
            None => is_gone || !self.withheld.was_written,
        }
    }

    fn report(&mut self, shared: &Shared) {
        if !std::mem::replace(&mut self.is_reported, true) {
            shared.emit(WorkerEvent::Note(format!(
                "{} is not lent for now: the disk does not answer, and what was being written to it \
                 may still be carried out.",
                self.withheld.export.name
            )));
        }
    }

    fn release(&self, shared: &Shared) {
        shared.state().release(&self.withheld.export.id);
        if self.is_reported {
            shared.emit(WorkerEvent::Note(format!("{} is lent again.", self.withheld.export.name)));
        }
    }
}

/// The block device of the export. `None` for images: writes to the device below are not
/// necessarily ours.
fn device(export: &Export) -> Option<DeviceNumber> {
    let stat = fstat(export.backing().written()).ok()?;
    let number = stat.st_rdev;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
    is_device.then(|| DeviceNumber {
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
    })
}
