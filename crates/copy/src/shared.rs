//! What the threads of a copy share. It knows no way to a disk.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::hash_tree::{HashTree, RangeHash, TreeShape};
use crate::map::Map;
use crate::plan::Plan;
use crate::rate::RateLimit;
use crate::thread_io::OpenedEndpoint;
use crate::{CopyError, Phase};

/// What all threads of one stage, copying or verifying, share.
pub(crate) struct Shared {
    pub(crate) source: OpenedEndpoint,
    /// None while verifying: what is read is compared, and written nowhere.
    pub(crate) destination: Option<OpenedEndpoint>,
    pub(crate) config: StageConfig,
    plan: Mutex<Plan>,
    changed: Condvar,
    waiting: AtomicUsize,
    tree: Option<Mutex<HashTree>>,
    shape: TreeShape,
    limit: Mutex<RateLimit>,
    /// Threads that may do the request.
    active: AtomicUsize,
    halt: AtomicBool,
    error: Mutex<Option<CopyError>>,
    /// What was written and is not known to be on stable storage: where each piece begins and ends.
    unflushed: Mutex<BTreeMap<u64, u64>>,
    reconnecting: Mutex<Vec<(usize, String, String)>>,
    pub(crate) copied: AtomicU64,
    pub(crate) zeroes: AtomicU64,
    pub(crate) resent: AtomicU64,
}

/// How long an end may answer nothing before that is shown.
const STALLED: Duration = Duration::from_secs(3);

/// How the threads request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StageConfig {
    /// Threads.
    pub(crate) threads: usize,
    /// Memory of a thread in bytes.
    pub(crate) memory: usize,
    /// Bytes of a request.
    pub(crate) chunk: u64,
    /// Whether zeros become holes.
    pub(crate) sparse: bool,
    /// Whether all of the destination is holes.
    pub(crate) blank: bool,
    /// Whether what was written has to be put on stable storage now and then: it may be lost, or is to be written down.
    pub(crate) track_unflushed: bool,
    /// Bytes that a thread may have written and not put on stable storage.
    pub(crate) max_unflushed: u64,
    /// Whether the kernel may copy between two files.
    pub(crate) kernel_copy: bool,
    /// How long an end is tried that was lost.
    pub(crate) reconnect_timeout: Duration,
}

impl Shared {
    pub(crate) fn new(
        source: &OpenedEndpoint,
        destination: Option<&OpenedEndpoint>,
        config: StageConfig,
        plan: Plan,
        tree: Option<HashTree>,
        limit: RateLimit,
    ) -> Self {
        Self {
            source: source.clone(),
            destination: destination.cloned(),
            config,
            shape: TreeShape::new(source.disk.bytes.min(plan.map().bytes())),
            plan: Mutex::new(plan),
            changed: Condvar::new(),
            waiting: AtomicUsize::new(0),
            tree: tree.map(Mutex::new),
            limit: Mutex::new(limit),
            active: AtomicUsize::new(config.threads),
            halt: AtomicBool::new(false),
            error: Mutex::new(None),
            unflushed: Mutex::new(BTreeMap::new()),
            reconnecting: Mutex::new(Vec::new()),
            copied: AtomicU64::new(0),
            zeroes: AtomicU64::new(0),
            resent: AtomicU64::new(0),
        }
    }

    /// The plan, to be held for a moment.
    pub(crate) fn plan(&self) -> MutexGuard<'_, Plan> {
        lock(&self.plan)
    }

    /// Changes the plan and wakes those who wait for that.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Plan) -> T) -> T {
        let result = change(&mut self.plan());
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.changed.notify_all();
        }
        result
    }

    /// Waits until the plan changes, but not for long.
    pub(crate) fn wait(&self, most: Duration) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let plan = self.plan();
        drop(self.changed.wait_timeout(plan, most));
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether the copy ends now, and why does not matter.
    pub(crate) fn is_halted(&self) -> bool {
        self.halt.load(Ordering::Acquire)
    }

    /// Ends the copy.
    pub(crate) fn halt(&self) {
        self.halt.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Ends the copy for this reason, if there was none before.
    pub(crate) fn fail(&self, error: CopyError) {
        lock(&self.error).get_or_insert(error);
        self.halt();
    }

    /// A thread gives up before it has begun. Tells whether it was the last that could do the request.
    pub(crate) fn give_up(&self) -> bool {
        self.active.fetch_sub(1, Ordering::AcqRel) <= 1
    }

    /// Why it ended.
    pub(crate) fn take_error(&self) -> Option<CopyError> {
        lock(&self.error).take()
    }

    /// Hashes what was read, if that is wanted.
    pub(crate) fn hash(&self, offset: u64, bytes: &[u8]) -> Option<Vec<RangeHash>> {
        let hashes = self.tree.as_ref().map(|_| self.shape.hash_range(offset, bytes))?;
        self.record(hashes.iter().copied());
        Some(hashes)
    }

    /// Takes note of zeros.
    pub(crate) fn hash_zeros(&self, range: Range<u64>) {
        self.record(self.shape.zeros(range));
    }

    fn record(&self, hashes: impl Iterator<Item = RangeHash>) {
        if let Some(tree) = &self.tree {
            let mut tree = lock(tree);
            hashes.for_each(|hash| tree.insert(hash));
        }
    }

    /// What is known of hashes; what was copied by this stage, or what it was given.
    pub(crate) fn tree(&self) -> Option<HashTree> {
        let tree = lock(self.tree.as_ref()?);
        Some(tree.clone())
    }

    /// How long to wait until more may be read.
    pub(crate) fn limit(&self) -> Duration {
        lock(&self.limit).wait(Instant::now())
    }

    /// So much is being read.
    pub(crate) fn consume_rate(&self, bytes: u64) {
        lock(&self.limit).take(bytes, Instant::now());
    }

    /// Something was written that may still be lost. To be called before the plan is told.
    pub(crate) fn add_unflushed(&self, range: &Range<u64>) {
        lock(&self.unflushed).insert(range.start, range.end);
    }

    /// It is on stable storage, or is known to be lost.
    pub(crate) fn remove_unflushed(&self, ranges: &[Range<u64>]) {
        let mut unflushed = lock(&self.unflushed);
        for range in ranges {
            unflushed.remove(&range.start);
        }
    }

    /// The map as it is to be saved, without the notes.
    pub(crate) fn snapshot(&self) -> Map {
        // The plan first: what it holds for finished was unsettled before that.
        let plan = self.plan();
        let unflushed = lock(&self.unflushed);
        plan.snapshot(unflushed.iter().map(|(&start, &end)| start..end))
    }

    /// A thread tries to reach an end again, or has done so.
    pub(crate) fn reconnect(&self, thread: usize, now: Option<(String, String)>) {
        let mut all = lock(&self.reconnecting);
        all.retain(|(other, ..)| *other != thread);
        all.extend(now.map(|(name, why)| (thread, name, why)));
    }

    /// An end that is being reached again.
    pub(crate) fn reconnecting(&self) -> Option<(String, String)> {
        lock(&self.reconnecting).first().map(|(_, name, why)| (name.clone(), why.clone()))
    }

    /// An end that has answered nothing for a while.
    pub(crate) fn stalled(&self) -> Option<(String, Duration)> {
        let ends = [Some(&self.source), self.destination.as_ref()];
        let stalled = |end: &OpenedEndpoint| {
            let since = end.health.stalled_for().filter(|since| *since >= STALLED)?;
            Some((end.disk.name.clone(), since))
        };
        ends.into_iter().flatten().find_map(stalled)
    }

    /// What is being done.
    pub(crate) fn phase(&self) -> Phase {
        if self.destination.is_none() { Phase::Verifying } else { self.plan().phase() }
    }
}

/// A mistake in one thread ends the copy; the others still put their affairs in order.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
