//! XFS: free blocks from the trees of free space by block number, one of each allocation group. All numbers
//! are big-endian. Terms are those of "XFS Algorithms & Data Structures", 3rd edition.

mod log;

use std::io;
use std::ops::Range;

use crc_fast::{CrcAlgorithm, Digest};
use linux::medium::ReadAt;

use crate::window::{be16, be32, be64, le32, read};
use crate::{OpaqueReason, Ranges};

const MAGIC: &[u8] = b"XFSB";
const AGF_MAGIC: &[u8] = b"XAGF";
/// Blocks of the tree, of versions 4 and 5.
const TREE: &[u8] = b"ABTB";
const TREE_5: &[u8] = b"AB3B";
/// Bytes of the header of such a block.
const HEADER: u64 = 16;
const HEADER_5: u64 = 56;
/// Offsets of the checksums of version 5 in the superblock, the header of free space, and a block of a tree.
const SUPERBLOCK_SUM: usize = 224;
const AGF_SUM: usize = 216;
const TREE_SUM: usize = 52;
/// No sibling.
const NULL: u32 = u32::MAX;
const MAX_LEVELS: u32 = 9;

/// Incompatible features with which the trees of free space are as they were: file types in directories, sparse
/// inode chunks, the UUID of the metadata, large timestamps, large extent counters, exchange of ranges, parent
/// pointers, a directory of metadata. Not among them: a file system that needs repair, zones.
const SUPPORTED_INCOMPAT: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80 | 0x100;
const META_UUID: u32 = 0x4;
/// The same of the read-only compatible ones: the trees of free inodes, of reverse mappings, of reference counts,
/// counts of inode blocks.
const SUPPORTED_RO_COMPAT: u32 = 0x1 | 0x2 | 0x4 | 0x8;

/// Layout of a file system from its superblock.
#[derive(Debug, Clone)]
struct Layout {
    start: u64,
    block: u64,
    blocks: u64,
    sector: u64,
    /// Blocks of an allocation group, except the last one.
    group: u64,
    groups: u64,
    /// Whether it is of version 5.
    is_v5: bool,
    uuids: [[u8; 16]; 2],
    /// Position and length of the log.
    log: Range<u64>,
}

/// Whether there is a superblock at `start`.
pub(crate) fn is_at<R: ReadAt + ?Sized>(disk: &R, start: u64) -> io::Result<bool> {
    Ok(read(disk, start, 512)?.is_some_and(|bytes| bytes.starts_with(MAGIC)))
}

/// The used bytes of the file system at `place`, as positions on the disk.
pub(crate) fn usage<R: ReadAt + ?Sized>(
    disk: &R,
    place: &Range<u64>,
) -> io::Result<Result<Ranges, OpaqueReason>> {
    let Some(bytes) = read(disk, place.start, 512)? else { return Ok(Err(OpaqueReason::Damaged)) };
    let layout = match check_features(&bytes) {
        Ok(()) => Layout::parse(&bytes, place),
        Err(reason) => return Ok(Err(reason)),
    };
    let Some(layout) = layout else { return Ok(Err(OpaqueReason::Damaged)) };
    let superblock = read(disk, place.start, layout.sector)?;
    if !superblock.is_some_and(|bytes| layout.has_sum(&bytes, SUPERBLOCK_SUM)) {
        return Ok(Err(OpaqueReason::Damaged));
    }
    if !log::is_clean(disk, &layout)? {
        return Ok(Err(OpaqueReason::Unclean));
    }
    let mut used = Ranges::of(place.clone());
    for group in 0..layout.groups {
        let Some(free) = layout.free(disk, group)? else { return Ok(Err(OpaqueReason::Damaged)) };
        free.into_iter().for_each(|blocks| used.remove(layout.bytes(group, &blocks)));
    }
    Ok(Ok(used))
}

fn check_features(bytes: &[u8]) -> Result<(), OpaqueReason> {
    let version = be16(bytes, 100).ok_or(OpaqueReason::Damaged)? & 0xf;
    let number = |offset| be32(bytes, offset).unwrap_or(u32::MAX);
    let has_unknown = version == 5
        && (number(216) & !SUPPORTED_INCOMPAT != 0 || number(212) & !SUPPORTED_RO_COMPAT != 0);
    // Realtime blocks, and a log on another device.
    let has_others = be64(bytes, 16) != Some(0) || be64(bytes, 48) == Some(0);
    if !(4..=5).contains(&version) || has_unknown || has_others {
        return Err(OpaqueReason::Feature);
    }
    // It is being made.
    if bytes.get(126) != Some(&0) {
        return Err(OpaqueReason::Unclean);
    }
    Ok(())
}

impl Layout {
    fn parse(bytes: &[u8], place: &Range<u64>) -> Option<Self> {
        let number = |offset| be32(bytes, offset).map(u64::from);
        let uuid = |offset: usize| bytes.get(offset..)?.first_chunk::<16>().copied();
        let is_v5 = be16(bytes, 100)? & 0xf == 5;
        let has_meta = is_v5 && be32(bytes, 216)? & META_UUID != 0;
        let uuids = [uuid(32)?, uuid(if has_meta { 248 } else { 32 })?];
        let (block, blocks, sector) = (number(4)?, be64(bytes, 8)?, u64::from(be16(bytes, 102)?));
        let (group, groups) = (number(84)?, number(88)?);
        let mut layout = Self {
            start: place.start,
            block,
            blocks,
            sector,
            group,
            groups,
            is_v5,
            uuids,
            log: 0..0,
        };
        if !layout.is_consistent(place) {
            return None;
        }
        // The group is in the upper bits of a block number.
        let shift = u32::from(*bytes.get(124)?);
        let first = be64(bytes, 48)?;
        let (of, at) = (first.checked_shr(shift)?, first & (1_u64.checked_shl(shift)? - 1));
        let length = number(96)?;
        let last = at.checked_add(length)?;
        layout.log = layout.bytes(of, &(at..last));
        (length > 0 && of < groups && last <= layout.length(of)).then_some(layout)
    }

    fn is_consistent(&self, place: &Range<u64>) -> bool {
        let end = self.blocks.checked_mul(self.block).and_then(|len| len.checked_add(self.start));
        let before_last = self.groups.checked_sub(1).and_then(|it| it.checked_mul(self.group));
        end.is_some_and(|end| end <= place.end)
            && self.block.is_power_of_two()
            && (512..=65536).contains(&self.block)
            && self.sector.is_power_of_two()
            && (512..=32768).contains(&self.sector)
            && self.group > 0
            && before_last
                .is_some_and(|before| before < self.blocks && self.blocks - before <= self.group)
    }

    /// Whether the checksum at this offset is right: CRC-32C, little-endian, of all bytes with zeros in its place.
    /// Version 4 has none.
    fn has_sum(&self, bytes: &[u8], offset: usize) -> bool {
        let (Some(before), Some(after)) = (bytes.get(..offset), bytes.get(offset + 4..)) else {
            return false;
        };
        let mut sum = Digest::new(CrcAlgorithm::Crc32Iscsi);
        [before, &[0; 4], after].into_iter().for_each(|part| sum.update(part));
        !self.is_v5 || le32(bytes, offset).map(u64::from) == Some(sum.finalize())
    }

    /// The number of blocks of a group.
    fn length(&self, group: u64) -> u64 {
        self.blocks.saturating_sub(group.saturating_mul(self.group)).min(self.group)
    }

    /// The position of blocks of a group on the disk.
    fn bytes(&self, group: u64, blocks: &Range<u64>) -> Range<u64> {
        let first = group.saturating_mul(self.group);
        let at = |block: u64| {
            let block = first.saturating_add(block);
            self.start.saturating_add(block.saturating_mul(self.block))
        };
        at(blocks.start)..at(blocks.end)
    }

    /// Reads the free blocks of a group, in order; `None` if the tree is not consistent.
    fn free<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        group: u64,
    ) -> io::Result<Option<Vec<Range<u64>>>> {
        let at = self.bytes(group, &(0..0)).start.saturating_add(self.sector);
        let is_own =
            |header: &Vec<u8>| header.starts_with(AGF_MAGIC) && self.has_sum(header, AGF_SUM);
        let header = read(disk, at, self.sector)?.filter(is_own);
        let length = self.length(group);
        let fields = |header: &[u8]| {
            let levels = be32(header, 28).filter(|levels| (1..=MAX_LEVELS).contains(levels))?;
            let is_own = be32(header, 8).map(u64::from) == Some(group)
                && be32(header, 12).map(u64::from) == Some(length);
            is_own.then_some((be32(header, 16)?, levels, u64::from(be32(header, 52)?)))
        };
        let Some((root, levels, expected)) = header.and_then(|header| fields(&header)) else {
            return Ok(None);
        };
        let Some(leaf) = self.first_leaf(disk, group, root, levels)? else { return Ok(None) };
        let Some(free) = self.leaves(disk, group, leaf)? else { return Ok(None) };
        let found: u64 = free.iter().map(|blocks| blocks.end - blocks.start).sum();
        Ok(Some(free).filter(|_| found == expected))
    }

    /// Finds the leaf with the lowest block numbers.
    fn first_leaf<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        group: u64,
        root: u32,
        levels: u32,
    ) -> io::Result<Option<u32>> {
        let mut at = root;
        for level in (1..levels).rev() {
            let Some(block) = self.tree_block(disk, group, at, level)? else { return Ok(None) };
            // Keys of 8 bytes, as many as there is room for, and then block numbers of 4.
            let header = self.header();
            let pointers = header + (self.block - header) / 12 * 8;
            let first = usize::try_from(pointers).ok().and_then(|at| be32(&block, at));
            let Some(first) = first else { return Ok(None) };
            at = first;
        }
        Ok(Some(at))
    }

    /// Reads the records of the leaves from this one on.
    fn leaves<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        group: u64,
        mut leaf: u32,
    ) -> io::Result<Option<Vec<Range<u64>>>> {
        // Block 0 is that of the headers.
        let (length, mut free, mut end) = (self.length(group), Vec::new(), 1);
        // Each leaf but that of a full group has a record with a higher number.
        loop {
            let Some(block) = self.tree_block(disk, group, leaf, 0)? else { return Ok(None) };
            let (count, next) = (be16(&block, 6).unwrap_or(0), be32(&block, 12).unwrap_or(NULL));
            let header = usize::try_from(self.header()).unwrap_or(0);
            if count == 0 && next != NULL {
                return Ok(None);
            }
            for record in 0..usize::from(count) {
                let at = header + record * 8;
                let fields = be32(&block, at).zip(be32(&block, at + 4));
                let Some((start, count)) = fields else { return Ok(None) };
                let (start, count) = (u64::from(start), u64::from(count));
                if start < end || count == 0 || start + count > length {
                    return Ok(None);
                }
                end = start + count;
                free.push(start..end);
            }
            if next == NULL {
                return Ok(Some(free));
            }
            leaf = next;
        }
    }

    fn header(&self) -> u64 {
        if self.is_v5 { HEADER_5 } else { HEADER }
    }

    /// Reads a block of the tree of a group; `None` if it is another one.
    fn tree_block<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        group: u64,
        block: u32,
        level: u32,
    ) -> io::Result<Option<Vec<u8>>> {
        let block = u64::from(block);
        if block >= self.length(group) {
            return Ok(None);
        }
        let at = self.bytes(group, &(block..block)).start;
        let magic = if self.is_v5 { TREE_5 } else { TREE };
        let sector = at.saturating_sub(self.start) / 512;
        let is_own = |bytes: &Vec<u8>| {
            let is_level = be16(bytes, 4).map(u32::from) == Some(level);
            let is_there = be64(bytes, 16) == Some(sector)
                && bytes.get(32..48) == Some(&self.uuids[1][..])
                && be32(bytes, 48).map(u64::from) == Some(group);
            let is_there = is_there && self.has_sum(bytes, TREE_SUM);
            bytes.starts_with(magic) && is_level && (is_there || !self.is_v5)
        };
        Ok(read(disk, at, self.block)?.filter(is_own))
    }
}
