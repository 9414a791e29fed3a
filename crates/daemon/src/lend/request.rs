//! Which disk to export, and where what hosts write to it goes.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use export::{AtomicWrites, Geometry, PAGE};
use failure::Failure;
use filesystem::Container;
use linux::block::{self, DeviceNumber};
use linux::disk::Opened;
use linux::tree::Tree;

use super::rescue::RescueRequest;
use crate::reported::KnownAs;

/// A request to export a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LendRequest {
    /// Path as given by the user.
    pub path: PathBuf,
    /// The format of an image file that is lent as the disk in it; `None` if each byte is one of the disk.
    pub format: Option<Container>,
    /// What is known of a disk that fails, if it is lent by that.
    pub rescue: Option<RescueRequest>,
    /// Where what hosts write goes.
    pub writes: Writes,
    /// Whether it is lent as a home directory of systemd-homed, which it must be then.
    pub is_home: bool,
    /// What hosts know it by since another target served it.
    pub known_as: Option<KnownAs>,
}

/// Where what hosts write to a disk goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// Nowhere: the disk is exported read-only.
    Refused,
    /// To the disk.
    ToDisk,
    /// To an overlay. The disk is not changed, and is opened read-only.
    ToOverlay,
}

impl Writes {
    /// Returns where it goes: an overlay takes precedence over the disk.
    pub fn of(overlay: bool, writable: bool) -> Self {
        match (overlay, writable) {
            (true, _) => Self::ToOverlay,
            (false, true) => Self::ToDisk,
            (false, false) => Self::Refused,
        }
    }
}

impl LendRequest {
    /// Returns a request for a disk, or a file each byte of which is one of the disk.
    pub fn new(path: PathBuf, writes: Writes) -> Self {
        Self { path, format: None, rescue: None, writes, is_home: false, known_as: None }
    }

    /// Returns a request for a home directory.
    pub fn home(path: PathBuf, writes: Writes) -> Self {
        Self { is_home: true, ..Self::new(path, writes) }
    }

    /// Returns the block sizes of the opened disk, and what it writes atomically.
    pub(super) fn geometry(&self, opened: &Opened) -> Result<Geometry, Failure> {
        let block = opened.logical_block;
        let mut geometry = Geometry::new(block, opened.physical_block).ok_or_else(|| {
            Failure::new(format!(
                "{} has blocks of {} bytes; only powers of two from 512 to 65536 can be lent",
                self.path.display(),
                block
            ))
        })?;
        if self.writes_disk() && is_direct(opened) {
            let lengths = opened.atomic_writes;
            geometry.atomic = lengths.and_then(|(min, max)| AtomicWrites::new(min.max(block), max));
        }
        Ok(geometry)
    }

    /// Returns whether the disk itself may be written.
    pub(super) fn writes_disk(&self) -> bool {
        self.writes == Writes::ToDisk
    }
}

/// Returns whether the disk is accessed past the page cache.
pub(super) fn is_direct(opened: &Opened) -> bool {
    opened.direct && opened.memory_alignment as usize <= PAGE
}

/// Resolves a name: a path that exists, else the disk with that name (`sda`, `GROUP/VOLUME`, or
/// `/dev/mapper/NAME` where udev makes no links).
pub fn named(tree: &Tree, path: &Path) -> PathBuf {
    let found = if path.exists() { None } else { disk_named(tree, path) };
    found.unwrap_or_else(|| path.to_owned())
}

/// Returns the path of the disk with that name, if there is one.
pub fn disk_named(tree: &Tree, name: &Path) -> Option<PathBuf> {
    let called = name.to_str()?;
    let disks = block::scan(tree).unwrap_or_default();
    disks.into_iter().find(|disk| disk.has_name(called)).map(|disk| disk.path(tree))
}

/// The device number of the block device at `path`.
pub fn block_device(path: &Path) -> Option<DeviceNumber> {
    let metadata: Metadata = path.metadata().ok()?;
    let number = metadata.rdev();
    metadata.file_type().is_block_device().then(|| DeviceNumber {
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
    })
}
