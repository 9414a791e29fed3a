//! Byte counters of a queue, and their sums.

use std::sync::atomic::{AtomicU64, Ordering};

use export::Op;

/// Bytes read from and written to the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ByteCounts {
    read: u64,
    written: u64,
}

impl ByteCounts {
    pub(super) fn read(self) -> u64 {
        self.read
    }

    pub(super) fn written(self) -> u64 {
        self.written
    }

    pub(super) fn add(&mut self, other: Self) {
        self.read = self.read.wrapping_add(other.read);
        self.written = self.written.wrapping_add(other.written);
    }

    /// Returns the difference to an earlier value.
    pub(super) fn since(self, before: Self) -> Self {
        let (read, written) = (self.read, self.written);
        Self {
            read: read.saturating_sub(before.read),
            written: written.saturating_sub(before.written),
        }
    }
}

/// Byte counters of one queue. Only the queue's thread writes them, so they
/// have cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct QueueCounters {
    read: AtomicU64,
    written: AtomicU64,
}

impl QueueCounters {
    /// Counts a disk request of `len` bytes.
    pub(super) fn add(&self, op: Op, len: u64) {
        let counter = match op {
            Op::Read => &self.read,
            Op::Write { .. } => &self.written,
            _ => return,
        };
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(len), Ordering::Relaxed);
    }

    pub(super) fn byte_counts(&self) -> ByteCounts {
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ByteCounts { read: now(&self.read), written: now(&self.written) }
    }
}
