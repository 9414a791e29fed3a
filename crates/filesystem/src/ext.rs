//! ext2, ext3 and ext4: used blocks from the block bitmaps, the file that a block belongs to, and files.
//! All numbers are little-endian. Terms are those of Documentation/filesystems/ext4.

mod directory;
mod files;
mod group;
mod inode;

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use linux::medium::ReadAt;

use crate::window::{le16, le32, read};
use crate::{OpaqueReason, Owner, Ranges};
pub(crate) use files::Volume;
use inode::Inodes;

/// Position of the superblock.
const SUPERBLOCK: Range<u64> = 1024..2048;
const MAGIC: u16 = 0xef53;

/// Supported incompatible features. They do not matter here or are handled: file types, extents, 64
/// bits, multiple mount protection, flexible groups, values in inodes of their own, checksum seeds,
/// large directories, inline data, encryption, case folding.
const SUPPORTED_INCOMPAT: u32 =
    0x2 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;
/// The journal has to be replayed.
const RECOVER: u32 = 0x4;
const SIXTY_FOUR: u32 = 0x80;
/// Read-only compatible features with which the bitmaps can still be trusted: sparse superblocks,
/// large files, huge files, descriptor checksums, many links, large inodes, quota, bigalloc,
/// checksums, read-only, projects, verity, orphan file and its use. Not among them: snapshots.
const SUPPORTED_RO_COMPAT: u32 = 0x1
    | 0x2
    | 0x8
    | 0x10
    | 0x20
    | 0x40
    | 0x100
    | 0x200
    | 0x400
    | 0x1000
    | 0x2000
    | 0x8000
    | 0x1_0000;
/// Descriptor checksums: only with them are the flags of a descriptor valid.
const CHECKSUMS: u32 = 0x10 | 0x400;
/// The orphan file lists files that have to be truncated.
const ORPHANS: u32 = 0x1_0000;
const BIGALLOC: u32 = 0x200;
const SPARSE_SUPER: u32 = 0x1;
const SPARSE_SUPER_2: u32 = 0x200;
const CLEAN: u16 = 1;
const MOST_GROUPS: u64 = 1 << 22;

/// Layout of a file system from its superblock.
#[derive(Debug, Clone)]
struct Layout {
    /// Start on the disk, in bytes.
    start: u64,
    /// Block size in bytes.
    block: u64,
    blocks: u64,
    /// Blocks per bit of a bitmap.
    cluster: u64,
    first_data_block: u64,
    blocks_per_group: u64,
    inodes_per_group: u64,
    inode_size: u64,
    descriptor: u64,
    groups: u64,
    /// Reserved blocks for additional descriptors.
    reserved: u64,
    compatible: u32,
    read_only: u32,
    backups: [u32; 2],
}

/// Whether there is a superblock for a file system at `start`.
pub(crate) fn is_at<R: ReadAt + ?Sized>(disk: &R, start: u64) -> io::Result<bool> {
    let bytes = superblock(disk, start)?;
    Ok(bytes.is_some_and(|bytes| le16(&bytes, 56) == Some(MAGIC)))
}

fn superblock<R: ReadAt + ?Sized>(disk: &R, start: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(at) = start.checked_add(SUPERBLOCK.start) else { return Ok(None) };
    read(disk, at, SUPERBLOCK.end - SUPERBLOCK.start)
}

/// The used bytes of the file system at `place`, as positions on the disk.
pub(crate) fn usage<R: ReadAt + ?Sized>(
    disk: &R,
    place: &Range<u64>,
) -> io::Result<Result<Ranges, OpaqueReason>> {
    let layout = match layout(disk, place)? {
        Ok(layout) => layout,
        Err(reason) => return Ok(Err(reason)),
    };
    let Some(groups) = group::Groups::read(disk, &layout)? else {
        return Ok(Err(OpaqueReason::Damaged));
    };
    let Some(blocks) = groups.used(disk)? else { return Ok(Err(OpaqueReason::Damaged)) };
    let mut used: Ranges = blocks.iter().map(|blocks| layout.bytes(&blocks)).collect();
    // The boot sector, which may be in a free block, and what follows the last block.
    used.insert(place.start..place.start.saturating_add(SUPERBLOCK.end));
    used.insert(layout.start.saturating_add(layout.blocks.saturating_mul(layout.block))..place.end);
    Ok(Ok(used))
}

/// The owners of byte ranges.
pub(crate) fn owners<R: ReadAt + ?Sized>(
    disk: &R,
    place: &Range<u64>,
    wanted: &Ranges,
) -> io::Result<Result<BTreeSet<Owner>, OpaqueReason>> {
    let layout = match layout(disk, place)? {
        Ok(layout) => layout,
        Err(reason) => return Ok(Err(reason)),
    };
    let Some(groups) = group::Groups::read(disk, &layout)? else {
        return Ok(Err(OpaqueReason::Damaged));
    };
    let wanted: Ranges = wanted.iter().map(|bytes| layout.blocks_of(&bytes)).collect();
    let inodes = Inodes { disk, layout: &layout, groups: &groups };
    let (held, structure) = inodes.holding(&wanted)?;
    let mut found: BTreeSet<Owner> = directory::names(&inodes, &held)?;
    let mut rest = wanted.clone();
    structure.iter().for_each(|blocks| rest.remove(blocks));
    let fixed = groups.structure();
    found.extend(rest.iter().any(|blocks| fixed.intersects(&blocks)).then_some(Owner::Structure));
    fixed.iter().for_each(|blocks| rest.remove(blocks));
    found.extend((!rest.is_empty()).then_some(Owner::Free));
    Ok(Ok(found))
}

fn layout<R: ReadAt + ?Sized>(
    disk: &R,
    place: &Range<u64>,
) -> io::Result<Result<Layout, OpaqueReason>> {
    let Some(bytes) = superblock(disk, place.start)? else { return Ok(Err(OpaqueReason::Damaged)) };
    Ok(check_features(&bytes).and_then(|()| {
        let layout =
            Layout::parse(&bytes, place.start).filter(|layout| layout.is_consistent(place));
        layout.ok_or(OpaqueReason::Damaged)
    }))
}

/// Checks that all features are supported and no recovery is needed.
fn check_features(bytes: &[u8]) -> Result<(), OpaqueReason> {
    if is_clean(bytes) { supported(bytes) } else { Err(OpaqueReason::Unclean) }
}

fn flags(superblock: &[u8], offset: usize) -> u32 {
    le32(superblock, offset).unwrap_or(u32::MAX)
}

/// Whether no recovery is needed.
fn is_clean(superblock: &[u8]) -> bool {
    let (incompatible, read_only) = (flags(superblock, 96), flags(superblock, 100));
    incompatible & RECOVER == 0 && read_only & ORPHANS == 0 && le16(superblock, 58) == Some(CLEAN)
}

/// Checks that all features are supported.
fn supported(superblock: &[u8]) -> Result<(), OpaqueReason> {
    let (incompatible, read_only) = (flags(superblock, 96), flags(superblock, 100));
    let is_supported = incompatible & !(SUPPORTED_INCOMPAT | RECOVER) == 0
        && read_only & !(SUPPORTED_RO_COMPAT | ORPHANS) == 0;
    if is_supported { Ok(()) } else { Err(OpaqueReason::Feature) }
}

impl Layout {
    fn parse(bytes: &[u8], start: u64) -> Option<Self> {
        let number = |offset| le32(bytes, offset).map(u64::from);
        let short = |offset| le16(bytes, offset).map(u64::from);
        let (shift, cluster_shift) = (le32(bytes, 24)?, le32(bytes, 28)?);
        let (incompatible, read_only) = (le32(bytes, 96)?, le32(bytes, 100)?);
        let wide = incompatible & SIXTY_FOUR != 0;
        let high = if wide { number(336)? } else { 0 };
        let bigalloc = read_only & BIGALLOC != 0;
        let old = le32(bytes, 76)? == 0;
        let block = 1024_u64.checked_shl(shift).filter(|block| *block <= 65536)?;
        let cluster =
            if bigalloc { cluster_shift.checked_sub(shift).filter(|s| *s < 20)? } else { 0 };
        let (blocks, first_data_block) = (number(4)? | high << 32, number(20)?);
        let blocks_per_group = number(32)?;
        let covered = blocks.checked_sub(first_data_block)?;
        Some(Self {
            start,
            block,
            blocks,
            cluster: 1 << cluster,
            first_data_block,
            blocks_per_group,
            inodes_per_group: number(40)?,
            inode_size: if old { 128 } else { short(88)? },
            descriptor: if wide { short(254)? } else { 32 },
            groups: covered.div_ceil(if blocks_per_group == 0 {
                return None;
            } else {
                blocks_per_group
            }),
            reserved: short(206)?,
            compatible: le32(bytes, 92)?,
            read_only,
            backups: [le32(bytes, 588)?, le32(bytes, 592)?],
        })
    }

    /// Whether the layout is consistent and within the partition.
    fn is_consistent(&self, place: &Range<u64>) -> bool {
        let end = self.blocks.checked_mul(self.block).and_then(|len| len.checked_add(self.start));
        let bits = self.block.saturating_mul(8);
        end.is_some_and(|end| end <= place.end)
            && (1..=MOST_GROUPS).contains(&self.groups)
            && (1..=bits.saturating_mul(self.cluster)).contains(&self.blocks_per_group)
            && self.blocks_per_group.is_multiple_of(self.cluster)
            // Blocks before the first data block are in no bitmap.
            && self.first_data_block <= 1
            && (1..=bits).contains(&self.inodes_per_group)
            && self.inode_size.is_power_of_two()
            && (128..=self.block).contains(&self.inode_size)
            && self.descriptor.is_power_of_two()
            && (32..=1024).contains(&self.descriptor)
    }

    /// The blocks of a group.
    fn group(&self, group: u64) -> Range<u64> {
        let start = self.first_data_block + group.saturating_mul(self.blocks_per_group);
        start..start.saturating_add(self.blocks_per_group).min(self.blocks)
    }

    /// The block of the superblock. With 1 KiB blocks it is the second one, even where the first
    /// data block is 0.
    fn superblock(&self) -> u64 {
        SUPERBLOCK.start / self.block
    }

    /// Number of blocks of the descriptors of all groups.
    fn descriptor_blocks(&self) -> u64 {
        self.groups.saturating_mul(self.descriptor).div_ceil(self.block)
    }

    /// Whether a group has a copy of the superblock.
    fn has_superblock(&self, group: u64) -> bool {
        let power = |of: u64| {
            let mut power = of;
            while power < group {
                power = power.saturating_mul(of);
            }
            power == group
        };
        if self.compatible & SPARSE_SUPER_2 != 0 {
            return group == 0 || self.backups.iter().any(|backup| u64::from(*backup) == group);
        }
        let sparse = self.read_only & SPARSE_SUPER != 0;
        group <= 1 || !sparse || power(3) || power(5) || power(7)
    }

    /// The position of blocks on the disk.
    fn bytes(&self, blocks: &Range<u64>) -> Range<u64> {
        let at = |block: u64| self.start.saturating_add(block.saturating_mul(self.block));
        at(blocks.start)..at(blocks.end)
    }

    /// The blocks that contain these bytes of the disk.
    fn blocks_of(&self, bytes: &Range<u64>) -> Range<u64> {
        let at = |byte: u64| byte.saturating_sub(self.start);
        at(bytes.start) / self.block..at(bytes.end).div_ceil(self.block).min(self.blocks)
    }

    /// Reads a block; `None` if the block is beyond the end.
    fn read<R: ReadAt + ?Sized>(&self, disk: &R, block: u64) -> io::Result<Option<Vec<u8>>> {
        if block >= self.blocks {
            return Ok(None);
        }
        read(disk, self.bytes(&(block..block)).start, self.block)
    }
}
