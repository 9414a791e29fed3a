//! BLAKE3 hash tree of a disk whose ranges are hashed in any order.
//!
//! A BLAKE3 hash is a binary tree over chunks of 1 KiB. Each range is hashed as the largest
//! subtrees that it contains. Two siblings are merged, up to a *leaf*, whose hash is kept. This
//! bounds the memory, and the data can be compared leaf by leaf with what is read back. The root of
//! the leaves is the hash of the disk.
//!
//! Ranges of zeros are recorded as zeros and hashed only when a parent is needed, because a disk is
//! mostly empty. Ranges that are not whole chunks (512-byte sectors between bad ones) are kept
//! separately as fragments.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use blake3::CHUNK_LEN;
use blake3::Hasher;
use blake3::hazmat::{
    HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};

/// Hash of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashValue {
    /// All zeros. Always used for a range of zeros, instead of its hash.
    Zero,
    /// Of a subtree, the chaining value at its position in the tree; of a fragment, the hash of its
    /// bytes alone.
    Hash([u8; 32]),
}

/// A range and its hash, as saved in a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeHash {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    pub value: HashValue,
}

impl RangeHash {
    /// The hashed bytes.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.len)
    }
}

/// Bytes of a BLAKE3 chunk.
const CHUNK: u64 = CHUNK_LEN as u64;

/// Minimum bytes of a leaf.
const MIN_LEAF: u64 = 1 << 20;

/// Maximum number of leaves.
const MAX_LEAVES: u64 = 1 << 15;

/// Maximum number of fragments, of about 48 bytes each. Further ranges are compared by reading both
/// ends.
const MAX_FRAGMENTS: usize = 1 << 17;

/// Shape of the tree over a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TreeShape {
    bytes: u64,
    leaf: u64,
}

impl TreeShape {
    /// The tree over a disk of this length.
    pub(crate) fn new(bytes: u64) -> Self {
        let wanted = (bytes / MAX_LEAVES).next_power_of_two().max(MIN_LEAF);
        // The root is merged from two nodes: neither may be larger than half of the disk.
        let max = if bytes > CHUNK { left_subtree_len(bytes) } else { CHUNK };
        Self { bytes, leaf: wanted.min(max) }
    }

    /// The tree over full pieces of 1 MiB of a stream of unknown length, except the last piece.
    pub(crate) fn endless() -> Self {
        Self { bytes: u64::MAX, leaf: MIN_LEAF }
    }

    /// The length of the first part of a range, and whether it is a subtree.
    fn cut(&self, range: &Range<u64>) -> (u64, bool) {
        let len = range.end.saturating_sub(range.start);
        let into_chunk = range.start % CHUNK;
        if into_chunk != 0 {
            return (len.min(CHUNK - into_chunk), false);
        }
        let aligned = if range.start == 0 { self.leaf } else { 1 << range.start.trailing_zeros() };
        let max = aligned.min(self.leaf);
        if len <= max && range.end == self.bytes {
            return (len, true);
        }
        match len.min(max).checked_ilog2() {
            Some(log) if 1 << log >= CHUNK => (1 << log, true),
            _ => (len, false),
        }
    }

    /// The parts of a range, with whether each is a subtree.
    fn parts(self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, bool)> {
        let mut rest = range;
        std::iter::from_fn(move || {
            let (len, subtree) = Some(self.cut(&rest)).filter(|_| !rest.is_empty())?;
            let part = rest.start..rest.start.saturating_add(len);
            rest.start = part.end;
            Some((part, subtree))
        })
    }

    /// Hashes a range. Needs no lock.
    pub(crate) fn hash_range(self, offset: u64, bytes: &[u8]) -> Vec<RangeHash> {
        let end = offset.saturating_add(bytes.len() as u64);
        let one = |(part, subtree): (Range<u64>, bool)| {
            let from = usize::try_from(part.start - offset).unwrap_or(usize::MAX);
            let to = usize::try_from(part.end - offset).unwrap_or(usize::MAX);
            let bytes = bytes.get(from..to).unwrap_or_default();
            let value =
                if is_zero(bytes) { HashValue::Zero } else { self.hash(&part, bytes, subtree) };
            RangeHash { offset: part.start, len: part.end - part.start, value }
        };
        self.parts(offset..end).map(one).collect()
    }

    fn hash(self, part: &Range<u64>, bytes: &[u8], subtree: bool) -> HashValue {
        if !subtree || self.bytes <= CHUNK {
            return HashValue::Hash(*blake3::hash(bytes).as_bytes());
        }
        HashValue::Hash(
            Hasher::new().set_input_offset(part.start).update(bytes).finalize_non_root(),
        )
    }

    /// The hashes of a range of zeros.
    pub(crate) fn zeros(self, range: Range<u64>) -> impl Iterator<Item = RangeHash> {
        let hash = |(part, _): (Range<u64>, bool)| RangeHash {
            offset: part.start,
            len: part.end - part.start,
            value: HashValue::Zero,
        };
        self.parts(range).map(hash)
    }
}

/// Whether all bytes are zero. Looks at both ends first, because most data differs there.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (head, rest) = bytes.split_at(bytes.len().min(16));
    let none = |page: &[u8]| page.iter().fold(0, |all, byte| all | byte) == 0;
    none(head) && bytes.last().is_none_or(|byte| *byte == 0) && rest.chunks(4096).all(none)
}

/// Zeros to hash.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// The hash of a subtree of zeros at its position in the tree.
fn hash_zeros(offset: u64, mut len: u64) -> [u8; 32] {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(offset);
    while len != 0 {
        let some = usize::try_from(len).unwrap_or(usize::MAX).min(ZEROS.len());
        hasher.update(&ZEROS[..some]);
        len -= some as u64;
    }
    hasher.finalize_non_root()
}

/// A hashed subtree of `1 << level` bytes, or fewer at the end of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Node {
    level: u32,
    value: HashValue,
}

/// Hashes of a disk, merged up to the leaves.
#[derive(Debug, Clone)]
pub(crate) struct HashTree {
    shape: TreeShape,
    nodes: BTreeMap<u64, Node>,
    fragments: BTreeMap<u64, (u64, HashValue)>,
}

impl HashTree {
    /// An empty tree over a disk of this length.
    pub(crate) fn new(bytes: u64) -> Self {
        Self { shape: TreeShape::new(bytes), nodes: BTreeMap::new(), fragments: BTreeMap::new() }
    }

    #[cfg(test)]
    pub(crate) fn shape(&self) -> TreeShape {
        self.shape
    }

    /// The length of the disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.shape.bytes
    }

    /// Inserts a hash from [`TreeShape::hash_range`] or a map. Ignores a range that is already
    /// covered or does not fit the tree.
    pub(crate) fn insert(&mut self, hash: RangeHash) {
        let range = hash.range();
        let mut parts = self.shape.parts(range.clone());
        let (Some((first, subtree)), None) = (parts.next(), parts.next()) else { return };
        if first != range || range.end > self.shape.bytes {
        } else if !subtree {
            self.insert_fragment(hash);
        } else if !self.covers(range.start) {
            let level = hash.len.next_power_of_two().max(CHUNK).trailing_zeros();
            self.insert_node(hash.offset, Node { level, value: hash.value });
        }
    }

    /// Removes the node at this offset.
    pub(crate) fn remove(&mut self, offset: u64) {
        self.nodes.remove(&offset);
    }

    fn insert_fragment(&mut self, hash: RangeHash) {
        if self.fragments.len() < MAX_FRAGMENTS {
            self.fragments.insert(hash.offset, (hash.len, hash.value));
        }
    }

    fn covers(&self, at: u64) -> bool {
        let node = self.nodes.range(..=at).next_back();
        node.is_some_and(|(&offset, node)| at < self.end(offset, node.level))
    }

    fn end(&self, offset: u64, level: u32) -> u64 {
        offset.saturating_add(1 << level).min(self.shape.bytes)
    }

    /// Inserts a node, merging it with its siblings.
    fn insert_node(&mut self, mut offset: u64, mut node: Node) {
        while 1 << node.level < self.shape.leaf {
            let half = 1 << node.level;
            if offset & half != 0 {
                let left = offset - half;
                let Some(other) = self.nodes.get(&left).filter(|left| left.level == node.level)
                else {
                    break;
                };
                node = self.merge(left, *other, node);
                offset = left;
                self.nodes.remove(&left);
            } else if offset.saturating_add(half) >= self.shape.bytes {
                // The last node has no right sibling: the parent has the same hash.
                node.level += 1;
            } else {
                let right = offset + half;
                let Some(other) = self.nodes.get(&right).filter(|right| right.level == node.level)
                else {
                    break;
                };
                node = self.merge(offset, node, *other);
                self.nodes.remove(&right);
            }
        }
        self.nodes.insert(offset, node);
    }

    /// The parent of two siblings; `left` is the position of the first.
    fn merge(&self, left: u64, first: Node, second: Node) -> Node {
        let level = first.level + 1;
        if (first.value, second.value) == (HashValue::Zero, HashValue::Zero) {
            return Node { level, value: HashValue::Zero };
        }
        let right = left + (1 << first.level);
        let first = self.resolve(left, first.level, first.value);
        let second = self.resolve(right, second.level, second.value);
        Node { level, value: HashValue::Hash(merge_subtrees_non_root(&first, &second, Mode::Hash)) }
    }

    /// The chaining value of a subtree, also of zeros.
    fn resolve(&self, offset: u64, level: u32, value: HashValue) -> [u8; 32] {
        match value {
            HashValue::Hash(sum) => sum,
            HashValue::Zero => hash_zeros(offset, self.end(offset, level) - offset),
        }
    }

    /// All hashes.
    pub(crate) fn hashes(&self) -> impl Iterator<Item = RangeHash> + '_ {
        self.nodes().chain(self.fragments())
    }

    /// The nodes of the tree, in ascending order.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = RangeHash> + '_ {
        self.nodes.iter().map(|(&offset, node)| {
            let len = self.end(offset, node.level) - offset;
            RangeHash { offset, len, value: node.value }
        })
    }

    /// The ranges that no node covers, in ascending order.
    pub(crate) fn gaps(&self) -> Vec<Range<u64>> {
        let mut at = 0;
        let end = std::iter::once(self.shape.bytes..self.shape.bytes);
        let ranges = self.nodes().map(|hash| hash.range()).chain(end);
        let before = ranges.map(|range| std::mem::replace(&mut at, range.end)..range.start);
        before.filter(|gap| !gap.is_empty()).collect()
    }

    /// The fragments, in ascending order.
    pub(crate) fn fragments(&self) -> impl Iterator<Item = RangeHash> + '_ {
        self.fragments.iter().map(|(&offset, &(len, value))| RangeHash { offset, len, value })
    }

    /// The nodes that are missing or different in `other`.
    pub(crate) fn differing(&self, other: &Self) -> Vec<Range<u64>> {
        let nodes =
            self.nodes.iter().filter(|(offset, node)| other.nodes.get(offset) != Some(node));
        nodes.map(|(&offset, node)| offset..self.end(offset, node.level)).collect()
    }

    /// The hash of the whole disk, computed by `threads` threads; `None` if a part of it is
    /// missing.
    pub(crate) fn root(&self, threads: usize) -> Option<[u8; 32]> {
        if self.shape.bytes <= CHUNK {
            return self.root_of_chunk();
        }
        self.with_zeros_hashed(threads).root_of_hashes()
    }

    /// The tree with the hashes of the nodes that are zeros: on a mostly empty disk, they are most of
    /// the work.
    fn with_zeros_hashed(&self, threads: usize) -> Self {
        let zeros = self.nodes.iter().filter(|(_, node)| node.value == HashValue::Zero);
        let zeros: Vec<(u64, Node)> = zeros.map(|(&offset, node)| (offset, *node)).collect();
        let next = AtomicUsize::new(0);
        let hash_some = || {
            let one = || zeros.get(next.fetch_add(1, Ordering::Relaxed));
            let hash = |&(offset, node): &(u64, Node)| {
                let value = HashValue::Hash(self.resolve(offset, node.level, node.value));
                (offset, Node { value, ..node })
            };
            std::iter::from_fn(one).map(hash).collect::<Vec<_>>()
        };
        let mut whole = self.clone();
        std::thread::scope(|scope| {
            let others = 1..threads.min(zeros.len());
            // Without another thread, this one does all of it.
            let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, hash_some).ok();
            let others: Vec<_> = others.filter_map(spawn).collect();
            whole.nodes.extend(hash_some());
            others
                .into_iter()
                .filter_map(|it| it.join().ok())
                .for_each(|it| whole.nodes.extend(it));
        });
        whole
    }

    /// The hash of a disk of at most one chunk, which is not merged.
    fn root_of_chunk(&self) -> Option<[u8; 32]> {
        let bytes = self.shape.bytes;
        match self.nodes.get(&0).map(|node| node.value) {
            Some(HashValue::Hash(sum)) => Some(sum),
            None if bytes != 0 => None,
            _ => ZEROS
                .get(..usize::try_from(bytes).ok()?)
                .map(|zeros| *blake3::hash(zeros).as_bytes()),
        }
    }

    fn root_of_hashes(&self) -> Option<[u8; 32]> {
        let bytes = self.shape.bytes;
        let middle = left_subtree_len(bytes);
        let (left, right) = (self.subtree(0..middle)?, self.subtree(middle..bytes)?);
        Some(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes())
    }

    fn subtree(&self, range: Range<u64>) -> Option<[u8; 32]> {
        let len = range.end - range.start;
        if let Some(node) = self.nodes.get(&range.start)
            && self.end(range.start, node.level) >= range.end
        {
            return Some(self.resolve(range.start, node.level, node.value));
        }
        if len <= CHUNK {
            return None;
        }
        let middle = range.start + left_subtree_len(len);
        let (left, right) = (self.subtree(range.start..middle)?, self.subtree(middle..range.end)?);
        Some(merge_subtrees_non_root(&left, &right, Mode::Hash))
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            u8::try_from(state & 0xff).unwrap()
        };
        (0..len).map(next).collect()
    }

    /// A tree with small leaves, so that a small disk has many.
    fn tree(bytes: u64, leaf: u64) -> HashTree {
        let mut tree = HashTree::new(bytes);
        let max = if bytes > CHUNK { left_subtree_len(bytes) } else { CHUNK };
        tree.shape.leaf = leaf.min(max);
        tree
    }

    fn cuts(disk: &[u8], at: &[usize]) -> Vec<(usize, usize)> {
        let mut at: Vec<usize> =
            at.iter().map(|at| at % (disk.len() + 1)).chain([0, disk.len()]).collect();
        at.sort_unstable();
        at.dedup();
        at.windows(2).map(|pair| (pair[0], pair[1])).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn root_is_the_hash_in_any_order(
            len in 0usize..70_000,
            at in prop::collection::vec(0usize..80, 0..12),
            zeros in prop::collection::vec((0usize..70, 0usize..20), 0..6),
            seed: u64,
            leaf in 10u32..16,
        ) {
            let mut disk = noise(len, seed);
            for (start, count) in zeros {
                let end = (start + count) * 1024;
                disk.get_mut((start * 1024).min(len)..end.min(len)).unwrap().fill(0);
            }
            let at: Vec<usize> = at.into_iter().map(|at| (at * 1024).min(len)).collect();
            let mut parts = cuts(&disk, &at);
            let turn = parts.len().max(1);
            parts.rotate_left(usize::try_from(seed % 97).unwrap() % turn);
            if seed % 2 == 0 { parts.reverse(); }
            let mut tree = tree(len as u64, 1 << leaf);
            for (from, to) in parts {
                tree.shape().hash_range(from as u64, &disk[from..to]).into_iter().for_each(|hash| tree.insert(hash));
            }
            prop_assert_eq!(tree.root(3), Some(*blake3::hash(&disk).as_bytes()));
            let mut back = HashTree { nodes: BTreeMap::new(), ..tree.clone() };
            tree.hashes().collect::<Vec<_>>().into_iter().for_each(|hash| back.insert(hash));
            prop_assert_eq!(back.root(3), tree.root(3));
            prop_assert!(tree.fragments.is_empty());
        }

        #[test]
        fn r44_flipped_bit_is_located(len in 1usize..40_000, at in prop::collection::vec(0usize..40_000, 0..12), bit: usize, seed: u64) {
            let disk = noise(len, seed);
            let mut flipped = disk.clone();
            let byte = bit / 8 % len;
            flipped[byte] ^= 1 << (bit % 8);
            let [mut one, mut other] = [tree(len as u64, 4096), tree(len as u64, 4096)];
            for (from, to) in cuts(&disk, &at) {
                let shape = one.shape();
                shape.hash_range(from as u64, &disk[from..to]).into_iter().for_each(|hash| one.insert(hash));
                shape.hash_range(from as u64, &flipped[from..to]).into_iter().for_each(|hash| other.insert(hash));
            }
            let odd: Vec<RangeHash> = other.fragments().collect();
            let odd = one.fragments().filter(|hash| !odd.contains(hash)).map(|hash| hash.range());
            let found: Vec<_> = one.differing(&other).into_iter().chain(odd).collect();
            prop_assert_eq!(found.len(), 1);
            prop_assert!(found[0].contains(&(byte as u64)));
            prop_assert!(found[0].end - found[0].start <= 4096);
        }
    }

    #[test]
    fn leaves_are_bounded_and_smaller_than_disk() {
        for log in 11..63u32 {
            let shape = TreeShape::new((1 << log) + 512);
            assert!(shape.leaf <= 1 << log && shape.bytes / shape.leaf <= MAX_LEAVES * 2);
            assert!(shape.leaf >= MIN_LEAF || shape.leaf == 1 << log, "{log}");
        }
    }

    #[test]
    fn zeros_are_hashed_only_for_the_root() {
        let mut tree = HashTree::new(5 << 20);
        tree.shape().zeros(0..5 << 20).for_each(|hash| tree.insert(hash));
        assert!(tree.nodes.values().all(|node| node.value == HashValue::Zero));
        for threads in [1, 3, 100] {
            let root = tree.root(threads);
            assert_eq!(root, Some(*blake3::hash(&vec![0; 5 << 20]).as_bytes()));
        }
        for bytes in [0, 1, 600, 1024, 1025, 2048] {
            let mut tree = HashTree::new(bytes);
            assert_eq!(tree.root(3).is_some(), bytes == 0);
            tree.shape().zeros(0..bytes).for_each(|hash| tree.insert(hash));
            let zeros = vec![0; usize::try_from(bytes).unwrap()];
            assert_eq!(tree.root(3), Some(*blake3::hash(&zeros).as_bytes()), "{bytes}");
        }
    }

    #[test]
    fn incomplete_tree_has_no_root_and_bad_hashes_are_ignored() {
        let mut tree = HashTree::new(5 << 20);
        tree.shape().zeros(0..4 << 20).for_each(|hash| tree.insert(hash));
        assert_eq!(tree.root(3), None);
        for (offset, len) in
            [(0, 0), (1, 1 << 20), (5 << 20, 1 << 20), (u64::MAX, 7), (0, u64::MAX), (512, 3 << 20)]
        {
            tree.insert(RangeHash { offset, len, value: HashValue::Hash([1; 32]) });
        }
        assert_eq!(tree.nodes.len(), 4);
    }

    #[test]
    fn nonzero_byte_is_found_anywhere() {
        for len in [0, 1, 15, 16, 17, 4096, 9000] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
