//! The map of an overlay: where the contents of each block are.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::overlay::HEADER_BYTES;

/// Where the contents of a block are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Source {
    /// On the disk: the block was not written.
    Base = 0,
    /// In the overlay.
    Overlay = 1,
    /// Nowhere: the block is zero.
    Zeros = 2,
}

impl Source {
    fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::Base,
            2 => Self::Zeros,
            _ => Self::Overlay,
        }
    }

    /// A word in which each block has this source.
    fn word(self) -> u64 {
        u64::from(self as u8) * 0x5555_5555_5555_5555
    }
}

const BLOCKS_PER_WORD: u64 = 32;
const WORDS_PER_LEAF: usize = 512;
const LEAF_BYTES: u64 = 4096;
const BLOCKS_PER_LEAF: u64 = 1 << 14;

/// Most entries of the table that are stored by one call.
const MAX_ENTRIES: usize = 4096;

/// Most leaves that are copied before they are stored in the durable map.
const MAX_BATCH: usize = 256;

/// A step of [`BlockMap::persist`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PersistStep<'a> {
    /// Makes the data durable.
    SyncData,
    /// Writes bytes to an offset of the durable map.
    Store(u64, &'a [u8]),
    /// Makes what was written to the durable map durable.
    SyncMap,
}

/// In the table of the file: the leaf is stored. Other values are the source of all its blocks.
const STORED: u8 = 3;

/// The [`Source`] of each block, in two bits. Blocks are grouped into leaves of 16,384, which exist
/// only where their blocks differ.
///
/// Reading takes no lock. In its file there are the header of the [`OverlayState`](crate::OverlayState),
/// from byte 4096 on a byte for each leaf, padded to a multiple of 4096 bytes, and then room for all
/// leaves: 4096 bytes each, little-endian words of 32 blocks, the first block in the lowest bits.
pub struct BlockMap {
    blocks: u64,
    leaves: Box<[Leaf]>,
    /// Held for each change of leaves, so that the file has the last one. Not for the whole of a long
    /// range, or others would wait for it.
    changing: Mutex<()>,
}

#[derive(Default)]
struct Leaf {
    /// The source of all blocks, if there are no `words`.
    uniform: AtomicU8,
    /// Its entry in the table of the durable map.
    durable: AtomicU8,
    /// Whether it has changed since it was last stored in the durable map.
    is_dirty: AtomicBool,
    words: OnceLock<Box<[AtomicU64]>>,
}

impl BlockMap {
    /// Returns the map of `blocks` blocks of which none was written.
    pub fn new(blocks: u64) -> Self {
        let leaves = (0..blocks.div_ceil(BLOCKS_PER_LEAF)).map(|_| Leaf::default()).collect();
        Self { blocks, leaves, changing: Mutex::new(()) }
    }

    /// Returns the map in a file: `read` fills a buffer from an offset, with zeros beyond the end.
    ///
    /// # Errors
    /// The error of `read`.
    pub fn load<E>(
        blocks: u64,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let map = Self::new(blocks);
        let mut table = vec![0; map.leaves.len()];
        read(HEADER_BYTES, &mut table)?;
        let mut bytes = [0; 8 * WORDS_PER_LEAF];
        for ((index, leaf), entry) in (0u64..).zip(&map.leaves).zip(table) {
            if entry != STORED {
                leaf.uniform.store(entry, Ordering::Release);
                continue;
            }
            read(map.leaf_offset(index), &mut bytes)?;
            let (words, _) = bytes.as_chunks();
            let words = words.iter().map(|&word| AtomicU64::new(u64::from_le_bytes(word)));
            let _ = leaf.words.set(words.collect());
        }
        Ok(map)
    }

    /// Returns the number of blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    fn leaf_offset(&self, index: u64) -> u64 {
        HEADER_BYTES + (self.leaves.len() as u64).next_multiple_of(LEAF_BYTES) + index * LEAF_BYTES
    }

    /// Returns the source of the block `start`, and how many of the blocks from there to `end` have
    /// it. Blocks beyond the end of the map have the source [`Source::Base`].
    pub fn run(&self, start: u64, end: u64) -> (Source, u64) {
        let (source, mut at) = self.step(start, end);
        while at < end {
            let (next, next_at) = self.step(at, end);
            if next != source {
                break;
            }
            at = next_at;
        }
        (source, at.saturating_sub(start))
    }

    /// Returns the source of the block `at`, and the end of a run of it: not always the longest.
    fn step(&self, at: u64, end: u64) -> (Source, u64) {
        let index = at / BLOCKS_PER_LEAF;
        let leaf = usize::try_from(index).ok().and_then(|index| self.leaves.get(index));
        let Some(leaf) = leaf else { return (Source::Base, end) };
        let Some(words) = leaf.words.get() else {
            let source = Source::from_bits(leaf.uniform.load(Ordering::Acquire).into());
            return (source, end.min((index + 1) * BLOCKS_PER_LEAF));
        };
        let position = at % BLOCKS_PER_WORD;
        let word = words.get(word_index(at)).map_or(0, |word| word.load(Ordering::Acquire));
        let source = Source::from_bits(word >> (2 * position));
        let differing = (word ^ source.word()) >> (2 * position);
        let same = u64::from(differing.trailing_zeros() / 2).min(BLOCKS_PER_WORD - position);
        (source, end.min(at + same))
    }

    /// Returns whether all blocks of the range have the source `source`.
    pub fn is_all(&self, range: Range<u64>, source: Source) -> bool {
        range.is_empty() || self.run(range.start, range.end) == (source, range.end - range.start)
    }

    /// Sets the source of the blocks of the range. `store` writes bytes to an offset of the file.
    ///
    /// # Errors
    /// The error of `store`. Blocks of which the source could not be stored keep theirs.
    pub fn set<E>(
        &self,
        range: Range<u64>,
        source: Source,
        mut store: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.is_all(range.clone(), source) {
            return Ok(());
        }
        let (mut at, end) = (range.start, range.end.min(self.blocks));
        while at < end {
            let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            let index = at / BLOCKS_PER_LEAF;
            let whole = self.whole_leaves(at, end);
            let next = end.min((index + (whole.len() as u64).max(1)) * BLOCKS_PER_LEAF);
            if whole.is_empty() {
                self.set_in_leaf(index, at..next, source, &mut store)?;
            } else {
                let entries = [source as u8; MAX_ENTRIES];
                store(HEADER_BYTES + index, entries.get(..whole.len()).unwrap_or_default())?;
                whole.iter().for_each(|leaf| leaf.uniform.store(source as u8, Ordering::Release));
            }
            self.mark(index, (whole.len() as u64).max(1));
            at = next;
        }
        Ok(())
    }

    fn mark(&self, index: u64, leaves: u64) {
        let bounds = (usize::try_from(index), usize::try_from(index + leaves));
        let (Ok(first), Ok(past)) = bounds else { return };
        let changed = self.leaves.get(first..past).unwrap_or_default();
        changed.iter().for_each(|leaf| leaf.is_dirty.store(true, Ordering::Release));
    }

    /// Stores the changes in the durable map, a file of the same format. The caller executes the
    /// `step`s in their order, and one call at a time.
    ///
    /// After a loss of power at any moment the durable map has the blocks of all changes before the last
    /// call that succeeded, and never a block of which the data is not durable: data is synced
    /// after its blocks are looked up here and before they are stored, and the table refers to a leaf only
    /// when that is durable.
    ///
    /// # Errors
    /// The error of `step`. The changes are stored by the next call.
    pub fn persist<E>(
        &self,
        header: Option<&[u8]>,
        mut step: impl FnMut(PersistStep<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut taken = Vec::new();
        let result = self.persist_dirty(header, &mut step, &mut taken);
        if result.is_err() {
            taken.iter().for_each(|(index, _)| self.mark(*index, 1));
        }
        result
    }

    fn persist_dirty<E>(
        &self,
        header: Option<&[u8]>,
        step: &mut impl FnMut(PersistStep<'_>) -> Result<(), E>,
        taken: &mut Vec<(u64, u8)>,
    ) -> Result<(), E> {
        let mut dirty = (0u64..)
            .zip(&self.leaves)
            .filter(|(_, leaf)| leaf.is_dirty.swap(false, Ordering::AcqRel));
        loop {
            let batch: Vec<(u64, u8, Vec<u8>)> = dirty
                .by_ref()
                .take(MAX_BATCH)
                .map(|(index, leaf)| (index, leaf.entry(), leaf.bytes()))
                .collect();
            taken.extend(batch.iter().map(|(index, entry, _)| (*index, *entry)));
            step(PersistStep::SyncData)?;
            for (index, _, bytes) in batch.iter().filter(|(_, _, bytes)| !bytes.is_empty()) {
                step(PersistStep::Store(self.leaf_offset(*index), bytes))?;
            }
            if batch.len() < MAX_BATCH {
                break;
            }
        }
        if taken.is_empty() && header.is_none() {
            return Ok(());
        }
        header.map_or(Ok(()), |header| step(PersistStep::Store(0, header)))?;
        step(PersistStep::SyncMap)?;
        let differs = |(index, entry): &&(u64, u8)| {
            let leaf = usize::try_from(*index).ok().and_then(|index| self.leaves.get(index));
            leaf.is_some_and(|leaf| leaf.durable.load(Ordering::Acquire) != *entry)
        };
        let entries: Vec<(u64, u8)> = taken.iter().filter(differs).copied().collect();
        for run in entries.chunk_by(|one, next| one.0 + 1 == next.0) {
            let bytes: Vec<u8> = run.iter().map(|(_, entry)| *entry).collect();
            let first = run.first().map_or(0, |(index, _)| *index);
            step(PersistStep::Store(HEADER_BYTES + first, &bytes))?;
        }
        if entries.is_empty() {
            return Ok(());
        }
        step(PersistStep::SyncMap)?;
        for (index, entry) in entries {
            let leaf = usize::try_from(index).ok().and_then(|index| self.leaves.get(index));
            leaf.iter().for_each(|leaf| leaf.durable.store(entry, Ordering::Release));
        }
        Ok(())
    }

    /// Compares with the durable map, so that [`Self::persist`] stores what differs. `read` is as for
    /// [`Self::load`].
    ///
    /// # Errors
    /// The error of `read`.
    pub fn compare<E>(
        &self,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut table = vec![0; self.leaves.len()];
        read(HEADER_BYTES, &mut table)?;
        let mut bytes = [0; 8 * WORDS_PER_LEAF];
        for ((index, leaf), durable) in (0u64..).zip(&self.leaves).zip(table) {
            leaf.durable.store(durable, Ordering::Release);
            let mut is_same = leaf.entry() == durable;
            if is_same && durable == STORED {
                read(self.leaf_offset(index), &mut bytes)?;
                is_same = leaf.bytes() == bytes;
            }
            leaf.is_dirty.store(!is_same, Ordering::Release);
        }
        Ok(())
    }

    /// Returns the leaves from the block `at` on that are whole in the range up to `end`, and are not
    /// stored: not more than [`MAX_ENTRIES`].
    fn whole_leaves(&self, at: u64, end: u64) -> &[Leaf] {
        let past =
            if end == self.blocks { self.leaves.len() as u64 } else { end / BLOCKS_PER_LEAF };
        let bounds = (usize::try_from(at.div_ceil(BLOCKS_PER_LEAF)), usize::try_from(past));
        let (Ok(first), Ok(past)) = bounds else { return &[] };
        let leaves = self.leaves.get(first..past).filter(|_| at.is_multiple_of(BLOCKS_PER_LEAF));
        let leaves = leaves.unwrap_or_default().iter().take(MAX_ENTRIES);
        let whole = leaves.take_while(|leaf| leaf.words.get().is_none()).count();
        self.leaves.get(first..first + whole).unwrap_or_default()
    }

    /// Returns how many bytes the leaves occupy, in memory and in the file, that [`Self::set`] would
    /// store. A leaf of which all blocks are in the overlay is not counted: they occupy far more.
    pub fn growth(&self, range: Range<u64>, source: Source) -> u64 {
        let Some(last) = range.end.checked_sub(1).filter(|last| *last >= range.start) else {
            return 0;
        };
        let is_one = range.start / BLOCKS_PER_LEAF == last / BLOCKS_PER_LEAF;
        let grows = |block| self.grows(block / BLOCKS_PER_LEAF, &range, source);
        let leaves = u64::from(grows(range.start)) + u64::from(!is_one && grows(last));
        2 * LEAF_BYTES * leaves
    }

    /// Returns the part of the range whose source can be set without [growth](Self::growth): without its
    /// first and its last leaf, where these grow. All blocks that are left out have one source.
    pub fn part_without_growth(&self, range: Range<u64>, source: Source) -> Range<u64> {
        let first = range.start / BLOCKS_PER_LEAF;
        let start = match self.grows(first, &range, source) {
            true => range.end.min((first + 1) * BLOCKS_PER_LEAF),
            false => range.start,
        };
        let last = range.end.saturating_sub(1) / BLOCKS_PER_LEAF;
        let end = match start < range.end && self.grows(last, &range, source) {
            true => start.max(last * BLOCKS_PER_LEAF),
            false => range.end,
        };
        start..end
    }

    /// Returns whether the leaf would be stored with its blocks in the range set to the source.
    fn grows(&self, index: u64, range: &Range<u64>, source: Source) -> bool {
        let whole = index * BLOCKS_PER_LEAF..self.blocks.min((index + 1) * BLOCKS_PER_LEAF);
        let leaf = usize::try_from(index).ok().and_then(|index| self.leaves.get(index));
        let is_whole = range.start <= whole.start && whole.end <= range.end;
        leaf.filter(|leaf| !is_whole && leaf.words.get().is_none()).is_some_and(|leaf| {
            let uniform = Source::from_bits(leaf.uniform.load(Ordering::Acquire).into());
            uniform != source && uniform != Source::Overlay
        })
    }

    /// Returns how many bytes the table of leaves of a map of `blocks` blocks occupies, in memory and
    /// in the file.
    pub fn table_bytes(blocks: u64) -> u64 {
        blocks.div_ceil(BLOCKS_PER_LEAF).saturating_mul(2 + size_of::<Leaf>() as u64)
    }

    fn set_in_leaf<E>(
        &self,
        index: u64,
        range: Range<u64>,
        source: Source,
        store: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let leaf = usize::try_from(index).ok().and_then(|index| self.leaves.get(index));
        let Some(leaf) = leaf else { return Ok(()) };
        if let Some(words) = leaf.words.get() {
            let (first, last) = (word_index(range.start), word_index(range.end - 1));
            let words = words.get(first..=last).unwrap_or_default();
            let old = words.iter().map(|word| word.load(Ordering::Acquire));
            let new: Vec<u64> = changed(old, first, &range, source);
            store(self.leaf_offset(index) + 8 * first as u64, &bytes_of(&new))?;
            let pairs = words.iter().zip(new);
            pairs.for_each(|(word, new)| word.store(new, Ordering::Release));
            return Ok(());
        }
        let uniform = Source::from_bits(leaf.uniform.load(Ordering::Acquire).into());
        if uniform == source {
            return Ok(());
        }
        let old = std::iter::repeat_n(uniform.word(), WORDS_PER_LEAF);
        let new = changed(old, 0, &range, source);
        store(self.leaf_offset(index), &bytes_of(&new))?;
        store(HEADER_BYTES + index, &[STORED])?;
        let _ = leaf.words.set(new.into_iter().map(AtomicU64::new).collect());
        Ok(())
    }
}

impl Leaf {
    /// Returns its entry in the table.
    fn entry(&self) -> u8 {
        self.words.get().map_or_else(|| self.uniform.load(Ordering::Acquire), |_| STORED)
    }

    /// Returns its words as bytes; empty if there are none.
    fn bytes(&self) -> Vec<u8> {
        let words = self.words.get().map(|words| &words[..]).unwrap_or_default();
        words.iter().flat_map(|word| word.load(Ordering::Acquire).to_le_bytes()).collect()
    }
}

/// Returns the index of the word of a block in its leaf.
fn word_index(block: u64) -> usize {
    usize::try_from(block % BLOCKS_PER_LEAF / BLOCKS_PER_WORD).unwrap_or(0)
}

/// Returns the words `old` of a leaf, of which the first has the index `first`, with another source
/// of the blocks of `range`.
fn changed(
    old: impl Iterator<Item = u64>,
    first: usize,
    range: &Range<u64>,
    source: Source,
) -> Vec<u64> {
    let leaf = range.start / BLOCKS_PER_LEAF * BLOCKS_PER_LEAF;
    let starts = (first as u64..).map(|word| leaf + word * BLOCKS_PER_WORD);
    let change = |(start, old): (u64, u64)| {
        let from = range.start.clamp(start, start + BLOCKS_PER_WORD) - start;
        let to = range.end.clamp(start, start + BLOCKS_PER_WORD) - start;
        let below = |bits: u64| if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
        let mask = below(2 * to) & !below(2 * from);
        (old & !mask) | (source.word() & mask)
    };
    starts.zip(old).map(change).collect()
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl fmt::Debug for BlockMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockMap({} blocks)", self.blocks)
    }
}

#[cfg(test)]
mod test {
    use std::collections::HashMap;
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    const BLOCKS: u64 = 2 * BLOCKS_PER_LEAF + 100;

    fn change() -> impl Strategy<Value = (Range<u64>, Source)> {
        let source = prop_oneof![Just(Source::Base), Just(Source::Overlay), Just(Source::Zeros)];
        let near =
            prop_oneof![0..=BLOCKS, 0..200u64, (BLOCKS_PER_LEAF - 70)..=(BLOCKS_PER_LEAF + 70)];
        let bounds = (near.clone(), prop_oneof![0..100u64, 0..=BLOCKS, Just(BLOCKS_PER_LEAF)]);
        let leaf = Just((BLOCKS_PER_LEAF, BLOCKS_PER_LEAF));
        (prop_oneof![4 => bounds, 1 => leaf], source)
            .prop_map(|((start, len), source)| (start..(start + len).min(BLOCKS), source))
    }

    /// The sources as `map` returns them.
    fn sources(map: &BlockMap) -> Vec<Source> {
        let mut all = Vec::new();
        while (all.len() as u64) < BLOCKS {
            let (source, len) = map.run(all.len() as u64, BLOCKS);
            assert!(len > 0);
            all.extend(std::iter::repeat_n(source, usize::try_from(len).unwrap()));
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn map_and_its_file_have_the_last_change(changes in prop::collection::vec(change(), 1..12)) {
            let (map, mut file) = (BlockMap::new(BLOCKS), vec![0; 1 << 15]);
            let mut model = vec![Source::Base; usize::try_from(BLOCKS).unwrap()];
            for (range, source) in changes {
                let at = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                model[at].fill(source);
                let store = |at: u64, bytes: &[u8]| {
                    let at = usize::try_from(at).unwrap();
                    file[at..at + bytes.len()].copy_from_slice(bytes);
                    Ok::<_, Infallible>(())
                };
                map.set(range.clone(), source, store).unwrap();
                prop_assert!(map.is_all(range, source));
            }
            let loaded = BlockMap::load(BLOCKS, |at, bytes| {
                let at = usize::try_from(at).unwrap();
                bytes.copy_from_slice(&file[at..at + bytes.len()]);
                Ok::<_, Infallible>(())
            });
            prop_assert!(sources(&map) == model);
            prop_assert!(sources(&loaded.unwrap()) == model);
        }
    }

    #[test]
    fn whole_disk_of_one_source_has_no_leaves() {
        let map = BlockMap::new(BLOCKS);
        let mut stored = Vec::new();
        let store = |at: u64, bytes: &[u8]| {
            stored.push((at, bytes.len()));
            Ok::<_, Infallible>(())
        };
        map.set(0..BLOCKS, Source::Zeros, store).unwrap();
        assert_eq!(map.run(0, BLOCKS), (Source::Zeros, BLOCKS));
        assert_eq!(stored, [(HEADER_BYTES, 3)], "one call");
        assert!(map.leaves.iter().all(|leaf| leaf.words.get().is_none()));
    }

    #[test]
    fn change_that_cannot_be_stored_is_not_made() {
        let map = BlockMap::new(BLOCKS);
        for range in [0..1, 0..BLOCKS_PER_LEAF] {
            assert_eq!(map.set(range, Source::Overlay, |_, _| Err(())), Err(()));
        }
        assert_eq!(map.run(0, BLOCKS), (Source::Base, BLOCKS));
    }

    /// The sectors of a file: what the kernel has of each, the last version first, and last what is
    /// on stable storage.
    #[derive(Clone, Default)]
    struct File(HashMap<u64, Vec<[u8; SECTOR]>>);

    const SECTOR: usize = 512;

    impl File {
        fn read(&self, at: u64, into: &mut [u8]) {
            let (mut at, mut into) = (usize::try_from(at).unwrap(), into);
            while !into.is_empty() {
                let len = (SECTOR - at % SECTOR).min(into.len());
                let sector = self.0.get(&((at / SECTOR) as u64)).map_or([0; SECTOR], |all| all[0]);
                into[..len].copy_from_slice(&sector[at % SECTOR..at % SECTOR + len]);
                (at, into) = (at + len, &mut into[len..]);
            }
        }

        fn write(&mut self, at: u64, bytes: &[u8]) {
            let (mut at, mut bytes) = (usize::try_from(at).unwrap(), bytes);
            while !bytes.is_empty() {
                let len = (SECTOR - at % SECTOR).min(bytes.len());
                let versions =
                    self.0.entry((at / SECTOR) as u64).or_insert_with(|| vec![[0; SECTOR]]);
                let mut last = versions[0];
                last[at % SECTOR..at % SECTOR + len].copy_from_slice(&bytes[..len]);
                versions.insert(0, last);
                (at, bytes) = (at + len, &bytes[len..]);
            }
        }

        fn sync(&mut self) {
            self.0.values_mut().for_each(|versions| versions.truncate(1));
        }

        /// The power fails: of each sector some version since the last sync is left.
        fn cut(&mut self, random: &mut impl FnMut(usize) -> usize) {
            for versions in self.0.values_mut() {
                *versions = vec![versions[random(versions.len())]];
            }
        }
    }

    /// A block has the value of its last write, here of one byte, or that of the disk.
    fn value(map: &BlockMap, data: &File, block: u64) -> u8 {
        let mut byte = [0];
        match map.run(block, block + 1).0 {
            Source::Base => return 255,
            Source::Zeros => return 0,
            Source::Overlay => data.read(block * SECTOR as u64, &mut byte),
        }
        byte[0]
    }

    #[test]
    fn power_cuts_never_lose_what_was_persisted() {
        let mut state = 1u64;
        let mut random = move |end: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(state >> 33).unwrap() % end
        };
        let interesting = [0, 31, 5000, BLOCKS_PER_LEAF - 1, BLOCKS_PER_LEAF, BLOCKS - 1];
        let (mut map, mut data, mut file) =
            (BlockMap::new(BLOCKS), File::default(), File::default());
        let mut allowed = interesting.map(|_| vec![255]);
        for _ in 0..10_000 {
            for _ in 0..random(6) {
                let (at, fill) = (random(interesting.len()), u8::try_from(random(250)).unwrap());
                let block = interesting[at];
                let source = if fill < 60 { Source::Zeros } else { Source::Overlay };
                let (range, fill) = match (source, fill) {
                    (Source::Zeros, 0..5) => (0..BLOCKS_PER_LEAF, 0),
                    (Source::Zeros, _) => (block..block + 1, 0),
                    (_, fill) => (block..block + 1, fill),
                };
                for (allowed, block) in allowed.iter_mut().zip(interesting) {
                    if range.contains(&block) {
                        data.write(block * SECTOR as u64, &[fill]);
                        allowed.push(fill);
                    }
                }
                map.set(range, source, |_, _| Ok::<_, Infallible>(())).unwrap();
            }
            // The power fails at one of the steps, or after them.
            let mut left = random(12);
            let done = map.persist(Some(b"header"), |step| {
                left = left.checked_sub(1).ok_or(())?;
                match step {
                    PersistStep::SyncData => data.sync(),
                    PersistStep::Store(at, bytes) => file.write(at, bytes),
                    PersistStep::SyncMap => file.sync(),
                }
                Ok::<_, ()>(())
            });
            if done.is_ok() {
                allowed.iter_mut().for_each(|values| *values = vec![*values.last().unwrap()]);
                if random(3) > 0 {
                    continue;
                }
            }
            data.cut(&mut random);
            file.cut(&mut random);
            let read = |at, into: &mut [u8]| {
                file.read(at, into);
                Ok::<_, Infallible>(())
            };
            map = BlockMap::load(BLOCKS, read).unwrap();
            map.compare(read).unwrap();
            for (values, block) in allowed.iter_mut().zip(interesting) {
                let found = value(&map, &data, block);
                assert!(values.contains(&found), "block {block}: {found} of {values:?}");
                *values = vec![found];
            }
        }
    }
}
