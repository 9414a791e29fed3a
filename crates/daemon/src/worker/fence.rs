//! Keeps writes of a worker that is gone from landing on newer ones. A request that io_uring has handed to a disk outlives
//! the process that asked for it, and a process that waits for a disk outlives its being killed.
//!
//! Writable disks are withheld from the next worker until it is known that no write of the old one is under way: a flush
//! has ended, and the kernel has no write to the device left. Where it does not count them, the old process must be gone,
//! unless it had reported that nothing is being written. Disks that are lent read-only are not withheld.

use std::process::Child;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use export::Export;
use linux::block::{DeviceNumber, writes_in_flight};
use linux::tree::Tree;
use rustix::fs::{FileType, fstat};

use super::Shared;
use crate::flush::Flush;
use crate::inbox::WorkerEvent;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a disk is withheld before that is reported: those that answer are free at once.
const QUIET: Duration = Duration::from_secs(1);

/// A disk that is withheld.
pub(super) struct Withheld {
    pub(super) export: Arc<Export>,
    /// Whether the worker had reported writes under way.
    pub(super) was_written: bool,
}

struct Check {
    withheld: Withheld,
    flush: Option<Flush>,
    is_reported: bool,
}

/// Releases each of the disks when that may be, on a thread of its own. `stuck` is the old process, if it cannot be ended.
pub(super) fn start(shared: Arc<Shared>, stuck: Option<Child>, withheld: Vec<Withheld>) {
    if stuck.is_none() && withheld.is_empty() {
        return;
    }
    let check = |withheld| Check { withheld, flush: None, is_reported: false };
    let checks = withheld.into_iter().map(check).collect();
    // Without a thread the disks stay withheld, which is safe.
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
        // The process must be waited for, whether or not something depends on it.
        if is_gone && checks.is_empty() {
            return;
        }
        thread::sleep(PAUSE);
    }
}

impl Check {
    /// Whether no write that the old process has begun can be under way. Never waits for the disk.
    fn is_free(&mut self, is_gone: bool) -> bool {
        let export = &self.withheld.export;
        let in_flight = || writes_in_flight(&Tree::machine(), device(export)?);
        if self.flush.is_none() {
            // A flush before the last of them has ended would have to be repeated.
            if in_flight().is_some_and(|count| count > 0) {
                return false;
            }
            self.flush = Flush::start(&**export).ok();
        }
        match self.flush.as_mut().and_then(Flush::ended) {
            None => return false,
            // It has answered, but no later flush may report success: this one has taken the error.
            Some(Err(_)) => export.flush_failed(),
            Some(Ok(())) => {}
        }
        match in_flight() {
            Some(0) => true,
            Some(_) => {
                // Those that are under way now may be the ones that count.
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

/// Which block device it is, if it is one. What is written to the device under an image may be anybody's.
fn device(export: &Export) -> Option<DeviceNumber> {
    let stat = fstat(export).ok()?;
    let number = stat.st_rdev;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
    is_device.then(|| DeviceNumber {
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
    })
}
