//! What is on a disk: in few words, which bytes of it hold something, and which files they belong to, from bytes that may
//! be hostile.
//!
//! Knows ext2, ext3, ext4 and NTFS, and what partition they are in. What it does not understand for certain, it takes as
//! used. It writes nothing, and does not know how the disk is reached.

#![forbid(unsafe_code)]

pub mod container;
mod ext;
mod ntfs;
pub mod qcow2;
mod ranges;
mod survey;
mod unpack;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use linux::medium::ReadAt;
use linux::partition::{self, Entry, Scheme};
use linux::signature::{self, Kind as Mark};

pub use container::Container;
pub use qcow2::Qcow2;
pub use ranges::Ranges;
pub use survey::{Content, Survey, survey};
pub use unpack::unpack;

/// Why the whole of a file system is taken as used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opaque {
    /// It is none that is known here.
    Unknown,
    /// It was not unmounted in order: what is in its journal would have to be replayed first.
    Unclean,
    /// It has a feature that is not known here.
    Feature,
    /// It says things of itself that cannot be.
    Damaged,
}

impl std::fmt::Display for Opaque {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "not understood",
            Self::Unclean => "not cleanly unmounted",
            Self::Feature => "a feature that is not understood",
            Self::Damaged => "damaged",
        })
    }
}

/// What a part of a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ext2, ext3 or ext4.
    Ext,
    /// NTFS.
    Ntfs,
    /// All of it counts as used.
    Opaque(Opaque),
}

/// A part of a disk: a partition, or the whole of a disk without any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The partition's number, from 1; 0 for the whole disk.
    pub number: u32,
    /// Where it is, in bytes.
    pub place: Range<u64>,
    /// What it is.
    pub kind: Kind,
}

/// What of a disk holds something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// All that does: also what lies before, between and behind the partitions.
    pub used: Ranges,
    /// The parts.
    pub parts: Vec<Part>,
}

/// Whose some bytes are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A file's or a directory's, by its path in its file system.
    File(String),
    /// The file system's own.
    Structure,
    /// Nobody's.
    Free,
    /// It cannot be told.
    Unknown,
}

/// Bytes, and whose they are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// The partition's number; 0 for the whole disk, and for what is in no partition.
    pub partition: u32,
    /// Whose.
    pub owner: Owner,
}

/// What of a disk of so many bytes holds something.
///
/// # Errors
/// The disk cannot be read where it must be.
pub fn usage<R: ReadAt + ?Sized>(disk: &R, bytes: u64) -> io::Result<Usage> {
    let mut parts = Vec::new();
    let mut used = Ranges::of(0..bytes);
    for (number, place) in places(disk, bytes)? {
        let (kind, inside) = usage_of(disk, &place)?;
        if let Some(inside) = inside {
            used.remove(place.clone());
            used.extend(&inside);
        }
        parts.push(Part { number, place, kind });
    }
    Ok(Usage { used, parts })
}

/// Whose the bytes of `ranges` are, each owner once.
///
/// # Errors
/// The disk cannot be read where it must be.
pub fn owners<R: ReadAt + ?Sized>(
    disk: &R,
    bytes: u64,
    ranges: &Ranges,
) -> io::Result<BTreeSet<Found>> {
    let mut found = BTreeSet::new();
    let mut rest = ranges.clone();
    for (partition, place) in places(disk, bytes)? {
        let inside = ranges.within(place.clone());
        rest.remove(place.clone());
        if !inside.is_empty() {
            let owners = owners_of(disk, &place, &inside)?;
            found.extend(owners.into_iter().map(|owner| Found { partition, owner }));
        }
    }
    if !rest.is_empty() {
        found.insert(Found { partition: 0, owner: Owner::Unknown });
    }
    Ok(found)
}

/// The partitions with their numbers, or the whole disk where there are none. Those that overlap another are left out: what
/// they hold then counts as used. So does all of a disk whose GPT no system would follow.
fn places<R: ReadAt + ?Sized>(disk: &R, bytes: u64) -> io::Result<Vec<(u32, Range<u64>)>> {
    let table = partition::read(disk)?.filter(|table| !table.entries.is_empty());
    // A boot sector of NTFS has a signature where a partition table would have its own.
    let Some(table) = table.filter(|_| !ntfs::is_at(disk, 0)) else {
        return Ok(vec![(0, 0..bytes)]);
    };
    if table.scheme == Scheme::Gpt && !is_protected(disk)? {
        return Ok(Vec::new());
    }
    let whole = |entry: &Entry| {
        let end = entry.start.checked_add(entry.bytes)?;
        (entry.bytes > 0 && end <= bytes).then_some((entry.number, entry.start..end))
    };
    let entries = table.entries.iter().filter(|entry| !CONTAINERS.contains(&&*entry.kind));
    let all: Vec<_> = entries.clone().filter_map(whole).collect();
    let alone = |place: &Range<u64>| {
        let overlaps = |other: &Range<u64>| other.start < place.end && place.start < other.end;
        all.iter().filter(|(_, other)| overlaps(other)).count() == 1
    };
    let is_plain = |entry: &&Entry| !FOREIGN.contains(&&*entry.kind);
    let plain = entries.filter(is_plain).filter_map(whole);
    Ok(plain.filter(|(_, place)| alone(place)).collect())
}

/// The types of an MBR's partitions that only hold others.
const CONTAINERS: [&str; 3] = ["05", "0f", "85"];

/// The types of partitions of which a volume may have a part only: Windows' dynamic disks and storage spaces.
const FOREIGN: [&str; 4] = [
    "42",
    "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3",
    "af9b60a0-1431-4f62-bc68-3311714a69ad",
    "e75caf8f-f680-4cee-afa3-b001e56efc2d",
];

/// Whether the older table leaves the disk to the GPT (UEFI 2.10 §5.2.3). Where it does not, the GPT is a leftover, and
/// what it says are partitions may lie across others.
fn is_protected<R: ReadAt + ?Sized>(disk: &R) -> io::Result<bool> {
    const PROTECTIVE: u8 = 0xee;
    let sector = window::read(disk, 0, 512)?.unwrap_or_default();
    let kinds = [450, 466, 482, 498].map(|at| sector.get(at).copied());
    Ok(sector.ends_with(&[0x55, 0xaa]) && kinds.contains(&Some(PROTECTIVE)))
}

/// A part of a disk by itself.
pub(crate) struct Inside<'a, R: ?Sized> {
    pub(crate) disk: &'a R,
    pub(crate) place: Range<u64>,
}

impl<R: ReadAt + ?Sized> ReadAt for Inside<'_, R> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let at = self.place.start.saturating_add(offset);
        let room = usize::try_from(self.place.end.saturating_sub(at)).unwrap_or(usize::MAX);
        let len = buffer.len().min(room);
        self.disk.read_at(buffer.get_mut(..len).unwrap_or_default(), at)
    }
}

/// Whether what is there bears the marks of nothing but `marks`. What has been there before may have left its own, which
/// whoever came later does not always wipe, and its bitmaps with them.
fn is_only<R: ReadAt + ?Sized>(disk: &R, place: &Range<u64>, marks: &[Mark]) -> io::Result<bool> {
    let inside = Inside { disk, place: place.clone() };
    let contents = signature::probe(&inside, place.end - place.start)?;
    Ok(contents.signatures.iter().all(|found| marks.contains(&found.kind)))
}

fn usage_of<R: ReadAt + ?Sized>(
    disk: &R,
    place: &Range<u64>,
) -> io::Result<(Kind, Option<Ranges>)> {
    let unknown = (Kind::Opaque(Opaque::Unknown), Err(Opaque::Unknown));
    let (kind, used) = if ext::is_at(disk, place.start)? {
        match is_only(disk, place, &[Mark::Ext2, Mark::Ext3, Mark::Ext4])? {
            true => (Kind::Ext, ext::usage(disk, place)?),
            false => unknown,
        }
    } else if ntfs::is_at(disk, place.start) {
        match is_only(disk, place, &[Mark::Ntfs])? {
            true => (Kind::Ntfs, ntfs::usage(disk, place)?),
            false => unknown,
        }
    } else {
        unknown
    };
    Ok(match used {
        Ok(used) => (kind, Some(used.within(place.clone()))),
        Err(why) => (Kind::Opaque(why), None),
    })
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
        Err(Opaque::Unknown)
    };
    Ok(owners.unwrap_or_else(|_| BTreeSet::from([Owner::Unknown])))
}

/// Where something is named, by its number: in which directory, and how.
type Named = BTreeMap<u64, (u64, String)>;

/// Directories within each other at most: names may go round in a circle.
const DEEPEST: usize = 4096;

/// The path from the directory `root` on; nothing if it does not begin there.
fn path(named: &Named, root: u64, number: u64) -> Option<String> {
    let (mut parts, mut at) = (Vec::new(), number);
    while at != root {
        let (parent, name) = named.get(&at)?;
        parts.push(name.as_str());
        at = *parent;
        if parts.len() > DEEPEST {
            return None;
        }
    }
    parts.reverse();
    Some(format!("/{}", parts.join("/")))
}

/// A path for people, of names that are only bytes: nothing in it speaks to a terminal.
fn shown(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
