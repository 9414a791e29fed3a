//! `storagetm overlay`: overlays in files, while they are not served.

mod changes;
mod commit;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use console::decimal;
use daemon::lend::{LendOptions, LendRequest, LentDisk, Opener, Writes, named};
use daemon::overlay::{self, BaseDisk, OverlayContents, OverlayFolder, OverlayOptions, StateFiles};
use daemon::reported::ReportedIdentity;
use export::{BlockMap, Buffer, Pool, Source};
use failure::Failure;
use filesystem::Container;
use linux::identity::machine_id;
use linux::tree::Tree;
use serde_json::json;

use crate::confirmation;
use crate::key::{print, print_json};
use crate::options::overlay::{Discard, List, Overlay as Options, Task};
use crate::table::table;

/// Bytes that are read and written by one call.
const PIECE: u64 = 1 << 20;

/// Runs the subcommand.
///
/// # Errors
/// Fails with a sentence.
pub(crate) fn overlay(options: &Options) -> Result<(), Failure> {
    match &options.task {
        Task::List(options) => list(options),
        Task::Discard(options) => discard(options),
        Task::Commit(options) => commit::commit(options),
        Task::Export(options) => changes::export(options),
    }
}

fn list(options: &List) -> Result<(), Failure> {
    let all = overlay::list(&options.dir)?;
    if options.json {
        let shown = all.iter().map(|OverlayContents { folder, disk, hosts }| {
            let hosts = hosts.iter();
            let hosts: Vec<_> = hosts
                .map(|(host, bytes)| {
                    json!({"host": host.text(), "keyed": host.has_key(), "bytes": bytes})
                })
                .collect();
            json!({"folder": folder, "disk": disk, "hosts": hosts})
        });
        return print_json(&shown.collect::<Vec<_>>());
    }
    let rows = all.iter().flat_map(|OverlayContents { folder, disk, hosts }| {
        hosts.iter().map(move |(host, bytes)| {
            let (disk, folder) = (disk.display().to_string(), folder.display().to_string());
            [disk, host.to_string(), decimal(*bytes), folder]
        })
    });
    print(table(["DISK", "HOST", "KEPT", "FOLDER"], &rows.collect::<Vec<_>>()).as_bytes())
}

fn discard(options: &Discard) -> Result<(), Failure> {
    let folder = OverlayFolder::open(&options.folder)?;
    refuse_interrupted(&folder)?;
    let states = written(&folder)?;
    let chosen: Vec<&StateFiles> = match &options.host {
        Some(host) => vec![choose(&states, Some(host))?],
        None => states.iter().collect(),
    };
    let hosts: Vec<String> = chosen.iter().map(|state| name_of(state)).collect();
    let disk = folder.record().disk.display();
    let question = format!("what {} wrote to {disk} is thrown away", hosts.join(", "));
    confirmation::consent(&question, "yes", "--yes", options.yes).map_err(Failure::new)?;
    chosen.iter().try_for_each(|state| folder.remove(&state.name))
}

/// A range of bytes that are in the same place.
struct Run {
    source: Source,
    at: u64,
    len: u64,
}

/// Returns the runs of the disk, each of at most `max` bytes.
fn runs(map: &BlockMap, block: u32, max: u64) -> impl Iterator<Item = Run> {
    let (block, mut at) = (u64::from(block.max(1)), 0);
    std::iter::from_fn(move || {
        let end = map.blocks().min(at + (max / block).max(1));
        let start = at;
        let (source, blocks) = map.run(start, end);
        at += blocks;
        (blocks > 0).then_some(Run { source, at: start * block, len: blocks * block })
    })
}

/// Returns the states that hosts have written.
fn written(folder: &OverlayFolder) -> Result<Vec<StateFiles>, Failure> {
    let states = folder.states()?;
    Ok(states.into_iter().filter(|state| state.host.is_some()).collect())
}

/// Returns the state of the host of that name, or the only one. A name that was not proven may have
/// the mark with which it is listed.
fn choose<'a>(states: &'a [StateFiles], host: Option<&str>) -> Result<&'a StateFiles, Failure> {
    // A host without a key may have the name of another.
    let is_listed = host.is_some_and(|host| states.iter().any(|state| name_of(state) == host));
    let is_named = |state: &StateFiles, name: &str| match is_listed {
        true => name_of(state) == name,
        false => state.host.as_ref().is_some_and(|host| host.text() == name),
    };
    let mut found = states.iter().filter(|state| host.is_none_or(|host| is_named(state, host)));
    match (found.next(), found.next()) {
        (Some(state), None) => Ok(state),
        (None, _) => Err(Failure::new("no host, or no host of that name, has written anything")),
        (Some(_), Some(_)) => {
            let hosts: Vec<String> = states.iter().map(name_of).collect();
            Err(Failure::new(format!(
                "several hosts have written; name one with --host: {}",
                hosts.join(", ")
            )))
        }
    }
}

fn name_of(state: &StateFiles) -> String {
    state.host.as_ref().map(ToString::to_string).unwrap_or_default()
}

/// Refuses a folder whose changes are partly on the disk.
fn refuse_interrupted(folder: &OverlayFolder) -> Result<(), Failure> {
    if folder.committing().is_none() {
        return Ok(());
    }
    let path = folder.path().display();
    Err(Failure::new(format!(
        "a commit of {path} was interrupted, so that the disk has a part of the changes; run it again"
    )))
}

fn unreadable(folder: &OverlayFolder, error: &io::Error) -> Failure {
    Failure::new(format!("the files in {} cannot be read: {error}", folder.path().display()))
}

/// Opens the disk under an overlay, unless it is in use. `format` is that of the file that it is in.
fn open_disk(disk: &Path, writes: Writes, format: Option<Container>) -> Result<LentDisk, Failure> {
    let tree = Tree::machine();
    let path = named(&tree, disk);
    let lend = LendOptions {
        base: None,
        allow_in_use: false,
        force: false,
        removable: false,
        overlay: OverlayOptions { limit: 0, is_shared: false, dir: None },
        machine: machine_id(&tree),
        tree,
        at_rest: false,
        reported: ReportedIdentity::default(),
        opener: Opener::default(),
    };
    lend.lend(&LendRequest { format, ..LendRequest::new(path, writes) })
}

/// Returns what is compared of the opened disk, which is in a file of that format.
fn base_disk<'a>(
    lent: &'a LentDisk,
    path: &'a Path,
    container: Option<Container>,
    partitions: &'a [u64],
) -> BaseDisk<'a> {
    let export = &lent.export;
    BaseDisk {
        path,
        container,
        file: export.backing().written(),
        uuid: export.identity.uuid,
        bytes: export.bytes(),
        block: export.geometry.block(),
        partitions,
    }
}

/// Reads a range of a disk.
fn read_exact(disk: BorrowedFd<'_>, mut at: u64, mut into: &mut [u8]) -> io::Result<()> {
    while !into.is_empty() {
        match rustix::io::pread(disk, &mut *into, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                at += read as u64;
                into = into.get_mut(read..).unwrap_or_default();
            }
        }
    }
    Ok(())
}

/// Returns a buffer of [`PIECE`] bytes that is aligned for direct I/O.
fn buffer() -> io::Result<Buffer> {
    let len = usize::try_from(PIECE).unwrap_or(0);
    Pool::new(len).open().take(len).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}
