//! Parts of a disk that have been read, for parsers that read when they need it: what is missing is read, and the
//! parser called again.

use std::cell::Cell;
use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::Range;

use filesystem::ReadAt;

/// Bytes that are read at once, from a multiple of that.
pub(crate) const UNIT: u64 = 16 << 10;

/// The most units of a cache: one mebibyte. A parser needs less for one call.
const MAX_UNITS: usize = 64;
/// The number of the error of a disk, as of a medium (errno(3)).
const EIO: i32 = 5;

/// The most units of a disk request.
const MAX_READ: u64 = 16;

/// Parts of a disk.
pub(crate) struct Cache {
    /// Length of the disk in bytes.
    bytes: u64,
    units: Vec<Unit>,
    /// Counts reads.
    clock: Cell<u64>,
    /// What was not there, since [`Cache::take_missing`].
    missing: Cell<Option<(u64, u64)>>,
}

struct Unit {
    index: u64,
    /// `None` if the disk could not be read there.
    bytes: Option<Vec<u8>>,
    used: Cell<u64>,
}

impl Cache {
    /// Creates the cache of a disk of `bytes`.
    pub(crate) fn new(bytes: u64) -> Self {
        Self { bytes, units: Vec::new(), clock: Cell::new(0), missing: Cell::new(None) }
    }

    /// Returns a part of the disk that was read from and is missing.
    pub(crate) fn take_missing(&self) -> Option<Range<u64>> {
        self.missing.take().map(|(start, end)| start..end)
    }

    /// Adds a part of the disk that starts with a unit; without `data` if it could not be read. Removes what was not
    /// used for the longest time.
    pub(crate) fn insert(&mut self, range: &Range<u64>, data: Option<&[u8]>) {
        let mut at = range.start;
        while at < range.end {
            let end = (at + UNIT).min(range.end);
            let place = |at: u64| usize::try_from(at - range.start).unwrap_or(usize::MAX);
            let bytes = data.and_then(|data| data.get(place(at)..place(end))).map(<[u8]>::to_vec);
            let index = at / UNIT;
            self.units.retain(|unit| unit.index != index);
            if self.units.len() >= MAX_UNITS {
                let oldest = self.units.iter().enumerate().min_by_key(|(_, unit)| unit.used.get());
                let oldest = oldest.map(|(place, _)| place);
                oldest.into_iter().for_each(|place| drop(self.units.swap_remove(place)));
            }
            self.units.push(Unit { index, bytes, used: Cell::new(self.tick()) });
            at = end;
        }
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    fn unit(&self, index: u64) -> Option<&Unit> {
        let unit = self.units.iter().find(|unit| unit.index == index)?;
        unit.used.set(self.tick());
        Some(unit)
    }

    /// Records the units that are missing from `first` to `last` as far as one request reads them.
    fn miss(&self, first: u64, last: u64) {
        let is_missing = |index: &u64| self.units.iter().all(|unit| unit.index != *index);
        let count =
            (first..=last).take_while(is_missing).take(usize::try_from(MAX_READ).unwrap_or(1));
        let end = first.saturating_add(count.count() as u64).saturating_mul(UNIT).min(self.bytes);
        self.missing.set(Some((first * UNIT, end)));
    }
}

impl ReadAt for Cache {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
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

    /// Reads through a cache, whose missing parts are those of `disk`.
    fn read(cache: &mut Cache, disk: &[u8], offset: u64, len: usize) -> (Vec<u8>, u32) {
        let (mut buffer, mut requests) = (vec![0; len], 0);
        loop {
            let result = cache.read_at(&mut buffer, offset);
            let Some(missing) = cache.take_missing() else {
                buffer.truncate(result.unwrap());
                return (buffer, requests);
            };
            let place = |at: u64| usize::try_from(at).unwrap();
            let data = disk[place(missing.start)..place(missing.end)].to_vec();
            cache.insert(&missing, Some(&data));
            requests += 1;
        }
    }

    #[test]
    fn missing_parts_are_read_once() {
        let disk: Vec<u8> = (0..200_000_u32).map(|at| (at / 7 % 251) as u8).collect();
        let mut cache = Cache::new(200_000);
        assert_eq!(read(&mut cache, &disk, 16_000, 40_000), (disk[16_000..56_000].to_vec(), 1));
        assert_eq!(read(&mut cache, &disk, 20_000, 10).1, 0);
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
            assert!(cache.units.len() <= MAX_UNITS);
        }
    }

    #[test]
    fn failed_reads_are_errors() {
        let mut cache = Cache::new(100_000);
        cache.insert(&(0..UNIT), Some(&vec![2; 16 << 10]));
        cache.insert(&(UNIT..2 * UNIT), None);
        let mut buffer = [0; 100];
        assert_eq!(cache.read_at(&mut buffer, UNIT - 10).unwrap(), 10);
        assert!(cache.read_at(&mut buffer, UNIT).is_err() && cache.take_missing().is_none());
    }
}
