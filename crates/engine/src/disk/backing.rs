//! How requests reach the files of a [`Backing`]. With [`super::blocking_op`], the only place that
//! distinguishes its variants.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use export::{
    Admitted, Backing, Base, Export, Fault, Op, Pool, RescueState, RescuedDisk, Source, Stored,
    VirtualDisk,
};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::Call;

/// `TMPFS_MAGIC`, also the type of a memfd.
const TMPFS: u32 = 0x0102_1994;

/// Major number of the memory devices: `/dev/null`, `/dev/zero`.
const MEMORY_DEVICES: u32 = 1;

/// Device number of `/dev/zero`.
const ZERO_DEVICE: u64 = 0x105;

/// Where some bytes of an export are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    /// The index of the file in [`Backing::descriptors`].
    pub(super) file: usize,
    /// The offset in it.
    pub(super) offset: u64,
    /// How many bytes are there.
    pub(super) len: u64,
}

/// Reads from the files of an export what must be known before the first request: of a virtual disk, where its
/// blocks are; of a failing disk, what is known of its blocks; of an overlay, which states belong to which
/// host, and their maps. Blocks.
///
/// # Errors
/// Fails if a file cannot be read.
pub fn prepare(export: &Arc<Export>) -> Result<(), Fault> {
    match export.backing().base() {
        Base::Raw(_) => {}
        Base::Virtual(disk) => super::virtual_disk::load(disk, export.bytes())?,
        Base::Rescued(disk) => super::rescue::load(disk, export.blocks())?,
    }
    super::overlay::restore(export)
}

/// Returns where the request finds the bytes of the export from `offset` on, and how many of the next `len`
/// bytes are there.
pub(super) fn locate(admitted: &Admitted, offset: u64, len: u64) -> Location {
    let (export, state) = (admitted.export(), admitted.state());
    let (backing, mut len) = (export.backing(), len);
    if let (Some(_), Some(index)) = (backing.overlay(), state) {
        let file = backing.data_index(index);
        if admitted.op() != Op::Read {
            return Location { file, offset, len };
        }
        let (source, run) = super::overlay::run(export, state, offset, offset.saturating_add(len));
        match source {
            Source::Base => len = run,
            Source::Overlay | Source::Zeros => return Location { file, offset, len: run },
        }
    }
    match backing.base() {
        Base::Raw(_) => Location { file: 0, offset, len },
        Base::Virtual(disk) => match disk.find(offset, offset.saturating_add(len)) {
            (Stored::Image(offset), len) => Location { file: VirtualDisk::IMAGE, offset, len },
            (Stored::Index(offset), len) => Location { file: VirtualDisk::INDEX, offset, len },
            // Not read: see `zeros`.
            (Stored::Zeros, len) => Location { file: VirtualDisk::IMAGE, offset, len },
        },
        Base::Rescued(disk) => {
            let (state, len) =
                super::rescue::find(export, disk, offset, offset.saturating_add(len));
            // Other blocks are fetched: see `Job::prepare_read`.
            let file = match state {
                RescueState::Kept => RescuedDisk::IMAGE,
                RescueState::Unknown | RescueState::Bad => RescuedDisk::DISK,
            };
            Location { file, offset, len }
        }
    }
}

/// Returns how many of the bytes from `offset` to `end` are zeros that no file holds.
pub(super) fn zeros(admitted: &Admitted, offset: u64, end: u64) -> u64 {
    let export = admitted.export();
    let (source, len) = super::overlay::run(export, admitted.state(), offset, end);
    match (source, export.backing().base()) {
        (Source::Zeros, _) => len,
        (Source::Overlay, _) | (Source::Base, Base::Raw(_) | Base::Rescued(_)) => 0,
        (Source::Base, Base::Virtual(disk)) => match disk.find(offset, offset + len) {
            (Stored::Zeros, len) => len,
            (Stored::Image(_) | Stored::Index(_), _) => 0,
        },
    }
}

/// Returns whether what is written is stored in an overlay.
pub(super) fn has_overlay(backing: &Backing) -> bool {
    backing.overlay().is_some()
}

/// Returns whether a flush has to store the map of an overlay.
pub(super) fn has_durable_map(backing: &Backing) -> bool {
    backing.overlay().is_some_and(|overlay| overlay.layout().is_durable)
}

/// Returns whether the bytes in the file with this index have the offsets that they have on the disk.
pub(super) fn is_in_place(backing: &Backing, file: usize) -> bool {
    match backing.base() {
        Base::Raw(_) | Base::Rescued(_) => true,
        Base::Virtual(disk) => file >= disk.files().len(),
    }
}

/// Executes a call on the file with this index, blocking.
pub(super) fn perform(backing: &Backing, file: usize, call: Call<'_>) -> Result<usize, Errno> {
    let file = backing.descriptor(file).ok_or(Errno::BADF)?;
    match call {
        Call::Read { offset, into } => rustix::io::pread(file, into, offset),
        Call::Write { offset, from, flags } if flags.is_empty() => {
            rustix::io::pwrite(file, from, offset)
        }
        Call::Write { offset, from, flags } => {
            rustix::io::pwritev2(file, &[IoSlice::new(from)], offset, flags)
        }
        Call::Sync => rustix::fs::fdatasync(file).map(|()| 0),
        Call::Allocate { mode, offset, len } => {
            rustix::fs::fallocate(file, mode, offset, len).map(|()| 0)
        }
    }
}

/// Returns whether `fallocate` is passed to a block device. There the kernel implements
/// `FALLOC_FL_ZERO_RANGE` by writing zeros if the device has no such command, and fails only
/// `FALLOC_FL_PUNCH_HOLE`.
pub(super) fn is_device(backing: &Backing) -> bool {
    match (backing.base(), backing.overlay()) {
        (Base::Raw(disk), None) => is_block_device(disk),
        (Base::Raw(_) | Base::Virtual(_) | Base::Rescued(_), _) => false,
    }
}

/// Returns whether writes may be cached, so that their errors are reported later.
pub(super) fn is_cached(backing: &Backing) -> bool {
    is_cached_file(backing.written())
}

/// Returns whether reads of the file, or writes to it, may be cached.
pub(super) fn is_cached_file(file: impl AsFd) -> bool {
    rustix::fs::fcntl_getfl(file).is_ok_and(|flags| !flags.contains(OFlags::DIRECT))
}

/// Which requests complete immediately, because the data is in memory.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct InMemory {
    /// Reads of any block.
    pub(super) all: bool,
    /// Writes, and reads of what is in the overlay, if there is one.
    pub(super) written: bool,
}

impl InMemory {
    pub(super) fn of(backing: &Backing) -> Self {
        let of_base = match backing.base() {
            Base::Raw(disk) => is_memory_file(disk),
            // The index is in memory.
            Base::Virtual(disk) => is_memory_file(disk.image()),
            Base::Rescued(_) => false,
        };
        match (backing.overlay(), backing.base()) {
            (Some(_), _) => {
                let written = is_memory_file(backing.written());
                Self { all: written && of_base, written }
            }
            (None, Base::Raw(_)) => Self { all: of_base, written: of_base },
            (None, Base::Virtual(_) | Base::Rescued(_)) => Self { all: of_base, written: false },
        }
    }
}

/// A file that can be mapped.
pub(super) struct Mappable<'a> {
    pub(super) file: BorrowedFd<'a>,
    /// The number of bytes to map.
    pub(super) len: usize,
    /// How many bytes of the file are holes that may be read.
    pub(super) holes: u64,
    /// Whether it is written to.
    pub(super) writable: bool,
    /// Whether huge pages may be used: not for a file with holes, of which each write would take one.
    pub(super) huge: bool,
    /// Whether every byte of the disk is zero, and what is written is discarded: `/dev/zero`. Any
    /// bytes of the mapping stand for any of the disk.
    pub(super) is_zero: bool,
}

/// Returns what to map of the file with this index, which has the first `bytes` bytes of the export, if
/// it is in memory.
pub(super) fn mappable(backing: &Backing, index: usize, bytes: u64) -> Option<Mappable<'_>> {
    let file = backing.descriptor(index)?;
    let is_overlay = has_overlay(backing);
    let writable = !is_overlay || index >= backing.base().files().len();
    let stat = rustix::fs::fstat(file).ok()?;
    let file_type = FileType::from_raw_mode(stat.st_mode);
    if file_type == FileType::CharacterDevice && stat.st_rdev == ZERO_DEVICE {
        let (file, len) = (file.as_fd(), Pool::MAX_BUFFER);
        return Some(Mappable { file, len, holes: 0, writable, huge: false, is_zero: true });
    }
    let is_regular = file_type == FileType::RegularFile;
    let (size, blocks) = (u64::try_from(stat.st_size).ok()?, u64::try_from(stat.st_blocks).ok()?);
    let holes = size.saturating_sub(blocks.saturating_mul(512));
    let huge = holes == 0;
    // Only blocks of the data of an overlay are read that were written.
    let holes = if is_overlay && writable { 0 } else { holes };
    let len = usize::try_from(size.min(bytes)).ok()?;
    let mappable = Mappable { file: file.as_fd(), len, holes, writable, huge, is_zero: false };
    (is_regular && is_memory_file(file)).then_some(mappable)
}

fn is_block_device(file: &OwnedFd) -> bool {
    let stat = rustix::fs::fstat(file);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice)
}

fn is_memory_file(file: impl AsFd) -> bool {
    let file = file.as_fd();
    let in_tmpfs = rustix::fs::fstatfs(file).is_ok_and(|fs| u32::try_from(fs.f_type) == Ok(TMPFS));
    rustix::fs::fstat(file).is_ok_and(|stat| match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => in_tmpfs,
        FileType::CharacterDevice => rustix::fs::major(stat.st_rdev) == MEMORY_DEVICES,
        _ => false,
    })
}
