//! Byte-wise or hash-wise comparison after a copy, of the ranges that the hash tree does not cover.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use export::{Account, Buffer, Pool};

use crate::hash_tree::{HashTree, RangeHash, TreeShape};
use crate::sync_io::{SyncIo, SyncIoError};
use crate::thread_io::OpenedEndpoint;
use crate::{CopyError, Request, RequestError};

/// A range to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// With its known hash.
    Hashed(RangeHash),
    /// With the source.
    BothEnds(Range<u64>),
}

impl Item {
    /// Length in bytes.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Hashed(hash) => hash.len,
            Self::BothEnds(range) => range.end - range.start,
        }
    }
}

/// State shared by the comparing threads.
pub(crate) struct Compare {
    source: OpenedEndpoint,
    destination: OpenedEndpoint,
    items: Mutex<Vec<Item>>,
    remaining: AtomicU64,
    differing: Mutex<Vec<Range<u64>>>,
    new_hashes: Mutex<HashTree>,
    reconnect_timeout: Duration,
    chunk: u64,
    shape: TreeShape,
}

/// Granularity of reported differences, in bytes.
const BLOCK: usize = 4096;

impl Compare {
    /// Compares `items` in requests of at most `chunk` bytes.
    pub(crate) fn new(
        ends: [&OpenedEndpoint; 2],
        items: Vec<Item>,
        reconnect_timeout: Duration,
        chunk: u64,
    ) -> Self {
        let [source, destination] = ends;
        Self {
            shape: TreeShape::new(source.disk.bytes),
            source: source.clone(),
            destination: destination.clone(),
            remaining: AtomicU64::new(items.iter().map(Item::len).sum()),
            items: Mutex::new(items.into_iter().rev().collect()),
            differing: Mutex::new(Vec::new()),
            new_hashes: Mutex::new(HashTree::new(source.disk.bytes)),
            reconnect_timeout,
            chunk,
        }
    }

    /// Bytes not yet compared.
    pub(crate) fn remaining(&self) -> u64 {
        self.remaining.load(Ordering::Relaxed)
    }

    /// Returns and clears the ranges that differ.
    pub(crate) fn take_differing(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.differing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns and clears the hashes of ranges that are the same at both ends.
    pub(crate) fn take_new_hashes(&self) -> HashTree {
        let mut new_hashes = self.new_hashes.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut new_hashes, HashTree::new(self.source.disk.bytes))
    }

    /// The next item, cut to the size of one request.
    fn take(&self) -> Option<Item> {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let item = match items.last_mut()? {
            Item::BothEnds(range) if range.end - range.start > self.chunk => {
                let start = range.start;
                range.start = start + self.chunk;
                Item::BothEnds(start..start + self.chunk)
            }
            _ => items.pop()?,
        };
        Some(item)
    }

    /// Compares items until none is left.
    pub(crate) fn run(self: Arc<Self>, stop: &AtomicBool) -> Result<(), SyncIoError> {
        let mut source = SyncIo::new(&self.source, self.reconnect_timeout, stop);
        let mut destination = SyncIo::new(&self.destination, self.reconnect_timeout, stop);
        destination.drop_caches()?;
        let account = Pool::new(2 * Pool::MAX_BUFFER).open();
        while let Some(item) = self.take() {
            let differing = match &item {
                Item::Hashed(hash) => self.piece(&mut destination, &account, hash)?,
                Item::BothEnds(range) => {
                    let ends = [&mut source, &mut destination];
                    self.both(ends, &account, range)?
                }
            };
            self.remaining.fetch_sub(item.len(), Ordering::Relaxed);
            self.differing.lock().unwrap_or_else(PoisonError::into_inner).extend(differing);
        }
        Ok(())
    }

    fn piece(
        &self,
        io: &mut SyncIo<'_>,
        account: &Account,
        hash: &RangeHash,
    ) -> Result<Vec<Range<u64>>, SyncIoError> {
        let there = read(io, account, &hash.range())?;
        let found = there.map(|buffer| self.shape.hash_range(hash.offset, buffer.bytes()));
        let same = found.is_some_and(|found| found == [*hash]);
        Ok(if same { Vec::new() } else { vec![hash.range()] })
    }

    /// Compares a range of both ends. An unreadable range counts as different.
    fn both(
        &self,
        [source, destination]: [&mut SyncIo<'_>; 2],
        account: &Account,
        range: &Range<u64>,
    ) -> Result<Vec<Range<u64>>, SyncIoError> {
        let one = read(source, account, range)?;
        let other = read(destination, account, range)?;
        let (Some(one), Some(other)) = (one, other) else { return Ok(vec![range.clone()]) };
        if one.bytes() == other.bytes() {
            let hashes = self.shape.hash_range(range.start, one.bytes());
            let mut new_hashes = self.new_hashes.lock().unwrap_or_else(PoisonError::into_inner);
            hashes.into_iter().for_each(|hash| new_hashes.insert(hash));
            return Ok(Vec::new());
        }
        let blocks = one.bytes().chunks(BLOCK).zip(other.bytes().chunks(BLOCK));
        let starts = (range.start..).step_by(BLOCK);
        let differing = starts.zip(blocks).filter(|(_, (one, other))| one != other);
        Ok(differing.map(|(start, (one, _))| start..start + one.len() as u64).collect())
    }
}

/// Reads a range, again if the connection was lost. Returns `None` if the disk has a bad sector
/// there.
pub(crate) fn read(
    io: &mut SyncIo<'_>,
    account: &Account,
    range: &Range<u64>,
) -> Result<Option<Buffer>, SyncIoError> {
    let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    loop {
        let Some(buffer) = account.take(len) else {
            return Err(SyncIoError::Failed(CopyError::Internal));
        };
        match io.run(Request::Read { offset: range.start, buffer }) {
            Ok(completion) if completion.result.is_ok() => return Ok(completion.buffer),
            Ok(completion) if completion.result == Err(RequestError::Media) => return Ok(None),
            Ok(completion) => return Err(io.failed(range, completion.result)),
            Err(SyncIoError::Disconnected) => {}
            Err(other) => return Err(other),
        }
    }
}
