//! State of a controller that its queues share across threads.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use export::{Fence, KeyId, Op, Peer, Tenant};
use zerocopy::little_endian::{U16, U32, U64};

use crate::wire::log::ErrorEntry;

/// Controller type (CNTRLTYPE).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ControllerType {
    /// I/O controller: one namespace.
    Io,
    /// Discovery controller.
    Discovery,
}

/// Host NQN and host identifier from Connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostIdentity {
    pub(super) nqn: String,
    pub(super) id: [u8; 16],
}

/// A controller: created by the Connect of its Admin queue, ends with that queue.
#[derive(Debug)]
pub(super) struct Controller {
    pub(super) id: u16,
    pub(super) kind: ControllerType,
    /// Subsystem NQN.
    pub(super) subsystem: String,
    pub(super) host: HostIdentity,
    /// Tenant whose controller limit it counts against.
    pub(super) tenant: Tenant,
    /// Key of the secure channel of the Admin queue, if it uses one. The I/O queues must match.
    pub(super) channel: Option<Option<KeyId>>,
    /// Set when authentication generated a TLS PSK (secure channel concatenation): further queues
    /// must use a secure channel.
    concatenated: AtomicBool,
    start: Instant,
    ready: AtomicBool,
    ended: AtomicBool,
    /// Number of resets. Each one deletes the I/O queues that exist.
    pub(super) resets: AtomicU32,
    /// Milliseconds from `start` to the last traffic of the host.
    last_traffic: AtomicU64,
    /// Keep Alive Timeout in milliseconds; zero disables it.
    pub(super) keep_alive: AtomicU32,
    /// Set if the volatile write cache is disabled (Feature 06h): every write is durable.
    pub(super) write_through: AtomicBool,
    /// Whether `shared.aborts` is not empty.
    pub(super) has_aborts: AtomicBool,
    shared: Mutex<Shared>,
}

/// State that Admin commands change.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// I/O queues granted by Number of Queues; zero before that.
    pub(super) granted: u16,
    /// Identifiers of connected I/O queues.
    pub(super) open: BTreeSet<u16>,
    /// Fences of the I/O queues.
    fences: Vec<Weak<Fence>>,
    pub(super) aborts: Vec<Abort>,
    errors: VecDeque<ErrorEntry>,
    error_count: u64,
    /// Counters of the open queues.
    counters: Vec<Arc<QueueCounters>>,
    /// Sum of the counters of the closed queues.
    closed: ByteCounts,
}

impl Shared {
    /// Moves the counters of closed queues into the sum.
    fn fold_closed(&mut self) {
        let Self { counters, closed, .. } = self;
        for one in counters.extract_if(.., |one| Arc::strong_count(one) == 1) {
            closed.add(one.byte_counts());
        }
    }
}

/// Bytes read from and written to the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ByteCounts {
    pub(super) read: u64,
    pub(super) written: u64,
}

/// Byte counters of one queue. Only the queue's thread writes them.
#[derive(Debug, Default)]
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

    fn byte_counts(&self) -> ByteCounts {
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ByteCounts { read: now(&self.read), written: now(&self.written) }
    }
}

impl ByteCounts {
    fn add(&mut self, other: Self) {
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

/// An Abort addressed to the I/O queue of the command it names.
#[derive(Debug)]
pub(super) struct Abort {
    pub(super) sqid: u16,
    pub(super) cid: u16,
    /// Slot of the Abort command.
    pub(super) by: u16,
    /// Result, once the queue has handled it.
    pub(super) aborted: Option<bool>,
}

/// Entries of the error log: ELPE 63, zero's based.
pub(super) const ERROR_ENTRIES: usize = 64;

impl Controller {
    pub(super) fn new(
        id: u16,
        kind: ControllerType,
        subsystem: &str,
        host: HostIdentity,
        peer: &Peer,
        keep_alive: u32,
        now: Instant,
    ) -> Self {
        Self {
            id,
            kind,
            subsystem: subsystem.to_owned(),
            host,
            tenant: peer.tenant(),
            channel: peer.channel.as_ref().map(|channel| channel.key),
            concatenated: AtomicBool::new(false),
            start: now,
            ready: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            resets: AtomicU32::new(0),
            last_traffic: AtomicU64::new(0),
            keep_alive: AtomicU32::new(keep_alive),
            write_through: AtomicBool::new(false),
            has_aborts: AtomicBool::new(false),
            shared: Mutex::default(),
        }
    }

    pub(super) fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Records that authentication generated a PSK for a secure channel.
    pub(super) fn set_concatenated(&self) {
        self.concatenated.store(true, Ordering::Release);
    }

    /// Returns whether a queue on that channel (`None`: no secure channel) may join.
    pub(super) fn accepts_channel(&self, channel: Option<Option<KeyId>>) -> bool {
        self.channel == channel && !(channel.is_none() && self.concatenated.load(Ordering::Acquire))
    }

    /// Returns counters for a new queue.
    pub(super) fn new_counters(&self) -> Arc<QueueCounters> {
        let counters = Arc::<QueueCounters>::default();
        let mut shared = self.shared();
        shared.fold_closed();
        shared.counters.push(counters.clone());
        counters
    }

    /// Returns the byte counts of all queues, closed ones included.
    pub(super) fn byte_counts(&self) -> ByteCounts {
        let mut shared = self.shared();
        shared.fold_closed();
        let mut byte_counts = shared.closed;
        shared.counters.iter().for_each(|one| byte_counts.add(one.byte_counts()));
        byte_counts
    }

    /// Returns CSTS.RDY.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub(super) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// Returns whether the association has ended. All its queues close then.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Ends the association and revokes write access of its queues.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.close_fences();
    }

    /// Revokes write access of the I/O queues at once, from any thread. Writes in flight become
    /// orphans.
    pub(super) fn close_fences(&self) {
        self.set_ready(false);
        let mut shared = self.shared();
        std::mem::take(&mut shared.fences)
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|one| one.close());
    }

    /// Registers the fence of an I/O queue that joined after `resets` resets, for
    /// [`Controller::close_fences`]. Closes it at once if the controller was reset since.
    pub(super) fn register_fence(&self, fence: &Arc<Fence>, resets: u32) {
        let mut shared = self.shared();
        if !self.is_ready() || resets != self.resets.load(Ordering::Acquire) {
            return fence.close();
        }
        shared.fences.retain(|other| other.strong_count() != 0);
        shared.fences.push(Arc::downgrade(fence));
    }

    /// Restarts the keep-alive timer on traffic of any queue (traffic-based keep alive, NVMe Base
    /// 2.0 §3.9.2).
    pub(super) fn restart_keep_alive(&self, now: Instant) {
        let millis = now.saturating_duration_since(self.start).as_millis();
        self.last_traffic.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Returns when keep-alive expires: the keep-alive time plus `grace` after the last traffic, or
    /// `idle` after it if no keep-alive time is set.
    pub(super) fn keep_alive_deadline(
        &self,
        grace: Duration,
        idle: Option<Duration>,
    ) -> Option<Instant> {
        let keep_alive = match self.keep_alive.load(Ordering::Relaxed) {
            0 => idle?,
            millis => Duration::from_millis(millis.into()) + grace,
        };
        Some(
            self.start
                + Duration::from_millis(self.last_traffic.load(Ordering::Relaxed))
                + keep_alive,
        )
    }

    /// Adds a failed command to the error log (NVMe Base 2.0 §5.16.1.2).
    pub(super) fn log_error(&self, sqid: u16, cid: u16, status: u16, nsid: u32, lba: u64) {
        let mut shared = self.shared();
        shared.error_count += 1;
        let entry = ErrorEntry {
            error_count: U64::new(shared.error_count),
            sqid: U16::new(sqid),
            cid: U16::new(cid),
            status: U16::new(status),
            parameter_error_location: U16::new(0xffff),
            lba: U64::new(lba),
            nsid: U32::new(nsid),
            ..zerocopy::FromZeros::new_zeroed()
        };
        shared.errors.truncate(ERROR_ENTRIES - 1);
        shared.errors.push_front(entry);
    }

    /// Returns the error log, newest first, and the total number of errors.
    pub(super) fn errors(&self) -> (Vec<ErrorEntry>, u64) {
        let shared = self.shared();
        (shared.errors.iter().copied().collect(), shared.error_count)
    }
}
