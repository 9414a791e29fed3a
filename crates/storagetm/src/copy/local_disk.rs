//! Local disks, files and pipes as ends of a copy: whether they may be used, and the locks held
//! meanwhile.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use ::copy::{End, Endpoint, FileEndpoint, OpenMode, Pipe};
use linux::block::Disk;
use linux::disk::{OpenFor, Opened, open};
use linux::in_use::{Machine, judge_image};
use linux::range_lock::{self, LockError};
use linux::reason::{Asked, Code, Verdict, Weight};
use linux::tree::Tree;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::compressed;
use super::contents::Examined;
use super::disk_error::{io_error, not_a_disk, open_error, source_in_use};
use super::expected_contents::ExpectedContents;
use super::partition_table::{self, CopyEnds, PostCopy};
use super::recorded::Reads;
use super::summary::refused;
use crate::confirmation::OverwriteTarget;
use crate::image::target::is_among_devices;
use ::remote::uri::Locator;
use daemon::examine::{Findings, examine, limit_for};
use daemon::lend::{ExaminedDisk, block_device, named, stable_name};
use failure::Failure;

/// udev locks a disk while it probes it.
const LOCK_TRIES: u32 = 25;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Time limit for examining a failing disk: a bad sector can take half a minute.
const EXAMINE_TIMEOUT: Duration = Duration::from_secs(60);

/// An end of a copy, local or remote.
pub(super) struct CopyEnd {
    pub(super) end: End,
    /// What must be confirmed before it is overwritten.
    pub(super) overwrite: Option<OverwriteTarget>,
    /// The note that it is unpacked.
    pub(super) note: Option<String>,
    /// Whether it is a disk, local or remote, and neither a file nor a pipe.
    pub(super) is_disk: bool,
    /// Notes for the user.
    pub(super) notes: Vec<String>,
    /// The source whose allocated ranges alone are copied.
    pub(super) examined: Option<Examined>,
    /// What the destination must hold if this is the source, checked before its ends are copied.
    pub(super) expected: Option<ExpectedContents>,
    guard: Guard,
}

/// Locks held until the copy ends.
pub(super) enum Guard {
    Nothing,
    Disk { _opened: Box<Opened> },
    Locked { _file: File },
}

/// Permission to use a destination.
#[derive(Debug, Clone, Copy)]
pub(super) struct Permission {
    /// An existing file may be overwritten.
    pub(super) force: bool,
    /// A map of an earlier copy to it is resumed.
    pub(super) resumes: bool,
}

/// Opens a source.
///
/// # Errors
/// Fails if it does not exist, may not be read, or is in use.
pub(super) fn source(
    tree: &Tree,
    path: &Path,
    allow_in_use: bool,
    raw: bool,
) -> Result<CopyEnd, Failure> {
    let path = &named(tree, path);
    let meta = path.metadata().map_err(|error| io_error(path, "be opened", &error))?;
    match meta.file_type() {
        kind if kind.is_block_device() => source_device(tree, path, allow_in_use),
        kind if kind.is_file() => source_file(tree, path, allow_in_use, raw),
        kind if is_stream(&kind) => {
            let file = File::open(path).map_err(|error| io_error(path, "be opened", &error))?;
            stream(OwnedFd::from(file).into(), raw, &path.display().to_string())
        }
        _ => Err(not_a_disk(path)),
    }
}

/// Opens a destination.
///
/// # Errors
/// Fails if it is in use, exists already, or is the source.
pub(super) fn destination(
    tree: &Tree,
    path: &Path,
    permission: Permission,
    source: Option<&Path>,
) -> Result<CopyEnd, Failure> {
    // Any other name may be that of a new file, and so may one in /dev/shm.
    let is_disk_name = path.starts_with("/dev") && !path.starts_with("/dev/shm");
    let path = &if is_disk_name { named(tree, path) } else { path.to_owned() };
    let source = source.map(|source| named(tree, source));
    let source = source.as_deref();
    if source.is_some_and(|source| is_same(source, path)) {
        return Err(refused(format!(
            "{} is both the source and the destination; name another one",
            path.display()
        )));
    }
    match path.metadata() {
        Ok(meta) if meta.file_type().is_block_device() => {
            destination_device(tree, path, permission.force)
        }
        Ok(meta) if meta.is_file() => destination_file(tree, path, permission),
        Ok(meta) if is_stream(&meta.file_type()) => {
            let file = OpenOptions::new().write(true).open(path);
            let file = file.map_err(|error| io_error(path, "be opened", &error))?;
            Ok(CopyEnd::pipe(OwnedFd::from(file).into()))
        }
        Ok(_) => Err(not_a_disk(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => new_file(path, permission),
        Err(error) => Err(io_error(path, "be opened", &error)),
    }
}

/// Returns standard input or output as a pipe.
///
/// # Errors
/// Fails if no descriptor is available.
pub(super) fn standard(stream: impl std::os::fd::AsFd) -> Result<Pipe, Failure> {
    let copied = rustix::io::dup(stream);
    copied.map(Pipe::from).map_err(|error| refused(format!("the pipe cannot be used: {error}")))
}

/// Returns a pipe to read from with what this is, unpacked if it is packed.
///
/// # Errors
/// Fails if the format is not supported, or if the pipe cannot be read.
pub(super) fn stream(pipe: Pipe, raw: bool, name: &str) -> Result<CopyEnd, Failure> {
    let (pipe, note) = compressed::stream(pipe, raw, name)?;
    Ok(CopyEnd::from_pipe(pipe, note, Guard::Nothing))
}

impl CopyEnd {
    pub(super) fn remote(place: Box<dyn Endpoint>) -> Self {
        Self { is_disk: true, ..Self::plain(End::Disk(place), Guard::Nothing) }
    }

    /// Returns a file of a server of which any part can be read, and what the destination must hold after it.
    pub(super) fn web(place: Box<dyn Endpoint>, expected: Option<ExpectedContents>) -> Self {
        Self { expected, ..Self::plain(End::Disk(place), Guard::Nothing) }
    }

    /// Replaces the end by its allocated-only view.
    ///
    /// # Errors
    /// Fails for a pipe, or if the disk cannot be examined.
    pub(super) fn allocated_only(mut self, name: &Locator) -> Result<Self, Failure> {
        if self.note.is_some() {
            return Err(Failure::usage(format!(
                "{name} is unpacked while it is copied: leave --allocated out"
            )));
        }
        let (end, examined, notes) = super::contents::allocated_only(self.end)?;
        self.notes.extend(notes);
        Ok(Self { end, examined: Some(examined), ..self })
    }

    /// Adapts the source to the destination; returns notes, and what is left to be done after the
    /// copy.
    ///
    /// # Errors
    /// Fails if the partition table does not fit.
    pub(super) fn adapted(
        mut self,
        ends: &CopyEnds<'_>,
    ) -> Result<(Self, Vec<String>, PostCopy), Failure> {
        let mut reads = Reads::new();
        let (end, notes, after) = partition_table::adapt(self.end, ends, &mut reads)?;
        if let Some(expected) = &mut self.expected {
            expected.must_have(reads);
        }
        Ok((Self { end, ..self }, notes, after))
    }

    pub(super) fn with_overwrite(self, overwrite: OverwriteTarget) -> Self {
        Self { overwrite: Some(overwrite), ..self }
    }

    pub(super) fn from_pipe(pipe: Pipe, note: Option<String>, guard: Guard) -> Self {
        Self { note, ..Self::plain(End::Pipe(pipe), guard) }
    }

    /// Returns an object that is written through the pipe `end`.
    pub(super) fn object(end: End, overwrite: Option<OverwriteTarget>, notes: Vec<String>) -> Self {
        Self { overwrite, notes, ..Self::plain(end, Guard::Nothing) }
    }

    pub(super) fn pipe(pipe: Pipe) -> Self {
        Self::plain(End::Pipe(pipe), Guard::Nothing)
    }

    pub(super) fn split(self) -> (End, Guard) {
        (self.end, self.guard)
    }

    fn plain(end: End, guard: Guard) -> Self {
        let notes = Vec::new();
        Self {
            end,
            overwrite: None,
            note: None,
            is_disk: false,
            notes,
            examined: None,
            expected: None,
            guard,
        }
    }

    fn file(place: FileEndpoint, overwrite: Option<OverwriteTarget>, guard: Guard) -> Self {
        Self { overwrite, ..Self::plain(End::Disk(Box::new(place)), guard) }
    }

    fn device(place: FileEndpoint, overwrite: Option<OverwriteTarget>, guard: Guard) -> Self {
        Self { is_disk: true, ..Self::file(place, overwrite, guard) }
    }
}

/// Returns whether the file type is read or written sequentially.
fn is_stream(kind: &std::fs::FileType) -> bool {
    kind.is_fifo() || kind.is_char_device()
}

fn source_device(tree: &Tree, path: &Path, allow_in_use: bool) -> Result<CopyEnd, Failure> {
    let (machine, disk) = match find(tree, path) {
        Err(_) if allow_in_use => (None, None),
        found => found.map(|(machine, disk)| (Some(machine), Some(disk)))?,
    };
    let (mut notes, mut findings) = (Vec::new(), Findings::default());
    if let (Some(machine), Some(disk)) = (&machine, &disk) {
        findings = examine_disk(tree, machine, disk, |_| EXAMINE_TIMEOUT);
        let verdict = machine.judge(disk, &findings);
        check_source(path, &verdict, allow_in_use)?;
        let unread = verdict.of_weight(Weight::Unread);
        notes.extend(unread.map(|reason| format!("{} {reason}", path.display())));
    }
    let opened = open(tree, path, OpenFor::Reading, allow_in_use);
    let opened = opened.map_err(|error| open_error(path, error, true))?;
    let identity = match (&machine, &disk) {
        (Some(machine), Some(disk)) => identity(machine, disk, Some(&findings)),
        _ => String::new(),
    };
    let place = FileEndpoint::source(&opened.path, &identity);
    let local_disk = CopyEnd::device(place, None, Guard::Disk { _opened: Box::new(opened) });
    Ok(CopyEnd { notes, ..local_disk })
}

/// Rejects a disk that is in use, may be in use, or does not answer.
fn check_source(path: &Path, verdict: &Verdict, allow_in_use: bool) -> Result<(), Failure> {
    let name = path.display();
    if let Some(reason) = verdict.reasons.iter().find(|reason| reason.code == Code::Silent) {
        return Err(refused(format!("{name} is not copied: {reason}")));
    }
    let asked = if allow_in_use { Asked::ByNameInUse } else { Asked::ByName };
    match verdict.uses().next().filter(|_| !verdict.allows(asked)) {
        None => Ok(()),
        Some(reason) if reason.code.weight() == Weight::InUse => {
            Err(source_in_use(path, &reason.to_string()))
        }
        Some(reason) => Err(refused(format!(
            "whether {name} is in use cannot be found out ({reason}); copy it with --allow-in-use \
             if you know that it is not"
        ))),
    }
}

fn source_file(
    tree: &Tree,
    path: &Path,
    allow_in_use: bool,
    raw: bool,
) -> Result<CopyEnd, Failure> {
    let path = path.canonicalize().map_err(|error| io_error(path, "be opened", &error))?;
    if let Some(reason) = judge_image(tree, &path).reasons.first().filter(|_| !allow_in_use) {
        return Err(source_in_use(&path, &reason.to_string()));
    }
    let file = File::open(&path).map_err(|error| io_error(&path, "be read", &error))?;
    if !allow_in_use {
        lock(&path, &file, FlockOperation::NonBlockingLockShared)?;
        lock_ranges(tree, &path, &file, OpenFor::Reading)?;
    }
    let unpacked = if raw { None } else { compressed::file(&path, &file)? };
    let guard = Guard::Locked { _file: file };
    match unpacked {
        Some((pipe, note)) => Ok(CopyEnd::from_pipe(pipe, note, guard)),
        None => Ok(CopyEnd::file(FileEndpoint::source(&path, ""), None, guard)),
    }
}

fn destination_device(tree: &Tree, path: &Path, force: bool) -> Result<CopyEnd, Failure> {
    let (machine, disk) = find(tree, path)?;
    let findings = examine_disk(tree, &machine, &disk, limit_for(&disk));
    let verdict = machine.judge(&disk, &findings);
    check_destination(path, &verdict, force)?;
    // Opened as for the copy, to find out whether the kernel allows it; the copy opens it again.
    let opened = open(tree, path, OpenFor::Writing, false);
    let target = opened.map_err(|error| open_error(path, error, false))?.path;
    // While this descriptor is open, the disk's device number cannot be reused by another one.
    let file = OpenOptions::new().read(true).write(true).open(&target);
    let file = file.map_err(|error| io_error(path, "be opened", &error))?;
    if block_device(&target) != Some(disk.number) {
        let path = path.display();
        return Err(refused(format!("{path} became another disk meanwhile; try again")));
    }
    lock(path, &file, FlockOperation::NonBlockingLockExclusive)?;
    lock_ranges(tree, path, &file, OpenFor::Writing)?;
    let identity = identity(&machine, &disk, None);
    let overwrite = OverwriteTarget::device(path, &machine, &disk, "--yes");
    let place = FileEndpoint::destination(&target, OpenMode::Resume, &identity);
    Ok(CopyEnd::device(place, Some(overwrite), Guard::Locked { _file: file }))
}

/// Rejects a disk that is in use, may be in use, or cannot be written; without `force` also one
/// whose contents cannot be read.
fn check_destination(path: &Path, verdict: &Verdict, force: bool) -> Result<(), Failure> {
    let name = path.display();
    let first = |weight| verdict.of_weight(weight).next();
    if let Some(reason) = first(Weight::InUse) {
        return Err(refused(format!(
            "{name} is not written: {reason}; stop that first, or use another disk"
        )));
    }
    if let Some(reason) = first(Weight::Never).or_else(|| first(Weight::Unknown)) {
        return Err(refused(format!("{name} is not written: {reason}; use another disk")));
    }
    match first(Weight::Unread).filter(|_| !force) {
        Some(reason) => Err(refused(format!(
            "{name} is not written: it {reason}; if all of it may be overwritten, add --force"
        ))),
        None => Ok(()),
    }
}

fn destination_file(tree: &Tree, path: &Path, permission: Permission) -> Result<CopyEnd, Failure> {
    let path = path.canonicalize().map_err(|error| io_error(path, "be opened", &error))?;
    let name = path.display();
    let mode = if permission.resumes { OpenMode::Resume } else { OpenMode::Replace };
    if let Some(reason) = judge_image(tree, &path).reasons.first() {
        return Err(refused(format!("{name} is in use ({reason}); stop that first")));
    }
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let file = file.map_err(|error| io_error(&path, "be written", &error))?;
    lock(&path, &file, FlockOperation::NonBlockingLockExclusive)?;
    lock_ranges(tree, &path, &file, OpenFor::Writing)?;
    // The destination of a resumed copy needs no confirmation.
    let asks = !permission.force && !permission.resumes;
    let overwrite =
        if asks { OverwriteTarget::file(&path, "--force").map_err(refused)? } else { None };
    let place = FileEndpoint::destination(&path, mode, "");
    Ok(CopyEnd::file(place, overwrite, Guard::Locked { _file: file }))
}

fn new_file(path: &Path, permission: Permission) -> Result<CopyEnd, Failure> {
    let name = path.display();
    if permission.resumes {
        return Err(refused(format!(
            "{name} is not there, but the map tells of a copy to it; name the right destination, or another map"
        )));
    }
    if path.is_symlink() {
        return Err(refused(format!(
            "{name} is a link to what is not there (a disk that was pulled out?); name the file itself"
        )));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    if is_among_devices(folder) {
        return Err(refused(format!(
            "{name}: there is no such disk; \"storagetm list\" shows the disks of this machine"
        )));
    }
    if !folder.is_dir() {
        return Err(refused(format!(
            "{} is not an existing directory; create it first",
            folder.display()
        )));
    }
    Ok(CopyEnd::file(
        FileEndpoint::destination(path, OpenMode::CreateNew, ""),
        None,
        Guard::Nothing,
    ))
}

/// Returns a snapshot of the machine, and the disk in it.
fn find(tree: &Tree, path: &Path) -> Result<(Machine, Disk), Failure> {
    let unknown = |reason: String| {
        refused(format!("{}: whether it is in use cannot be found out: {reason}", path.display()))
    };
    let machine = Machine::snapshot(tree).map_err(|error| unknown(error.to_string()))?;
    let number = block_device(path);
    let disk = machine.disks.iter().find(|disk| Some(disk.number) == number).cloned();
    let disk = disk.ok_or_else(|| unknown("/sys does not show this disk".to_owned()))?;
    Ok((machine, disk))
}

/// Examines a disk, its partitions and its whole disk, each within its `limit`.
fn examine_disk(
    tree: &Tree,
    machine: &Machine,
    disk: &Disk,
    limit: impl Fn(&Disk) -> Duration,
) -> Findings {
    let whole = machine.disk(disk.whole()).into_iter();
    examine(tree, machine.examined_for(disk).into_iter().chain(whole), limit)
}

/// Returns a stable identity of the disk, independent of its contents; for a source, the partition
/// table may identify it. Empty if there is none.
fn identity(machine: &Machine, disk: &Disk, findings: Option<&Findings>) -> String {
    let nothing = Findings::default();
    let findings = findings.unwrap_or(&nothing);
    stable_name(&ExaminedDisk { machine, disk, findings }).unwrap_or_default()
}

fn is_same(source: &Path, destination: &Path) -> bool {
    let (Ok(source), Ok(destination)) = (source.metadata(), destination.metadata()) else {
        return false;
    };
    let is_device = |meta: &Metadata| meta.file_type().is_block_device();
    if is_device(&source) && is_device(&destination) {
        return source.rdev() == destination.rdev();
    }
    let is_file = |meta: &Metadata| meta.is_file();
    let same = (source.dev(), source.ino()) == (destination.dev(), destination.ino());
    same && is_file(&source) && is_file(&destination)
}

fn lock(path: &Path, file: &File, operation: FlockOperation) -> Result<(), Failure> {
    for _ in 0..LOCK_TRIES {
        match rustix::fs::flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) => sleep(LOCK_PAUSE),
            Err(error) => return Err(io_error(path, "be locked", &error.into())),
        }
    }
    Err(refused(format!(
        "{} is locked by another program, perhaps lent or being copied already; stop that first",
        path.display()
    )))
}

/// Takes byte-range locks compatible with QEMU's.
///
/// # Errors
/// Fails if another program holds one.
fn lock_ranges(tree: &Tree, path: &Path, file: &File, sync_disk: OpenFor) -> Result<(), Failure> {
    let name = path.display();
    match (range_lock::claim(tree, file, sync_disk), sync_disk) {
        (Ok(()), _) => Ok(()),
        (Err(LockError::Held(holder)), OpenFor::Reading) => {
            Err(source_in_use(path, &format!("by {holder}")))
        }
        (Err(LockError::Held(holder)), OpenFor::Writing) => {
            Err(refused(format!("{name} is in use by {holder}; end that first")))
        }
        (Err(LockError::System(error)), _) => Err(io_error(path, "be locked", &error.into())),
    }
}
