//! Use of the source's contents: the allocated ranges (`--allocated`), and the files that bad
//! sectors belong to (`--files`). A process without privileges parses the file systems.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use ::copy::{CopyError, End, Endpoint, Outcome, Report};
use console::decimal;
use filesystem::{Owner, Part, PartKind, RangeOwner, Ranges};
use linux::medium::ReadAt;
use linux::tree::Tree;

use super::allocated::AllocatedDisk;
use super::event::Event;
use super::progress::ProgressReporter;
use super::remote;
use super::summary::refused;
use super::sync_disk::SyncDisk;
use crate::inspect;
use crate::options::copy::Copy;
use ::remote::uri::Locator;
use failure::Failure;

/// Maximum number of owners listed in human-readable output; JSON has all.
const MAX_NAMED: usize = 100;

/// A disk of which only the allocated ranges are copied.
pub(super) struct Examined {
    disk: Arc<dyn Endpoint>,
    used: Arc<Ranges>,
}

impl Examined {
    /// Fails a copy if other ranges are allocated now than before it: what was allocated meanwhile is missing.
    pub(super) fn conclude(&self, report: &mut Report) {
        if !matches!(report.outcome, Outcome::Success | Outcome::BadSectors) {
            return;
        }
        let used = SyncDisk::open(&*self.disk).and_then(|disk| {
            // A file system that is mounted does not write by the page cache of the disk.
            disk.drop_caches();
            inspect::usage(&disk, disk.disk().bytes)
        });
        let reason = match used {
            Ok(usage) if usage.used == *self.used => return,
            Ok(_) => {
                "its file systems have changed while it was copied: copy it again while none is mounted, or without \
                 --allocated"
                    .to_owned()
            }
            Err(reason) => {
                format!("it is not known whether its file systems have changed meanwhile: {reason}")
            }
        };
        report.outcome = Outcome::Failed(CopyError::Incomplete(reason));
    }
}

/// Returns an allocated-only view of the disk, what is to be compared after the copy, and notes.
///
/// # Errors
/// Fails for a pipe, or if the disk cannot be examined.
pub(super) fn allocated_only(end: End) -> Result<(End, Examined, Vec<String>), Failure> {
    let End::Disk(place) = end else {
        return Err(Failure::usage("--allocated needs a disk to look at, and a pipe is none"));
    };
    let cannot =
        |reason: String| refused(format!("{reason}; without --allocated all of it is copied"));
    let disk = SyncDisk::open(&*place).map_err(cannot)?;
    let usage = inspect::usage(&disk, disk.disk().bytes).map_err(cannot)?;
    let mut notes: Vec<String> = usage.parts.iter().filter_map(copied_whole_note).collect();
    let (used, all) = (usage.used.bytes(), disk.disk().bytes);
    if used < all {
        let (used, all) = (decimal(used), decimal(all));
        notes.push(format!("{used} of {all} are used; the rest becomes zeros"));
    }
    drop(disk);
    let examined = Examined { disk: place.into(), used: Arc::new(usage.used) };
    let view = AllocatedDisk::new(examined.disk.clone(), examined.used.clone());
    Ok((End::Disk(Box::new(view)), examined, notes))
}

fn copied_whole_note(part: &Part) -> Option<String> {
    let PartKind::Opaque(reason) = part.kind else { return None };
    let what = match part.number {
        0 => "the disk".to_owned(),
        number => format!("partition {number}"),
    };
    Some(format!("{what} is copied whole: {reason}"))
}

/// Reports the files that unreadable bytes belong to. Reads the destination, to spare the failing
/// source.
pub(super) fn report_owners(options: &Copy, bad: &[Range<u64>], reporter: &mut ProgressReporter) {
    match owners(options, bad) {
        Ok(found) => {
            let count = found.len();
            for (at, found) in found.iter().enumerate() {
                if reporter.is_human_readable() {
                    let said = if at < MAX_NAMED { Some(sentence(found)) } else { None };
                    said.into_iter().for_each(|said| reporter.note(&said));
                } else {
                    reporter.event(&Event::Owner {
                        partition: found.partition,
                        path: file_path(found),
                    });
                }
            }
            if reporter.is_human_readable() && count > MAX_NAMED {
                reporter.note(&format!("and {} more", count - MAX_NAMED));
            }
        }
        Err(reason) => {
            reporter.note(&format!("which files have bad sectors cannot be told: {reason}"))
        }
    }
}

fn owners(
    options: &Copy,
    bad: &[Range<u64>],
) -> Result<std::collections::BTreeSet<RangeOwner>, String> {
    let ranges: Ranges = bad.iter().cloned().collect();
    let look = |disk: &dyn ReadAt, bytes| inspect::owners(disk, bytes, &ranges);
    match &options.destination {
        Locator::Path(path) => {
            let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
            let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0));
            let bytes = end.map_err(|error| format!("{}: {error}", path.display()))?;
            look(&file, bytes)
        }
        there => {
            let place = remote::endpoint(&Tree::machine(), options, there);
            let place = place.map_err(|failure| failure.to_string())?;
            let disk = SyncDisk::open(&*place)?;
            look(&disk, disk.disk().bytes)
        }
    }
}

fn file_path(found: &RangeOwner) -> Option<&str> {
    match &found.owner {
        Owner::File(path) => Some(path),
        _ => None,
    }
}

fn sentence(found: &RangeOwner) -> String {
    let place = match found.partition {
        0 => String::new(),
        number => format!("partition {number}: "),
    };
    match &found.owner {
        Owner::File(path) => format!("{place}bad sectors in {path}"),
        Owner::Structure => format!("{place}bad sectors in the file system itself"),
        Owner::Free => format!("{place}bad sectors in free space"),
        Owner::Unknown => format!("{place}bad sectors of which it cannot be told whose they are"),
    }
}
