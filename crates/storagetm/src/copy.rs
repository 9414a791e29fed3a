//! `storagetm copy`: opens both ends, asks before it overwrites anything, and reports progress and
//! result. The copy itself is done by the crate `copy`.

mod access;
mod allocated;
mod boot_entry;
mod checked;
mod compressed;
mod contents;
mod data;
mod disk_error;
mod event;
mod expected_contents;
mod hash_list;
mod interrupt;
mod local_disk;
pub(crate) mod map_file;
mod object;
mod partition_table;
mod patched;
mod progress;
mod qcow2;
mod recorded;
mod remote;
mod resumable;
mod sequential;
mod signature;
mod summary;
mod sync_disk;
mod web_disk;

use std::io::{self, IsTerminal};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ::copy::map::{Map, State};
use ::copy::{Disk, End, Job, Outcome, Pipe, Refusal, Settings};
use console::{decimal, size};
use filesystem::Survey;
use linux::inhibit::Inhibitor;
use linux::tree::Tree;
use protocol::commands::quoted;

use crate::confirmation::{self, OverwriteTarget};
use crate::inspect;
use crate::options::copy::{Copy, VerifyTime};
use crate::options::rate::Rate;
use ::remote::uri::{Locator, without_secret};
use access::Opener;
use event::{Event, Finished};
use expected_contents::ExpectedContents;
use failure::Failure;
use local_disk::{CopyEnd, Permission};
use map_file::{find_map, is_map_file};
use partition_table::{CopyEnds, PostCopy};
use progress::ProgressReporter;
use sequential::{New, Running};
use summary::{Names, refused};
use sync_disk::SyncDisk;

/// Copies.
///
/// # Errors
/// Fails if the copy was not made, or not completely; `docs/copy.md` lists the exit statuses.
pub(crate) fn copy(options: &Copy) -> Result<(), Failure> {
    check(options)?;
    let interval = options.progress_interval.map(Duration::from_secs);
    let is_piped = options.destination == Locator::Pipe;
    let mut reporter = ProgressReporter::open(options.json, is_piped, interval)?;
    let ready = prepare(options, &mut |note| reporter.note(note))
        .and_then(|ready| confirm_overwrite(options, &ready).map(|()| ready));
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

/// Both ends of a copy, examined.
struct PreparedCopy {
    source: CopyEnd,
    destination: CopyEnd,
    /// The destination if it gets the data through a pipe.
    new: Option<New>,
    /// Size of the source; `None` for a pipe.
    bytes: Option<u64>,
    /// The destination if it is a disk: the one that the user confirmed.
    confirmed: Option<Disk>,
    resumed: bool,
    after: PostCopy,
    /// Notes for the user.
    notes: Vec<String>,
}

/// Checks the options against each other.
fn check(options: &Copy) -> Result<(), Failure> {
    let (source, destination) = (&options.source, &options.destination);
    sequential::check(options)?;
    if (source, destination) == (&Locator::Pipe, &Locator::Pipe) {
        return Err(Failure::usage("both ends are pipes: name a disk or a file for one of them"));
    }
    let piped = *source == Locator::Pipe || *destination == Locator::Pipe;
    if piped && options.map.is_some() {
        return Err(Failure::usage(
            "a copy from or to a pipe cannot be continued from a map: leave --map out",
        ));
    }
    if *destination == Locator::Pipe && io::stdout().is_terminal() {
        return Err(Failure::usage(
            "cannot write a disk to a terminal: redirect the output with > or |",
        ));
    }
    if *destination == Locator::Pipe && (options.expand || options.new_ids) {
        return Err(Failure::usage(
            "--expand and --new-ids change the destination after the copy, and a pipe cannot be changed",
        ));
    }
    if *destination == Locator::Pipe && options.files {
        return Err(Failure::usage(
            "--files looks at the destination, and a pipe cannot be looked at",
        ));
    }
    if *source == Locator::Pipe && io::stdin().is_terminal() {
        return Err(Failure::usage("nothing comes from a terminal: say where from with < or |"));
    }
    if matches!(destination, Locator::Web(location) if !location.is_object()) {
        return Err(Failure::usage(format!(
            "{destination} can be copied from, not to: a web server or a registry has no disks"
        )));
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

/// Opens and examines both ends. Writes nothing. `tell` is called with a sentence when a server is waited for.
fn prepare(options: &Copy, tell: &mut dyn FnMut(&str)) -> Result<PreparedCopy, Failure> {
    let tree = Tree::machine();
    let map = options.map.as_deref().map(|map| find_map(map, options.allocated)).transpose()?;
    let map = map.flatten();
    let resumed = map.is_some();
    // A map without finished ranges does not permit overwriting.
    let resumes = map.as_ref().is_some_and(|map| map.sum(State::Finished) > 0);
    let mut opener = Opener::new(options, tell);
    let source = source(&tree, options, map.as_ref(), &mut opener)?;
    let mut source =
        if options.allocated { source.allocated_only(&options.source)? } else { source };
    let mut notes = std::mem::take(&mut source.notes);
    let disk = open_disk(&source.end)?.map(|disk| with_known_sector(disk, &options.source));
    let (mut destination, new) = destination(&tree, options, resumes, disk.as_ref(), &mut opener)?;
    notes.append(&mut destination.notes);
    let to = if destination.is_disk { open_disk(&destination.end)? } else { None };
    check_disks(options, [&source.end, &destination.end], [disk.as_ref(), to.as_ref()])?;
    let (destination, there) = examine(destination, to.as_ref(), options);
    let sector = to.as_ref().and_then(|to| to.sector.or(there));
    notes.extend(source.note.clone());
    if let (Locator::Path(path), true) = (&options.source, source.is_disk) {
        notes.extend(compressed::device_note(path));
    }
    if let End::Pipe(pipe) = &source.end {
        let after = check_stream(&source, pipe, &destination, options, sector)?;
        let bytes = pipe.bytes;
        return Ok(PreparedCopy {
            source,
            destination,
            new,
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
        Err(reason) => {
            notes.push(format!("what is on {} is not known: {reason}", options.source));
            None
        }
    };
    let ends = CopyEnds { options, from: &from, survey: survey.as_ref(), to: to.as_ref(), sector };
    let (source, fitted, after) = source.adapted(&ends)?;
    notes.extend(fitted);
    Ok(PreparedCopy {
        source,
        destination,
        new,
        bytes: Some(from.bytes),
        confirmed: to,
        resumed,
        after,
        notes,
    })
}

/// Fails if both disks are the same, or the destination is read-only.
fn check_disks(options: &Copy, ends: [&End; 2], disks: [Option<&Disk>; 2]) -> Result<(), Failure> {
    let [from, to] = disks;
    if let (Some(from), Some(to)) = (from, to)
        && from.identity == to.identity
        && are_one(options, ends, &from.identity).map_err(refused)?
    {
        return Err(refused(format!(
            "{} and {} are the same disk",
            options.source, options.destination
        )));
    }
    if let Some(to) = to.filter(|to| !to.writable) {
        return Err(refused(Refusal::ReadOnly { destination: to.name.clone() }));
    }
    Ok(())
}

/// Returns whether disks that both have this identity are one and the same.
fn are_one(options: &Copy, ends: [&End; 2], identity: &str) -> Result<bool, String> {
    match (&options.source, &options.destination, ends) {
        (Locator::Nvme(_), Locator::Nvme(_), _) => Ok(true),
        (Locator::Iscsi(from), Locator::Iscsi(to), [End::Disk(source), End::Disk(destination)]) => {
            // An identity that is unique within a target only contains the name of the target, which
            // another machine may have as well: then the data decides.
            let is_local = identity.starts_with(&format!("iscsi {} ", from.target));
            if !is_local || from.host == to.host {
                return Ok(true);
            }
            SyncDisk::open(&**source)?.has_same_samples(&SyncDisk::open(&**destination)?)
        }
        _ => Ok(false),
    }
}

/// Fails if a stream cannot be copied to the destination. Returns what follows the copy.
fn check_stream(
    source: &CopyEnd,
    pipe: &Pipe,
    destination: &CopyEnd,
    options: &Copy,
    sector: Option<u32>,
) -> Result<PostCopy, Failure> {
    if matches!(destination.end, End::Pipe(_)) {
        return Err(refused(format!(
            "{} is unpacked while it is copied, and not into a pipe: name a file or a disk, or copy it as it is with \
             --format raw",
            options.source
        )));
    }
    compressed::check(pipe, source.note.as_ref(), options, sector)?;
    PostCopy::of_pipe(options, destination.is_disk)
}

/// Opens the source.
fn source(
    tree: &Tree,
    options: &Copy,
    map: Option<&Map>,
    opener: &mut Opener<'_>,
) -> Result<CopyEnd, Failure> {
    let raw = options.format.is_some();
    let expected = checked::expected(options, opener)?;
    let name = match &options.source {
        Locator::Pipe => checked::PIPE.to_owned(),
        there => there.to_string(),
    };
    Ok(match (&options.source, expected) {
        (Locator::Web(location), expected) if options.map.is_some() => {
            resumable::source(location, options, expected, map, opener)?
        }
        (Locator::Web(location), expected) => {
            local_disk::stream(checked::web(location, expected, opener)?, raw, &name)?
        }
        (Locator::Path(path), Some(expected)) => {
            local_disk::stream(checked::file(path, expected)?, raw, &name)?
        }
        (Locator::Pipe, Some(expected)) => {
            let pipe = local_disk::standard(io::stdin())?;
            local_disk::stream(checked::pipe(pipe, expected)?, raw, &name)?
        }
        (Locator::Path(path), None) => local_disk::source(tree, path, options.allow_in_use, raw)?,
        (Locator::Pipe, None) => {
            local_disk::stream(local_disk::standard(io::stdin())?, raw, &name)?
        }
        (there, _) => CopyEnd::remote(remote::endpoint(tree, options, there)?),
    })
}

/// Opens the destination for a disk; `None` for a stream.
fn destination(
    tree: &Tree,
    options: &Copy,
    resumes: bool,
    disk: Option<&Disk>,
    opener: &mut Opener<'_>,
) -> Result<(CopyEnd, Option<New>), Failure> {
    let destination = match &options.destination {
        Locator::Path(path) => {
            let permission = Permission { force: options.force, resumes };
            let from = match &options.source {
                Locator::Path(path) => Some(path.as_path()),
                _ => None,
            };
            let mut destination = local_disk::destination(tree, path, permission, from)?;
            let new = New::image(&mut destination, options, disk)?;
            return Ok((destination, new));
        }
        Locator::Web(location) => {
            let (destination, new) = object::destination(location, options, disk, opener)?;
            return Ok((destination, Some(New::Object(Box::new(new)))));
        }
        Locator::Pipe => CopyEnd::pipe(local_disk::standard(io::stdout())?),
        there => CopyEnd::remote(remote::endpoint(tree, options, there)?),
    };
    Ok((destination, None))
}

/// Examines a remote destination: adds what would be overwritten, and returns the block size of its
/// partition table.
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
    let name = name_to_type(&options.destination);
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

/// Returns what is typed to confirm that a remote disk is overwritten: its name, with its logical
/// unit number unless that is 0, or "yes" if it has none.
fn name_to_type(destination: &Locator) -> String {
    let name = match destination {
        Locator::Nvme(nvme) => nvme.name.as_str(),
        Locator::Nbd(nbd) => nbd.name.as_str(),
        Locator::Iscsi(iscsi) if iscsi.lun == 0 => return iscsi.target.clone(),
        Locator::Iscsi(iscsi) => return format!("{}/{}", iscsi.target, iscsi.lun),
        Locator::Path(_) | Locator::Pipe | Locator::Web(_) => "",
    };
    let name = name.rsplit('/').next().filter(|name| !name.is_empty());
    name.unwrap_or("yes").to_owned()
}

/// Examines the contents of the source. Returns `None` if the destination is a pipe.
fn survey(end: &End, options: &Copy) -> Result<Option<Survey>, String> {
    let (End::Disk(place), false) = (end, options.destination == Locator::Pipe) else {
        return Ok(None);
    };
    let sync_disk = SyncDisk::open(&**place)?;
    let disk = with_known_sector(sync_disk.disk().clone(), &options.source);
    inspect::survey(&sync_disk, disk.bytes, disk.sector).map(Some)
}

/// Drops the sector size of an NBD source: its minimum block size is about the alignment of
/// requests, not about the units of an MBR.
fn with_known_sector(disk: Disk, source: &Locator) -> Disk {
    let sector = disk.sector.filter(|_| !matches!(source, Locator::Nbd(_)));
    Disk { sector, ..disk }
}

/// Opens a disk and returns its parameters; `None` for a pipe.
fn open_disk(end: &End) -> Result<Option<Disk>, Failure> {
    match end {
        End::Disk(place) => place.open().map(|(disk, _)| Some(disk)).map_err(refused),
        End::Pipe(_) => Ok(None),
    }
}

/// Asks before overwriting, unless the destination is too small anyway.
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
    // Until here the default action of SIGINT ends the program; nothing was written.
    let interrupt = interrupt::watch_signals()?;
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
    let mut source_end = ready.source;
    let (examined, expected) = (source_end.examined.take(), source_end.expected.take());
    let (from, _source) = source_end.split();
    let (to, _destination) = ready.destination.split();
    let new = ready.new.map(|new| new.start(&interrupt)).transpose().inspect_err(|failure| {
        reporter.event(&Event::Finished(Finished::refused(failure.to_string())));
    })?;
    let mut after = ready.after;
    let mut awake = Inhibitor::new(&Tree::machine(), "a disk is copied");
    awake.update(true, Instant::now());
    let job = Job {
        source: from,
        destination: after.keep(to, ready.confirmed),
        settings: settings(options, matches!(new, Some(Running::Image(_)))),
        check: expected.map(ExpectedContents::check),
    };
    let mut report = job.run(&interrupt.stop, &mut |progress| {
        reporter.progress(progress);
        if reporter.reader_gone() {
            interrupt.stop.store(true, Ordering::Release);
        }
    });
    if let Some(examined) = examined {
        examined.conclude(&mut report);
    }
    let note = new.and_then(|new| new.finish(&mut report, !options.no_verify));
    let place = after.destination();
    let mut advice: Vec<String> = after.complete(&mut report).or(note).into_iter().collect();
    if matches!(report.outcome, Outcome::Success | Outcome::BadSectors) {
        advice.extend(place.and_then(|place| boot_entry::advice(&*place, &options.destination)));
    }
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
    summary::conclude(&report, names, &advice, reporter)
}

fn settings(options: &Copy, is_image: bool) -> Settings {
    let verify = !options.no_verify;
    // A web server is asked for each piece.
    let is_web = options.map.is_some() && matches!(options.source, Locator::Web(_));
    Settings {
        connections: options.connections.into(),
        verify,
        read_behind: verify && options.verify == VerifyTime::During,
        // By which an image is compared.
        hash: verify && (is_image || !options.no_hash),
        retries: options.retries,
        rate: options.rate.map(Rate::bytes),
        sparse: !options.no_sparse,
        map: options.map.clone(),
        reconnect_timeout: Duration::from_secs(options.patience),
        chunk: if is_web { 1 << 20 } else { Settings::default().chunk },
    }
}

/// Returns the command line that resumes this copy, without secrets; `None` without a map.
fn resume_command(options: &Copy) -> Option<String> {
    options.map.as_ref()?;
    let words = std::env::args_os().map(|word| quoted(&without_secret(&word.to_string_lossy())));
    Some(words.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn name_to_type_is_that_of_the_disk() {
        for (uri, name) in [
            ("iscsi://h/iqn.2001-04.com.example:disk", "iqn.2001-04.com.example:disk"),
            ("iscsi://me%secret@h/iqn.2001-04.com.example:disk/0", "iqn.2001-04.com.example:disk"),
            ("iscsi://h/iqn.2001-04.com.example:disk/7", "iqn.2001-04.com.example:disk/7"),
            ("nvme://h/sda", "sda"),
            ("nvme://h/", "yes"),
            ("nbd://h/a", "a"),
            ("nbd+unix:///a?socket=/s", "a"),
        ] {
            assert_eq!(name_to_type(&Locator::parse(uri.into()).unwrap()), name, "{uri}");
        }
    }
}
