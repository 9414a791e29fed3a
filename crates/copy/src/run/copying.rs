//! Copying stage: worker threads execute the plan while the map is saved periodically.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use export::Pool;

use super::monitor::{Monitor, StageProgress, spawn};
use crate::hash_tree::{HashTree, TreeShape};
use crate::map::{self, Map, MapMetadata, State};
use crate::plan::{Limits, Plan};
use crate::prepare::PreparedCopy;
use crate::rate::RateLimit;
use crate::read_back::ReadBack;
use crate::read_behind::{self, ReadBehind};
use crate::shared::{Shared, StageConfig};
use crate::thread_io::OpenedEndpoint;
use crate::worker::Worker;
use crate::{CopyError, Outcome, Settings};

/// Result of the stage.
pub(super) struct Copied {
    pub(super) map: Map,
    pub(super) tree: Option<HashTree>,
    /// What was read back from the destination meanwhile.
    pub(super) read_back: ReadBack,
}

/// Interval of saving the map.
const SAVE: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 2000 });

/// Memory of all threads, in bytes.
const MEMORY: usize = 16 << 20;

/// Maximum unflushed bytes of all threads at a remote destination: this, or this fraction of the
/// disk. The same amount can be written during a flush.
const UNFLUSHED: u64 = 24 << 20;
const UNFLUSHED_PART: u64 = 256;

/// Maximum bytes of a piece of zeros.
const ZEROS: u64 = 1 << 30;

/// Number of threads of a stage. A destination in memory never lets a thread wait, nor does a source
/// in memory or on another machine: more threads than processors would only contend for the lock of
/// the file.
pub(super) fn threads(settings: &Settings, ends: &[&OpenedEndpoint]) -> usize {
    let allowed = ends.iter().map(|end| end.disk.max_connections).min().unwrap_or(1);
    let into_memory = ends.last().is_some_and(|end| end.disk.in_memory);
    let never_wait = into_memory && ends.iter().all(|end| end.disk.in_memory || end.disk.remote);
    let connections = if never_wait { allowed.min(processors()) } else { allowed };
    settings.connections.clamp(1, 64).min(connections).max(1)
}

fn in_memory(ends: &[&OpenedEndpoint]) -> bool {
    ends.iter().all(|end| end.disk.in_memory)
}

/// Number of processors that this process may use.
pub(super) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes per request that all ends support: a power of two.
pub(super) fn chunk(settings: &Settings, ends: &[&OpenedEndpoint]) -> u64 {
    let largest =
        ends.iter().map(|end| end.disk.max_transfer).min().unwrap_or(0).min(settings.chunk);
    let largest = u64::from(largest).clamp(sector(ends), Pool::MAX_BUFFER as u64);
    1 << largest.ilog2()
}

/// Smallest request that all ends support, in bytes.
pub(super) fn sector(ends: &[&OpenedEndpoint]) -> u64 {
    let block = ends.iter().map(|end| end.disk.block).max().unwrap_or(0);
    u64::from(block).clamp(512, Pool::MAX_BUFFER as u64)
}

pub(super) fn stage_config(settings: &Settings, ends: &[&OpenedEndpoint]) -> StageConfig {
    let threads = threads(settings, ends);
    let bytes = ends.first().map_or(0, |end| end.disk.bytes);
    let to = ends.last().map(|end| &end.disk);
    let remote = to.is_some_and(|disk| disk.remote);
    let max = UNFLUSHED.max(bytes / UNFLUSHED_PART) / threads as u64;
    StageConfig {
        threads,
        memory: MEMORY / threads,
        chunk: chunk(settings, ends),
        sparse: settings.sparse,
        hash: true,
        blank: to.is_some_and(|disk| disk.blank),
        track_unflushed: settings.map.is_some() || remote,
        max_unflushed: if remote { max } else { u64::MAX },
        // In memory, the kernel copies more slowly than two threads that read and write.
        kernel_copy: !settings.verify && !in_memory(ends),
        reconnect_timeout: settings.reconnect_timeout,
    }
}

/// Starts the threads of a stage.
pub(super) fn start(shared: &Arc<Shared>, threads: usize) -> Result<Vec<JoinHandle<()>>, Outcome> {
    let one = |number| {
        let shared = shared.clone();
        spawn(move || Worker::run(number, shared))
    };
    (0..threads).map(one).collect()
}

/// The progress of a stage.
pub(super) fn now(shared: &Shared) -> StageProgress {
    let phase = shared.phase();
    let plan = shared.plan();
    let map = plan.map();
    let bad = map.sum(State::Bad);
    StageProgress {
        phase,
        done: map.sum(State::Finished).saturating_add(bad),
        total: Some(map.bytes()),
        bad,
        errors: plan.errors(),
        zeroes: shared.zeroes.load(Ordering::Relaxed),
        reconnecting: shared.reconnecting(),
        stalled: shared.stalled(),
    }
}

/// Copies everything that is not finished, and not held.
pub(super) fn copy(
    prepared: &PreparedCopy,
    settings: &Settings,
    monitor: &mut Monitor<'_>,
) -> Result<Copied, Outcome> {
    let ends = [&prepared.source, &prepared.destination];
    let limits = Limits {
        sector: sector(&ends),
        chunk: chunk(settings, &ends),
        zeros: ZEROS,
        extents: prepared.source.disk.reports_extents,
        retries: settings.retries,
    };
    let tree = settings.verify.then(|| known_hashes(&prepared.map));
    let mut map = prepared.map.clone();
    prepared.held.iter().for_each(|range| map.set(range.clone(), State::Finished));
    let plan = Plan::new(map, limits);
    let limit = RateLimit::new(settings.rate, Instant::now());
    // A map records hashes, and what is read back later is compared by them.
    let in_memory = prepared.destination.disk.in_memory;
    let hash = settings.hash || settings.map.is_some() || !in_memory;
    let config = StageConfig { hash, ..stage_config(settings, &ends) };
    let shape = TreeShape::new(prepared.map.bytes());
    let behind = read_behind(settings, &prepared.destination, shape).map(Arc::new);
    let shared =
        Shared::new(&prepared.source, Some(&prepared.destination), config, plan, tree, limit);
    let shared = Arc::new(shared.with_read_behind(behind.clone()));
    let threads = start(&shared, threads(settings, &ends))?;
    let saver = Saver::start(prepared, settings, &shared).inspect_err(|_| shared.halt())?;
    let readers = behind.map(|behind| Readers::start(behind, monitor));
    let ended = monitor.join(threads, &mut |stop| {
        if stop {
            shared.halt();
        }
        now(&shared)
    });
    count(&shared, monitor);
    let last = || now(&shared);
    let saved = saver.map_or(Ok(Ok(())), |saver| saver.finish(monitor, &last));
    let behind = readers.map(|readers| readers.finish(monitor, &last)).transpose();
    ended?;
    let mut copied = conclude(&shared, monitor, saved?)?;
    prepared.held.iter().for_each(|range| copied.map.set(range.clone(), State::Untried));
    if let Some(behind) = behind? {
        let behind = behind.map_err(Outcome::Failed)?;
        monitor.report.read_behind = behind.conclude(&mut copied.read_back);
    }
    Ok(copied)
}

/// What reads the destination back while it is written, if that is wanted. After a flush of another machine
/// only the writes of the same connection are on stable storage.
pub(super) fn read_behind(
    settings: &Settings,
    end: &OpenedEndpoint,
    shape: TreeShape,
) -> Option<ReadBehind> {
    let wanted = settings.verify && settings.read_behind && !end.disk.remote && !end.disk.in_memory;
    wanted.then(|| ReadBehind::new(end, shape, settings.reconnect_timeout))
}

/// The threads that read the destination back while it is written.
struct Readers {
    behind: Arc<ReadBehind>,
    threads: Vec<JoinHandle<Result<(), CopyError>>>,
}

impl Readers {
    fn start(behind: Arc<ReadBehind>, monitor: &Monitor<'_>) -> Self {
        let one = |_| {
            let (behind, halt) = (behind.clone(), monitor.halt.clone());
            // Without a thread, everything is read back at the end.
            spawn(move || behind.run(&halt)).ok()
        };
        let threads = (0..read_behind::THREADS).filter_map(one).collect();
        Self { behind, threads }
    }

    /// Ends the threads. Fails if a flush has failed.
    fn finish(
        self,
        monitor: &mut Monitor<'_>,
        now: &dyn Fn() -> StageProgress,
    ) -> Result<Result<Arc<ReadBehind>, CopyError>, Outcome> {
        self.behind.end();
        monitor.restart_grace();
        let ended = monitor.join(self.threads, &mut |_| now())?;
        Ok(ended.into_iter().collect::<Result<(), _>>().map(|()| self.behind))
    }
}

/// The hashes of the map.
fn known_hashes(map: &Map) -> HashTree {
    let mut tree = HashTree::new(map.bytes());
    map.metadata.hashes.iter().for_each(|hash| tree.insert(*hash));
    tree
}

fn count(shared: &Shared, monitor: &mut Monitor<'_>) {
    let report = &mut monitor.report;
    report.copied += shared.copied.load(Ordering::Relaxed);
    report.zeroes += shared.zeroes.load(Ordering::Relaxed);
    report.resent += shared.resent.load(Ordering::Relaxed);
    report.bad = shared.plan().map().all(State::Bad).collect();
}

/// Checks that everything is copied and flushed, or bad.
fn conclude(
    shared: &Shared,
    monitor: &Monitor<'_>,
    saved: Result<(), CopyError>,
) -> Result<Copied, Outcome> {
    if let Some(error) = shared.take_error() {
        return Err(Outcome::Failed(error));
    }
    saved.map_err(Outcome::Failed)?;
    let map = shared.snapshot();
    let decided = map.sum(State::Finished).saturating_add(map.sum(State::Bad));
    if decided == map.bytes() {
        let read_back = shared.read_back().unwrap_or_else(|| ReadBack::new(map.bytes()));
        return Ok(Copied { map, tree: shared.tree(), read_back });
    }
    let reason = if monitor.is_stopped() {
        Outcome::Interrupted
    } else {
        Outcome::Failed(CopyError::Internal)
    };
    Err(reason)
}

/// Saves the map in a thread, because that may take long on a busy disk.
struct Saver {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), CopyError>>,
}

impl Saver {
    /// Starts the thread if there is a map.
    fn start(
        prepared: &PreparedCopy,
        settings: &Settings,
        shared: &Arc<Shared>,
    ) -> Result<Option<Self>, Outcome> {
        let Some(path) = settings.map.clone() else { return Ok(None) };
        let over = Arc::new(AtomicBool::new(false));
        let (theirs, shared) = (over.clone(), shared.clone());
        let known = Known { metadata: prepared.map.metadata.clone(), held: prepared.held.clone() };
        let thread = spawn(move || {
            let result = save_often(&shared, &known, &path, &theirs);
            // Fails the copy: without its map it could not be resumed.
            result.map_err(|error| CopyError::Map {
                map: path.display().to_string(),
                reason: error.to_string(),
            })
        })?;
        Ok(Some(Self { over, thread }))
    }

    /// Saves the map for the last time.
    fn finish(
        self,
        monitor: &mut Monitor<'_>,
        now: &dyn Fn() -> StageProgress,
    ) -> Result<Result<(), CopyError>, Outcome> {
        self.over.store(true, Ordering::Release);
        self.thread.thread().unpark();
        monitor.restart_grace();
        let saved = monitor.join(vec![self.thread], &mut |_| now())?;
        Ok(saved.into_iter().collect())
    }
}

fn save_often(
    shared: &Shared,
    known: &Known,
    path: &Path,
    over: &AtomicBool,
) -> std::io::Result<()> {
    let mut pause = SAVE;
    while !over.load(Ordering::Acquire) {
        let (begun, mut rest) = (Instant::now(), pause);
        while !rest.is_zero() && !over.load(Ordering::Acquire) {
            std::thread::park_timeout(rest);
            rest = pause.saturating_sub(begun.elapsed());
        }
        let begun = Instant::now();
        if let Err(error) = save(shared, known, path) {
            shared.halt();
            return Err(error);
        }
        // The map of a disk with many errors is long and takes time to save.
        pause = SAVE.max(begun.elapsed() * 10);
    }
    save(shared, known, path)
}

/// What the plan does not know of the map.
struct Known {
    metadata: MapMetadata,
    /// Ranges that the plan leaves out, and that are not copied yet.
    held: Vec<Range<u64>>,
}

fn save(shared: &Shared, known: &Known, path: &Path) -> std::io::Result<()> {
    let mut map = shared.snapshot();
    known.held.iter().for_each(|range| map.set(range.clone(), State::Untried));
    map.metadata = known.metadata.clone();
    if let Some(tree) = shared.tree() {
        map.metadata.hashes = tree.hashes().collect();
    }
    map::save(&map, path)
}
