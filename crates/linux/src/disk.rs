//! Opens and locks a block device or an image file for export, and reports its properties.
//!
//! Never opens a device for writing that the kernel or a program holds exclusively.

mod error;

pub use crate::range_lock::OpenFor;
pub use error::OpenError;

use crate::block::{self, DeviceNumber, Disk};
use crate::in_use::{Probe, judge_image, number};
use crate::medium::ReadAt;
use crate::partition;
use crate::range_lock::{self, Holder, LockError};
use crate::signature::{self, Contents};
use crate::syscall;
use crate::tree::Tree;
use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, OFlags, Statx, StatxFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

/// udev holds the lock of a new disk while it probes it, and a process that another one was just starting when that was
/// killed has its locks for a moment; both are waited for.
const LOCK_TRIES: u32 = 25;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// Another program that examines a disk, as `storagetm list` does, has it open exclusively for a moment.
const BUSY_TRIES: u32 = 5;
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// The alignment assumed for direct I/O on a file if the kernel does not report it (before Linux
/// 6.1).
const COMMON_ALIGNMENT: u32 = 4096;
/// Flag of `statx`: the fields about atomic writes (`include/uapi/linux/stat.h`).
const STATX_WRITE_ATOMIC: u32 = 0x0001_0000;

/// The kind of an opened file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A block device: a disk or a partition.
    Block,
    /// A regular file, used as a raw image.
    Image,
}

/// An open disk. Locks and exclusive access are released when it is dropped. `D` is the type of its
/// descriptors: `()` when they are sent to another process beside it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Opened<D = OwnedFd> {
    /// The descriptor for I/O; `O_DIRECT` if `direct`.
    pub descriptor: D,
    /// The whole disk of a partition, locked so that it is not exported as well.
    pub whole: Option<D>,
    /// The path, with links resolved.
    pub path: PathBuf,
    pub kind: Kind,
    /// The device number; of an image that of its file system.
    pub number: DeviceNumber,
    /// Its size in bytes: a multiple of the logical block size.
    pub bytes: u64,
    /// Bytes after the last whole block.
    pub tail: u64,
    /// The logical block size in bytes. Of an image the one that its partition table was written
    /// for, else 512.
    pub logical_block: u32,
    /// The physical block size in bytes.
    pub physical_block: u32,
    /// Read-only, by its medium or by `blockdev --setro`.
    pub read_only: bool,
    /// Held exclusively: it cannot be mounted, for example, while it is open.
    pub exclusive: bool,
    /// Another program that writes to it, if that was allowed.
    pub written_by: Option<Holder>,
    /// Reads and writes bypass the page cache.
    pub direct: bool,
    /// Alignment of buffers in memory, in bytes; 1 unless `direct`.
    pub memory_alignment: u32,
    /// The smallest and the largest length in bytes of a write that is atomic with `RWF_ATOMIC`, if `direct`.
    pub atomic_writes: Option<(u32, u32)>,
    /// It has a volatile write cache: writes are on stable storage only after a flush.
    pub volatile_cache: bool,
    /// Supports discard (block devices), or punching holes (images). Always false for images opened
    /// for reading.
    pub can_discard: bool,
    /// Supports writing zeroes without transferring them. Always false for images opened for
    /// reading.
    pub can_zero: bool,
}

impl<D> Opened<D> {
    /// Replaces the descriptors. Returns also those that it had.
    pub fn replace<E>(self, descriptor: E, whole: Option<E>) -> (Opened<E>, D, Option<D>) {
        let opened = Opened {
            descriptor,
            whole,
            path: self.path,
            kind: self.kind,
            number: self.number,
            bytes: self.bytes,
            tail: self.tail,
            logical_block: self.logical_block,
            physical_block: self.physical_block,
            read_only: self.read_only,
            exclusive: self.exclusive,
            written_by: self.written_by,
            direct: self.direct,
            memory_alignment: self.memory_alignment,
            atomic_writes: self.atomic_writes,
            volatile_cache: self.volatile_cache,
            can_discard: self.can_discard,
            can_zero: self.can_zero,
        };
        (opened, self.descriptor, self.whole)
    }
}

/// Opens, checks and locks `path`. Waits at most half a second, for the lock.
///
/// A block device is opened exclusively; with `allow_in_use` one that is opened for reading may
/// have other users. Block devices and images are locked with `flock`, which udev respects, and
/// with byte-range locks.
///
/// # Errors
/// Fails if `path` is neither a block device nor a regular file, is in use or locked, is empty, or
/// cannot be opened.
pub fn open(
    tree: &Tree,
    path: &Path,
    access: OpenFor,
    allow_in_use: bool,
) -> Result<Opened, OpenError> {
    let fail = |error: io::Error| OpenError::of(path, error);
    let target = path.canonicalize().map_err(fail)?;
    let metadata = target.metadata().map_err(fail)?;
    let tolerant = allow_in_use && access == OpenFor::Reading;
    match kind(&metadata).map_err(|what| OpenError::NoDisk { path: path.to_owned(), what })? {
        Kind::Block => open_block(tree, target, &metadata, access, tolerant),
        Kind::Image => open_image(tree, target, &metadata, access, tolerant),
    }
}

fn kind(metadata: &Metadata) -> Result<Kind, &'static str> {
    match metadata.file_type() {
        kind if kind.is_block_device() => Ok(Kind::Block),
        kind if kind.is_file() => Ok(Kind::Image),
        kind if kind.is_dir() => Err("a directory"),
        kind if kind.is_char_device() => Err("a character device"),
        kind if kind.is_fifo() => Err("a pipe"),
        kind if kind.is_socket() => Err("a socket"),
        _ => Err("no file of a known kind"),
    }
}

fn open_block(
    tree: &Tree,
    path: PathBuf,
    metadata: &Metadata,
    access: OpenFor,
    tolerant: bool,
) -> Result<Opened, OpenError> {
    let (file, exclusive) = hold(&path, access, tolerant)?;
    unchanged(&path, &file, metadata)?;
    let known = block::by_number(tree, number(metadata.rdev()));
    let locking = if exclusive { Lock::Exclusive } else { Lock::Shared };
    lock(&path, &file, locking)?;
    let written_by = claim(tree, &path, &file, access, access, tolerant)?;
    let whole = lock_whole(tree, known.as_ref(), access, tolerant)?;
    check_parts(tree, known.as_ref(), access, tolerant)?;
    let fail = |error: Errno| OpenError::of(&path, error.into());
    let bytes = syscall::size(&file).map_err(fail)?;
    let logical_block = rustix::fs::ioctl_blksszget(&file).map_err(fail)?;
    if bytes == 0 {
        return Err(nothing(&path, known.as_ref()));
    }
    let physical_block = rustix::fs::ioctl_blkpbszget(&file).unwrap_or(logical_block);
    let read_only = syscall::is_read_only(&file).map_err(fail)?;
    // Some kernels open a read-only disk for writing, and fail the writes.
    if read_only && access == OpenFor::Writing {
        return Err(OpenError::ReadOnly { path });
    }
    let tail = bytes.checked_rem(logical_block.into()).unwrap_or(0);
    let direct = direct(&file, logical_block, logical_block);
    let atomic_writes = direct.and_then(|_| atomic_writes(&file));
    let cached = known.as_ref().is_none_or(|disk| disk.volatile_cache);
    Ok(Opened {
        descriptor: file.into(),
        whole,
        kind: Kind::Block,
        number: number(metadata.rdev()),
        bytes: bytes - tail,
        tail,
        logical_block,
        physical_block,
        read_only,
        exclusive,
        written_by,
        direct: direct.is_some(),
        memory_alignment: direct.unwrap_or(1),
        atomic_writes,
        volatile_cache: cached || direct.is_none(),
        can_discard: known.as_ref().is_some_and(|disk| disk.discard_max_bytes > 0),
        can_zero: known.as_ref().is_some_and(|disk| disk.write_zeroes_max_bytes > 0),
        path,
    })
}

/// Opens a block device exclusively. Waits at most 50 ms until no other program has it open so.
///
/// # Errors
/// Fails with `ResourceBusy` if one still has after that, and if the device cannot be opened.
fn open_exclusively(path: &Path, access: OpenFor) -> io::Result<File> {
    for _ in 0..BUSY_TRIES {
        match open_file(path, access, OFlags::EXCL) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => sleep(BUSY_PAUSE),
            opened => return opened,
        }
    }
    open_file(path, access, OFlags::EXCL)
}

/// Opens a block device exclusively, or, if `tolerant`, shared. Returns whether it is exclusive.
fn hold(path: &Path, access: OpenFor, tolerant: bool) -> Result<(File, bool), OpenError> {
    match open_exclusively(path, access) {
        Ok(file) => Ok((file, true)),
        Err(error) if tolerant && error.kind() == ErrorKind::ResourceBusy => {
            let file = open_file(path, access, OFlags::empty());
            file.map(|file| (file, false)).map_err(|error| OpenError::of(path, error))
        }
        Err(_) if access == OpenFor::Writing && is_read_only(path) => {
            Err(OpenError::ReadOnly { path: path.to_owned() })
        }
        Err(error) => Err(OpenError::of(path, error)),
    }
}

/// Does not use `O_NONBLOCK`, which would open an empty drive. Pipes, which would block, were ruled
/// out before.
fn open_file(path: &Path, access: OpenFor, flags: OFlags) -> io::Result<File> {
    let flags = (flags | OFlags::NOCTTY).bits().cast_signed();
    let write = access == OpenFor::Writing;
    OpenOptions::new().read(true).write(write).custom_flags(flags).open(path)
}

fn is_read_only(path: &Path) -> bool {
    let file = open_file(path, OpenFor::Reading, OFlags::empty());
    file.is_ok_and(|file| syscall::is_read_only(&file) == Ok(true))
}

fn nothing(path: &Path, known: Option<&Disk>) -> OpenError {
    let path = path.to_owned();
    match known.is_some_and(|disk| disk.removable) {
        true => OpenError::NoMedium { path },
        false => OpenError::Empty { path },
    }
}

/// Checks that `path` was not replaced between `stat` and `open`.
fn unchanged(path: &Path, file: &File, before: &Metadata) -> Result<(), OpenError> {
    let now = file.metadata().map_err(|error| OpenError::of(path, error))?;
    let identity = |m: &Metadata| (m.dev(), m.ino(), m.rdev(), m.mode() & 0o170_000);
    match identity(&now) == identity(before) {
        true => Ok(()),
        false => Err(OpenError::Changed { path: path.to_owned() }),
    }
}

/// How a file is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    Exclusive,
    Shared,
}

/// Locks an open file or folder by `flock`, which udev and other programs respect. Waits at most half a second.
///
/// # Errors
/// Fails if it is locked after that, or cannot be locked.
pub fn lock(path: &Path, file: impl AsFd, kind: Lock) -> Result<(), OpenError> {
    let operation = match kind {
        Lock::Exclusive => FlockOperation::NonBlockingLockExclusive,
        Lock::Shared => FlockOperation::NonBlockingLockShared,
    };
    for _ in 0..LOCK_TRIES {
        match rustix::fs::flock(&file, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) => sleep(LOCK_PAUSE),
            Err(error) => return Err(OpenError::of(path, error.into())),
        }
    }
    Err(OpenError::Locked { path: path.to_owned() })
}

/// Takes the byte-range locks for `purpose` on what is opened for `access`, or on its whole disk or
/// partition. Returns the program that holds conflicting locks, if that is allowed.
fn claim(
    tree: &Tree,
    path: &Path,
    file: &File,
    purpose: OpenFor,
    access: OpenFor,
    tolerant: bool,
) -> Result<Option<Holder>, OpenError> {
    match range_lock::claim(tree, file, purpose) {
        Ok(()) => Ok(None),
        Err(LockError::Held(holder)) if tolerant => Ok(Some(holder)),
        Err(LockError::Held(holder)) => {
            Err(OpenError::Held { path: path.to_owned(), holder, access })
        }
        Err(LockError::System(error)) => Err(OpenError::of(path, error.into())),
    }
}

/// Locks the whole disk of a partition shared: partitions of a disk may be exported at the same
/// time, but not together with the disk.
fn lock_whole(
    tree: &Tree,
    known: Option<&Disk>,
    access: OpenFor,
    tolerant: bool,
) -> Result<Option<OwnedFd>, OpenError> {
    let Some(part) = known.and_then(|disk| disk.part.as_ref()) else { return Ok(None) };
    let Some(whole) = block::read(tree, &part.whole_disk) else { return Ok(None) };
    let path = tree.path(&whole.node);
    // Without its node the whole disk cannot be exported.
    let Ok(file) = open_file(&path, OpenFor::Reading, OFlags::empty()) else { return Ok(None) };
    lock(&path, &file, Lock::Shared)?;
    claim(tree, &path, &file, OpenFor::Reading, access, tolerant)?;
    Ok(Some(file.into()))
}

/// Checks that no other program writes to a partition of the disk: locks on a partition do not show
/// on the disk.
fn check_parts(
    tree: &Tree,
    known: Option<&Disk>,
    access: OpenFor,
    tolerant: bool,
) -> Result<(), OpenError> {
    let Some(disk) = known.filter(|disk| !disk.is_partition() && !tolerant) else { return Ok(()) };
    let disks = block::scan(tree).unwrap_or_default();
    let is_its =
        |other: &&Disk| other.part.as_ref().is_some_and(|part| part.whole_disk == disk.name);
    for part in disks.iter().filter(is_its) {
        let path = tree.path(&part.node);
        // Without its node no program has opened it.
        let Ok(file) = open_file(&path, OpenFor::Reading, OFlags::empty()) else { continue };
        claim(tree, &path, &file, OpenFor::Reading, access, false)?;
    }
    Ok(())
}

fn open_image(
    tree: &Tree,
    path: PathBuf,
    metadata: &Metadata,
    access: OpenFor,
    tolerant: bool,
) -> Result<Opened, OpenError> {
    let fail = |error: io::Error| OpenError::of(&path, error);
    if let Some(reason) = judge_image(tree, &path).reasons.first().filter(|_| !tolerant) {
        return Err(OpenError::InUse { path, reason: reason.text.clone() });
    }
    let file = open_file(&path, access, OFlags::empty()).map_err(fail)?;
    unchanged(&path, &file, metadata)?;
    let locking = if access == OpenFor::Writing { Lock::Exclusive } else { Lock::Shared };
    lock(&path, &file, locking)?;
    let written_by = claim(tree, &path, &file, access, access, tolerant)?;
    let size = file.metadata().map_err(fail)?.len();
    let logical_block = partition::block_size(&file).map_err(fail)?.unwrap_or(512);
    let tail = size.checked_rem(logical_block.into()).unwrap_or(0);
    match size {
        0 => return Err(OpenError::Empty { path }),
        bytes if bytes == tail => {
            return Err(OpenError::TooSmall { path, bytes, block: logical_block });
        }
        _ => {}
    }
    let holes = access == OpenFor::Writing && can_punch(&file, size);
    let direct = direct(&file, logical_block, COMMON_ALIGNMENT);
    let atomic_writes = direct.and_then(|_| atomic_writes(&file));
    Ok(Opened {
        descriptor: file.into(),
        whole: None,
        kind: Kind::Image,
        number: number(metadata.dev()),
        bytes: size - tail,
        tail,
        logical_block,
        physical_block: physical_block(metadata, logical_block),
        read_only: false,
        exclusive: false,
        written_by,
        direct: direct.is_some(),
        memory_alignment: direct.unwrap_or(1),
        atomic_writes,
        volatile_cache: true,
        can_discard: holes,
        can_zero: holes,
        path,
    })
}

/// The file system's block size, at most that of disks.
fn physical_block(metadata: &Metadata, logical_block: u32) -> u32 {
    let block = metadata.blksize().min(COMMON_ALIGNMENT.into());
    u32::try_from(block).unwrap_or(logical_block).max(logical_block)
}

/// Returns whether the file system can punch holes. Tries it beyond the end of the file, where it
/// has no effect.
fn can_punch(file: &File, size: u64) -> bool {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let beyond = size.next_multiple_of(COMMON_ALIGNMENT.into());
    rustix::fs::fallocate(file, flags, beyond, COMMON_ALIGNMENT.into()).is_ok()
}

/// Sets `O_DIRECT` if every aligned block can be transferred with it. Returns the alignment of
/// memory that it requires.
fn direct(file: &File, logical_block: u32, guess: u32) -> Option<u32> {
    let (memory, offset) = required_alignment(file).unwrap_or((guess, guess));
    if offset == 0 || !logical_block.is_multiple_of(offset) {
        return None;
    }
    let flags = rustix::fs::fcntl_getfl(file).ok()?;
    rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT).ok()?;
    Some(memory.max(1))
}

/// Returns the alignment that direct I/O on the file requires, in memory and on disk (0: not
/// supported).
fn required_alignment(file: &File) -> Option<(u32, u32)> {
    let stat: Statx =
        rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let is_known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN);
    is_known.then_some((stat.stx_dio_mem_align, stat.stx_dio_offset_align))
}

/// Returns the smallest and the largest length of a write with `RWF_ATOMIC`, in bytes, if the disk and its file
/// system support it. Linux reports it for block devices since 6.11.
fn atomic_writes(file: &File) -> Option<(u32, u32)> {
    let wanted = StatxFlags::from_bits_retain(STATX_WRITE_ATOMIC);
    let stat: Statx = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, wanted).ok()?;
    let is_known = StatxFlags::from_bits_retain(stat.stx_mask).contains(wanted);
    let lengths = (stat.stx_atomic_write_unit_min, stat.stx_atomic_write_unit_max);
    (is_known && lengths.0 > 0 && lengths.1 > 0).then_some(lengths)
}

/// Probes the disks of this machine. Only reads, and takes no locks.
#[derive(Debug, Clone, Default)]
pub struct Live {
    pub tree: Tree,
}

impl Probe for Live {
    fn contents(&self, disk: &Disk) -> io::Result<Contents> {
        examine::contents(&self.tree.path(&disk.node), disk.bytes)
    }

    fn is_busy(&self, disk: &Disk) -> io::Result<bool> {
        examine::is_busy(&self.tree.path(&disk.node))
    }
}

/// Probes that access the disk itself. Each may block as long as the disk does.
pub mod examine {
    use super::*;

    /// Returns the signatures on the device at `node`, which has `bytes` bytes.
    ///
    /// # Errors
    /// Fails if the device cannot be opened, or for a reason other than an I/O error of the disk.
    pub fn contents(node: &Path, bytes: u64) -> io::Result<Contents> {
        signature::probe(&File::open(node)? as &dyn ReadAt, bytes)
    }

    /// Returns whether a program or the kernel has opened the device at `node` exclusively.
    ///
    /// # Errors
    /// Fails if it cannot be opened for another reason.
    pub fn is_busy(node: &Path) -> io::Result<bool> {
        match open_exclusively(node, OpenFor::Reading) {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(true),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
pub(crate) mod attached {
    //! Images attached as block devices of this machine, for tests.

    use crate::tree::fake::Fake;
    use std::path::PathBuf;

    const TEST: &str = "disks of the machine";

    /// An image of 1 MiB attached as a block device of this machine; detached when dropped.
    pub(crate) struct Attached {
        pub(crate) node: PathBuf,
        _fake: Fake,
    }

    impl Attached {
        /// Prints why and returns `None` where that is impossible (no root, no loop devices).
        pub(crate) fn new(content: &[u8], options: &[&str]) -> Option<Self> {
            let fake = Fake::new();
            let path = fake.file("disk", content).root.join("disk");
            if programs::lacks(TEST, &["losetup"]) {
                return None;
            }
            // Another program may take the free device first.
            for _ in 0..5 {
                let mut run = programs::command("losetup");
                let run = run.args(options).args(["--find", "--show"]).arg(&path).output().unwrap();
                if run.status.success() {
                    let node = String::from_utf8(run.stdout).unwrap().trim().into();
                    return Some(Self { node, _fake: fake });
                }
            }
            println!("skip {TEST}: no loop devices here");
            None
        }
    }

    impl Drop for Attached {
        fn drop(&mut self) {
            let run = programs::command("losetup").arg("--detach").arg(&self.node).status();
            assert!(run.unwrap().success());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::attached::Attached;
    use super::*;
    use crate::in_use::Machine;
    use crate::partition::made;
    use crate::reason::{Asked, Code};
    use crate::tree::fake::Fake;

    /// Makes an image in a directory whose `/proc` and `/sys` are empty, so that nothing is in use.
    fn image(fake: &Fake, name: &str, content: &[u8]) -> PathBuf {
        fake.file(name, content);
        fake.root.join(name)
    }

    fn open_it(fake: &Fake, path: &Path, access: OpenFor) -> Result<Opened, OpenError> {
        open(&fake.tree(), path, access, false)
    }

    #[track_caller]
    fn assert_fails_with(result: Result<Opened, OpenError>, words: &str) {
        let text = result.unwrap_err().to_string();
        assert!(text.contains(words) && !text.contains('\n'), "{text}");
    }

    #[test]
    fn image_has_the_block_size_of_its_partition_table() {
        let fake = Fake::new();
        for (block, name) in [(512u32, "small"), (4096, "large")] {
            let path = image(&fake, name, &made::gpt(block as usize, 64));
            let opened = open_it(&fake, &path, OpenFor::Reading).unwrap();
            assert_eq!((opened.kind, opened.logical_block), (Kind::Image, block));
            assert_eq!((opened.bytes, opened.tail), (64 * u64::from(block), 0));
            assert!(opened.volatile_cache && opened.physical_block >= block);
            assert!(!opened.exclusive && !opened.can_discard);
        }
    }

    #[test]
    fn bytes_after_the_last_block_are_left_out() {
        let fake = Fake::new();
        let path = image(&fake, "odd", &[1; 1500]);
        let opened = open_it(&fake, &path, OpenFor::Reading).unwrap();
        assert_eq!((opened.bytes, opened.tail), (1024, 476));
        assert_fails_with(
            open_it(&fake, &image(&fake, "tiny", &[1; 100]), OpenFor::Reading),
            "only 100 bytes",
        );
        assert_fails_with(
            open_it(&fake, &image(&fake, "none", &[]), OpenFor::Reading),
            "nothing to lend",
        );
    }

    #[test]
    fn descriptor_opened_for_reading_cannot_write() {
        let fake = Fake::new();
        let path = image(&fake, "disk", &[1; 8192]);
        let opened = open_it(&fake, &path, OpenFor::Reading).unwrap();
        assert_eq!(rustix::io::pwrite(&opened.descriptor, &[0; 512], 0), Err(Errno::BADF));
    }

    #[test]
    fn direct_io_works_if_reported() {
        let fake = Fake::new();
        let path = image(&fake, "disk", &[7; 65536]);
        let opened = open_it(&fake, &path, OpenFor::Writing).unwrap();
        let mut room = vec![0; 8192 + 512];
        let start = room.as_ptr().align_offset(4096);
        let block = &mut room[start..start + 512];
        assert_eq!(rustix::io::pread(&opened.descriptor, &mut *block, 512), Ok(512));
        assert_eq!(block[0], 7);
        assert_eq!(rustix::io::pwrite(&opened.descriptor, &*block, 1024), Ok(512));
        assert!(opened.memory_alignment <= 4096 && opened.memory_alignment.is_power_of_two());
        assert_eq!(
            std::fs::metadata(&path).unwrap().len(),
            65536,
            "the probe for holes changed the size"
        );
    }

    #[test]
    fn image_has_one_writer_or_many_readers() {
        let fake = Fake::new();
        let path = image(&fake, "disk", &[1; 8192]);
        let first = open_it(&fake, &path, OpenFor::Reading).unwrap();
        let second = open_it(&fake, &path, OpenFor::Reading).unwrap();
        assert_fails_with(open_it(&fake, &path, OpenFor::Writing), "is locked by another program");
        drop((first, second));
        let writer = open_it(&fake, &path, OpenFor::Writing).unwrap();
        assert_fails_with(open_it(&fake, &path, OpenFor::Reading), "is locked");
        drop(writer);
        open_it(&fake, &path, OpenFor::Reading).unwrap();
    }

    #[test]
    fn image_attached_to_a_loop_device_is_in_use() {
        let fake = Fake::new();
        let path = image(&fake, "disk", &[1; 8192]);
        fake.disk("virtual", "loop0", "7:0", 16);
        fake.file("sys/class/block/loop0/loop/backing_file", "/disk\n");
        assert_fails_with(open_it(&fake, &path, OpenFor::Reading), "is in use (attached as loop0)");
        assert_fails_with(open(&fake.tree(), &path, OpenFor::Writing, true), "is in use");
        open(&fake.tree(), &path, OpenFor::Reading, true).unwrap();
    }

    #[test]
    fn other_file_types_are_refused_without_blocking() {
        let fake = Fake::new();
        let at = |name: &str| fake.root.join(name);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("pipe"),
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let cases = [
            (at("missing"), "there is no such disk or file"),
            (at("pipe"), "is a pipe; only block devices"),
            (at("socket"), "is a socket"),
            (fake.root.clone(), "is a directory"),
            (PathBuf::from("/dev/null"), "is a character device"),
        ];
        for (path, words) in cases {
            assert_fails_with(open_it(&fake, &path, OpenFor::Reading), words);
        }
    }

    #[test]
    fn system_errors_have_messages() {
        let cases = [
            (Errno::NOMEDIUM, "no medium in the drive"),
            (Errno::ACCESS, "run this as root"),
            (Errno::ROFS, "without --writable"),
            (Errno::PERM, "cannot be opened: Operation not permitted"),
            (Errno::BUSY, "--allow-in-use"),
            (Errno::NXIO, "no such disk"),
            (Errno::IO, "cannot be opened: Input/output error"),
        ];
        for (errno, words) in cases {
            assert_fails_with(Err(OpenError::of(Path::new("/dev/x"), errno.into())), words);
        }
    }

    impl Attached {
        fn open(&self, access: OpenFor, allow_in_use: bool) -> Result<Opened, OpenError> {
            open(&Tree::machine(), &self.node, access, allow_in_use)
        }
    }

    #[test]
    fn block_device_is_opened_exclusively_and_locked() {
        let Some(device) = Attached::new(&[5; 1 << 20], &[]) else { return };
        let opened = device.open(OpenFor::Writing, false).unwrap();
        assert_eq!((opened.kind, opened.bytes, opened.logical_block), (Kind::Block, 1 << 20, 512));
        assert!(opened.exclusive && !opened.read_only);
        assert_eq!(opened.number.major, 7);
        assert_fails_with(device.open(OpenFor::Writing, true), "is in use");
        assert_fails_with(device.open(OpenFor::Reading, false), "is in use");
        // `allow_in_use` does not override our own lock.
        assert_fails_with(device.open(OpenFor::Reading, true), "is locked");
        drop(opened);
        let opened = device.open(OpenFor::Reading, false).unwrap();
        assert!(opened.exclusive);
        assert_eq!(rustix::io::pwrite(&opened.descriptor, &[0; 512], 0), Err(Errno::BADF));
    }

    #[test]
    fn device_in_use_can_be_opened_for_reading() {
        let Some(device) = Attached::new(&[5; 1 << 20], &[]) else { return };
        let user = open_file(&device.node, OpenFor::Reading, OFlags::EXCL).unwrap();
        assert_fails_with(device.open(OpenFor::Writing, true), "is in use");
        let opened = device.open(OpenFor::Reading, true).unwrap();
        assert!(!opened.exclusive);
        drop(user);
    }

    #[test]
    fn device_that_is_examined_is_not_in_use() {
        let Some(device) = Attached::new(&[5; 1 << 20], &[]) else { return };
        let examination = open_file(&device.node, OpenFor::Reading, OFlags::EXCL).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                sleep(BUSY_PAUSE);
                drop(examination);
            });
            assert!(!examine::is_busy(&device.node).unwrap());
            device.open(OpenFor::Writing, false).unwrap();
        });
    }

    #[test]
    fn read_only_medium_is_not_opened_for_writing() {
        let Some(device) = Attached::new(&[5; 1 << 20], &["--read-only"]) else { return };
        assert_fails_with(device.open(OpenFor::Writing, false), "cannot be written");
        assert!(device.open(OpenFor::Reading, false).unwrap().read_only);
    }

    #[test]
    fn partitions_exclude_their_disk_but_not_each_other() {
        if programs::lacks("partitions of a disk of the machine", &["addpart"]) {
            return;
        }
        let Some(device) = Attached::new(&[0; 1 << 20], &["--partscan"]) else { return };
        let part = |number: &str, start: &str| {
            let mut run = programs::command("addpart");
            let run = run.arg(&device.node).args([number, start, "100"]).status();
            assert!(run.unwrap().success());
            PathBuf::from(format!("{}p{number}", device.node.display()))
        };
        let (first, second) = (part("1", "64"), part("2", "256"));
        let tree = Tree::machine();
        let opened = open(&tree, &first, OpenFor::Writing, false).unwrap();
        assert_eq!((opened.bytes, opened.whole.is_some()), (51_200, true));
        let beside = open(&tree, &second, OpenFor::Reading, false).unwrap();
        assert_fails_with(device.open(OpenFor::Reading, false), "is in use");
        drop((opened, beside));
        let _whole = device.open(OpenFor::Reading, false).unwrap();
        assert_fails_with(open(&tree, &first, OpenFor::Reading, false), "is in use");
        assert_fails_with(open(&tree, &first, OpenFor::Reading, true), "is locked");
    }

    #[test]
    fn r57_locks_of_a_disk_and_its_partitions_count_for_each_other() {
        if programs::lacks("locks of disks and partitions", &["addpart"]) {
            return;
        }
        let Some(device) = Attached::new(&[0; 1 << 20], &["--partscan"]) else { return };
        let mut add = programs::command("addpart");
        let run = add.arg(&device.node).args(["1", "64", "100"]).status();
        assert!(run.unwrap().success());
        let part = PathBuf::from(format!("{}p1", device.node.display()));
        let tree = Tree::machine();
        let writer = |path: &Path| {
            let file = open_file(path, OpenFor::Writing, OFlags::empty()).unwrap();
            range_lock::claim(&tree, &file, OpenFor::Writing).unwrap();
            file
        };
        for (locked, other) in [(&device.node, &part), (&part, &device.node)] {
            let writer = writer(locked);
            assert_fails_with(open(&tree, locked, OpenFor::Reading, false), "is in use by another");
            assert_fails_with(open(&tree, other, OpenFor::Reading, false), "is in use by another");
            assert_fails_with(open(&tree, other, OpenFor::Writing, true), "is never written");
            drop(open(&tree, other, OpenFor::Reading, true).unwrap());
            let noted = open(&tree, locked, OpenFor::Reading, true).unwrap();
            assert!(noted.written_by.is_some());
            drop((writer, noted));
            drop(open(&tree, other, OpenFor::Writing, false).unwrap());
        }
    }

    #[test]
    fn live_machine_is_judged_by_signatures() {
        let mut content = vec![0; 1 << 20];
        content[512..520].copy_from_slice(b"LABELONE");
        content[536..544].copy_from_slice(b"LVM2 001");
        let Some(device) = Attached::new(&content, &[]) else { return };
        let machine = Machine::snapshot(&Tree::machine()).unwrap();
        let disk = machine.disks.iter().find(|disk| disk.node == device.node).unwrap();
        let codes = || {
            let verdict = machine.judge(disk, &Live::default());
            assert!(!verdict.allows(Asked::ForAll));
            verdict.reasons.iter().map(|reason| reason.code).collect::<Vec<_>>()
        };
        assert_eq!(codes(), [Code::Lvm, Code::Loop]);
        let _user = open_file(&device.node, OpenFor::Reading, OFlags::EXCL).unwrap();
        assert_eq!(codes(), [Code::Lvm, Code::Busy, Code::Loop]);
    }
}
