//! Starts writing to the disk what is written to the page cache, a few megabytes at a time.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Advice, fadvise};

/// What was written since the kernel was last asked to write to the disk.
#[derive(Debug, Default)]
pub(super) struct WriteBack(Mutex<Unwritten>);

#[derive(Debug, Default)]
struct Unwritten {
    /// Includes everything.
    range: Range<u64>,
    bytes: u64,
}

/// Bytes that are written to the disk together. Without being asked, the kernel starts only when a
/// tenth of the memory is dirty, and the flush at the end would wait for most of a small disk.
const MIN_BYTES: u64 = 8 << 20;

impl WriteBack {
    /// Records a write to the page cache.
    pub(super) fn written(&self, file: &File, range: &Range<u64>) {
        let Some(range) = self.add(range) else { return };
        // Of pages that are dirty the kernel starts the writing instead of dropping them.
        let len = NonZeroU64::new(range.end - range.start);
        let _ = fadvise(file, range.start, len, Advice::DontNeed);
    }

    /// Returns a range with everything that is unwritten, if that is enough.
    fn add(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let mut unwritten = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = if unwritten.bytes == 0 { range } else { &unwritten.range };
        let bytes = unwritten.bytes.saturating_add(range.end - range.start);
        let range = before.start.min(range.start)..before.end.max(range.end);
        if bytes >= MIN_BYTES {
            *unwritten = Unwritten::default();
            return Some(range);
        }
        *unwritten = Unwritten { range, bytes };
        None
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn writes_in_any_order_are_started_together() {
        const MIB: u64 = 1 << 20;
        let write_back = WriteBack::default();
        let add = |range: Range<u64>| write_back.add(&(range.start * MIB..range.end * MIB));
        assert_eq!((add(13..16), add(10..12), add(17..19)), (None, None, None));
        assert_eq!(add(16..17), Some(10 * MIB..19 * MIB));
        assert_eq!((add(30..32), add(0..1)), (None, None), "none of those before");
        assert_eq!(add(40..50), Some(0..50 * MIB));
    }
}
