//! `storagetm copy`: finds both ends, sees that nothing is overwritten that should not be, and says how the copy goes
//! and how it ended. It knows not how a copy is made.

mod allocated;
mod compressed;
mod contents;
mod credentials;
mod event;
mod interrupt;
mod local_disk;
mod partition_table;
mod patched;
mod progress;
mod remote;
mod summary;
mod sync_disk;

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ::copy::map::{Map, State};
use ::copy::{Disk, End, Job, Refusal, Settings};
use console::attach::quoted;
use console::{decimal, size};
use filesystem::Survey;
use linux::inhibit::Inhibitor;
use linux::tree::Tree;

use crate::confirmation::{self, OverwriteTarget};
use crate::inspect;
use crate::options::copy::Copy;
use crate::options::rate::Rate;
use ::remote::uri::Locator;
use event::{Event, Finished};
use failure::Failure;
use local_disk::{CopyEnd, Permission};
use partition_table::{CopyEnds, PostCopy};
use progress::ProgressReporter;
use summary::{Names, refused};
use sync_disk::SyncDisk;

/// Makes the copy.
///
/// # Errors
/// It was not made, or not all of it: the exit status says which.
pub(crate) fn copy(options: &Copy) -> Result<(), Failure> {
    check(options)?;
    let mut reporter = ProgressReporter::open(options.json, options.destination == Locator::Pipe)?;
    let ready =
        prepare(options).and_then(|ready| confirm_overwrite(options, &ready).map(|()| ready));
    let done = match ready {
        Err(failure) => {
            reporter.event(&Event::Finished(Finished::refused(failure.to_string())));
            Err(failure)
        }
        Ok(ready) => run(options, ready, &mut reporter),
    };
    reporter.close();
    done
}

/// Both ends, and what is known of them.
struct PreparedCopy {
    source: CopyEnd,
    destination: CopyEnd,
    /// Bytes of the source, if it is a disk or a file and not a pipe.
    bytes: Option<u64>,
    /// The destination's disk, if it is one and not a file: what was agreed to.
    confirmed: Option<Disk>,
    resumed: bool,
    after: PostCopy,
    /// What else is worth knowing.
    notes: Vec<String>,
}

/// What is wrong with the line itself.
fn check(options: &Copy) -> Result<(), Failure> {
    let (source, destination) = (&options.source, &options.destination);
    if (source, destination) == (&Locator::Pipe, &Locator::Pipe) {
        return Err(Failure::usage("both ends are pipes: name a disk or a file for one of them"));
    }
    let piped = [source, destination].contains(&&Locator::Pipe);
    if piped && options.map.is_some() {
        return Err(Failure::usage("a pipe cannot be gone on with from a map: leave --map out"));
    }
    if *destination == Locator::Pipe && io::stdout().is_terminal() {
        return Err(Failure::usage("a terminal is no place for a disk: say where to with > or |"));
    }
    if *destination == Locator::Pipe && options.files {
        return Err(Failure::usage(
            "--files looks at the destination, and a pipe cannot be looked at",
        ));
    }
    if *source == Locator::Pipe && io::stdin().is_terminal() {
        return Err(Failure::usage("nothing comes from a terminal: say where from with < or |"));
    }
    if source == destination {
        return Err(refused(format!("{source} is both the source and the destination")));
    }
    let is_map = |end: &Locator| matches!((end, &options.map), (Locator::Path(path), Some(map)) if is_map_file(path, map));
    if is_map(source) || is_map(destination) {
        return Err(Failure::usage("the map is a file of its own, not one of the ends"));
    }
    Ok(())
}

/// Whether a path is that of the map, or of a file that is kept beside it, however it is written.
fn is_map_file(path: &Path, map: &Path) -> bool {
    let beside = |summary: &str| {
        let mut name = map.as_os_str().to_owned();
        name.push(summary);
        canonical(Path::new(&name))
    };
    let path = canonical(path);
    ["", ".bak", ".new"].into_iter().any(|summary| beside(summary) == path)
}

/// The path without links and detours, also of a file that is not there yet.
fn canonical(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new(".")).canonicalize();
    let made = || Some(folder.ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(made).unwrap_or_else(|| path.to_owned())
}

/// Finds both ends. Nothing is written.
fn prepare(options: &Copy) -> Result<PreparedCopy, Failure> {
    let tree = Tree::machine();
    let map = options.map.as_deref().map(|map| find_map(map, options.allocated)).transpose()?;
    let map = map.flatten();
    let resumed = map.is_some();
    // One in which nothing is done is no leave to overwrite what is there.
    let resumes = map.is_some_and(|map| map.sum(State::Finished) > 0);
    let raw = options.format.is_some();
    let source = match &options.source {
        Locator::Path(path) => local_disk::source(&tree, path, options.allow_in_use, raw)?,
        Locator::Pipe => local_disk::stream(local_disk::standard(io::stdin())?, raw)?,
        there => CopyEnd::remote(remote::endpoint(&tree, options, there)?),
    };
    let mut source =
        if options.allocated { source.allocated_only(&options.source)? } else { source };
    let mut notes = std::mem::take(&mut source.notes);
    let disk = open_disk(&source.end)?.map(|disk| with_known_sector(disk, &options.source));
    let destination = destination(&tree, options, resumes)?;
    let to = if destination.is_disk { open_disk(&destination.end)? } else { None };
    if let (Locator::Nvme(_), Locator::Nvme(_), Some(from), Some(to)) =
        (&options.source, &options.destination, &disk, &to)
        && from.identity == to.identity
    {
        return Err(refused(format!(
            "{} and {} are the same disk",
            options.source, options.destination
        )));
    }
    if let Some(to) = to.as_ref().filter(|to| !to.writable) {
        return Err(refused(Refusal::ReadOnly { destination: to.name.clone() }));
    }
    let (destination, there) = examine(destination, to.as_ref(), options);
    let sector = to.as_ref().and_then(|to| to.sector.or(there));
    notes.extend(source.note.clone());
    if let (Locator::Path(path), true) = (&options.source, source.is_disk) {
        notes.extend(compressed::device_note(path));
    }
    if let End::Pipe(pipe) = &source.end {
        if matches!(destination.end, End::Pipe(_)) {
            return Err(refused(format!(
                "{} is unpacked while it is copied, and not into a pipe: name a file or a disk, or copy it as it is with \
                 --format raw",
                options.source
            )));
        }
        compressed::check(pipe, source.note.as_ref(), options, sector)?;
        let after =
            if destination.is_disk { PostCopy::of_pipe(options) } else { PostCopy::default() };
        let bytes = pipe.bytes;
        return Ok(PreparedCopy {
            source,
            destination,
            bytes,
            confirmed: to,
            resumed,
            after,
            notes,
        });
    }
    let Some(from) = disk else { return Err(refused(Refusal::Pipes)) };
    let survey = match survey(&source.end, options) {
        Ok(survey) => survey,
        Err(why) => {
            notes.push(format!("what is on {} is not known: {why}", options.source));
            None
        }
    };
    let survey = survey.as_ref();
    let ends = CopyEnds { options, from: &from, survey, to: to.as_ref(), sector };
    let (source, fitted, after) = source.adapted(&ends)?;
    notes.extend(fitted);
    Ok(PreparedCopy {
        source,
        destination,
        bytes: Some(from.bytes),
        confirmed: to,
        resumed,
        after,
        notes,
    })
}

/// What is copied to.
fn destination(tree: &Tree, options: &Copy, resumes: bool) -> Result<CopyEnd, Failure> {
    match &options.destination {
        Locator::Path(path) => {
            let permission = Permission { force: options.force, resumes };
            let from = match &options.source {
                Locator::Path(path) => Some(path.as_path()),
                _ => None,
            };
            local_disk::destination(tree, path, permission, from)
        }
        Locator::Pipe => local_disk::standard(io::stdout()).map(CopyEnd::pipe),
        there => Ok(CopyEnd::remote(remote::endpoint(tree, options, there)?)),
    }
}

/// What is on a destination that is on another machine, as for one of this machine: what would be lost, and the block size
/// that a partition table on it is for.
fn examine(destination: CopyEnd, to: Option<&Disk>, options: &Copy) -> (CopyEnd, Option<u32>) {
    let (End::Disk(place), Some(to), None) = (&destination.end, to, &destination.overwrite) else {
        return (destination, None);
    };
    let survey = SyncDisk::open(&**place).and_then(|sync_disk| {
        let sector = sync_disk.disk().sector;
        inspect::survey(&sync_disk, to.bytes, sector)
    });
    let block = survey.as_ref().ok().filter(|it| it.table.is_some() && it.block_is_certain());
    let block = block.map(|it| it.block);
    let path = options.destination.to_string();
    let name = path.rsplit('/').next().unwrap_or_default();
    let name = name.split('?').next().filter(|name| !name.is_empty()).unwrap_or("yes").to_owned();
    let mut parts = Vec::new();
    let serial = to.identity.split_once(" serial ").map(|(_, serial)| serial);
    parts.extend(serial.map(|serial| format!("serial number {serial}")));
    parts.push(decimal(to.bytes));
    parts.push(confirmation::contents(survey));
    let overwrite = OverwriteTarget {
        path,
        name,
        description: parts.join(", "),
        bytes: to.bytes,
        option: "--yes",
    };
    (destination.with_overwrite(overwrite), block)
}

/// What is on the source; nothing for what is copied into a pipe, which fits anything.
fn survey(end: &End, options: &Copy) -> Result<Option<Survey>, String> {
    let (End::Disk(place), false) = (end, options.destination == Locator::Pipe) else {
        return Ok(None);
    };
    let sync_disk = SyncDisk::open(&**place)?;
    let disk = with_known_sector(sync_disk.disk().clone(), &options.source);
    inspect::survey(&sync_disk, disk.bytes, disk.sector).map(Some)
}

/// The map to go on from, if there is one. A file that is none would be lost; one of a part of the disk tells nothing of
/// the whole.
fn find_map(path: &Path, allocated: bool) -> Result<Option<Map>, Failure> {
    let cannot = |error| refused(format!("the map {} cannot be read: {error}", path.display()));
    let mut first = [0];
    let count = match File::open(path).and_then(|mut file| file.read(&mut first)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(cannot)?,
    };
    // A comment, a figure, an empty line, or what a crash of the machine leaves of them.
    if count == 1 && !b"#0\n\r\t \0".contains(&first[0]) {
        return Err(refused(format!(
            "{} is there, and is no map: name another file, or remove it",
            path.display()
        )));
    }
    // It is read here as it will be: of one that was torn the copy beside it counts.
    let map = ::copy::map::load(path)
        .map_err(|why| refused(format!("the map {}: {why}", path.display())))?;
    let part = map.as_ref().is_some_and(|map| is_allocated_map(&map.metadata.source));
    if part && !allocated {
        return Err(refused(format!(
            "the map {} is of a copy with --allocated: add that, or name another map",
            path.display()
        )));
    }
    Ok(map)
}

/// Whether a map whose source is called so is of a part of a disk. More may stand behind that: a table that was changed.
fn is_allocated_map(source: &str) -> bool {
    source.split_whitespace().any(|word| word == allocated::ALLOCATED)
}

/// The disk of a source. The minimum block size of an NBD server says how requests are aligned, not in what an MBR counts.
fn with_known_sector(disk: Disk, source: &Locator) -> Disk {
    let sector = disk.sector.filter(|_| !matches!(source, Locator::Nbd(_)));
    Disk { sector, ..disk }
}

/// What there is to know of a disk before it is copied; nothing of a pipe.
fn open_disk(end: &End) -> Result<Option<Disk>, Failure> {
    match end {
        End::Disk(place) => place.open().map(|(disk, _)| Some(disk)).map_err(refused),
        End::Pipe(_) => Ok(None),
    }
}

/// Has what would be overwritten agreed to, unless it is too small anyway.
fn confirm_overwrite(options: &Copy, ready: &PreparedCopy) -> Result<(), Failure> {
    let Some(overwrite) = &ready.destination.overwrite else { return Ok(()) };
    let is_disk = ready.destination.is_disk;
    if let Some(needed) = ready.bytes.filter(|needed| is_disk && *needed > overwrite.bytes) {
        return Err(refused(format!(
            "{} has {} bytes, {needed} are needed: choose a larger destination",
            overwrite.path, overwrite.bytes
        )));
    }
    let size = ready.bytes.map(|needed| format!(", {}", size(needed))).unwrap_or_default();
    let given = if is_disk { options.yes } else { options.force };
    confirmation::confirm(overwrite, &format!("{}{size}", options.source), given).map_err(refused)
}

fn run(
    options: &Copy,
    ready: PreparedCopy,
    reporter: &mut ProgressReporter,
) -> Result<(), Failure> {
    // Until here Ctrl-C ends the program at once: nothing was written.
    let stop = interrupt::watch_signals()?;
    let (source, destination) = (options.source.to_string(), options.destination.to_string());
    let (resume_command, map) =
        (resume_command(options), options.map.as_ref().map(|map| map.display().to_string()));
    reporter.event(&Event::Started {
        source: &source,
        destination: &destination,
        bytes: ready.bytes,
        resumed: ready.resumed,
    });
    ready.notes.iter().for_each(|note| reporter.note(note));
    let (from, _source) = ready.source.split();
    let (to, _destination) = ready.destination.split();
    let mut after = ready.after;
    let mut awake = Inhibitor::new(&Tree::machine(), "a disk is copied");
    awake.update(true, Instant::now());
    let job = Job {
        source: from,
        destination: after.keep(to, ready.confirmed),
        settings: settings(options),
    };
    let mut report = job.run(&stop, &mut |progress| {
        reporter.progress(progress);
        if reporter.reader_gone() {
            stop.store(true, Ordering::Release);
        }
    });
    let advice = after.complete(&mut report);
    reporter.clear();
    if options.files && !report.bad.is_empty() {
        contents::report_owners(options, &report.bad, reporter);
    }
    let names = Names {
        source: &source,
        destination: &destination,
        resume_command: resume_command.as_deref(),
        map: map.as_deref(),
    };
    summary::conclude(&report, names, advice.as_deref(), reporter)
}

fn settings(options: &Copy) -> Settings {
    let verify = !options.no_verify;
    Settings {
        connections: options.connections.into(),
        verify,
        hash: verify,
        retries: options.retries,
        rate: options.rate.map(Rate::bytes),
        sparse: !options.no_sparse,
        map: options.map.clone(),
        reconnect_timeout: Duration::from_secs(options.patience),
        ..Settings::default()
    }
}

/// The line that goes on with this copy, as it was typed; nothing if it would begin anew.
fn resume_command(options: &Copy) -> Option<String> {
    options.map.as_ref()?;
    let words = std::env::args_os().map(|word| quoted(&word.to_string_lossy()));
    Some(words.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn map_of_a_part_is_known_also_if_the_table_was_changed() {
        assert!(
            is_allocated_map("disk 7 allocated")
                && is_allocated_map("disk 7 allocated table 4096 8388608")
        );
        assert!(!is_allocated_map("disk 7 table 4096 8388608") && !is_allocated_map(""));
    }
}
