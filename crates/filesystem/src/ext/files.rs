//! Directories and files of ext2, ext3 and ext4.

use std::io;
use std::ops::Range;

use linux::medium::ReadAt;

use super::group::Group;
use super::inode::{
    DIRECTORY, EXTENT_MAGIC, EXTENTS, INLINE, MAX_DEPTH, REGULAR, ROOT, SYMLINK, UNWRITTEN, is,
};
use super::{Layout, is_clean, superblock, supported};
use crate::OpaqueReason;
use crate::node::{Cursor, Entry, EntryKind, Extent, FileError, Modified, Place, Refusal, is_name};
use crate::window::{le16, le32, read};

/// Flags of an inode: compressed, encrypted.
const COMPRESSED: u32 = 0x4;
const ENCRYPTED: u32 = 0x800;
/// Bytes of contents in the place of the map of an inode.
const MAP: Range<usize> = 40..100;
/// Magic number, and the index and the name of the attribute that has the rest of inline contents.
const ATTRIBUTES_MAGIC: u32 = 0xea02_0000;
const SYSTEM: u8 = 7;
const DATA: &[u8] = b"data";
/// Extents per call.
const MAX_EXTENTS: usize = 512;

/// A file system whose files are read.
#[derive(Debug)]
pub(crate) struct Volume {
    layout: Layout,
    pub(crate) is_clean: bool,
}

/// Blocks of a file that follow each other: their number, and the first one on the disk unless they are holes.
type Run = (u64, Option<u64>);

impl Volume {
    /// Opens a file system to read its files, also one that was not unmounted cleanly.
    ///
    /// # Errors
    /// The disk cannot be read, or the file system is damaged or not supported.
    pub(crate) fn open<R: ReadAt + ?Sized>(
        disk: &R,
        place: &Range<u64>,
    ) -> Result<Self, FileError> {
        let bytes = superblock(disk, place.start)?.ok_or(OpaqueReason::Damaged)?;
        supported(&bytes)?;
        let layout =
            Layout::parse(&bytes, place.start).filter(|layout| layout.is_consistent(place));
        let layout = layout.ok_or(OpaqueReason::Damaged)?;
        Ok(Self { layout, is_clean: is_clean(&bytes) })
    }

    /// Returns the root directory.
    pub(crate) fn root_entry(&self) -> Entry {
        Entry::root(Place::Record(ROOT))
    }

    /// Returns entries of a directory from `from` on, without kind, length and time, and where the next ones are;
    /// `None` at the end.
    ///
    /// # Errors
    /// As [`crate::Volume::entries`].
    pub(crate) fn entries<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        directory: &Entry,
        from: &Cursor,
    ) -> Result<(Vec<Entry>, Option<Cursor>), FileError> {
        let inode = self.inode(disk, directory)?;
        if !is(&inode, DIRECTORY) {
            return Err(Refusal::NoDirectory.into());
        }
        let flags = readable(&inode)?;
        if flags & INLINE != 0 {
            let bytes = inline(&inode).ok_or(Refusal::Damaged)?;
            // The number of the parent directory precedes the entries; those of the attribute are a block of
            // their own.
            let (map, more) = bytes.split_at_checked(MAP.len()).unwrap_or((&bytes, &[]));
            let mut found = entries(map.get(4..).unwrap_or_default());
            found.extend(entries(more));
            return Ok((found, None));
        }
        let len = u64::from(le32(&inode, 4).ok_or(Refusal::Damaged)?);
        let block = from.offset / self.layout.block;
        if block >= len / self.layout.block {
            return Ok((Vec::new(), None));
        }
        let runs = self.runs(disk, &inode, flags, block)?;
        let (count, at) = *runs.first().ok_or(Refusal::Damaged)?;
        let (found, count) = match at {
            Some(at) => {
                let bytes = self.layout.read(disk, at)?.ok_or(Refusal::Damaged)?;
                (entries(&bytes), 1)
            }
            None => (Vec::new(), count),
        };
        let offset = (block.saturating_add(count)).saturating_mul(self.layout.block);
        Ok((found, Some(Cursor { offset, ..Cursor::default() })))
    }

    /// Returns an entry with the kind, the length and the time in its inode.
    ///
    /// # Errors
    /// The disk cannot be read, or the inode is damaged.
    pub(crate) fn details<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        entry: &Entry,
    ) -> Result<Entry, FileError> {
        let inode = self.inode(disk, entry)?;
        let kind = match () {
            () if is(&inode, DIRECTORY) => EntryKind::Directory,
            () if is(&inode, REGULAR) => EntryKind::File,
            () if is(&inode, SYMLINK) => EntryKind::Link,
            () => EntryKind::Special,
        };
        let low = |at| le32(&inode, at).map(u64::from).ok_or(Refusal::Damaged);
        let bytes = if kind == EntryKind::File { low(4)? | low(108)? << 32 } else { 0 };
        // Two bits of the seconds are beside the nanoseconds, if the inode has them.
        let extra = le16(&inode, 128).filter(|len| *len >= 12).and_then(|_| le32(&inode, 136));
        let high = i64::from(extra.unwrap_or(0) & 3) << 32;
        let seconds = i64::from(le32(&inode, 16).ok_or(Refusal::Damaged)?.cast_signed()) + high;
        let modified = Some(Modified { seconds, is_utc: true });
        Ok(Entry { kind, bytes, modified, ..entry.clone() })
    }

    /// Checks that the contents of a file can be read.
    ///
    /// # Errors
    /// The disk cannot be read, or they are encrypted or compressed.
    pub(crate) fn check<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        entry: &Entry,
    ) -> Result<(), FileError> {
        readable(&self.inode(disk, entry)?)?;
        Ok(())
    }

    /// Returns extents of a file from `from` on, and where they end.
    ///
    /// # Errors
    /// As [`crate::Volume::extents`].
    pub(crate) fn extents<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        file: &Entry,
        from: &Cursor,
    ) -> Result<(Vec<Extent>, Cursor), FileError> {
        let inode = self.inode(disk, file)?;
        let flags = readable(&inode)?;
        let end = |offset| Cursor { offset, ..Cursor::default() };
        if flags & INLINE != 0 {
            let bytes = inline(&inode).filter(|bytes| bytes.len() as u64 >= file.bytes);
            let range = usize::try_from(from.offset).ok().zip(usize::try_from(file.bytes).ok());
            let bytes = bytes
                .zip(range)
                .and_then(|(bytes, (start, end))| bytes.get(start..end).map(<[u8]>::to_vec));
            return Ok((vec![Extent::Bytes(bytes.ok_or(Refusal::Damaged)?)], end(file.bytes)));
        }
        let block = self.layout.block;
        let (mut at, mut extents) = (from.offset, Vec::new());
        for (count, first) in self.runs(disk, &inode, flags, at / block)? {
            let within = at % block;
            let len = count.saturating_mul(block).saturating_sub(within).min(file.bytes - at);
            if len == 0 {
                break;
            }
            extents.push(match first {
                Some(first) => {
                    let start = self.layout.bytes(&(first..first)).start + within;
                    Extent::Disk(start..start + len)
                }
                None => Extent::Zeros(len),
            });
            at += len;
        }
        Ok((extents, end(at)))
    }

    fn inode<R: ReadAt + ?Sized>(&self, disk: &R, entry: &Entry) -> Result<Vec<u8>, FileError> {
        let Place::Record(number) = entry.place else { return Err(Refusal::Damaged.into()) };
        let index = number.checked_sub(1).ok_or(Refusal::Damaged)?;
        let (group, index) =
            (index / self.layout.inodes_per_group, index % self.layout.inodes_per_group);
        let group = Group::find(disk, &self.layout, group)?.ok_or(Refusal::Damaged)?;
        let at = group.inode(&self.layout, index);
        let inode = read(disk, at, self.layout.inode_size)?.ok_or(Refusal::Damaged)?;
        let is_used = le16(&inode, 26).is_some_and(|links| links > 0);
        if is_used { Ok(inode) } else { Err(Refusal::Damaged.into()) }
    }

    /// Returns some runs of blocks of a file from the block `from` on, at least one.
    fn runs<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        inode: &[u8],
        flags: u32,
        from: u64,
    ) -> Result<Vec<Run>, FileError> {
        let map = inode.get(MAP).ok_or(Refusal::Damaged)?;
        let runs = match flags & EXTENTS != 0 {
            true => self.extent_runs(disk, map, from)?,
            false => self.pointer_runs(disk, map, from)?,
        };
        let is_inside = |(count, at): &Run| {
            let end = at.map_or(Some(0), |at| at.checked_add(*count));
            *count > 0 && *at != Some(0) && end.is_some_and(|end| end <= self.layout.blocks)
        };
        let is_sound = !runs.is_empty() && runs.iter().all(is_inside);
        if is_sound { Ok(runs) } else { Err(Refusal::Damaged.into()) }
    }

    /// Returns the runs of the leaf of an extent tree that has the block `from`.
    fn extent_runs<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        root: &[u8],
        from: u64,
    ) -> Result<Vec<Run>, FileError> {
        let (mut node, mut limit) = (root.to_vec(), u64::from(u32::MAX) + 1);
        let mut depth =
            le16(root, 6).filter(|depth| u32::from(*depth) <= MAX_DEPTH).ok_or(Refusal::Damaged)?;
        loop {
            let (Some(EXTENT_MAGIC), Some(count)) = (le16(&node, 0), le16(&node, 2)) else {
                return Err(Refusal::Damaged.into());
            };
            if le16(&node, 6) != Some(depth) {
                return Err(Refusal::Damaged.into());
            }
            let all = node.get(12..).unwrap_or_default().chunks_exact(12).take(count.into());
            let first = |entry: &[u8]| le32(entry, 0).map_or(0, u64::from);
            if depth == 0 {
                return leaf_runs(all, from, limit);
            }
            let mut all = all.peekable();
            let mut child = None;
            while let Some(entry) = all.next_if(|entry| first(entry) <= from) {
                child = le32(entry, 4)
                    .zip(le16(entry, 8))
                    .map(|(low, high)| u64::from(low) | u64::from(high) << 32);
            }
            limit = all.peek().map_or(limit, |entry| first(entry).min(limit));
            let Some(child) = child else {
                return Ok(vec![(limit.checked_sub(from).ok_or(Refusal::Damaged)?, None)]);
            };
            node = self.layout.read(disk, child)?.ok_or(Refusal::Damaged)?;
            depth -= 1;
        }
    }

    /// Returns the runs of the block of pointers that has the block `from`, with indirect blocks as in ext2.
    fn pointer_runs<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        map: &[u8],
        from: u64,
    ) -> Result<Vec<Run>, FileError> {
        let per_block = self.layout.block / 4;
        // Which pointer of the inode it is, and at which place below that.
        let (mut slot, mut span, mut rest) = (from, 1, 0);
        if from >= 12 {
            (slot, span, rest) = (12, per_block, from - 12);
            while rest >= span {
                rest -= span;
                slot += 1;
                span =
                    span.checked_mul(per_block).filter(|_| slot <= 14).ok_or(Refusal::Damaged)?;
            }
        }
        let mut node = map.to_vec();
        loop {
            let pointer = usize::try_from(slot).ok().and_then(|slot| le32(&node, slot * 4));
            let pointer = u64::from(pointer.ok_or(Refusal::Damaged)?);
            if span == 1 {
                // Of the inode the twelve that point to data.
                let direct = if node.len() == map.len() { 12 } else { per_block };
                let all =
                    (slot..direct).filter_map(|at| le32(&node, usize::try_from(at).ok()? * 4));
                return Ok(merged(all));
            }
            if pointer == 0 {
                return Ok(vec![(span - rest, None)]);
            }
            node = self.layout.read(disk, pointer)?.ok_or(Refusal::Damaged)?;
            span /= per_block;
            (slot, rest) = (rest / span, rest % span);
        }
    }
}

/// Returns the runs of a leaf from the block `from` on, up to `limit`.
fn leaf_runs<'a>(
    entries: impl Iterator<Item = &'a [u8]>,
    from: u64,
    limit: u64,
) -> Result<Vec<Run>, FileError> {
    let (mut at, mut runs) = (from, Vec::new());
    for entry in entries {
        let number = |offset| le32(entry, offset).map_or(0, u64::from);
        let short = |offset| le16(entry, offset).map_or(0, u64::from);
        let (first, len, start) = (number(0), short(4), number(8) | short(6) << 32);
        let (len, is_written) =
            if len > UNWRITTEN { (len - UNWRITTEN, false) } else { (len, true) };
        let end = first + len;
        if end <= at {
            continue;
        }
        if first > at {
            runs.push((first.min(limit).saturating_sub(at), None));
            at = first;
        }
        if at >= limit || runs.len() >= MAX_EXTENTS {
            break;
        }
        runs.push((end - at, is_written.then_some(start + (at - first))));
        at = end;
    }
    if runs.is_empty() && at < limit {
        // A hole behind the last extent.
        runs.push((limit - at, None));
    }
    Ok(runs)
}

/// Returns runs of contiguous blocks; 0 is a hole.
fn merged(pointers: impl Iterator<Item = u32>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for pointer in pointers.map(u64::from) {
        let last = runs.last_mut().filter(|(count, at)| match at {
            Some(at) => pointer == *at + *count,
            None => pointer == 0,
        });
        match last {
            Some((count, _)) => *count += 1,
            None => runs.push((1, (pointer != 0).then_some(pointer))),
        }
    }
    runs
}

/// Returns the flags of an inode whose contents are neither encrypted nor compressed.
fn readable(inode: &[u8]) -> Result<u32, Refusal> {
    let flags = le32(inode, 32).ok_or(Refusal::Damaged)?;
    match flags {
        _ if flags & ENCRYPTED != 0 => Err(Refusal::Encrypted),
        _ if flags & COMPRESSED != 0 => Err(Refusal::Compressed),
        _ => Ok(flags),
    }
}

/// Returns the contents of an inode that has them in itself: in place of the map, and in an attribute.
fn inline(inode: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = inode.get(MAP)?.to_vec();
    let start = 128 + usize::from(le16(inode, 128)?);
    let attributes = inode.get(start..)?;
    if le32(attributes, 0) != Some(ATTRIBUTES_MAGIC) {
        return Some(bytes);
    }
    // Positions of values count from the first entry.
    let values = attributes.get(4..)?;
    let mut rest = values;
    while let Some(len) =
        rest.first().map(|len| usize::from(*len)).filter(|_| le32(rest, 0) != Some(0))
    {
        let name = rest.get(16..16 + len)?;
        if rest.get(1) == Some(&SYSTEM) && name == DATA {
            let at = usize::from(le16(rest, 2)?);
            let size = usize::try_from(le32(rest, 8)?).ok()?;
            bytes.extend(values.get(at..at.checked_add(size)?)?);
            break;
        }
        rest = rest.get((16 + len).next_multiple_of(4)..)?;
    }
    Some(bytes)
}

/// Returns the entries of a directory block, without kind, length and time.
fn entries(block: &[u8]) -> Vec<Entry> {
    let place = |inode| Place::Record(inode);
    let real = super::directory::raw_entries(block)
        .filter(|(inode, _, name)| *inode != 0 && is_name(name));
    let named = real.map(|(inode, _, name)| Entry {
        name: name.to_vec(),
        kind: EntryKind::Damaged,
        bytes: 0,
        modified: None,
        place: place(inode),
    });
    named.collect()
}

impl Group {
    /// Reads the descriptor of a group; `None` if the group does not exist, or if it is inconsistent.
    fn find<R: ReadAt + ?Sized>(disk: &R, layout: &Layout, group: u64) -> io::Result<Option<Self>> {
        if group >= layout.groups {
            return Ok(None);
        }
        let first = layout.superblock() + 1;
        let at = layout.bytes(&(first..first)).start.saturating_add(group * layout.descriptor);
        let group = read(disk, at, layout.descriptor)?.and_then(|bytes| Self::parse(&bytes));
        let table =
            layout.inodes_per_group.saturating_mul(layout.inode_size).div_ceil(layout.block);
        let end = |group: &Self| group.inode_table.checked_add(table);
        let is_inside = |group: &Self| {
            group.inode_table > 0 && end(group).is_some_and(|end| end <= layout.blocks)
        };
        Ok(group.filter(is_inside))
    }

    /// Returns the position of an inode of the group.
    fn inode(&self, layout: &Layout, index: u64) -> u64 {
        let table = layout.bytes(&(self.inode_table..self.inode_table)).start;
        table.saturating_add(index * layout.inode_size)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn leaf(entries: &[(u32, u16, u32)], from: u64, limit: u64) -> Vec<Run> {
        let bytes: Vec<u8> = entries
            .iter()
            .flat_map(|(first, len, start)| {
                let mut entry = first.to_le_bytes().to_vec();
                entry.extend(len.to_le_bytes());
                entry.extend([0, 0]);
                entry.extend(start.to_le_bytes());
                entry
            })
            .collect();
        leaf_runs(bytes.chunks_exact(12), from, limit).unwrap()
    }

    #[test]
    fn holes_between_extents_are_runs() {
        let all = [(2, 3, 100), (5, 0x8002, 200), (10, 1, 300)];
        let whole = [(2, None), (3, Some(100)), (2, None), (3, None), (1, Some(300))];
        assert_eq!(leaf(&all, 0, 50), whole);
        assert_eq!(leaf(&all, 4, 50)[0], (1, Some(102)));
        assert_eq!(leaf(&all, 11, 50), [(39, None)]);
        assert_eq!(leaf(&[], 3, 50), [(47, None)]);
    }

    #[test]
    fn pointers_are_merged() {
        let runs = merged([0, 0, 5, 6, 8, 0].into_iter());
        assert_eq!(runs, [(2, None), (2, Some(5)), (1, Some(8)), (1, None)]);
    }
}
