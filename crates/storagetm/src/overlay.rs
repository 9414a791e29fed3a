//! `storagetm overlay`: overlays in files, while they are not served.

mod commit;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use console::decimal;
use daemon::overlay::{self, OverlayContents, OverlayFolder, StateFiles};
use export::{BlockMap, Source};
use failure::Failure;
use serde_json::json;

use crate::confirmation;
use crate::key::{print, print_json};
use crate::options::overlay::{Discard, Export, List, Overlay as Options, Task};
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
        Task::Export(options) => export(options),
    }
}

fn list(options: &List) -> Result<(), Failure> {
    let all = overlay::list(&options.dir)?;
    if options.json {
        let shown = all.iter().map(|OverlayContents { folder, disk, hosts }| {
            let hosts = hosts.iter();
            let hosts: Vec<_> = hosts
                .map(|(host, bytes)| json!({"host": host.to_string(), "bytes": bytes}))
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

fn export(options: &Export) -> Result<(), Failure> {
    let folder = OverlayFolder::open(&options.folder)?;
    let states = written(&folder)?;
    let state = choose(&states, options.host.as_deref())?;
    let cannot = |error: io::Error| {
        Failure::new(format!("{} cannot be written: {error}", options.file.display()))
    };
    let create = |path: &Path| {
        let mut new = OpenOptions::new();
        new.write(true).create_new(true).mode(0o600).open(path).map_err(cannot)
    };
    let file = create(&options.file)?;
    let mut map_path = options.file.as_os_str().to_owned();
    map_path.push(".map");
    let mut map_file = create(Path::new(&map_path))?;
    let record = folder.record();
    file.set_len(record.bytes).map_err(cannot)?;
    let mut lines = String::from(
        "# Mapfile. Blocks that a host has written under an overlay\n# current_pos  current_status\n\
         0x00000000     +\n#      pos        size  status\n",
    );
    let map = state.block_map(record).map_err(|error| unreadable(&folder, &error))?;
    for Run { source, at, len } in runs(&map, record.block, PIECE) {
        if source == Source::Overlay {
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            let read = state.data.read_exact_at(&mut bytes, at);
            read.map_err(|error| unreadable(&folder, &error))?;
            file.write_all_at(&bytes, at).map_err(cannot)?;
        }
    }
    for Run { source, at, len } in runs(&map, record.block, u64::MAX) {
        let status = if source == Source::Base { '?' } else { '+' };
        lines.push_str(&format!("0x{at:08X}  0x{len:08X}  {status}\n"));
    }
    map_file.write_all(lines.as_bytes()).map_err(cannot)?;
    file.sync_all().and_then(|()| map_file.sync_all()).map_err(cannot)
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

/// Returns the state of the host of that name, or the only one.
fn choose<'a>(states: &'a [StateFiles], host: Option<&str>) -> Result<&'a StateFiles, Failure> {
    let mut found = states.iter().filter(|state| host.is_none_or(|host| name_of(state) == host));
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
