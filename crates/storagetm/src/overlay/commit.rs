//! Writes what a host has written under an overlay to the disk.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

use daemon::lend::Writes;
use daemon::overlay::{OverlayFolder, StateFiles};
use export::{BlockMap, Buffer, Source};
use failure::Failure;
use rustix::fs::{Advice, fadvise, fdatasync};

use super::{
    PIECE, Run, base_disk, buffer, choose, name_of, open_disk, read_exact, runs, unreadable,
    written,
};
use crate::confirmation;
use crate::options::overlay::Commit;

/// Writes the changes of a host to the disk, compares them, and removes the overlay. Can be
/// interrupted at any moment and repeated: all changes are written again.
///
/// # Errors
/// Fails with a sentence.
pub(super) fn commit(options: &Commit) -> Result<(), Failure> {
    if OverlayFolder::finish_removal(&options.folder) {
        // Interrupted when all else was done.
        return Ok(());
    }
    let mut folder = OverlayFolder::open(&options.folder)?;
    let states = written(&folder)?;
    let begun = folder.committing().map(str::to_owned);
    let Some(state) = chosen(options, &states, begun.as_deref())? else {
        // Interrupted while the overlay was being removed.
        return remove(folder, &states, None);
    };
    if states.len() > 1 && !options.discard_others && begun.is_none() {
        return Err(Failure::new(
            "other hosts have written, too, and their changes do not fit to the changed disk: add \
             --discard-others to throw them away",
        ));
    }
    if let Some(container) = folder.record().container() {
        return Err(Failure::new(format!(
            "{} is {container}, and nothing is written to an image in that format: \"storagetm overlay export {} \
             changed.qcow2 --qcow2 {}\" makes an image of the changed disk",
            folder.record().disk.display(),
            options.folder.display(),
            folder.record().disk.display()
        )));
    }
    confirm(options, state)?;
    begin(&mut folder, state, options)?;
    let lent = open_disk(&options.disk, Writes::ToDisk, None)?;
    let disk = lent.export.backing().written();
    let map = state.block_map(folder.record()).map_err(|error| unreadable(&folder, &error))?;
    let changes = Changes { state, map: &map, block: folder.record().block };
    let failed = |what: &str, error: &io::Error| {
        let disk = options.disk.display();
        Failure::new(format!("{disk} could not be {what} ({error}); run the command again"))
    };
    changes.write(disk).map_err(|error| failed("written", &error))?;
    changes.compare(disk).map_err(|error| failed("compared", &error))?;
    drop(lent);
    remove(folder, &states, Some(state))
}

fn chosen<'a>(
    options: &Commit,
    states: &'a [StateFiles],
    begun: Option<&str>,
) -> Result<Option<&'a StateFiles>, Failure> {
    match begun {
        None => choose(states, options.host.as_deref()).map(Some),
        Some(begun) => Ok(states.iter().find(|state| state.name == *begun)),
    }
}

/// Compares the disk, and records that it is being written: before it is opened for writing, by which
/// the time of an image changes.
fn begin(folder: &mut OverlayFolder, state: &StateFiles, options: &Commit) -> Result<(), Failure> {
    let lent = open_disk(&options.disk, Writes::Refused, None)?;
    let partitions = folder.record().partitions();
    folder.begin_commit(&state.name, &base_disk(&lent, &options.disk, None, &partitions))
}

fn confirm(options: &Commit, state: &StateFiles) -> Result<(), Failure> {
    let disk = options.disk.display();
    let question = format!("what {} wrote is written to {disk}", name_of(state));
    let name = options.disk.file_name().unwrap_or_default().to_string_lossy();
    confirmation::consent(&question, &name, "--yes", options.yes).map_err(Failure::new)
}

/// Removes the overlay: the changes of other hosts first, so that it is known until the end that the
/// disk has changed.
fn remove(
    folder: OverlayFolder,
    states: &[StateFiles],
    own: Option<&StateFiles>,
) -> Result<(), Failure> {
    let is_own = |state: &&StateFiles| own.is_some_and(|own| own.name == state.name);
    let (own, others): (Vec<_>, Vec<_>) = states.iter().partition(is_own);
    others.iter().chain(&own).try_for_each(|state| folder.remove(&state.name))?;
    // Removes the record.
    drop(folder);
    Ok(())
}

/// The changes of a host.
struct Changes<'a> {
    state: &'a StateFiles,
    map: &'a BlockMap,
    block: u32,
}

impl Changes<'_> {
    fn runs(&self) -> impl Iterator<Item = Run> {
        runs(self.map, self.block, PIECE).filter(|run| run.source != Source::Base)
    }

    /// Reads what the host has written.
    fn read<'a>(&self, run: &Run, buffer: &'a mut Buffer) -> io::Result<&'a [u8]> {
        let len = usize::try_from(run.len).unwrap_or(0);
        let bytes = buffer.bytes_mut().get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
        match run.source {
            Source::Overlay => self.state.data.read_exact_at(bytes, run.at)?,
            Source::Base | Source::Zeros => bytes.fill(0),
        }
        Ok(bytes)
    }

    fn write(&self, disk: BorrowedFd<'_>) -> io::Result<()> {
        let mut buffer = buffer()?;
        for run in self.runs() {
            let mut at = run.at;
            let mut bytes = self.read(&run, &mut buffer)?;
            while !bytes.is_empty() {
                let written = rustix::io::pwrite(disk, bytes, at)?;
                at += written as u64;
                bytes =
                    bytes.get(written..).filter(|_| written > 0).ok_or(io::ErrorKind::WriteZero)?;
            }
        }
        Ok(fdatasync(disk)?)
    }

    /// Compares with what the disk has, not its cache.
    fn compare(&self, disk: BorrowedFd<'_>) -> io::Result<()> {
        fadvise(disk, 0, None, Advice::DontNeed)?;
        let (mut wanted, mut found) = (buffer()?, buffer()?);
        for run in self.runs() {
            let wanted = self.read(&run, &mut wanted)?;
            let found = found.bytes_mut().get_mut(..wanted.len()).unwrap_or_default();
            read_exact(disk, run.at, found)?;
            if wanted != found {
                return Err(io::Error::other(format!("it differs at byte {}", run.at)));
            }
        }
        Ok(())
    }
}
