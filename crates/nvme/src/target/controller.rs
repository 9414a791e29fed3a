//! What the queues of one controller share, on whatever threads they run. It knows no connection.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use export::{Fence, KeyId, Op, Peer, Tenant};
use zerocopy::little_endian::{U16, U32, U64};

use crate::wire::log::ErrorEntry;

/// Which command sets a controller has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Lends one disk.
    Io,
    /// Tells which disks are lent.
    Discovery,
}

/// Who a host says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) nqn: String,
    pub(super) id: [u8; 16],
}

/// A controller: made by the Connect of its Admin queue, ended with it.
#[derive(Debug)]
pub(super) struct Controller {
    pub(super) id: u16,
    pub(super) kind: Kind,
    /// NQN of its subsystem.
    pub(super) subsystem: String,
    pub(super) host: Host,
    /// The tenant whose limit of controllers it counts against.
    pub(super) tenant: Tenant,
    /// The key of the channel that the Admin queue came in, if it came in one: the other queues come in such a one, too.
    pub(super) channel: Option<Option<KeyId>>,
    /// Set when a key for a secured channel came out of the host's proof: what follows is to come in that channel.
    concatenated: AtomicBool,
    start: Instant,
    ready: AtomicBool,
    ended: AtomicBool,
    /// How often it was reset: each reset deletes the I/O queues there were.
    pub(super) resets: AtomicU32,
    /// Milliseconds from `start` to the last word of the host.
    last_word: AtomicU64,
    /// Keep-alive time in milliseconds; zero is none.
    pub(super) keep_alive: AtomicU32,
    /// Set by Set Features 06h: every write is to be durable.
    pub(super) write_through: AtomicBool,
    /// Whether `shared.aborts` has anything that an I/O queue is to look at.
    pub(super) has_aborts: AtomicBool,
    shared: Mutex<Shared>,
}

/// What is changed by Admin commands only.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// I/O queues that were granted; zero before Set Features asked.
    pub(super) granted: u16,
    /// I/O queues that are connected.
    pub(super) open: BTreeSet<u16>,
    /// Those of the I/O queues.
    fences: Vec<Weak<Fence>>,
    pub(super) aborts: Vec<Abort>,
    errors: VecDeque<ErrorEntry>,
    error_count: u64,
    /// What the queues that there are have moved, and what those that are gone had.
    traffic: Vec<Arc<Traffic>>,
    gone: Moved,
}

impl Shared {
    /// Sums up what the queues have moved that are gone.
    fn settle(&mut self) {
        let Self { traffic, gone, .. } = self;
        for one in traffic.extract_if(.., |one| Arc::strong_count(one) == 1) {
            gone.add(one.moved());
        }
    }
}

/// Bytes read from the disk, and bytes written to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) read: u64,
    pub(super) written: u64,
}

/// What one queue has moved. Only its own thread adds to it.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    read: AtomicU64,
    written: AtomicU64,
}

impl Traffic {
    /// A request of `len` bytes goes to the disk.
    pub(super) fn add(&self, op: Op, len: u64) {
        let counter = match op {
            Op::Read => &self.read,
            Op::Write { .. } => &self.written,
            _ => return,
        };
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(len), Ordering::Relaxed);
    }

    fn moved(&self) -> Moved {
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Moved { read: now(&self.read), written: now(&self.written) }
    }
}

impl Moved {
    fn add(&mut self, other: Self) {
        self.read = self.read.wrapping_add(other.read);
        self.written = self.written.wrapping_add(other.written);
    }

    /// What was moved since it was `before`.
    pub(super) fn since(self, before: Self) -> Self {
        let (read, written) = (self.read, self.written);
        Self {
            read: read.saturating_sub(before.read),
            written: written.saturating_sub(before.written),
        }
    }
}

/// An Abort that is on its way to the queue of the command it names.
#[derive(Debug)]
pub(super) struct Abort {
    pub(super) sqid: u16,
    pub(super) cid: u16,
    /// The slot of the Abort command itself.
    pub(super) by: u16,
    /// Whether the command was aborted, once that is known.
    pub(super) aborted: Option<bool>,
}

/// Entries of the error log: ELPE 63.
pub(super) const ERROR_ENTRIES: usize = 64;

impl Controller {
    pub(super) fn new(
        id: u16,
        kind: Kind,
        subsystem: &str,
        host: Host,
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
            last_word: AtomicU64::new(0),
            keep_alive: AtomicU32::new(keep_alive),
            write_through: AtomicBool::new(false),
            has_aborts: AtomicBool::new(false),
            shared: Mutex::default(),
        }
    }

    pub(super) fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// The host has a key for a secured channel now.
    pub(super) fn set_concatenated(&self) {
        self.concatenated.store(true, Ordering::Release);
    }

    /// Whether a queue that came in such a channel, or in none, may join.
    pub(super) fn is_joined_by(&self, channel: Option<Option<KeyId>>) -> bool {
        self.channel == channel && !(channel.is_none() && self.concatenated.load(Ordering::Acquire))
    }

    /// The counters of a new queue.
    pub(super) fn count(&self) -> Arc<Traffic> {
        let traffic = Arc::<Traffic>::default();
        let mut shared = self.shared();
        shared.settle();
        shared.traffic.push(traffic.clone());
        traffic
    }

    /// What all its queues have moved.
    pub(super) fn moved(&self) -> Moved {
        let mut shared = self.shared();
        shared.settle();
        let mut moved = shared.gone;
        shared.traffic.iter().for_each(|one| moved.add(one.moved()));
        moved
    }

    /// CSTS.RDY.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub(super) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// Whether the association is over: every queue of it closes.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Ends the association, and with it the right of its queues to write.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.fence_off();
    }

    /// Ends the right of the I/O queues that there are to write, at once, whatever their own threads are at: what of them is
    /// in flight counts as orphaned.
    pub(super) fn fence_off(&self) {
        self.set_ready(false);
        let mut shared = self.shared();
        std::mem::take(&mut shared.fences)
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|one| one.close());
    }

    /// Makes `fence`, of an I/O queue that joined after so many resets, one of those that [`Controller::fence_off`] closes.
    pub(super) fn guard(&self, fence: &Arc<Fence>, resets: u32) {
        let mut shared = self.shared();
        if !self.is_ready() || resets != self.resets.load(Ordering::Acquire) {
            return fence.close();
        }
        shared.fences.retain(|other| other.strong_count() != 0);
        shared.fences.push(Arc::downgrade(fence));
    }

    /// The host said something, on whichever queue (traffic-based keep alive, NVMe Base 2.0 §3.9.2).
    pub(super) fn heard(&self, now: Instant) {
        let millis = now.saturating_duration_since(self.start).as_millis();
        self.last_word.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// When the host is given up if it says nothing more: `idle` after its last word where it has no keep-alive time.
    pub(super) fn silent_until(&self, grace: Duration, idle: Option<Duration>) -> Option<Instant> {
        let keep_alive = match self.keep_alive.load(Ordering::Relaxed) {
            0 => idle?,
            millis => Duration::from_millis(millis.into()) + grace,
        };
        Some(
            self.start + Duration::from_millis(self.last_word.load(Ordering::Relaxed)) + keep_alive,
        )
    }

    /// Enters a failed command in the error log (NVMe Base 2.0 §5.16.1.2).
    pub(super) fn record(&self, sqid: u16, cid: u16, status: u16, nsid: u32, lba: u64) {
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

    /// The error log, newest first, and how many errors there have been.
    pub(super) fn errors(&self) -> (Vec<ErrorEntry>, u64) {
        let shared = self.shared();
        (shared.errors.iter().copied().collect(), shared.error_count)
    }
}
