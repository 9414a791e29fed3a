//! Inspection of file systems: what is on a disk, which bytes are used, and which files they belong
//! to. Read-only, and robust against hostile contents.
//!
//! Supports ext2, ext3, ext4, XFS, btrfs, NTFS, FAT and exFAT in partitions, and of ext2 to ext4 and NTFS also
//! which file a byte belongs to. Anything that is not understood with certainty counts as used. Of ext2 to ext4,
//! NTFS, FAT and exFAT [`Volume`] reads directories and files.

#![forbid(unsafe_code)]

mod btrfs;
pub mod container;
mod exfat;
mod ext;
mod fat;
mod loaders;
mod node;
mod ntfs;
mod ranges;
mod survey;
mod table;
mod unpack;
pub mod virtual_disk;
mod volume;
mod window;
mod xfs;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use linux::partition::{self, Entry, Scheme};
use linux::signature::{self, Kind as Mark};

pub use container::Container;
pub use linux::medium::ReadAt;
pub use loaders::{Loaders, loaders};
pub use node::{Cursor, Entry as FileEntry, EntryKind, Extent, FileError, Modified, Refusal};
pub use ranges::Ranges;
pub use survey::{Content, Survey, survey};
pub use unpack::unpack;
pub use virtual_disk::VirtualDisk;
pub use virtual_disk::{BackingFile, Qcow2Writer};
pub use volume::{Recognized, Volume, recognize};

/// Why a whole file system counts as used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpaqueReason {
    /// Not a supported file system.
    Unknown,
    /// Not cleanly unmounted: its journal would have to be replayed first.
    Unclean,
    /// An unsupported feature.
    Feature,
    /// Inconsistent metadata.
    Damaged,
}

impl std::fmt::Display for OpaqueReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "not understood",
            Self::Unclean => "not cleanly unmounted",
            Self::Feature => "an unsupported feature",
            Self::Damaged => "damaged",
        })
    }
}

/// PartKind of a part of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartKind {
    /// ext2, ext3 or ext4.
    Ext,
    /// NTFS.
    Ntfs,
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// exFAT.
    Exfat,
    /// XFS.
    Xfs,
    /// btrfs on one device.
    Btrfs,
    /// Not inspected: all of it counts as used.
    Opaque(OpaqueReason),
}

/// A partition, or the whole of an unpartitioned disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Partition number from 1; 0 for the whole disk.
    pub number: u32,
    /// Position in bytes.
    pub range: Range<u64>,
    pub kind: PartKind,
}

/// Used bytes of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// All used bytes, including those before, between and after the partitions.
    pub used: Ranges,
    pub parts: Vec<Part>,
}

/// Owner of some bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A file or directory, by its path in its file system.
    File(String),
    /// Metadata of the file system.
    Structure,
    /// Free space.
    Free,
    /// Cannot be determined.
    Unknown,
}

/// An owner of bytes, and its partition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RangeOwner {
    /// Partition number; 0 for the whole disk, and for bytes outside of all partitions.
    pub partition: u32,
    pub owner: Owner,
}

/// Determines the used bytes of a disk of `bytes` bytes.
///
/// # Errors
/// Fails if the disk cannot be read where it must be.
pub fn usage<R: ReadAt + ?Sized>(disk: &R, bytes: u64) -> io::Result<Usage> {
    let mut parts = Vec::new();
    let mut used = Ranges::of(0..bytes);
    for (number, place) in partitions(disk, bytes)? {
        let (kind, inside) = usage_of(disk, &place)?;
        if let Some(inside) = inside {
            used.remove(place.clone());
            used.extend(&inside);
        }
        parts.push(Part { number, range: place, kind });
    }
    Ok(Usage { used, parts })
}

/// Determines the owners of the bytes of `ranges`, without duplicates.
///
/// # Errors
/// Fails if the disk cannot be read where it must be.
pub fn owners<R: ReadAt + ?Sized>(
    disk: &R,
    bytes: u64,
    ranges: &Ranges,
) -> io::Result<BTreeSet<RangeOwner>> {
    let mut found = BTreeSet::new();
    let mut rest = ranges.clone();
    for (partition, place) in partitions(disk, bytes)? {
        let inside = ranges.within(place.clone());
        rest.remove(place.clone());
        if !inside.is_empty() {
            let owners = owners_of(disk, &place, &inside)?;
            found.extend(owners.into_iter().map(|owner| RangeOwner { partition, owner }));
        }
    }
    if !rest.is_empty() {
        found.insert(RangeOwner { partition: 0, owner: Owner::Unknown });
    }
    Ok(found)
}

/// The partitions by number, or the whole disk as number 0 if it has none. Leaves out partitions that overlap others, and
/// all of a disk with an invalid GPT: their bytes then count as used.
///
/// # Errors
/// Fails if the disk cannot be read where it must be.
pub fn partitions<R: ReadAt + ?Sized>(disk: &R, bytes: u64) -> io::Result<Vec<(u32, Range<u64>)>> {
    let table = partition::read(disk)?.filter(|table| !table.entries.is_empty());
    // The boot sectors of NTFS, exFAT and FAT have the signature of an MBR, and one of them may be left of an
    // earlier file system on a disk with partitions: which of both counts is not certain.
    let is_volume = ntfs::is_at(disk, 0) || exfat::is_at(disk, 0)? || fat::is_at(disk, 0)?;
    if is_volume && (table.is_some() || may_have_partitions(disk, 0)?) {
        return Ok(Vec::new());
    }
    let Some(table) = table else { return Ok(vec![(0, 0..bytes)]) };
    if table.scheme == Scheme::Gpt && !is_protected(disk)? {
        return Ok(Vec::new());
    }
    let whole = |entry: &Entry| {
        let end = entry.start.checked_add(entry.bytes)?;
        (entry.bytes > 0 && end <= bytes).then_some((entry.number, entry.start..end))
    };
    let entries = table.entries.iter().filter(|entry| !EXTENDED.contains(&&*entry.kind));
    let all: Vec<_> = entries.clone().filter_map(whole).collect();
    let alone = |place: &Range<u64>| {
        let overlaps = |other: &Range<u64>| other.start < place.end && place.start < other.end;
        all.iter().filter(|(_, other)| overlaps(other)).count() == 1
    };
    let is_plain = |entry: &&Entry| !PARTIAL_VOLUMES.contains(&&*entry.kind);
    let plain = entries.filter(is_plain).filter_map(whole);
    Ok(plain.filter(|(_, place)| alone(place)).collect())
}

/// MBR types of extended partitions.
const EXTENDED: [&str; 3] = ["05", "0f", "85"];

/// Types of partitions that may hold only a part of a volume: Windows dynamic disks and storage
/// spaces.
const PARTIAL_VOLUMES: [&str; 4] = [
    "42",
    "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3",
    "af9b60a0-1431-4f62-bc68-3311714a69ad",
    "e75caf8f-f680-4cee-afa3-b001e56efc2d",
];

/// Whether there is a protective MBR (UEFI 2.10 §5.2.3). Without one the GPT is stale, and its
/// partitions may overlap others.
fn is_protected<R: ReadAt + ?Sized>(disk: &R) -> io::Result<bool> {
    const PROTECTIVE: u8 = 0xee;
    let sector = window::read(disk, 0, 512)?.unwrap_or_default();
    let kinds = [450, 466, 482, 498].map(|at| sector.get(at).copied());
    Ok(sector.ends_with(&[0x55, 0xaa]) && kinds.contains(&Some(PROTECTIVE)))
}

/// A range of a disk as a disk of its own.
pub(crate) struct PartitionView<'a, R: ?Sized> {
    pub(crate) disk: &'a R,
    pub(crate) place: Range<u64>,
}

impl<R: ReadAt + ?Sized> ReadAt for PartitionView<'_, R> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let at = self.place.start.saturating_add(offset);
        let room = usize::try_from(self.place.end.saturating_sub(at)).unwrap_or(usize::MAX);
        let len = buffer.len().min(room);
        self.disk.read_at(buffer.get_mut(..len).unwrap_or_default(), at)
    }
}

/// Whether a sector can be read as an MBR with partitions, as the kernel does if the first byte of each of the
/// four entries is valid.
fn may_have_partitions<R: ReadAt + ?Sized>(disk: &R, start: u64) -> io::Result<bool> {
    let sector = window::read(disk, start, 512)?.unwrap_or_default();
    let entries = sector.get(446..510).unwrap_or_default();
    let (mut is_table, mut has_any) = (sector.ends_with(&[0x55, 0xaa]), false);
    for entry in entries.chunks_exact(16) {
        is_table &= matches!(entry.first(), Some(0 | 0x80));
        has_any |= window::le32(entry, 12) != Some(0);
    }
    Ok(is_table && has_any)
}

/// Whether only the signatures in `marks` are found and no partitions, and whether everything was readable. A stale file
/// system may have left its superblock and bitmaps behind a newer one, or behind the partitions of a virtual
/// machine.
fn has_only_signatures<R: ReadAt + ?Sized>(
    disk: &R,
    place: &Range<u64>,
    marks: &[Mark],
) -> io::Result<(bool, bool)> {
    let inside = PartitionView { disk, place: place.clone() };
    let contents = signature::probe(&inside, place.end - place.start)?;
    let has_table = contents.table.is_some_and(|table| !table.entries.is_empty());
    let has_no_other = contents.signatures.iter().all(|found| marks.contains(&found.kind));
    let is_only = has_no_other && !has_table && !may_have_partitions(disk, place.start)?;
    Ok((is_only, contents.unreadable.is_none()))
}

/// Determines the used bytes of a file system.
type UsageOf<R> = fn(&R, &Range<u64>) -> io::Result<Result<Ranges, OpaqueReason>>;

fn usage_of<R: ReadAt + ?Sized>(
    disk: &R,
    place: &Range<u64>,
) -> io::Result<(PartKind, Option<Ranges>)> {
    let Some((kind, marks)) = kind_at(disk, place.start)? else {
        return Ok((PartKind::Opaque(OpaqueReason::Unknown), None));
    };
    let usage: UsageOf<R> = match kind {
        PartKind::Ext => ext::usage,
        PartKind::Ntfs => ntfs::usage,
        PartKind::Xfs => xfs::usage,
        PartKind::Btrfs => btrfs::usage,
        PartKind::Exfat => exfat::usage,
        PartKind::Fat => fat::usage,
        PartKind::Opaque(_) => return Ok((kind, None)),
    };
    let used = match has_only_signatures(disk, place, marks)? {
        (true, true) => usage(disk, place)?,
        _ => Err(OpaqueReason::Unknown),
    };
    Ok(match used {
        Ok(used) => (kind, Some(used.within(place.clone()))),
        Err(reason) => (PartKind::Opaque(reason), None),
    })
}

/// Whether there is a superblock or boot sector of a file system at a position.
type IsAt<R> = fn(&R, u64) -> io::Result<bool>;

/// The file system at `at`, and the signatures that it may have. A place that cannot be read hides none in another one.
fn kind_at<R: ReadAt + ?Sized>(
    disk: &R,
    at: u64,
) -> io::Result<Option<(PartKind, &'static [Mark])>> {
    let all: [(IsAt<R>, PartKind, &'static [Mark]); 6] = [
        (ext::is_at, PartKind::Ext, &[Mark::Ext2, Mark::Ext3, Mark::Ext4]),
        (|disk, at| Ok(ntfs::is_at(disk, at)), PartKind::Ntfs, &[Mark::Ntfs]),
        (xfs::is_at, PartKind::Xfs, &[Mark::Xfs]),
        (btrfs::is_at, PartKind::Btrfs, &[Mark::Btrfs]),
        (exfat::is_at, PartKind::Exfat, &[Mark::Exfat]),
        (fat::is_at, PartKind::Fat, &[Mark::Vfat]),
    ];
    let mut failed = None;
    for (is_at, kind, marks) in all {
        match is_at(disk, at) {
            Ok(true) => return Ok(Some((kind, marks))),
            Ok(false) => {}
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(None), Err)
}

fn owners_of<R: ReadAt + ?Sized>(
    disk: &R,
    place: &Range<u64>,
    ranges: &Ranges,
) -> io::Result<BTreeSet<Owner>> {
    let owners = if ext::is_at(disk, place.start)? {
        ext::owners(disk, place, ranges)?
    } else if ntfs::is_at(disk, place.start) {
        ntfs::owners(disk, place, ranges)?
    } else {
        Err(OpaqueReason::Unknown)
    };
    Ok(owners.unwrap_or_else(|_| BTreeSet::from([Owner::Unknown])))
}

/// Parent directory and name of an inode or record, by its number.
type DirEntries = BTreeMap<u64, (u64, String)>;

/// Maximum depth of directories: corrupt ones may form a cycle.
const MAX_DEPTH: usize = 4096;

/// The path from the directory `root`; `None` if it does not start there.
fn path(named: &DirEntries, root: u64, number: u64) -> Option<String> {
    let (mut parts, mut at) = (Vec::new(), number);
    while at != root {
        let (parent, name) = named.get(&at)?;
        parts.push(name.as_str());
        at = *parent;
        if parts.len() > MAX_DEPTH {
            return None;
        }
    }
    parts.reverse();
    Some(format!("/{}", parts.join("/")))
}

fn replace_control(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
