//! Inodes and their blocks.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use linux::medium::ReadAt;

use super::Layout;
use super::group::Groups;
use crate::Ranges;
use crate::window::{le16, le32};

pub(super) const DIRECTORY: u16 = 0x4000;
pub(super) const REGULAR: u16 = 0x8000;
pub(super) const SYMLINK: u16 = 0xa000;
const FORMAT: u16 = 0xf000;
pub(super) const EXTENTS: u32 = 0x8_0000;
pub(super) const INLINE: u32 = 0x1000_0000;
pub(super) const EXTENT_MAGIC: u16 = 0xf30a;
/// The root directory, and the first inode that is not reserved.
pub(super) const ROOT: u64 = 2;
/// Maximum depth of an extent tree.
pub(super) const MAX_DEPTH: u32 = 6;
/// A longer extent is unwritten; its length is reduced by this.
pub(super) const UNWRITTEN: u64 = 32768;

/// All inodes of a file system.
pub(super) struct Inodes<'a, R: ReadAt + ?Sized> {
    pub(super) disk: &'a R,
    pub(super) layout: &'a Layout,
    pub(super) groups: &'a Groups<'a>,
}

/// Inodes that hold some of the wanted blocks, and those of the blocks that they hold.
type Holding = (BTreeSet<u64>, Ranges);

impl<R: ReadAt + ?Sized> Inodes<'_, R> {
    /// The inodes in use that hold any of the wanted blocks, and these blocks.
    pub(super) fn holding(&self, wanted: &Ranges) -> io::Result<Holding> {
        let (mut found, mut held) = (BTreeSet::new(), Ranges::default());
        for (group, first) in self.groups.groups.iter().zip((1..).step_by(self.per_group())) {
            let table = self.groups.table(self.disk, group)?;
            let size = usize::try_from(self.layout.inode_size).unwrap_or(128);
            for (number, inode) in (first..).zip(table.chunks_exact(size)) {
                let mut take = |blocks: Range<u64>| {
                    let hit = wanted.within(blocks);
                    if !hit.is_empty() {
                        found.insert(number);
                        held.extend(&hit);
                    }
                };
                self.blocks(inode, &mut take)?;
            }
        }
        Ok((found, held))
    }

    fn per_group(&self) -> usize {
        usize::try_from(self.layout.inodes_per_group).unwrap_or(usize::MAX)
    }

    /// An inode by its number, from 1.
    pub(super) fn find(&self, number: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(index) = number.checked_sub(1) else { return Ok(None) };
        let per_group = self.layout.inodes_per_group;
        let group = usize::try_from(index / per_group).ok();
        let Some(group) = group.and_then(|group| self.groups.groups.get(group)) else {
            return Ok(None);
        };
        let table = self.layout.bytes(&(group.inode_table..group.inode_table)).start;
        let at = table.saturating_add(index % per_group * self.layout.inode_size);
        crate::window::read(self.disk, at, self.layout.inode_size)
    }

    /// The blocks of a directory, in logical order.
    pub(super) fn directory(&self, inode: &[u8]) -> io::Result<Vec<Range<u64>>> {
        let mut blocks = Vec::new();
        if is(inode, DIRECTORY) {
            self.blocks(inode, &mut |range| blocks.push(range))?;
        }
        Ok(blocks)
    }

    /// Calls `take` for all blocks of an inode, including those of its block map.
    fn blocks(&self, inode: &[u8], take: &mut dyn FnMut(Range<u64>)) -> io::Result<()> {
        let (Some(links), Some(flags)) = (le16(inode, 26), le32(inode, 32)) else { return Ok(()) };
        let kept = is(inode, REGULAR) || is(inode, DIRECTORY) || is(inode, SYMLINK);
        let map = inode.get(40..100).unwrap_or_default();
        // The block of extended attributes.
        let attributes = le32(inode, 104).map_or(0, u64::from);
        let high = le16(inode, 118).map_or(0, u64::from);
        let attributes = attributes | high << 32;
        if links > 0 && attributes > 0 {
            take(attributes..attributes.saturating_add(1));
        }
        // A fast symbolic link is stored in place of the block map.
        let short = is(inode, SYMLINK) && flags & EXTENTS == 0 && le32(inode, 4) < Some(60);
        if links == 0 || !kept || flags & INLINE != 0 || short {
            return Ok(());
        }
        if flags & EXTENTS != 0 {
            self.extents(map, MAX_DEPTH, take)
        } else {
            self.pointers(map, take)
        }
    }

    fn extents(
        &self,
        node: &[u8],
        depth_left: u32,
        take: &mut dyn FnMut(Range<u64>),
    ) -> io::Result<()> {
        let (Some(EXTENT_MAGIC), Some(entries), Some(depth)) =
            (le16(node, 0), le16(node, 2), le16(node, 6))
        else {
            return Ok(());
        };
        let all = node.get(12..).unwrap_or_default().chunks_exact(12);
        for entry in all.take(entries.into()) {
            let low = |offset| le32(entry, offset).map_or(0, u64::from);
            let high = |offset| le16(entry, offset).map_or(0, u64::from);
            if depth == 0 {
                let len = le16(entry, 4).map_or(0, u64::from);
                let len = if len > UNWRITTEN { len - UNWRITTEN } else { len };
                let start = low(8) | high(6) << 32;
                take(start..start.saturating_add(len));
            } else if depth_left > 0 {
                let child = low(4) | high(8) << 32;
                take(child..child.saturating_add(1));
                let bytes = self.layout.read(self.disk, child)?.unwrap_or_default();
                // A tree whose depth does not decrease has a loop.
                if le16(&bytes, 6).is_some_and(|below| below < depth) {
                    self.extents(&bytes, depth_left - 1, take)?;
                }
            }
        }
        Ok(())
    }

    fn pointers(&self, map: &[u8], take: &mut dyn FnMut(Range<u64>)) -> io::Result<()> {
        for (at, pointer) in map.chunks_exact(4).enumerate() {
            let depth = u32::try_from(at.saturating_sub(11)).unwrap_or(0);
            self.pointer(le32(pointer, 0).map_or(0, u64::from), depth, take)?;
        }
        Ok(())
    }

    fn pointer(&self, block: u64, depth: u32, take: &mut dyn FnMut(Range<u64>)) -> io::Result<()> {
        if block == 0 {
            return Ok(());
        }
        take(block..block.saturating_add(1));
        if depth > 0 {
            for pointer in self.layout.read(self.disk, block)?.unwrap_or_default().chunks_exact(4) {
                self.pointer(le32(pointer, 0).map_or(0, u64::from), depth - 1, take)?;
            }
        }
        Ok(())
    }
}

pub(super) fn is(inode: &[u8], format: u16) -> bool {
    le16(inode, 0).is_some_and(|mode| mode & FORMAT == format)
}
