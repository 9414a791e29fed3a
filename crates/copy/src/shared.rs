//! State shared by the threads of a copy.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::hash_tree::{HashTree, RangeHash, TreeShape};
use crate::map::Map;
use crate::plan::Plan;
use crate::rate::RateLimit;
use crate::read_back::ReadBack;
use crate::read_behind::ReadBehind;
use crate::thread_io::OpenedEndpoint;
use crate::{CopyError, Phase};

/// State shared by all threads of one stage, copying or verifying.
pub(crate) struct Shared {
    pub(crate) source: OpenedEndpoint,
    /// `None` while verifying: data is read and compared.
    pub(crate) destination: Option<OpenedEndpoint>,
    pub(crate) config: StageConfig,
    plan: Mutex<Plan>,
    changed: Condvar,
    waiting: AtomicUsize,
    tree: Option<Mutex<HashTree>>,
    /// What was read back from the destination while copying; `None` if each piece is read back
    /// after the last write.
    read_back: Option<Mutex<ReadBack>>,
    /// Reads the destination back while it is written, if it is not in memory.
    read_behind: Option<Arc<ReadBehind>>,
    /// Held by the thread that writes to a destination in memory; `None` for other destinations.
    write_turn: Option<Mutex<()>>,
    shape: TreeShape,
    limit: Mutex<RateLimit>,
    /// Threads that have not given up.
    active: AtomicUsize,
    halt: AtomicBool,
    error: Mutex<Option<CopyError>>,
    /// Start and end of written ranges that are not known to be on stable storage.
    unflushed: Mutex<BTreeMap<u64, u64>>,
    reconnecting: Mutex<Vec<(usize, String, String)>>,
    pub(crate) copied: AtomicU64,
    pub(crate) zeroes: AtomicU64,
    pub(crate) resent: AtomicU64,
}

/// Permission to write.
pub(crate) struct WriteTurn<'a>(
    #[expect(dead_code, reason = "held until it is dropped")] Option<MutexGuard<'a, ()>>,
);

/// How long an end may answer nothing before that is reported.
const STALLED: Duration = Duration::from_secs(3);

/// Settings of the threads of one stage.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StageConfig {
    /// Number of threads.
    pub(crate) threads: usize,
    /// Memory per thread in bytes.
    pub(crate) memory: usize,
    /// Bytes per request.
    pub(crate) chunk: u64,
    /// Whether zeros become holes.
    pub(crate) sparse: bool,
    /// Whether data is hashed if it is verified. If not, each piece is compared byte by byte when it
    /// is read back right after its write.
    pub(crate) hash: bool,
    /// Whether the whole destination reads as zeros.
    pub(crate) blank: bool,
    /// Whether written data has to be flushed periodically, because it may be lost or because the
    /// map records it.
    pub(crate) track_unflushed: bool,
    /// Maximum unflushed bytes per thread.
    pub(crate) max_unflushed: u64,
    /// Whether the kernel may copy between two files.
    pub(crate) kernel_copy: bool,
    /// How long a lost end is retried.
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
        let in_memory = destination.is_some_and(|end| end.disk.in_memory);
        let read_back = tree.as_ref().filter(|_| in_memory);
        Self {
            read_back: read_back.map(|tree| Mutex::new(ReadBack::new(tree.bytes()))),
            read_behind: None,
            write_turn: in_memory.then(Mutex::default),
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

    /// Has what is written read back by `read_behind`.
    pub(crate) fn with_read_behind(self, read_behind: Option<Arc<ReadBehind>>) -> Self {
        Self { read_behind, ..self }
    }

    /// Records that data was written to the destination.
    pub(crate) fn record_written(&self, range: &Range<u64>) {
        if let Some(read_behind) = &self.read_behind {
            read_behind.record_written(range.clone());
        }
    }

    /// Locks the plan; must be held only briefly.
    pub(crate) fn plan(&self) -> MutexGuard<'_, Plan> {
        lock(&self.plan)
    }

    /// Changes the plan and wakes waiting threads.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Plan) -> T) -> T {
        let result = change(&mut self.plan());
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.changed.notify_all();
        }
        result
    }

    /// Waits until the plan changes, at most `max`.
    pub(crate) fn wait(&self, max: Duration) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let plan = self.plan();
        drop(self.changed.wait_timeout(plan, max));
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether the copy ends now, for whatever reason.
    pub(crate) fn is_halted(&self) -> bool {
        self.halt.load(Ordering::Acquire)
    }

    /// Ends the copy.
    pub(crate) fn halt(&self) {
        self.halt.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Ends the copy with this error, unless there was one before.
    pub(crate) fn fail(&self, error: CopyError) {
        lock(&self.error).get_or_insert(error);
        self.halt();
    }

    /// Records that a thread gives up before it was connected. Returns whether it was the last one.
    pub(crate) fn give_up(&self) -> bool {
        self.active.fetch_sub(1, Ordering::AcqRel) <= 1
    }

    pub(crate) fn take_error(&self) -> Option<CopyError> {
        lock(&self.error).take()
    }

    /// Hashes data that was read, if hashes are wanted.
    pub(crate) fn hash(&self, offset: u64, bytes: &[u8]) -> Option<Vec<RangeHash>> {
        let tree = self.tree.as_ref().filter(|_| self.config.hash);
        let hashes = tree.map(|_| self.shape.hash_range(offset, bytes))?;
        record(&self.tree, hashes.iter().copied());
        Some(hashes)
    }

    /// Records a range of zeros.
    pub(crate) fn hash_zeros(&self, range: Range<u64>) {
        record(&self.tree, self.shape.zeros(range));
    }

    /// Whether each piece is read back as soon as it is written.
    pub(crate) fn reads_back(&self) -> bool {
        self.read_back.is_some()
    }

    /// Records what was read back from the destination at `offset`, where `written` was written,
    /// with the hashes `hashes`; `None` if it could not be read.
    pub(crate) fn record_read_back(
        &self,
        offset: u64,
        bytes: Option<&[u8]>,
        written: &[u8],
        hashes: &[RangeHash],
    ) {
        let Some(read_back) = &self.read_back else { return };
        let same = bytes == Some(written);
        if !self.config.hash {
            let range = offset..offset.saturating_add(written.len() as u64);
            return lock(read_back).record_same(range, same);
        }
        let Some(bytes) = bytes else { return };
        let found = if same { hashes.to_vec() } else { self.shape.hash_range(offset, bytes) };
        lock(read_back).record_hashes(found);
    }

    /// Permits this thread to write until the result is dropped; `None` if it should do something
    /// else now, because another thread writes to the file in memory. With nothing else to do
    /// (`urgent`), it spins in the kernel, which is faster than to sleep, unless the server of the
    /// source needs the processor.
    pub(crate) fn write_turn(&self, urgent: bool) -> Option<WriteTurn<'_>> {
        let Some(turn) = &self.write_turn else { return Some(WriteTurn(None)) };
        match turn.try_lock() {
            Err(TryLockError::WouldBlock) if !urgent => None,
            Err(TryLockError::WouldBlock) if self.source.disk.remote => {
                Some(WriteTurn(Some(lock(turn))))
            }
            turn => Some(WriteTurn(turn.ok())),
        }
    }

    /// The hashes so far.
    pub(crate) fn tree(&self) -> Option<HashTree> {
        self.tree.as_ref().map(|tree| lock(tree).clone())
    }

    /// What was read back so far.
    pub(crate) fn read_back(&self) -> Option<ReadBack> {
        self.read_back.as_ref().map(|read_back| lock(read_back).clone())
    }

    /// Returns the time until the rate limit permits the next transfer.
    pub(crate) fn rate_delay(&self) -> Duration {
        lock(&self.limit).delay(Instant::now())
    }

    /// Charges the rate limit.
    pub(crate) fn charge_rate(&self, bytes: u64) {
        lock(&self.limit).charge(bytes, Instant::now());
    }

    /// Records written data that may be lost. Must be called before the plan is updated.
    pub(crate) fn add_unflushed(&self, range: &Range<u64>) {
        lock(&self.unflushed).insert(range.start, range.end);
    }

    /// Records that ranges are on stable storage, or are lost.
    pub(crate) fn remove_unflushed(&self, ranges: &[Range<u64>]) {
        let mut unflushed = lock(&self.unflushed);
        for range in ranges {
            unflushed.remove(&range.start);
        }
    }

    /// The map to save, without its metadata.
    pub(crate) fn snapshot(&self) -> Map {
        // Locked first: what the plan has finished was recorded as unflushed before.
        let plan = self.plan();
        let unflushed = lock(&self.unflushed);
        plan.snapshot(unflushed.iter().map(|(&start, &end)| start..end))
    }

    /// Records which end a thread is reconnecting, if any.
    pub(crate) fn reconnect(&self, thread: usize, now: Option<(String, String)>) {
        let mut all = lock(&self.reconnecting);
        all.retain(|(other, ..)| *other != thread);
        all.extend(now.map(|(name, reason)| (thread, name, reason)));
    }

    /// An end that is being reconnected, and why it was lost.
    pub(crate) fn reconnecting(&self) -> Option<(String, String)> {
        lock(&self.reconnecting).first().map(|(_, name, reason)| (name.clone(), reason.clone()))
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

    /// The current phase.
    pub(crate) fn phase(&self) -> Phase {
        if self.destination.is_none() { Phase::Verifying } else { self.plan().phase() }
    }
}

fn record(tree: &Option<Mutex<HashTree>>, hashes: impl Iterator<Item = RangeHash>) {
    if let Some(tree) = tree {
        let mut tree = lock(tree);
        hashes.for_each(|hash| tree.insert(hash));
    }
}

/// Ignores poisoning: after a panic in one thread the others still finish cleanly.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
