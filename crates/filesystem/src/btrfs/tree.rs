//! Trees of items by key.

use std::io;

use crc_fast::CrcAlgorithm;
use linux::medium::ReadAt;

use super::chunk::Chunks;
use super::key::Key;
use super::{EXTENT_TREE, ROOT_ITEM, Superblock};
use crate::window::{le32, le64, read};

/// Bytes of the header of a block, of an item in a leaf, and of a pointer to a block.
const HEADER: usize = 101;
const ITEM: usize = 25;
const POINTER: usize = 33;
/// Highest level of a block; leaves are of level 0.
const MAX_LEVEL: u8 = 7;

/// A block of a tree, by its logical address, and what is in it. A drive that has lost a write may hold an older block
/// there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub(super) at: u64,
    pub(super) level: u8,
    /// The transaction that wrote it.
    pub(super) generation: u64,
    /// The number of the tree.
    pub(super) owner: u64,
    /// The first key; `None` for a root.
    pub(super) first: Option<Key>,
}

/// Whether the checksum of a block or superblock is right: CRC-32C of what follows the 32 bytes for it.
pub(super) fn has_sum(bytes: &[u8]) -> bool {
    let sum = bytes.get(32..).map(|rest| crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, rest));
    sum.is_some() && le32(bytes, 0).map(u64::from) == sum
}

/// The trees of a file system.
pub(super) struct Trees<'a, R: ?Sized> {
    pub(super) disk: &'a R,
    pub(super) superblock: &'a Superblock,
    pub(super) chunks: Chunks,
}

impl<R: ReadAt + ?Sized> Trees<'_, R> {
    /// Reads all chunks from the chunk tree; `None` if it is not consistent.
    pub(super) fn all_chunks(&self) -> io::Result<Option<Chunks>> {
        let mut chunks = Chunks::default();
        let walked = self.walk(self.superblock.chunk_tree, |key, item| {
            // The other items are devices.
            (key.object != 1).then(|| chunks.add(key, item)).map_or(Some(()), |it| it.map(|_| ()))
        })?;
        let Superblock { device, total, .. } = *self.superblock;
        Ok(walked.map(|()| chunks).filter(|chunks| chunks.are_within(device, total)))
    }

    /// Finds the root of the extent tree; `None` if the tree of roots is not consistent.
    pub(super) fn extent_tree(&self) -> io::Result<Option<Node>> {
        let mut found = None;
        let walked = self.walk(self.superblock.root_tree, |key, item| {
            if (key.object, key.kind) == (EXTENT_TREE, ROOT_ITEM) {
                found = Some(Node {
                    at: le64(item, 176)?,
                    level: *item.get(238)?,
                    generation: le64(item, 160)?,
                    owner: EXTENT_TREE,
                    first: None,
                });
            }
            Some(())
        })?;
        Ok(walked.and(found))
    }

    /// Calls `each` with the items of a tree in order; `None` if the tree is not consistent or `each` says so.
    pub(super) fn walk(
        &self,
        root: Node,
        mut each: impl FnMut(&Key, &[u8]) -> Option<()>,
    ) -> io::Result<Option<()>> {
        if root.level > MAX_LEVEL {
            return Ok(None);
        }
        self.walk_block(root, &mut None, &mut each)
    }

    /// Walks a block and those below. Keys increase, so that no block is visited twice.
    fn walk_block(
        &self,
        block: Node,
        previous: &mut Option<Key>,
        each: &mut impl FnMut(&Key, &[u8]) -> Option<()>,
    ) -> io::Result<Option<()>> {
        let Some(bytes) = self.block(block)? else { return Ok(None) };
        let count = le32(&bytes, 96).and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
        for at in 0..count {
            if block.level == 0 {
                let Some((key, item)) = leaf_item(&bytes, at) else { return Ok(None) };
                if previous.is_some_and(|previous| previous >= key) || each(&key, item).is_none() {
                    return Ok(None);
                }
                *previous = Some(key);
                continue;
            }
            let Some(below) = pointer(&bytes, at, &block) else { return Ok(None) };
            let before = *previous;
            if self.walk_block(below, previous, each)?.is_none() || *previous == before {
                return Ok(None);
            }
        }
        Ok(Some(()))
    }

    /// Reads a block from the first copy that is right; `None` if none is.
    ///
    /// # Errors
    /// Fails if no copy is right and one cannot be read.
    fn block(&self, block: Node) -> io::Result<Option<Vec<u8>>> {
        let Superblock { node, start, uuid, .. } = self.superblock;
        let Some(end) = block.at.checked_add(*node) else { return Ok(None) };
        let is_own = |bytes: &Vec<u8>| {
            has_sum(bytes)
                && bytes.get(32..48) == Some(&uuid[..])
                && le64(bytes, 48) == Some(block.at)
                && le64(bytes, 80) == Some(block.generation)
                && le64(bytes, 88) == Some(block.owner)
                && bytes.get(100) == Some(&block.level)
                && (block.first.is_none()
                    || bytes.get(HEADER..).and_then(Key::parse) == block.first)
        };
        let mut outcome = Ok(None);
        for copy in self.chunks.copies(&(block.at..end)).unwrap_or_default() {
            match read(self.disk, start.saturating_add(copy.start), *node) {
                Ok(bytes) => match bytes.filter(is_own) {
                    Some(bytes) => return Ok(Some(bytes)),
                    None => continue,
                },
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }
}

/// The key and the contents of an item of a leaf.
fn leaf_item(bytes: &[u8], at: usize) -> Option<(Key, &[u8])> {
    let header = bytes.get(HEADER + at * ITEM..)?;
    let (from, length) = (le32(header, Key::LENGTH)?, le32(header, Key::LENGTH + 4)?);
    let from = usize::try_from(from).ok()?.checked_add(HEADER)?;
    let to = from.checked_add(usize::try_from(length).ok()?)?;
    Some((Key::parse(header)?, bytes.get(from..to)?))
}

/// A pointer of a block to one below.
fn pointer(bytes: &[u8], at: usize, above: &Node) -> Option<Node> {
    let bytes = bytes.get(HEADER + at * POINTER..)?;
    Some(Node {
        at: le64(bytes, Key::LENGTH)?,
        level: above.level.checked_sub(1)?,
        generation: le64(bytes, Key::LENGTH + 8)?,
        owner: above.owner,
        first: Some(Key::parse(bytes)?),
    })
}
