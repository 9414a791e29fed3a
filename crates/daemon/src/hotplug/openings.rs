//! Disks that are being opened, each on a thread: one that does not respond delays neither the others nor the caller.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use failure::{Failure, spawn_error};
use linux::block::{self, Disk};
use linux::in_use::Machine;
use rustix::event::{EventfdFlags, eventfd};

use super::{Change, Hotplug, RECHECK, boots_target_mode};
use crate::device::Device;
use crate::disk_filter::Selection;
use crate::examine::{Findings, LIMIT};
use crate::lend::{ExaminedDisk, LendOptions, LendRequest, LentDisk, Writes};

/// Disks that are opened at a time. Each needs a thread and a process.
const MAX_OPENING: usize = 32;

/// What was found out about the disks of this machine.
#[derive(Debug, Clone)]
pub(super) struct Examined {
    pub(super) machine: Arc<Machine>,
    pub(super) findings: Arc<Findings>,
}

impl Examined {
    /// Returns what was found out about one of the disks.
    pub(super) fn of<'a>(&'a self, disk: &'a Disk) -> ExaminedDisk<'a> {
        ExaminedDisk { machine: &self.machine, disk, findings: &*self.findings }
    }
}

/// A disk that is being opened.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) disk: Disk,
    /// Where what hosts write is to go.
    pub(super) writes: Writes,
    /// Why it is not writable although it was named so, or has no overlay.
    pub(super) note: Option<String>,
}

/// The disks that are being opened.
#[derive(Debug)]
pub(super) struct Openings {
    opening: Vec<Opening>,
    sender: Sender<(Device, Result<LentDisk, Failure>)>,
    receiver: Receiver<(Device, Result<LentDisk, Failure>)>,
    /// Readable when one has been opened, or cannot be.
    wake_fd: Arc<OwnedFd>,
}

impl Openings {
    /// # Errors
    /// Fails if descriptors are exhausted.
    pub(super) fn new() -> Result<Self, Failure> {
        let wake_fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake_fd = wake_fd.map_err(|error| Failure::new(spawn_error(&error.into())))?;
        let (sender, receiver) = channel();
        Ok(Self { opening: Vec::new(), sender, receiver, wake_fd: Arc::new(wake_fd) })
    }

    /// Readable when there is something to [`Self::take`].
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.wake_fd.as_fd()
    }

    /// Returns whether another disk can be opened.
    pub(super) fn has_room(&self) -> bool {
        self.opening.len() < MAX_OPENING
    }

    #[cfg(test)]
    pub(super) fn opening(&self) -> usize {
        self.opening.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.opening.is_empty()
    }

    /// Returns whether the disk is being opened.
    pub(super) fn has(&self, disk: &Disk) -> bool {
        let device = Device::of(disk);
        self.opening.iter().any(|opening| Device::of(&opening.disk) == device)
    }

    /// Starts to open a disk. One that cannot have its overlay is opened read-only.
    ///
    /// # Errors
    /// Fails if no thread can be started.
    pub(super) fn start(
        &mut self,
        options: LendOptions,
        opening: Opening,
        examined: Examined,
    ) -> Result<(), Failure> {
        let (disk, writes) = (opening.disk.clone(), opening.writes);
        let (sender, wake_fd) = (self.sender.clone(), self.wake_fd.clone());
        let open = move || {
            let lent = lend(&options, &examined.of(&disk), writes);
            let _ = sender.send((Device::of(&disk), lent));
            let _ = rustix::io::write(&wake_fd, &1u64.to_ne_bytes());
        };
        let thread = thread::Builder::new().name("open".to_owned()).spawn(open);
        thread.map_err(|error| Failure::new(spawn_error(&error)))?;
        self.opening.push(opening);
        Ok(())
    }

    /// Returns the disks that have been opened since the last call, or why they cannot be.
    pub(super) fn take(&mut self) -> Vec<(Opening, Result<LentDisk, Failure>)> {
        let _ = rustix::io::read(&self.wake_fd, &mut [0; 8]);
        let mut taken = Vec::new();
        for (device, lent) in self.receiver.try_iter() {
            let at = self.opening.iter().position(|it| Device::of(&it.disk) == device);
            taken.extend(at.map(|at| (self.opening.remove(at), lent)));
        }
        taken
    }
}

fn lend(
    options: &LendOptions,
    examined: &ExaminedDisk<'_>,
    writes: Writes,
) -> Result<LentDisk, Failure> {
    let path = examined.disk.path(&options.tree);
    // As long as the examination waits for a disk.
    let lend =
        |writes| options.lend_examined(&LendRequest::new(path.clone(), writes), examined, LIMIT);
    match lend(writes) {
        Err(failure) if writes == Writes::ToOverlay && !failure.is_timeout() => {
            let mut lent = lend(Writes::Refused)?;
            lent.notes.push(format!("{} is lent read-only: {failure}", lent.export.name));
            Ok(lent)
        }
        lent => lent,
    }
}

impl Hotplug {
    /// Returns the changes by disks that have been opened.
    pub(super) fn take_opened(&mut self, now: Instant) -> Vec<Change> {
        let opened = std::mem::take(&mut self.opened);
        opened.into_iter().filter_map(|(opening, lent)| self.opened(opening, lent, now)).collect()
    }

    fn opened(
        &mut self,
        opening: Opening,
        lent: Result<LentDisk, Failure>,
        now: Instant,
    ) -> Option<Change> {
        let Opening { disk, writes, note } = opening;
        self.overlays.settle(&Device::of(&disk), lent.as_ref().ok());
        match lent {
            // It was removed meanwhile, before it could be withdrawn.
            Ok(_) if !self.is_still_there(&disk) => None,
            Ok(mut lent) => {
                self.reported.remove(&disk.name);
                lent.notes.extend(note);
                if writes == Writes::ToDisk {
                    self.record_position(&disk, lent.fingerprint);
                }
                Some(Change::Added(Box::new(lent)))
            }
            Err(failure) => {
                if failure.is_timeout() {
                    // Examined again, it is lent when it responds.
                    self.rechecks.insert(disk.name.clone(), now + RECHECK);
                }
                self.report(&disk.name, failure.to_string())
            }
        }
    }

    fn is_still_there(&self, disk: &Disk) -> bool {
        let there = block::read(&self.options.tree, &disk.name);
        there.is_some_and(|there| there.bytes > 0 && Device::of(&there) == Device::of(disk))
    }

    /// Starts to open a disk, unless it is not to be exported: then returns a note, if there is one.
    pub(super) fn open_one(&mut self, disk: &Disk, results: &Examined) -> Option<Change> {
        let examined = results.of(disk);
        let (selection, note) = self.select(&examined)?;
        let verdict = examined.machine.judge(disk, examined.findings);
        if !self.allowed(&verdict, selection) {
            return self.report_refusal(disk, &verdict, selection);
        }
        if selection == Selection::Any && boots_target_mode(&examined) {
            let sentence = format!(
                "{} is not lent: it is a stick that boots into target mode",
                disk.path(&self.options.tree).display()
            );
            return self.report(&disk.name, sentence);
        }
        let (mut options, mut opening) =
            (self.options.clone(), Opening { disk: disk.clone(), writes: Writes::Refused, note });
        if selection == Selection::Writable {
            opening.writes = Writes::ToDisk;
        } else if self.wants_overlay(&examined) {
            match self.reserve_overlay(&examined) {
                Ok(limit) => {
                    opening.writes = Writes::ToOverlay;
                    options.overlay.limit = limit;
                }
                Err(note) => opening.note = opening.note.or(Some(note)),
            }
        }
        let started = self.openings.start(options, opening, results.clone());
        started.err().and_then(|failure| {
            self.overlays.settle(&Device::of(disk), None);
            self.report(&disk.name, failure.to_string())
        })
    }
}
