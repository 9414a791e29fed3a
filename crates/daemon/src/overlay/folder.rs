//! Overlays in files. Each disk has a folder, with a record of the disk and for each host a file with
//! data and one with a map.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use export::{BlockMap, OverlayHost};
use failure::Failure;
use filesystem::Container;
use linux::disk::{Lock, lock as lock_file};
use rustix::fs::{OFlags, fstat, statvfs};
use rustix::process::geteuid;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

/// File name of the record.
const RECORD: &str = "overlay.json";

/// The format of the record and of the maps.
const FORMAT: u32 = 1;

/// Longest record in bytes.
const MAX_RECORD: u64 = 1 << 20;

/// Bytes of the start and the end of the disk that are compared, and of each partition's start.
const START: u64 = 2 << 20;
const END: u64 = 1 << 20;
const PARTITION: u64 = 256 << 10;

/// Most partitions of which the start is compared.
const MAX_PARTITIONS: usize = 128;

/// Name of the state that all hosts share.
pub(super) const SHARED: &str = "all";

/// The disk under an overlay.
#[derive(Debug, Clone, Copy)]
pub struct BaseDisk<'a> {
    /// Its path.
    pub path: &'a Path,
    /// The format of the file that it is in; `None` if each byte of the file is one of the disk.
    pub container: Option<Container>,
    /// The open disk, or file.
    pub file: BorrowedFd<'a>,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Its size.
    pub bytes: u64,
    /// Its logical block size.
    pub block: u32,
    /// Where its partitions start.
    pub partitions: &'a [u64],
}

/// What is known of the disk under the overlay, as it was when the overlay was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayRecord {
    format: u32,
    /// Its path.
    pub disk: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its logical block size.
    pub block: u32,
    /// The name of the format of the file that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    container: Option<String>,
    uuid: [u8; 16],
    /// Identifies the overlay as a disk, with the UUID of the disk.
    instance: [u8; 16],
    /// Start and length of the ranges of the disk, or the file that it is in, of which the hash is compared.
    ranges: Vec<(u64, u64)>,
    hash: String,
    /// Time of the last change of an image, in seconds and nanoseconds.
    modified: Option<(i64, i64)>,
    /// Name of the state that is being written to the disk.
    #[serde(default)]
    committing: Option<String>,
}

/// The folder of a disk's overlay, which no other process uses.
#[derive(Debug)]
pub struct OverlayFolder {
    path: PathBuf,
    record: OverlayRecord,
    _lock: File,
}

/// The files with the changes of one host.
#[derive(Debug)]
pub struct StateFiles {
    /// Their name in the folder, without extension.
    pub name: String,
    /// The host; `None` if nothing was written.
    pub host: Option<OverlayHost>,
    /// The data.
    pub data: File,
    /// The durable map.
    pub map: File,
}

impl OverlayFolder {
    /// Opens the folder of a disk in `dir`, which is made if there is none.
    ///
    /// # Errors
    /// Fails with a message for the user if others can change it, if another process uses it, or if
    /// the disk has changed.
    pub(super) fn of_disk(dir: &Path, base: &BaseDisk<'_>) -> Result<Self, Failure> {
        let path = dir.join(hex(&base.uuid));
        let made = DirBuilder::new().mode(0o700).recursive(true).create(&path);
        made.map_err(|error| cannot("made", &path, &error))?;
        let lock = lock(&path)?;
        let record = match read_record(&path)? {
            Some(record) => record,
            None => {
                let record = OverlayRecord::of(base).map_err(|error| unread(base.path, &error))?;
                write_record(&path, &record).map_err(|error| cannot("written", &path, &error))?;
                record
            }
        };
        let folder = Self { path, record, _lock: lock };
        if folder.record.committing.is_some() {
            return Err(Failure::new(format!(
                "{} is not lent: a commit of its overlay was interrupted; run it again: storagetm overlay \
                 commit {} {}",
                base.path.display(),
                folder.path.display(),
                base.path.display()
            )));
        }
        folder.check(base)?;
        Ok(folder)
    }

    /// Opens the folder at `path`.
    ///
    /// # Errors
    /// As [`Self::of_disk`], and if it is not the folder of an overlay.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let lock = lock(path)?;
        let record = read_record(path)?.ok_or_else(|| {
            Failure::new(format!("{} is not the folder of an overlay", path.display()))
        })?;
        Ok(Self { path: path.to_owned(), record, _lock: lock })
    }

    /// Removes the folder at `path` if only its own removal is left, which was interrupted: it is empty,
    /// and has the name of an overlay's folder. Returns whether it did.
    pub fn finish_removal(path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        name.len() == 32 && name.iter().all(u8::is_ascii_hexdigit) && fs::remove_dir(path).is_ok()
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what is known of the disk.
    pub fn record(&self) -> &OverlayRecord {
        &self.record
    }

    pub(super) fn instance(&self) -> &[u8; 16] {
        &self.record.instance
    }

    /// Returns the name of the state whose commit was begun and has not ended.
    pub fn committing(&self) -> Option<&str> {
        self.record.committing.as_deref()
    }

    /// Records that a state is being written to the disk, so that the disk is not compared any more.
    /// Checks before whether it has changed, unless that was recorded already.
    ///
    /// # Errors
    /// Fails with a message for the user.
    pub fn begin_commit(&mut self, state: &str, base: &BaseDisk<'_>) -> Result<(), Failure> {
        let then = &self.record;
        if then.committing.is_some() {
            // A part of the changes may be on the disk, those of what identifies it included.
            let is_named = then.uuid == base.uuid || then.disk == base.path;
            if is_named && (then.bytes, then.block) == (base.bytes, base.block) {
                return Ok(());
            }
            let path = base.path.display();
            return Err(Failure::new(format!("{path} is not the disk of this overlay")));
        }
        self.check(base)?;
        let record = OverlayRecord { committing: Some(state.to_owned()), ..then.clone() };
        let written = write_record(&self.path, &record);
        written.map_err(|error| cannot("written", &self.path, &error))?;
        self.record = record;
        Ok(())
    }

    /// Checks that the disk is as it was when the overlay was made.
    ///
    /// # Errors
    /// Fails with a message for the user.
    pub fn check(&self, base: &BaseDisk<'_>) -> Result<(), Failure> {
        let now = OverlayRecord::of(base).map_err(|error| unread(base.path, &error))?;
        let then = &self.record;
        let now = OverlayRecord {
            hash: hash(base.file, &then.ranges).map_err(|error| unread(base.path, &error))?,
            ranges: then.ranges.clone(),
            instance: then.instance,
            disk: then.disk.clone(),
            ..now
        };
        if now == *then {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{} has changed since its overlay was made: what is in {} does not fit it any more; keep \
             that folder elsewhere, or remove it to begin a new overlay",
            base.path.display(),
            self.path.display()
        )))
    }

    /// Returns the files of all states in the order of their names.
    ///
    /// # Errors
    /// Fails with a message for the user if a file cannot be opened.
    pub fn states(&self) -> Result<Vec<StateFiles>, Failure> {
        let entries =
            fs::read_dir(&self.path).map_err(|error| cannot("read", &self.path, &error))?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let own = |name: String| {
            Some(name.strip_suffix(".map").or_else(|| name.strip_suffix(".data"))?.to_owned())
        };
        let mut names: Vec<String> = names.filter_map(own).collect();
        names.sort_by_key(|name| (name.len(), name.clone()));
        names.dedup();
        names.iter().map(|name| self.state(name)).collect()
    }

    /// Opens the files of a state, which are made if there are none.
    ///
    /// # Errors
    /// Fails with a message for the user.
    pub(super) fn state(&self, name: &str) -> Result<StateFiles, Failure> {
        let [data_path, map_path] = self.paths(name);
        let open = |path: &Path| open_private(path).map_err(|error| cannot("opened", path, &error));
        let (data, map) = (open(&data_path)?, open(&map_path)?);
        let mut header = [0; 1024];
        let len = map.read_at(&mut header, 0).map_err(|error| cannot("read", &map_path, &error))?;
        let host = OverlayHost::parse_header(header.get(..len).unwrap_or_default());
        let reset = || {
            if host.is_none() {
                // Data without a map belongs to no host.
                data.set_len(0)?;
                map.set_len(0)?;
            }
            data.set_len(self.record.bytes)
        };
        reset().map_err(|error| cannot("used", &data_path, &error))?;
        Ok(StateFiles { name: name.to_owned(), host, data, map })
    }

    /// Removes the files of a state: the map first, without which the data is not used.
    ///
    /// # Errors
    /// Fails with a message for the user.
    pub fn remove(&self, name: &str) -> Result<(), Failure> {
        let [data, map] = self.paths(name);
        [map, data].iter().try_for_each(|path| {
            let removed = fs::remove_file(path).and_then(|()| sync(&self.path));
            removed.map_err(|error| cannot("removed", path, &error))
        })
    }

    /// Removes the files of states that are unused, and the folder if none is left.
    pub fn clean(&self) {
        let Ok(states) = self.states() else { return };
        let (used, unused): (Vec<_>, Vec<_>) =
            states.into_iter().partition(|state| state.host.is_some());
        let removed = unused.iter().all(|state| self.remove(&state.name).is_ok());
        if removed && used.is_empty() {
            drop(fs::remove_file(self.path.join(RECORD)).and_then(|()| fs::remove_dir(&self.path)));
        }
    }

    /// Returns how many bytes the overlay may store: what it has, and the room of the file system but
    /// for a twentieth, or a GiB.
    pub(super) fn limit(&self) -> Result<u64, Failure> {
        let fs = statvfs(&self.path).map_err(|error| cannot("used", &self.path, &error.into()))?;
        let reserve = (fs.f_blocks / 20).saturating_mul(fs.f_frsize).min(1 << 30);
        let room = fs.f_bavail.saturating_mul(fs.f_frsize).saturating_sub(reserve);
        let stored = |state: &StateFiles| state.data.metadata().map_or(0, |it| it.blocks() * 512);
        Ok(self.states()?.iter().map(stored).fold(room, u64::saturating_add))
    }

    fn paths(&self, name: &str) -> [PathBuf; 2] {
        ["data", "map"].map(|extension| self.path.join(format!("{name}.{extension}")))
    }
}

/// What a folder contains, read while another process may use it.
#[derive(Debug)]
pub struct OverlayContents {
    /// Its path.
    pub folder: PathBuf,
    /// The path of the disk.
    pub disk: PathBuf,
    /// The hosts that have written, and the bytes that their files occupy.
    pub hosts: Vec<(OverlayHost, u64)>,
}

/// Returns the contents of the folders of overlays in `dir`.
///
/// # Errors
/// Fails with a message for the user if it or a record cannot be read.
pub fn list(dir: &Path) -> Result<Vec<OverlayContents>, Failure> {
    let entries = fs::read_dir(dir).map_err(|error| cannot("read", dir, &error))?;
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    folders.sort();
    let mut all = Vec::new();
    for folder in folders.into_iter().filter(|folder| folder.join(RECORD).exists()) {
        let Some(record) = read_record(&folder)? else { continue };
        let files = fs::read_dir(&folder).map_err(|error| cannot("read", &folder, &error))?;
        let maps = files.flatten().map(|file| file.path());
        let mut maps: Vec<_> =
            maps.filter(|path| path.extension().is_some_and(|it| it == "map")).collect();
        maps.sort();
        let host = |map: &PathBuf| {
            let mut header = [0; 1024];
            let len = File::open(map).and_then(|file| file.read_at(&mut header, 0)).ok()?;
            let host = OverlayHost::parse_header(header.get(..len)?)?;
            let files = [map.clone(), map.with_extension("data")];
            let blocks = files.iter().flat_map(fs::metadata).map(|meta| meta.blocks());
            Some((host, blocks.sum::<u64>() * 512))
        };
        let hosts = maps.iter().filter_map(host).collect();
        all.push(OverlayContents { folder, disk: record.disk, hosts });
    }
    Ok(all)
}

impl StateFiles {
    /// Reads the map of a disk.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn block_map(&self, disk: &OverlayRecord) -> io::Result<BlockMap> {
        BlockMap::load(disk.bytes / u64::from(disk.block.max(1)), |mut at, mut into: &mut [u8]| {
            while !into.is_empty() {
                match self.map.read_at(into, at)? {
                    0 => break,
                    read => {
                        at += read as u64;
                        into = into.get_mut(read..).unwrap_or_default();
                    }
                }
            }
            into.fill(0);
            Ok(())
        })
    }
}

impl Drop for OverlayFolder {
    fn drop(&mut self) {
        self.clean();
    }
}

impl OverlayRecord {
    /// Returns where the partitions of the disk start.
    pub fn partitions(&self) -> Vec<u64> {
        self.ranges.iter().skip(2).map(|(start, _)| *start).collect()
    }

    /// Returns the format of the file that the disk is in; `None` if each byte of the file is one of the disk.
    pub fn container(&self) -> Option<Container> {
        Container::from_name(self.container.as_deref()?)
    }

    /// Returns the record of the disk as it is, with a new instance.
    fn of(base: &BaseDisk<'_>) -> io::Result<Self> {
        // Of an image in a format, its own bytes are compared: any change of the disk is one of these.
        let bytes = match base.container {
            Some(_) => u64::try_from(fstat(base.file)?.st_size).unwrap_or(0),
            None => base.bytes,
        };
        let clipped = |start: u64, len: u64| (start, len.min(bytes.saturating_sub(start)));
        let mut ranges = vec![clipped(0, START), clipped(bytes.saturating_sub(END), END)];
        let partitions = base.partitions.iter().take(MAX_PARTITIONS);
        ranges.extend(partitions.map(|start| clipped(*start, PARTITION)));
        let mut instance = [0; 16];
        getrandom(&mut instance, GetRandomFlags::empty())?;
        let image = fs::metadata(base.path).ok().filter(fs::Metadata::is_file);
        Ok(Self {
            format: FORMAT,
            disk: base.path.to_owned(),
            bytes: base.bytes,
            block: base.block,
            container: base.container.map(|container| container.name().to_owned()),
            uuid: base.uuid,
            instance,
            hash: hash(base.file, &ranges)?,
            ranges,
            modified: image.map(|image| (image.mtime(), image.mtime_nsec())),
            committing: None,
        })
    }
}

/// Returns the hash of ranges of a disk.
fn hash(disk: BorrowedFd<'_>, ranges: &[(u64, u64)]) -> io::Result<String> {
    // Through the page cache, so that buffers need no alignment.
    let disk = File::open(format!("/proc/self/fd/{}", disk.as_raw_fd()))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 64 << 10];
    for (start, len) in ranges {
        let (mut at, end) = (*start, start.saturating_add(*len));
        while at < end {
            let len = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
            let piece = buffer.get_mut(..len).unwrap_or_default();
            disk.read_exact_at(piece, at)?;
            hasher.update(piece);
            at += len as u64;
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Opens a folder that only this user can change, and locks it.
fn lock(path: &Path) -> Result<File, Failure> {
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits().cast_signed();
    let folder = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let folder = folder.map_err(|error| cannot("opened", path, &error))?;
    let meta = folder.metadata().map_err(|error| cannot("read", path, &error))?;
    if meta.uid() != geteuid().as_raw() || meta.mode() & 0o077 != 0 {
        return Err(Failure::new(format!(
            "the folder {} belongs to another user or can be read by others (mode {:04o}): chmod 700 it",
            path.display(),
            meta.mode() & 0o7777
        )));
    }
    lock_file(path, &folder, Lock::Exclusive).map_err(|_| {
        Failure::new(format!("the overlay in {} is in use by another storagetm", path.display()))
    })?;
    Ok(folder)
}

fn read_record(path: &Path) -> Result<Option<OverlayRecord>, Failure> {
    let path = path.join(RECORD);
    let file = match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| cannot("read", &path, &error))?,
    };
    let record: Result<OverlayRecord, _> =
        serde_json::from_reader(io::Read::take(file, MAX_RECORD));
    match record {
        Ok(record) if record.format == FORMAT => Ok(Some(record)),
        _ => Err(Failure::new(format!(
            "{} is not a record that this version of storagetm understands",
            path.display()
        ))),
    }
}

fn write_record(folder: &Path, record: &OverlayRecord) -> io::Result<()> {
    let (path, new) = (folder.join(RECORD), folder.join("overlay.json.new"));
    let bytes = serde_json::to_vec_pretty(record)?;
    let file = open_private(&new)?;
    file.set_len(0)?;
    file.write_all_at(&bytes, 0)?;
    file.sync_all()?;
    fs::rename(new, path)?;
    sync(folder)
}

fn open_private(path: &Path) -> io::Result<File> {
    let flags = i32::from_ne_bytes(OFlags::NOFOLLOW.bits().to_ne_bytes());
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
    options.open(path)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("{} cannot be {what}: {error}", path.display()))
}

fn unread(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("{} cannot be compared with its overlay: {error}", path.display()))
}
