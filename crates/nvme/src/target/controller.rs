//! State of a controller that its queues share across threads.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use export::{Association, Fence, KeyId, Peer, Tenant};
use zerocopy::little_endian::{U16, U32, U64};

use super::counters::{ByteCounts, QueueCounters};
use crate::status::Status;
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
    nqn: String,
    id: [u8; 16],
}

impl HostIdentity {
    pub(super) fn new(nqn: &str, id: [u8; 16]) -> Self {
        Self { nqn: nqn.to_owned(), id }
    }

    pub(super) fn nqn(&self) -> &str {
        &self.nqn
    }

    pub(super) fn id(&self) -> &[u8; 16] {
        &self.id
    }
}

/// A controller: created by the Connect of its Admin queue, ends with that queue.
#[derive(Debug)]
pub(super) struct Controller {
    id: u16,
    kind: ControllerType,
    /// Subsystem NQN.
    subsystem: String,
    host: HostIdentity,
    /// What its queues leave the disk with.
    association: Association,
    /// Tenant whose controller limit it counts against.
    tenant: Tenant,
    /// Key of the secure channel of the Admin queue, if it uses one. The I/O queues must match.
    channel: Option<Option<KeyId>>,
    /// Set when authentication generated a TLS PSK (secure channel concatenation): further queues
    /// must use a secure channel.
    concatenated: AtomicBool,
    start: Instant,
    ready: AtomicBool,
    ended: AtomicBool,
    /// Number of resets. Each one deletes the I/O queues that exist.
    resets: AtomicU32,
    /// Milliseconds from `start` to the last traffic of the host.
    last_traffic: AtomicU64,
    /// Keep Alive Timeout in milliseconds; zero disables it.
    keep_alive: AtomicU32,
    /// Set if the host wants to know of ANA changes: that the target stops is announced first.
    announces_stop: AtomicBool,
    /// Set when the stop is announced: the namespace is inaccessible by this controller.
    inaccessible: AtomicBool,
    /// Set if the volatile write cache is disabled (Feature 06h): every write is durable.
    write_through: AtomicBool,
    /// Whether `shared.aborts` is not empty.
    has_aborts: AtomicBool,
    shared: Mutex<Shared>,
}

/// State that Admin commands change.
#[derive(Debug, Default)]
struct Shared {
    /// I/O queues granted by Number of Queues; zero before that.
    granted: u16,
    /// Identifiers of connected I/O queues.
    open: BTreeSet<u16>,
    /// Fences of the I/O queues.
    fences: Vec<Weak<Fence>>,
    aborts: Vec<Abort>,
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

/// An Abort addressed to the I/O queue of the command it names.
#[derive(Debug)]
struct Abort {
    sqid: u16,
    cid: u16,
    /// Slot of the Abort command.
    by: u16,
    /// Result, once the queue has handled it.
    aborted: Option<bool>,
}

impl Abort {
    /// Returns whether queue `qid` has not handled it yet.
    fn is_pending(&self, qid: u16) -> bool {
        self.sqid == qid && self.aborted.is_none()
    }
}

/// Maximum of outstanding Aborts: ACL 3, 0's based.
pub(super) const MAX_ABORTS: usize = 4;

/// Entries of the error log: ELPE 63, 0's based.
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
            association: Association::default(),
            tenant: peer.tenant(),
            channel: peer.channel.as_ref().map(|channel| channel.key),
            concatenated: AtomicBool::new(false),
            start: now,
            ready: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            resets: AtomicU32::new(0),
            last_traffic: AtomicU64::new(0),
            keep_alive: AtomicU32::new(keep_alive),
            announces_stop: AtomicBool::new(false),
            inaccessible: AtomicBool::new(false),
            write_through: AtomicBool::new(false),
            has_aborts: AtomicBool::new(false),
            shared: Mutex::default(),
        }
    }

    pub(super) fn id(&self) -> u16 {
        self.id
    }

    pub(super) fn kind(&self) -> ControllerType {
        self.kind
    }

    /// Returns the subsystem NQN.
    pub(super) fn subsystem(&self) -> &str {
        &self.subsystem
    }

    pub(super) fn host(&self) -> &HostIdentity {
        &self.host
    }

    pub(super) fn association(&self) -> &Association {
        &self.association
    }

    /// Returns the tenant whose controller limit it counts against.
    pub(super) fn tenant(&self) -> Tenant {
        self.tenant
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
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

    // ---- I/O queues

    /// Returns the number of resets. Each one deletes the I/O queues that exist.
    pub(super) fn resets(&self) -> u32 {
        self.resets.load(Ordering::Acquire)
    }

    /// Returns the number of I/O queues granted by Number of Queues; zero before that.
    pub(super) fn granted_queues(&self) -> u16 {
        self.shared().granted
    }

    /// Grants `count` I/O queues. Fails after the first one was created (NVMe Base 2.0
    /// §5.27.1.5).
    pub(super) fn grant_queues(&self, count: u16) -> Result<(), Status> {
        let mut shared = self.shared();
        if !shared.open.is_empty() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
        }
        shared.granted = count;
        Ok(())
    }

    /// Takes the identifier of an I/O queue that joined after `resets` resets. Returns whether it
    /// was free.
    pub(super) fn open_queue(&self, qid: u16, resets: u32) -> bool {
        // Holds the lock: a reset must not delete the open queues in between.
        let mut shared = self.shared();
        resets == self.resets() && qid <= shared.granted && shared.open.insert(qid)
    }

    /// Releases the identifier of an I/O queue that joined after `resets` resets.
    pub(super) fn close_queue(&self, qid: u16, resets: u32) {
        // Holds the lock: a reset, after which another queue may own the identifier, must not
        // happen in between.
        let mut shared = self.shared();
        if resets == self.resets() {
            shared.open.remove(&qid);
        }
    }

    /// Performs the part of a Controller Level Reset that the queues share: deletes the I/O queues
    /// (NVMe Base 2.0 §3.7.2).
    pub(super) fn reset(&self) {
        self.close_fences();
        let mut shared = self.shared();
        shared.granted = 0;
        shared.open.clear();
        // The commands were deleted with their queues. A new queue may use the same identifiers.
        shared.aborts.iter_mut().for_each(|abort| abort.aborted = abort.aborted.or(Some(false)));
        self.resets.fetch_add(1, Ordering::AcqRel);
        drop(shared);
        self.set_write_through(false);
        self.set_announces_stop(false);
    }

    // ---- Aborts of commands of I/O queues

    /// Adds an Abort by the command in slot `by` of the Admin queue. Returns whether the queue
    /// exists.
    pub(super) fn add_abort(&self, sqid: u16, cid: u16, by: u16) -> Result<bool, Status> {
        let mut shared = self.shared();
        if shared.aborts.len() >= MAX_ABORTS {
            return Err(Status::ABORT_LIMIT_EXCEEDED.dnr());
        }
        if !shared.open.contains(&sqid) {
            return Ok(false);
        }
        shared.aborts.push(Abort { sqid, cid, by, aborted: None });
        drop(shared);
        self.has_aborts.store(true, Ordering::Release);
        Ok(true)
    }

    /// Returns the commands of a queue that are to be aborted.
    pub(super) fn pending_aborts(&self, qid: u16) -> Vec<u16> {
        if !self.has_aborts.load(Ordering::Acquire) {
            return Vec::new();
        }
        let shared = self.shared();
        let own = shared.aborts.iter().filter(|abort| abort.is_pending(qid));
        own.map(|abort| abort.cid).collect()
    }

    /// Stores the result of an Abort.
    pub(super) fn set_aborted(&self, qid: u16, cid: u16, aborted: bool) {
        let mut shared = self.shared();
        let mut pending = shared.aborts.iter_mut().filter(|abort| abort.is_pending(qid));
        if let Some(abort) = pending.find(|abort| abort.cid == cid) {
            abort.aborted = Some(aborted);
        }
    }

    /// Takes the Aborts that have a result: the slot of each, and whether the command was aborted.
    pub(super) fn take_aborts(&self) -> Vec<(u16, bool)> {
        let mut shared = self.shared();
        let Shared { open, aborts, .. } = &mut *shared;
        // The commands of a closed queue are gone.
        let settled = |abort: &mut Abort| abort.aborted.is_some() || !open.contains(&abort.sqid);
        let done = aborts.extract_if(.., settled);
        let done = done.map(|abort| (abort.by, abort.aborted == Some(true))).collect();
        self.has_aborts.store(!aborts.is_empty(), Ordering::Release);
        done
    }

    // ---- state

    /// Returns whether the volatile write cache is disabled (Feature 06h): every write is durable.
    pub(super) fn is_write_through(&self) -> bool {
        self.write_through.load(Ordering::Relaxed)
    }

    pub(super) fn set_write_through(&self, on: bool) {
        self.write_through.store(on, Ordering::Relaxed);
    }

    /// Returns whether a stop of the target is announced to the host before its queues close.
    pub(super) fn announces_stop(&self) -> bool {
        self.announces_stop.load(Ordering::Acquire)
    }

    pub(super) fn set_announces_stop(&self, on: bool) {
        self.announces_stop.store(on, Ordering::Release);
    }

    /// Returns whether the namespace is inaccessible by this controller (ANA).
    pub(super) fn is_inaccessible(&self) -> bool {
        self.inaccessible.load(Ordering::Acquire)
    }

    pub(super) fn set_inaccessible(&self) {
        self.inaccessible.store(true, Ordering::Release);
    }

    /// Returns the Keep Alive Timeout in milliseconds; zero disables it.
    pub(super) fn keep_alive(&self) -> u32 {
        self.keep_alive.load(Ordering::Relaxed)
    }

    pub(super) fn set_keep_alive(&self, millis: u32) {
        self.keep_alive.store(millis, Ordering::Relaxed);
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
        if !self.is_ready() || resets != self.resets() {
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
        let keep_alive = match self.keep_alive() {
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
