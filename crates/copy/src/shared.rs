//! What the threads of a copy share. It knows no way to a disk.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::forest::{Forest, Mark, Shape};
use crate::map::Map;
use crate::plan::Plan;
use crate::rate::Limit;
use crate::traffic::Target;
use crate::{Phase, Trouble};

/// What all threads of one stage, copying or verifying, share.
pub(crate) struct Shared {
    pub(crate) source: Target,
    /// None while verifying: what is read is compared, and written nowhere.
    pub(crate) destination: Option<Target>,
    pub(crate) how: How,
    plan: Mutex<Plan>,
    changed: Condvar,
    waiting: AtomicUsize,
    forest: Option<Mutex<Forest>>,
    shape: Shape,
    limit: Mutex<Limit>,
    /// Threads that may do the work.
    able: AtomicUsize,
    halt: AtomicBool,
    trouble: Mutex<Option<Trouble>>,
    /// What was written and is not known to be on stable storage: where each piece begins and ends.
    volatile: Mutex<BTreeMap<u64, u64>>,
    reconnecting: Mutex<Vec<(usize, String, String)>>,
    pub(crate) copied: AtomicU64,
    pub(crate) zeroes: AtomicU64,
    pub(crate) resent: AtomicU64,
}

/// How long an end may answer nothing before that is shown.
const SILENT: Duration = Duration::from_secs(3);

/// How the threads work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    /// Threads.
    pub(crate) threads: usize,
    /// Memory of a thread in bytes.
    pub(crate) memory: usize,
    /// Bytes of a request.
    pub(crate) chunk: u64,
    /// Whether zeros become holes.
    pub(crate) sparse: bool,
    /// Whether all of the destination is holes.
    pub(crate) fresh: bool,
    /// Whether what was written has to be put on stable storage now and then: it may be lost, or is to be written down.
    pub(crate) tracks: bool,
    /// Bytes that a thread may have written and not put on stable storage.
    pub(crate) unflushed: u64,
    /// Whether the kernel may copy between two files.
    pub(crate) kernel: bool,
    /// How long an end is tried that was lost.
    pub(crate) patience: Duration,
}

impl Shared {
    pub(crate) fn new(
        source: &Target,
        destination: Option<&Target>,
        how: How,
        plan: Plan,
        forest: Option<Forest>,
        limit: Limit,
    ) -> Self {
        Self {
            source: source.clone(),
            destination: destination.cloned(),
            how,
            shape: Shape::new(source.disk.bytes.min(plan.map().bytes())),
            plan: Mutex::new(plan),
            changed: Condvar::new(),
            waiting: AtomicUsize::new(0),
            forest: forest.map(Mutex::new),
            limit: Mutex::new(limit),
            able: AtomicUsize::new(how.threads),
            halt: AtomicBool::new(false),
            trouble: Mutex::new(None),
            volatile: Mutex::new(BTreeMap::new()),
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
    pub(crate) fn fail(&self, trouble: Trouble) {
        lock(&self.trouble).get_or_insert(trouble);
        self.halt();
    }

    /// A thread gives up before it has begun. Tells whether it was the last that could do the work.
    pub(crate) fn desert(&self) -> bool {
        self.able.fetch_sub(1, Ordering::AcqRel) <= 1
    }

    /// Why it ended.
    pub(crate) fn take_trouble(&self) -> Option<Trouble> {
        lock(&self.trouble).take()
    }

    /// Hashes what was read, if that is wanted.
    pub(crate) fn sum(&self, offset: u64, bytes: &[u8]) -> Option<Vec<Mark>> {
        let marks = self.forest.as_ref().map(|_| self.shape.sum(offset, bytes))?;
        self.know(marks.iter().copied());
        Some(marks)
    }

    /// Takes note of zeros.
    pub(crate) fn sum_zeros(&self, range: Range<u64>) {
        self.know(self.shape.zeros(range));
    }

    fn know(&self, marks: impl Iterator<Item = Mark>) {
        if let Some(forest) = &self.forest {
            let mut forest = lock(forest);
            marks.for_each(|mark| forest.insert(mark));
        }
    }

    /// What is known of hashes; what was copied by this stage, or what it was given.
    pub(crate) fn take_forest(&self) -> Option<Forest> {
        let forest = lock(self.forest.as_ref()?);
        Some(forest.clone())
    }

    /// How long to wait until more may be read.
    pub(crate) fn limit(&self) -> Duration {
        lock(&self.limit).wait(Instant::now())
    }

    /// So much is being read.
    pub(crate) fn charge(&self, bytes: u64) {
        lock(&self.limit).take(bytes, Instant::now());
    }

    /// Something was written that may still be lost. To be called before the plan is told.
    pub(crate) fn unsettled(&self, range: &Range<u64>) {
        lock(&self.volatile).insert(range.start, range.end);
    }

    /// It is on stable storage, or is known to be lost.
    pub(crate) fn settled(&self, ranges: &[Range<u64>]) {
        let mut volatile = lock(&self.volatile);
        for range in ranges {
            volatile.remove(&range.start);
        }
    }

    /// The map as it is to be saved, without the notes.
    pub(crate) fn snapshot(&self) -> Map {
        // The plan first: what it holds for finished was unsettled before that.
        let plan = self.plan();
        let volatile = lock(&self.volatile);
        plan.snapshot(volatile.iter().map(|(&start, &end)| start..end))
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
    pub(crate) fn silent(&self) -> Option<(String, Duration)> {
        let ends = [Some(&self.source), self.destination.as_ref()];
        let silent = |end: &Target| {
            let since = end.health.silent_for().filter(|since| *since >= SILENT)?;
            Some((end.disk.name.clone(), since))
        };
        ends.into_iter().flatten().find_map(silent)
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
