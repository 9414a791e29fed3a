//! Parts of a disk that have been read, for parsers that read when they need it: what is missing is read, and the
//! parser called again.
//!
//! What a call of a parser has used is kept until the call is complete, so no call reads anything twice, and each ends
//! after as many disk requests as the cache has units.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::Range;

use filesystem::ReadAt;

/// Bytes that are kept together, from a multiple of that.
const UNIT: u64 = 4 << 10;

/// The most units of a cache: one mebibyte.
const MAX_UNITS: usize = 256;

/// A disk request reads up to a multiple of so many bytes, even if less is missing: what follows is often next.
const AHEAD: u64 = 16 << 10;

/// The most bytes of a disk request.
const MAX_READ: u64 = 256 << 10;

/// The most bytes that a parser may read in one go, also if it reads the same ones again: what it does with them takes
/// as long.
pub(crate) const MAX_COPIED: u64 = 2 << 20;

/// The number of the error of a disk, as of a medium (errno(3)).
const EIO: i32 = 5;

/// Parts of a disk.
pub(crate) struct Cache {
    /// Length of the disk in bytes.
    bytes: u64,
    units: BTreeMap<u64, Unit>,
    /// Counts uses of units.
    clock: Cell<u64>,
    /// The clock when the present call of a parser began: units that it has used have later times.
    began: Cell<u64>,
    /// What was missing last: the bytes that are needed, and those to read.
    missing: Cell<Option<(u64, u64)>>,
    /// The end of the bytes that are needed of those that were missing last.
    needed: Cell<u64>,
    /// Bytes that were read from the cache since the parser was called.
    copied: Cell<u64>,
    /// Bytes that were read from the cache before.
    work: Cell<u64>,
    /// Whether the present call needs more than there is room for.
    is_too_much: Cell<bool>,
    /// A part of which a disk request has failed: its units are read one by one.
    suspect: Range<u64>,
}

struct Unit {
    /// `None` if the disk could not be read there.
    bytes: Option<Vec<u8>>,
    used: Cell<u64>,
}

/// Why a call of a parser is not complete.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incomplete {
    /// This part of the disk must be read first.
    Missing(Range<u64>),
    /// It needs more than there is room for, or does more than others may wait for.
    TooMuch,
}

impl Cache {
    /// Creates the cache of a disk of `bytes`.
    pub(crate) fn new(bytes: u64) -> Self {
        Self {
            bytes,
            units: BTreeMap::new(),
            clock: Cell::new(1),
            began: Cell::new(1),
            missing: Cell::new(None),
            needed: Cell::new(0),
            copied: Cell::new(0),
            work: Cell::new(0),
            is_too_much: Cell::new(false),
            suspect: 0..0,
        }
    }

    /// Calls a parser. What it returns counts only if nothing was missing.
    ///
    /// # Errors
    /// Fails if a part of the disk is missing, which must be [inserted](Cache::insert) before the same call is made again;
    /// or if the parser needs too much.
    pub(crate) fn call<T>(&self, parse: impl FnOnce(&Self) -> T) -> Result<T, Incomplete> {
        let result = parse(self);
        self.work.set(self.work.get() + self.copied.take());
        let missing = self.missing.take();
        let result = match (self.is_too_much.take(), missing) {
            (true, _) => Err(Incomplete::TooMuch),
            (false, Some((start, end))) => return Err(Incomplete::Missing(start..end)),
            (false, None) => Ok(result),
        };
        self.began.set(self.tick() + 1);
        result
    }

    /// Returns how many bytes parsers have read from it.
    pub(crate) fn work(&self) -> u64 {
        self.work.get()
    }

    /// Adds a part of the disk with what was missing; without `data` if it could not be read. Removes what was not used
    /// for the longest time.
    pub(crate) fn insert(&mut self, range: &Range<u64>, data: Option<&[u8]>) {
        let is_small = range.end - range.start <= UNIT;
        if data.is_none() && !is_small && !self.suspect.contains(&range.start) {
            self.suspect = range.clone();
            return;
        }
        let ahead = self.began.get() - 1;
        let mut at = range.start;
        while at < range.end {
            let end = (at + UNIT).min(range.end);
            let place = |at: u64| usize::try_from(at - range.start).unwrap_or(usize::MAX);
            let bytes = data.and_then(|data| data.get(place(at)..place(end))).map(<[u8]>::to_vec);
            let is_needed = at < self.needed.get();
            let used = Cell::new(if is_needed { self.tick() } else { ahead });
            if self.units.contains_key(&(at / UNIT)) || self.make_room() {
                self.units.insert(at / UNIT, Unit { bytes, used });
            } else if is_needed {
                self.is_too_much.set(true);
            }
            at = end;
        }
    }

    /// Makes room for a unit. Returns whether that was possible.
    fn make_room(&mut self) -> bool {
        if self.units.len() < MAX_UNITS {
            return true;
        }
        let oldest = self.units.iter().min_by_key(|(_, unit)| unit.used.get());
        let oldest = oldest.filter(|(_, unit)| unit.used.get() < self.began.get());
        let index = oldest.map(|(index, _)| *index);
        index.and_then(|index| self.units.remove(&index)).is_some()
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    fn unit(&self, index: u64) -> Option<&Unit> {
        let unit = self.units.get(&index)?;
        unit.used.set(self.tick());
        Some(unit)
    }

    /// Records the units that are missing from `first` to `last` as far as one request reads them.
    fn miss(&self, first: u64, last: u64) {
        let start = first * UNIT;
        let ahead = (start + 1).next_multiple_of(AHEAD);
        let most = match self.suspect.contains(&start) {
            true => start + UNIT,
            false => ahead.max((last + 1).saturating_mul(UNIT)).min(start + MAX_READ),
        };
        let is_missing = |index: &u64| !self.units.contains_key(index);
        let count = (first..most.div_ceil(UNIT)).take_while(is_missing).count() as u64;
        let end = (first + count).saturating_mul(UNIT).min(self.bytes);
        self.needed.set((last + 1).saturating_mul(UNIT).min(end));
        self.missing.set(Some((start, end)));
    }
}

impl ReadAt for Cache {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let copied = self.copied.get() + buffer.len() as u64;
        if copied > MAX_COPIED || self.is_too_much.get() {
            self.is_too_much.set(true);
            return Err(ErrorKind::OutOfMemory.into());
        }
        self.copied.set(copied);
        let end = offset.saturating_add(buffer.len() as u64).min(self.bytes);
        let (mut at, mut rest) = (offset, buffer);
        while at < end {
            let Some(unit) = self.unit(at / UNIT) else {
                self.miss(at / UNIT, (end - 1) / UNIT);
                return Err(ErrorKind::WouldBlock.into());
            };
            let within = usize::try_from(at % UNIT).unwrap_or(0);
            let bytes =
                unit.bytes.as_deref().and_then(|bytes| bytes.get(within..)).unwrap_or_default();
            let len = bytes.len().min(rest.len());
            let (part, more) = rest.split_at_mut(len);
            part.copy_from_slice(bytes.get(..len).unwrap_or_default());
            if len == 0 && at == offset {
                return Err(io::Error::from_raw_os_error(EIO));
            } else if len == 0 {
                break;
            }
            rest = more;
            at += len as u64;
        }
        Ok(usize::try_from(at.saturating_sub(offset)).unwrap_or(0))
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cache({} units)", self.units.len())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// Calls a parser until it is complete, with the parts of `disk` that it needs. Returns the number of requests.
    fn call<T>(
        cache: &mut Cache,
        disk: &[u8],
        parse: impl Fn(&Cache) -> T,
    ) -> (Result<T, Incomplete>, usize) {
        for requests in 0.. {
            match cache.call(&parse) {
                Err(Incomplete::Missing(missing)) => {
                    let place = |at: u64| usize::try_from(at).unwrap();
                    let data = disk[place(missing.start)..place(missing.end)].to_vec();
                    cache.insert(&missing, Some(&data));
                }
                result => return (result, requests),
            }
            assert!(cache.units.len() <= MAX_UNITS && requests < 10_000);
        }
        unreachable!()
    }

    /// Reads bytes as parsers do.
    fn bytes(cache: &Cache, offset: u64, len: usize) -> Vec<u8> {
        let mut buffer = vec![0; len];
        let got = cache.read_at(&mut buffer, offset).unwrap_or(0);
        buffer.truncate(got);
        buffer
    }

    fn read(cache: &mut Cache, disk: &[u8], offset: u64, len: usize) -> (Vec<u8>, usize) {
        let (result, requests) = call(cache, disk, |cache| bytes(cache, offset, len));
        (result.unwrap(), requests)
    }

    #[test]
    fn missing_parts_are_read_once() {
        let disk: Vec<u8> = (0..200_000_u32).map(|at| (at / 7 % 251) as u8).collect();
        let mut cache = Cache::new(200_000);
        assert_eq!(read(&mut cache, &disk, 16_000, 40_000), (disk[16_000..56_000].to_vec(), 1));
        assert_eq!(read(&mut cache, &disk, 20_000, 10).1, 0);
        assert_eq!(read(&mut cache, &disk, 57_000, 10).1, 0, "it was read ahead");
        assert_eq!(read(&mut cache, &disk, 199_990, 100).0, disk[199_990..]);
        assert_eq!(read(&mut cache, &disk, 200_000, 100).0, Vec::<u8>::new());
        assert_eq!(read(&mut cache, &disk, u64::MAX, 100).0, Vec::<u8>::new());
    }

    #[test]
    fn memory_is_bounded() {
        let disk = vec![1; 4 << 20];
        let mut cache = Cache::new(4 << 20);
        for at in (0..4 << 20).step_by(100_000) {
            assert!(read(&mut cache, &disk, at, 90_000).0.iter().all(|byte| *byte == 1));
        }
    }

    #[test]
    fn scattered_parts_fit_or_are_too_much() {
        let disk = vec![1; 32 << 20];
        let scattered = |count: u64| {
            move |cache: &Cache| (0..count).map(|at| bytes(cache, at * 102_400, 512).len()).sum()
        };
        let mut cache = Cache::new(32 << 20);
        for _ in 0..2 {
            let (result, requests) = call(&mut cache, &disk, scattered(250));
            assert_eq!(result, Ok(250 * 512_usize));
            assert!(requests <= 251, "{requests}");
            // Each part is read once, whatever the call needs.
            let (result, requests) = call(&mut cache, &disk, scattered(300));
            assert_eq!(result, Err(Incomplete::TooMuch));
            assert!(requests <= 300, "{requests}");
        }
        assert_eq!(read(&mut cache, &disk, 5, 10).0, [1; 10], "the next call works");
    }

    #[test]
    fn call_that_reads_the_same_again_and_again_is_too_much() {
        let disk = vec![1; 1 << 20];
        let mut cache = Cache::new(1 << 20);
        let again = |times: u32| {
            move |cache: &Cache| (0..times).map(|_| bytes(cache, 0, 4096).len()).sum::<usize>()
        };
        assert_eq!(call(&mut cache, &disk, again(500)).0, Ok(500 * 4096));
        assert_eq!(call(&mut cache, &disk, again(1_000_000)).0, Err(Incomplete::TooMuch));
        assert!(cache.work() < 4 * MAX_COPIED);
    }

    #[test]
    fn failed_reads_are_errors_of_single_units() {
        let mut cache = Cache::new(100_000);
        let read = |cache: &Cache, offset| {
            let mut buffer = [0; 100];
            cache.call(|cache| cache.read_at(&mut buffer, offset))
        };
        let missing = |result| match result {
            Err(Incomplete::Missing(missing)) => missing,
            _ => panic!("nothing is missing"),
        };
        assert_eq!(missing(read(&cache, 0)), 0..16 << 10);
        cache.insert(&(0..16 << 10), None);
        // What was read ahead may be what is bad.
        assert_eq!(missing(read(&cache, 0)), 0..UNIT);
        cache.insert(&(0..UNIT), Some(&vec![2; 4096]));
        assert_eq!(missing(read(&cache, UNIT)), UNIT..2 * UNIT);
        cache.insert(&(UNIT..2 * UNIT), None);
        assert_eq!(read(&cache, UNIT - 10).unwrap().unwrap(), 10);
        assert!(read(&cache, UNIT).unwrap().is_err());
        // A block that is larger than a unit fails as a whole.
        let block = 64 << 10..100_000;
        assert_eq!(missing(read(&cache, 70_000)), 68 << 10..80 << 10);
        cache.insert(&block, None);
        assert_eq!(missing(read(&cache, 70_000)), 68 << 10..72 << 10);
        cache.insert(&block, None);
        assert!(read(&cache, 70_000).unwrap().is_err());
    }
}
