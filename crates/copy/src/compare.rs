//! Parts that are compared one by one after a copy: those that no hash is known of, from both ends, and those that are
//! no part of a hash tree. It knows no plan.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use export::{Account, Buffer, Pool};

use crate::errand::{Errand, Undone};
use crate::forest::{Forest, Mark, Shape};
use crate::traffic::Target;
use crate::{Failed, Trouble, Work};

/// A part that is to be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// With its hash.
    Piece(Mark),
    /// With the source.
    Both(Range<u64>),
}

impl Item {
    /// Bytes.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Piece(mark) => mark.len,
            Self::Both(range) => range.end - range.start,
        }
    }
}

/// What the threads that compare share.
pub(crate) struct Compare {
    source: Target,
    destination: Target,
    items: Mutex<Vec<Item>>,
    rest: AtomicU64,
    wrong: Mutex<Vec<Range<u64>>>,
    learned: Mutex<Forest>,
    patience: Duration,
    chunk: u64,
    shape: Shape,
}

/// A difference is named to this many bytes.
const BLOCK: usize = 4096;

impl Compare {
    /// Compares these, in requests of `chunk` bytes at most.
    pub(crate) fn new(
        ends: [&Target; 2],
        items: Vec<Item>,
        patience: Duration,
        chunk: u64,
    ) -> Self {
        let [source, destination] = ends;
        Self {
            shape: Shape::new(source.disk.bytes),
            source: source.clone(),
            destination: destination.clone(),
            rest: AtomicU64::new(items.iter().map(Item::len).sum()),
            items: Mutex::new(items.into_iter().rev().collect()),
            wrong: Mutex::new(Vec::new()),
            learned: Mutex::new(Forest::new(source.disk.bytes)),
            patience,
            chunk,
        }
    }

    /// Bytes that are still to be compared.
    pub(crate) fn rest(&self) -> u64 {
        self.rest.load(Ordering::Relaxed)
    }

    /// The ranges that differ.
    pub(crate) fn take_wrong(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.wrong.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Hashes of what was the same at both ends.
    pub(crate) fn take_learned(&self) -> Forest {
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut learned, Forest::new(self.source.disk.bytes))
    }

    /// The next item, no longer than a request.
    fn take(&self) -> Option<Item> {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let item = match items.last_mut()? {
            Item::Both(range) if range.end - range.start > self.chunk => {
                let start = range.start;
                range.start = start + self.chunk;
                Item::Both(start..start + self.chunk)
            }
            _ => items.pop()?,
        };
        Some(item)
    }

    /// Compares until there is nothing left.
    pub(crate) fn run(self: Arc<Self>, halt: &AtomicBool) -> Result<(), Undone> {
        let mut source = Errand::new(&self.source, self.patience, halt);
        let mut destination = Errand::new(&self.destination, self.patience, halt);
        destination.distrust()?;
        let account = Pool::new(2 * Pool::MAX_BUFFER).open();
        while let Some(item) = self.take() {
            let wrong = match &item {
                Item::Piece(mark) => self.piece(&mut destination, &account, mark)?,
                Item::Both(range) => {
                    let ends = [&mut source, &mut destination];
                    self.both(ends, &account, range)?
                }
            };
            self.rest.fetch_sub(item.len(), Ordering::Relaxed);
            self.wrong.lock().unwrap_or_else(PoisonError::into_inner).extend(wrong);
        }
        Ok(())
    }

    fn piece(
        &self,
        errand: &mut Errand<'_>,
        account: &Account,
        mark: &Mark,
    ) -> Result<Vec<Range<u64>>, Undone> {
        let there = read(errand, account, &mark.range())?;
        let seen = there.map(|buffer| self.shape.sum(mark.offset, buffer.bytes()));
        let same = seen.is_some_and(|seen| seen == [*mark]);
        Ok(if same { Vec::new() } else { vec![mark.range()] })
    }

    /// Compares a range from both ends. What cannot be read is not known to be the same.
    fn both(
        &self,
        [source, destination]: [&mut Errand<'_>; 2],
        account: &Account,
        range: &Range<u64>,
    ) -> Result<Vec<Range<u64>>, Undone> {
        let one = read(source, account, range)?;
        let other = read(destination, account, range)?;
        let (Some(one), Some(other)) = (one, other) else { return Ok(vec![range.clone()]) };
        if one.bytes() == other.bytes() {
            let marks = self.shape.sum(range.start, one.bytes());
            let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
            marks.into_iter().for_each(|mark| learned.insert(mark));
            return Ok(Vec::new());
        }
        let blocks = one.bytes().chunks(BLOCK).zip(other.bytes().chunks(BLOCK));
        let starts = (range.start..).step_by(BLOCK);
        let differing = starts.zip(blocks).filter(|(_, (one, other))| one != other);
        Ok(differing.map(|(start, (one, _))| start..start + one.len() as u64).collect())
    }
}

/// Reads a range, again if the end was lost meanwhile; nothing if the disk has an error there.
pub(crate) fn read(
    errand: &mut Errand<'_>,
    account: &Account,
    range: &Range<u64>,
) -> Result<Option<Buffer>, Undone> {
    let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    loop {
        let Some(buffer) = account.take(len) else { return Err(Undone::Trouble(Trouble::Mistake)) };
        match errand.run(Work::Read { offset: range.start, buffer }) {
            Ok(ended) if ended.result.is_ok() => return Ok(ended.buffer),
            Ok(ended) if ended.result == Err(Failed::Media) => return Ok(None),
            Ok(ended) => return Err(errand.failed(range, ended.result)),
            Err(Undone::Lost) => {}
            Err(other) => return Err(other),
        }
    }
}
