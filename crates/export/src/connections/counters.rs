//! The counters of one connection: its writes in flight, and statistics.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::reservation::Permission;

/// Statistics of an export since it was created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Successful read requests.
    pub reads: u64,
    /// Bytes read by them.
    pub bytes_read: u64,
    /// Successful write requests.
    pub writes: u64,
    /// Bytes written by them.
    pub bytes_written: u64,
    /// Failed requests of any kind.
    pub errors: u64,
}

impl Usage {
    /// Returns the sums.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            reads: self.reads.saturating_add(other.reads),
            bytes_read: self.bytes_read.saturating_add(other.bytes_read),
            writes: self.writes.saturating_add(other.writes),
            bytes_written: self.bytes_written.saturating_add(other.bytes_written),
            errors: self.errors.saturating_add(other.errors),
        }
    }
}

/// Flag in `writes`: the fence is closed, so no write of the connection begins.
pub(super) const CLOSED: u32 = 1 << 31;

/// Flag in `writes`: writes of other connections come first.
pub(super) const HELD: u32 = 1 << 30;

/// Flag in `writes`: a reservation of another host refuses writes.
pub(super) const NO_WRITES: u32 = 1 << 29;

/// Flag in `writes`: it refuses reads as well.
pub(super) const NO_READS: u32 = 1 << 28;

/// Flag in `writes`: a request that changes the disk has begun since the host left.
pub(super) const CHANGED: u32 = 1 << 27;

/// The bits of the number of writes in flight.
pub(super) const COUNT: u32 = CHANGED - 1;

/// The counters of one connection. Its thread changes the numbers, other threads only the flags.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    /// The number of writes in flight, and the flags.
    pub(super) writes: AtomicU32,
    pub(super) reads_done: Counter,
    pub(super) bytes_read: Counter,
    pub(super) writes_done: Counter,
    pub(super) bytes_written: Counter,
    pub(super) errors: Counter,
}

/// A number that one thread changes.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(crate) fn is_closed(&self) -> bool {
        self.writes.load(Ordering::Acquire) & CLOSED != 0
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.writes.load(Ordering::Acquire) & COUNT
    }

    pub(super) fn has_orphans(&self) -> bool {
        let writes = self.writes.load(Ordering::Acquire);
        writes & CLOSED != 0 && writes & COUNT != 0
    }

    pub(super) fn has_changed(&self) -> bool {
        self.writes.load(Ordering::Acquire) & CHANGED != 0
    }

    pub(super) fn clear_changed(&self) {
        self.writes.fetch_and(!CHANGED, Ordering::AcqRel);
    }

    pub(super) fn set_held(&self, held: bool) {
        match held {
            true => self.writes.fetch_or(HELD, Ordering::AcqRel),
            false => self.writes.fetch_and(!HELD, Ordering::AcqRel),
        };
    }

    pub(super) fn set_permission(&self, permission: Permission) {
        let flag = |permitted: bool, flag: u32| if permitted { 0 } else { flag };
        let refused = flag(permission.writes, NO_WRITES) | flag(permission.reads, NO_READS);
        self.writes.fetch_or(refused, Ordering::AcqRel);
        self.writes.fetch_and(!(NO_WRITES | NO_READS) | refused, Ordering::AcqRel);
    }

    /// Returns whether a write is in flight that a reservation now refuses.
    pub(crate) fn has_refused_writes(&self) -> bool {
        let writes = self.writes.load(Ordering::Acquire);
        writes & NO_WRITES != 0 && writes & COUNT != 0
    }

    pub(super) fn usage(&self) -> Usage {
        Usage {
            reads: self.reads_done.get(),
            bytes_read: self.bytes_read.get(),
            writes: self.writes_done.get(),
            bytes_written: self.bytes_written.get(),
            errors: self.errors.get(),
        }
    }
}
