//! Reads what was written back from a disk of this machine while the copy goes on: see decision 21.
//!
//! A range is read back when it is on stable storage and so much was written after it that a cache
//! of the disk no longer holds it. A later write can destroy it nevertheless, so that a sample is
//! read once more after the last one.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use export::Pool;

use crate::compare::read;
use crate::hash_tree::{RangeHash, TreeShape};
use crate::read_back::ReadBack;
use crate::sync_io::{SyncIo, SyncIoError};
use crate::thread_io::OpenedEndpoint;
use crate::{CopyError, Request, RequestError};

/// Number of threads that read back.
pub(crate) const THREADS: usize = 2;

/// Bytes that have to be written after a range before it is read back: more than disks cache.
const DISTANCE: u64 = if cfg!(test) { 2 << 20 } else { 256 << 20 };

/// Bytes that a thread reads back at a time.
const BATCH: u64 = if cfg!(test) { 1 << 19 } else { 16 << 20 };

/// Leaves that are read again at random: this part of all, and at least this number.
const SAMPLE_PART: usize = 50;
const MIN_SAMPLE: usize = if cfg!(test) { 4 } else { 64 };

/// What was written to the destination, and is read back by threads of its own.
pub(crate) struct ReadBehind {
    end: OpenedEndpoint,
    shape: TreeShape,
    reconnect_timeout: Duration,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Bytes in the order of writing that are known to be on stable storage.
    flushed: Mutex<u64>,
    found: Mutex<Vec<RangeHash>>,
}

/// Written ranges in the order of writing.
#[derive(Debug, Default)]
struct Queue {
    ranges: VecDeque<Range<u64>>,
    /// Bytes that were added and that were taken.
    written: u64,
    taken: u64,
    ended: bool,
}

/// Ranges to read back.
struct Batch {
    ranges: Vec<Range<u64>>,
    /// Bytes that were written up to the last of them, in the order of writing.
    written: u64,
}

impl ReadBehind {
    /// Reads back from `end`; `shape` is that of the hashes of what is written.
    pub(crate) fn new(end: &OpenedEndpoint, shape: TreeShape, reconnect_timeout: Duration) -> Self {
        Self {
            end: end.clone(),
            shape,
            reconnect_timeout,
            queue: Mutex::default(),
            changed: Condvar::new(),
            flushed: Mutex::new(0),
            found: Mutex::default(),
        }
    }

    /// Records a range that was written, with data.
    pub(crate) fn record_written(&self, range: Range<u64>) {
        let mut queue = lock(&self.queue);
        queue.written += range.end - range.start;
        queue.ranges.push_back(range);
        if queue.is_due() {
            self.changed.notify_one();
        }
    }

    /// Ends [`ReadBehind::run`] in all threads: what is left is read back after the last write.
    pub(crate) fn end(&self) {
        lock(&self.queue).ended = true;
        self.changed.notify_all();
    }

    /// Reads back until [`ReadBehind::end`]. What cannot be read is left for the end of the copy.
    ///
    /// # Errors
    /// Fails if a flush fails.
    pub(crate) fn run(&self, stop: &AtomicBool) -> Result<(), CopyError> {
        let mut io = SyncIo::new(&self.end, self.reconnect_timeout, stop);
        if io.try_connect().is_err() || io.drop_caches().is_err() {
            return Ok(());
        }
        let account = Pool::new(Pool::MAX_BUFFER).open();
        while let Some(batch) = self.next() {
            match self.flush(&mut io, batch.written) {
                Ok(Ok(())) => {}
                Ok(Err(reason)) => {
                    let name = self.end.disk.name.clone();
                    return Err(CopyError::Flush { name, reason });
                }
                Err(_) => return Ok(()),
            }
            for range in batch.ranges {
                let Ok(Some(there)) = read(&mut io, &account, &range) else { continue };
                let hashes = self.shape.hash_range(range.start, there.bytes());
                lock(&self.found).extend(hashes);
                if lock(&self.queue).ended {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Waits for ranges that are due, and takes some. Returns `None` at the end.
    fn next(&self) -> Option<Batch> {
        let mut queue = lock(&self.queue);
        while !queue.is_due() && !queue.ended {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.ended { None } else { Some(queue.take()) }
    }

    /// Makes sure that the first `written` bytes in the order of writing are on stable storage.
    fn flush(
        &self,
        io: &mut SyncIo<'_>,
        written: u64,
    ) -> Result<Result<(), RequestError>, SyncIoError> {
        let mut flushed = lock(&self.flushed);
        if *flushed >= written {
            return Ok(Ok(()));
        }
        let before = lock(&self.queue).written;
        let result = io.run(Request::Flush)?.result;
        if result.is_ok() {
            *flushed = before;
        }
        Ok(result)
    }

    /// Moves what was read back to `read_back`, without the sample that is to be read again. Returns the
    /// number of bytes that are not.
    pub(crate) fn conclude(&self, read_back: &mut ReadBack) -> u64 {
        read_back.record_hashes(std::mem::take(&mut *lock(&self.found)));
        let leaves = read_back.leaves();
        let (keys, mut count) = (RandomState::new(), 0_u64);
        let random = || {
            count += 1;
            keys.hash_one(count)
        };
        sample(&leaves, random).iter().for_each(|leaf| read_back.forget(leaf));
        read_back.leaves().iter().map(|leaf| leaf.end - leaf.start).sum()
    }
}

impl Queue {
    /// The bytes that were written before the last [`DISTANCE`].
    fn is_due(&self) -> bool {
        self.written - self.taken >= DISTANCE + BATCH
    }

    fn take(&mut self) -> Batch {
        let (mut ranges, until) = (Vec::new(), self.taken + BATCH);
        while let Some(range) = self.ranges.front().filter(|_| self.taken < until) {
            self.taken += range.end - range.start;
            ranges.push(range.clone());
            self.ranges.pop_front();
        }
        Batch { ranges: joined(ranges), written: self.taken }
    }
}

/// Sorts ranges, and joins those that follow each other within the bytes of one request.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let block = |offset: u64| offset / Pool::MAX_BUFFER as u64;
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start && block(last.start) == block(range.end - 1) => {
                last.end = range.end;
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// The leaves to read again, of these in ascending order: the first one, which a disk of less than it
/// announces destroys when its addresses wrap around; those at each power of two, and before it; and
/// a random part.
fn sample(leaves: &[Range<u64>], mut random: impl FnMut() -> u64) -> Vec<Range<u64>> {
    let at = |offset: u64| leaves.partition_point(|leaf| leaf.end <= offset);
    let powers = (20..u64::BITS).flat_map(|log| [at((1 << log) - 1), at(1 << log)]);
    let mut chosen: Vec<usize> = powers.chain([0]).filter(|index| *index < leaves.len()).collect();
    let mut rest: Vec<usize> = (0..leaves.len()).collect();
    for _ in 0..MIN_SAMPLE.max(leaves.len() / SAMPLE_PART) {
        let Some(index) = random().checked_rem(rest.len() as u64) else { break };
        chosen.push(rest.swap_remove(usize::try_from(index).unwrap_or(0)));
    }
    chosen.sort_unstable();
    chosen.dedup();
    chosen.into_iter().filter_map(|index| leaves.get(index).cloned()).collect()
}

/// Ignores poisoning: after a panic in one thread the others still finish cleanly.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn ranges_are_joined_up_to_a_request() {
        let quarter = |index: u64| index << 18..(index + 1) << 18;
        let mut ranges: Vec<_> = [5, 1, 0, 2, 3, 7, 4].map(quarter).into();
        ranges.push(9 << 18..(9 << 18) + 512);
        let expected = [0..1 << 20, 1 << 20..6 << 18, 7 << 18..8 << 18, 9 << 18..(9 << 18) + 512];
        assert_eq!(joined(ranges), expected);
    }

    #[test]
    fn sample_has_first_leaf_powers_of_two_and_random_ones() {
        let leaves: Vec<_> = (0..1000_u64).map(|index| index << 20..(index + 1) << 20).collect();
        let mut state = 7_u64;
        let random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 33
        };
        let chosen = sample(&leaves, random);
        for index in [0, 1, 2, 3, 4, 7, 8, 255, 256, 511, 512] {
            assert!(chosen.contains(&leaves[index]), "{index}");
        }
        assert!(chosen.len() >= 30 && chosen.len() <= 20 + 20 + 1, "{}", chosen.len());
        assert!(chosen.is_sorted_by_key(|leaf| leaf.start));
        assert_eq!(sample(&leaves[..3], || 0).len(), 3);
        assert!(sample(&[], || 0).is_empty());
        let gap = sample(&[9 << 20..10 << 20, 40 << 20..41 << 20], || 1);
        assert_eq!(gap.len(), 2);
    }

    #[test]
    fn ranges_are_due_some_way_behind() {
        let mut queue = Queue::default();
        for index in 0..32_u64 {
            let due = queue.is_due();
            assert_eq!(due, index << 18 >= DISTANCE + BATCH, "{index}");
            if due {
                break;
            }
            queue.written += 1 << 18;
            queue.ranges.push_back(index << 18..(index + 1) << 18);
        }
        let batch = queue.take();
        let taken: Vec<u64> = batch.ranges.iter().map(|range| range.end - range.start).collect();
        assert_eq!((taken, batch.written), (vec![BATCH], BATCH));
        assert!(!queue.is_due());
    }
}
