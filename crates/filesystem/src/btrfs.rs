//! btrfs on one device: used bytes from the extent tree, mapped from logical addresses to places on the device
//! by the chunk tree. All numbers are little-endian. Terms are those of "On-disk Format" in the documentation of
//! btrfs.

mod chunk;
mod key;
mod tree;

use std::io;
use std::ops::Range;

use linux::medium::ReadAt;

use crate::window::{le16, le32, le64, read};
use crate::{OpaqueReason, Ranges};
use chunk::Chunks;
use key::Key;
use tree::{Node, Trees};

/// Places and length of the copies of the superblock. The first one is mounted.
const SUPERBLOCKS: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
const SUPERBLOCK: u64 = 4096;
const MAGIC: &[u8] = b"_BHRfS_M";
/// Bytes at the beginning in which nothing is allocated; boot loaders use them.
const RESERVED: u64 = 1 << 20;

/// Incompatible features with which the extent and chunk trees are as they were: backreferences of two kinds, a
/// default subvolume, data and metadata in one block group, compression by LZO and zstd, large blocks of metadata,
/// extended references, METADATA_ITEM, no extents for holes, a UUID of the metadata, simple quotas. Not among
/// them: RAID, zones, several extent trees.
const SUPPORTED_INCOMPAT: u64 =
    0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | METADATA_UUID | 0x1_0000;
const METADATA_UUID: u64 = 0x400;
/// The same of the read-only compatible ones: the tree of free space, and that it is valid, fs-verity, the tree of
/// block groups.
const SUPPORTED_COMPAT_RO: u64 = 0x1 | 0x2 | 0x4 | 0x8;
/// Flags of the superblock: it was written, an error was found, the device is the seed of others.
const WRITTEN: u64 = 1;
const ERROR: u64 = 4;
const SEEDING: u64 = 1 << 32;
/// Checksum type: CRC-32C.
const CRC32C: u16 = 0;

/// Numbers of trees.
const ROOT_TREE: u64 = 1;
const EXTENT_TREE: u64 = 2;
const CHUNK_TREE: u64 = 3;
/// Types of items: the root of a tree, an extent of data or metadata, one of metadata.
const ROOT_ITEM: u8 = 132;
const EXTENT_ITEM: u8 = 168;
const METADATA_ITEM: u8 = 169;

/// The fields of the superblock that are used here.
#[derive(Debug, Clone)]
struct Superblock {
    /// Position of the file system on the disk.
    start: u64,
    /// Bytes of the device.
    total: u64,
    /// Bytes of all extents.
    used: u64,
    /// Bytes of a block of a tree.
    node: u64,
    /// Number of the device.
    device: u64,
    /// The UUID in the blocks of the trees.
    uuid: [u8; 16],
    root_tree: Node,
    chunk_tree: Node,
}

/// Whether there is a superblock of the file system at `start`.
pub(crate) fn is_at<R: ReadAt + ?Sized>(disk: &R, start: u64) -> io::Result<bool> {
    let Some(at) = start.checked_add(SUPERBLOCKS[0] + 64) else { return Ok(false) };
    Ok(read(disk, at, 8)?.is_some_and(|bytes| bytes == MAGIC))
}

/// The used bytes of the file system at `place`, as positions on the disk.
pub(crate) fn usage<R: ReadAt + ?Sized>(
    disk: &R,
    place: &Range<u64>,
) -> io::Result<Result<Ranges, OpaqueReason>> {
    let at = place.start.saturating_add(SUPERBLOCKS[0]);
    let Some(bytes) = read(disk, at, SUPERBLOCK)? else { return Ok(Err(OpaqueReason::Damaged)) };
    if let Err(reason) = check_features(&bytes) {
        return Ok(Err(reason));
    }
    let parsed = Superblock::parse(&bytes, place).zip(system_chunks(&bytes));
    let Some((superblock, system)) = parsed else { return Ok(Err(OpaqueReason::Damaged)) };
    superblock.usage(disk, place, system)
}

fn check_features(bytes: &[u8]) -> Result<(), OpaqueReason> {
    let number = |offset| le64(bytes, offset).unwrap_or(u64::MAX);
    if le16(bytes, 0xc4) != Some(CRC32C) {
        return Err(OpaqueReason::Feature);
    }
    if !tree::has_sum(bytes) {
        return Err(OpaqueReason::Damaged);
    }
    let flags = number(0x38);
    if flags & ERROR != 0 {
        return Err(OpaqueReason::Damaged);
    }
    // Among the other flags: a new UUID is being written.
    let has_unknown = number(0xbc) & !SUPPORTED_INCOMPAT != 0
        || number(0xb4) & !SUPPORTED_COMPAT_RO != 0
        || flags & !(WRITTEN | SEEDING) != 0;
    // Several devices.
    if has_unknown || number(0x88) != 1 {
        return Err(OpaqueReason::Feature);
    }
    // A log of files that were synced, which the next mount replays. Its blocks are in no extent tree.
    if number(0x60) != 0 {
        return Err(OpaqueReason::Unclean);
    }
    Ok(())
}

/// The chunks of the chunk tree itself, which are listed in the superblock.
fn system_chunks(bytes: &[u8]) -> Option<Chunks> {
    let length = usize::try_from(le32(bytes, 0xa0)?).ok().filter(|length| *length <= 2048)?;
    let mut rest = bytes.get(0x32b..0x32b + length)?;
    let mut chunks = Chunks::default();
    while !rest.is_empty() {
        let key = Key::parse(rest)?;
        let used = chunks.add(&key, rest.get(Key::LENGTH..)?)?;
        rest = rest.get(Key::LENGTH + used..)?;
    }
    Some(chunks)
}

impl Superblock {
    fn parse(bytes: &[u8], place: &Range<u64>) -> Option<Self> {
        let number = |offset| le64(bytes, offset);
        let has_uuid = number(0xbc)? & METADATA_UUID != 0;
        let uuid = bytes.get(if has_uuid { 0x23b } else { 0x20 }..)?.first_chunk::<16>()?;
        let level = |offset: usize| bytes.get(offset).copied();
        let found = Self {
            start: place.start,
            total: number(0xd1)?,
            used: number(0x78)?,
            node: u64::from(le32(bytes, 0x94)?),
            device: number(0xc9)?,
            uuid: *uuid,
            root_tree: Node {
                at: number(0x50)?,
                level: level(0xc6)?,
                generation: number(0x48)?,
                owner: ROOT_TREE,
                first: None,
            },
            chunk_tree: Node {
                at: number(0x58)?,
                level: level(0xc7)?,
                generation: number(0xa4)?,
                owner: CHUNK_TREE,
                first: None,
            },
        };
        let is_consistent = number(0x30)? == SUPERBLOCKS[0]
            && found.total <= place.end - place.start
            && found.node.is_power_of_two()
            && (4096..=65536).contains(&found.node);
        is_consistent.then_some(found)
    }

    fn usage<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        place: &Range<u64>,
        system: Chunks,
    ) -> io::Result<Result<Ranges, OpaqueReason>> {
        const DAMAGED: Result<Ranges, OpaqueReason> = Err(OpaqueReason::Damaged);
        let mut trees = Trees { disk, superblock: self, chunks: system };
        let Some(chunks) = trees.all_chunks()? else { return Ok(DAMAGED) };
        if chunks.has_unsupported() {
            return Ok(Err(OpaqueReason::Feature));
        }
        trees.chunks = chunks;
        let Some(root) = trees.extent_tree()? else { return Ok(DAMAGED) };
        let (mut extents, mut found, mut end) = (Ranges::default(), 0_u64, 0);
        let walked = trees.walk(root, |key, _| {
            let length = match key.kind {
                EXTENT_ITEM => key.offset,
                METADATA_ITEM => self.node,
                _ => return Some(()),
            };
            let is_next = key.object >= end && length > 0;
            end = is_next.then(|| key.object.checked_add(length)).flatten()?;
            found = found.checked_add(length)?;
            extents.insert(key.object..end);
            Some(())
        })?;
        if walked.is_none() || found != self.used {
            return Ok(DAMAGED);
        }
        let used = trees.chunks.places(&extents).map(|used| self.with_reserved(used, place));
        Ok(used.ok_or(OpaqueReason::Damaged))
    }

    /// Moves places on the device to those on the disk, and adds what is in no extent: the superblocks, the
    /// beginning, and what is behind the device.
    fn with_reserved(&self, used: Ranges, place: &Range<u64>) -> Ranges {
        let mut all = used;
        all.insert(0..RESERVED);
        SUPERBLOCKS.into_iter().for_each(|at| all.insert(at..at + SUPERBLOCK));
        all.insert(self.total..place.end - place.start);
        let moved = |range: Range<u64>| {
            self.start.saturating_add(range.start)..self.start.saturating_add(range.end)
        };
        all.within(0..place.end - place.start).iter().map(moved).collect()
    }
}
