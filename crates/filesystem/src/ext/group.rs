//! Block groups: their descriptors, bitmaps and inode tables.

use std::io;
use std::ops::Range;

use linux::medium::ReadAt;

use super::{CHECKSUMS, Layout};
use crate::Ranges;
use crate::window::{le16, le32, read, runs};

/// Flags of a descriptor: the inode table or the block bitmap is uninitialized, so that everything
/// except the metadata is free.
const INODES_UNUSED: u16 = 1;
const BLOCKS_UNUSED: u16 = 2;

#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    block_bitmap: u64,
    inode_bitmap: u64,
    pub(super) inode_table: u64,
    free_blocks: u64,
    flags: u16,
    unused_inodes: u64,
}

/// All block groups.
#[derive(Debug)]
pub(super) struct Groups<'a> {
    layout: &'a Layout,
    pub(super) groups: Vec<Group>,
}

impl<'a> Groups<'a> {
    /// Reads the descriptors; `None` if they are inconsistent.
    pub(super) fn read<R: ReadAt + ?Sized>(
        disk: &R,
        layout: &'a Layout,
    ) -> io::Result<Option<Self>> {
        let mut groups = Vec::new();
        let first = layout.superblock() + 1;
        for block in first..first.saturating_add(layout.descriptor_blocks()) {
            let Some(bytes) = layout.read(disk, block)? else { return Ok(None) };
            let size = usize::try_from(layout.descriptor).unwrap_or(32);
            let flags = layout.read_only & CHECKSUMS != 0;
            let counted = |group: Group| if flags { group } else { Group { flags: 0, ..group } };
            groups.extend(bytes.chunks_exact(size).map_while(Group::parse).map(counted));
        }
        groups.truncate(usize::try_from(layout.groups).unwrap_or(0));
        let complete = groups.len() as u64 == layout.groups;
        let this = Self { layout, groups };
        Ok(Some(this).filter(|this| complete && this.are_inside()))
    }

    fn are_inside(&self) -> bool {
        let table = self.table_blocks();
        self.groups.iter().all(|group| {
            let inside = |block: u64| block > 0 && block < self.layout.blocks;
            let end = group.inode_table.saturating_add(table);
            inside(group.block_bitmap)
                && inside(group.inode_bitmap)
                && inside(group.inode_table)
                && end <= self.layout.blocks
        })
    }

    fn table_blocks(&self) -> u64 {
        let bytes = self.layout.inodes_per_group.saturating_mul(self.layout.inode_size);
        bytes.div_ceil(self.layout.block)
    }

    /// Blocks of metadata: superblocks, descriptors, bitmaps, inode tables.
    pub(super) fn structure(&self) -> Ranges {
        let mut fixed = Ranges::default();
        let table = self.table_blocks();
        for (at, group) in (0..).zip(&self.groups) {
            fixed.insert(group.block_bitmap..group.block_bitmap + 1);
            fixed.insert(group.inode_bitmap..group.inode_bitmap + 1);
            fixed.insert(group.inode_table..group.inode_table + table);
            if self.layout.has_superblock(at) {
                let start = self.layout.group(at).start.max(self.layout.superblock());
                let more = self.layout.descriptor_blocks().saturating_add(self.layout.reserved);
                fixed.insert(start..start.saturating_add(1 + more));
            }
        }
        // With 1 KiB blocks the boot block precedes the first group.
        fixed.insert(0..self.layout.superblock() + 1);
        fixed
    }

    /// The used blocks; `None` if a bitmap contradicts its descriptor.
    pub(super) fn used<R: ReadAt + ?Sized>(&self, disk: &R) -> io::Result<Option<Ranges>> {
        let fixed = self.structure();
        let mut used = fixed.clone();
        for (at, group) in (0..).zip(&self.groups) {
            if group.flags & BLOCKS_UNUSED != 0 {
                if !self.is_unused(at, group, &fixed) {
                    return Ok(None);
                }
                continue;
            }
            let Some(blocks) = self.used_of(disk, at, group)? else { return Ok(None) };
            blocks.into_iter().for_each(|blocks| used.insert(blocks));
        }
        Ok(Some(used))
    }

    /// Whether the free count of a group with an uninitialized bitmap matches its metadata.
    fn is_unused(&self, at: u64, group: &Group, fixed: &Ranges) -> bool {
        let (place, cluster) = (self.layout.group(at), self.layout.cluster);
        let clusters = (place.end - place.start).div_ceil(cluster);
        let of = |block: u64| (block - place.start) / cluster;
        let kept = fixed.within(place.clone());
        let kept: Ranges = kept.iter().map(|run| of(run.start)..of(run.end - 1) + 1).collect();
        clusters.saturating_sub(group.free_blocks) <= kept.bytes()
    }

    fn used_of<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        at: u64,
        group: &Group,
    ) -> io::Result<Option<Vec<Range<u64>>>> {
        let place = self.layout.group(at);
        let clusters = (place.end - place.start).div_ceil(self.layout.cluster);
        let Some(bitmap) = self.layout.read(disk, group.block_bitmap)? else { return Ok(None) };
        let runs = runs(&bitmap, clusters);
        let used: u64 = runs.iter().map(|run| run.end - run.start).sum();
        if clusters - used != group.free_blocks {
            return Ok(None);
        }
        let cluster = self.layout.cluster;
        let blocks = |run: &Range<u64>| {
            place.start + run.start * cluster..(place.start + run.end * cluster).min(place.end)
        };
        Ok(Some(runs.iter().map(blocks).collect()))
    }

    /// The used part of the inode table of a group, as bytes of the disk.
    pub(super) fn table<R: ReadAt + ?Sized>(&self, disk: &R, group: &Group) -> io::Result<Vec<u8>> {
        if group.flags & INODES_UNUSED != 0 {
            return Ok(Vec::new());
        }
        let inodes = self.layout.inodes_per_group.saturating_sub(group.unused_inodes);
        let at = self.layout.bytes(&(group.inode_table..group.inode_table)).start;
        Ok(read(disk, at, inodes.saturating_mul(self.layout.inode_size))?.unwrap_or_default())
    }
}

impl Group {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let wide = bytes.len() >= 64;
        let high = |offset| if wide { le32(bytes, offset).map(u64::from) } else { Some(0) };
        let high_short = |offset| if wide { le16(bytes, offset).map(u64::from) } else { Some(0) };
        let number = |low, top| Some(u64::from(le32(bytes, low)?) | high(top)? << 32);
        let short = |low, top| Some(u64::from(le16(bytes, low)?) | high_short(top)? << 16);
        Some(Self {
            block_bitmap: number(0, 32)?,
            inode_bitmap: number(4, 36)?,
            inode_table: number(8, 40)?,
            free_blocks: short(12, 44)?,
            flags: le16(bytes, 18)?,
            unused_inodes: short(28, 50)?,
        })
    }
}
