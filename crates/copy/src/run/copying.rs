//! The stage that copies: threads that work a plan off, and a map that is saved meanwhile. It reads and writes no disk.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use export::Pool;

use super::course::{Course, Now, spawn};
use crate::begin::Begun;
use crate::forest::Forest;
use crate::map::{self, Map, Notes, State};
use crate::plan::{Limits, Plan};
use crate::rate::Limit;
use crate::shared::{How, Shared};
use crate::traffic::Target;
use crate::worker::Worker;
use crate::{Outcome, Settings, Trouble};

/// What was copied.
pub(super) struct Copied {
    pub(super) map: Map,
    pub(super) forest: Option<Forest>,
}

/// How often the map is saved.
const SAVE: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 2000 });

/// Memory of all threads together, in bytes.
const MEMORY: usize = 16 << 20;

/// Bytes that all threads together may write before they have them put on stable storage at a place that may lose them:
/// as much, or this part of the disk. While that is done they write as much once more.
const UNFLUSHED: u64 = 24 << 20;
const UNFLUSHED_PART: u64 = 256;

/// Bytes of zeros in one piece.
const ZEROS: u64 = 1 << 30;

/// The threads of a stage.
pub(super) fn threads(settings: &Settings, ends: &[&Target]) -> usize {
    let lanes = ends.iter().map(|end| end.disk.lanes).min().unwrap_or(1);
    settings.connections.clamp(1, 64).min(lanes).max(1)
}

/// Bytes of a request that all ends allow: a power of two.
pub(super) fn chunk(settings: &Settings, ends: &[&Target]) -> u64 {
    let largest = ends.iter().map(|end| end.disk.largest).min().unwrap_or(0).min(settings.chunk);
    let largest = u64::from(largest).clamp(sector(ends), Pool::MAX_BUFFER as u64);
    1 << largest.ilog2()
}

/// The smallest request that all ends allow, in bytes.
pub(super) fn sector(ends: &[&Target]) -> u64 {
    let block = ends.iter().map(|end| end.disk.block).max().unwrap_or(0);
    u64::from(block).clamp(512, Pool::MAX_BUFFER as u64)
}

/// How the threads of a stage work.
pub(super) fn how(settings: &Settings, ends: &[&Target]) -> How {
    let threads = threads(settings, ends);
    let bytes = ends.first().map_or(0, |end| end.disk.bytes);
    let to = ends.last().map(|end| &end.disk);
    let remote = to.is_some_and(|disk| disk.remote);
    let most = UNFLUSHED.max(bytes / UNFLUSHED_PART) / threads as u64;
    How {
        threads,
        memory: MEMORY / threads,
        chunk: chunk(settings, ends),
        sparse: settings.sparse,
        fresh: to.is_some_and(|disk| disk.fresh),
        tracks: settings.map.is_some() || remote,
        unflushed: if remote { most } else { u64::MAX },
        kernel: !settings.verify,
        patience: settings.patience,
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

/// How far a stage is.
pub(super) fn now(shared: &Shared) -> Now {
    let phase = shared.phase();
    let plan = shared.plan();
    let map = plan.map();
    let bad = map.sum(State::Bad);
    Now {
        phase,
        done: map.sum(State::Finished).saturating_add(bad),
        total: Some(map.bytes()),
        bad,
        errors: plan.errors(),
        zeroes: shared.zeroes.load(Ordering::Relaxed),
        reconnecting: shared.reconnecting(),
        silent: shared.silent(),
    }
}

/// Copies what is still to be copied.
pub(super) fn copy(
    begun: &Begun,
    settings: &Settings,
    course: &mut Course<'_>,
) -> Result<Copied, Outcome> {
    let ends = [&begun.source, &begun.destination];
    let limits = Limits {
        sector: sector(&ends),
        chunk: chunk(settings, &ends),
        zeros: ZEROS,
        extents: begun.source.disk.extents,
        retries: settings.retries,
    };
    let forest = settings.verify.then(|| known(&begun.map));
    let plan = Plan::new(begun.map.clone(), limits);
    let limit = Limit::new(settings.rate, Instant::now());
    let how = how(settings, &ends);
    let shared = Shared::new(&begun.source, Some(&begun.destination), how, plan, forest, limit);
    let shared = Arc::new(shared);
    let threads = start(&shared, threads(settings, &ends))?;
    let saver = Saver::start(begun, settings, &shared).inspect_err(|_| shared.halt())?;
    let ended = course.attend(threads, &mut |stop| {
        if stop {
            shared.halt();
        }
        now(&shared)
    });
    count(&shared, course);
    let last = || now(&shared);
    let saved = saver.map_or(Ok(Ok(())), |saver| saver.finish(course, &last));
    ended?;
    conclude(&shared, course, saved?)
}

/// What the map knows of hashes.
fn known(map: &Map) -> Forest {
    let mut forest = Forest::new(map.bytes());
    map.notes.marks.iter().for_each(|mark| forest.insert(*mark));
    forest
}

fn count(shared: &Shared, course: &mut Course<'_>) {
    let report = &mut course.report;
    report.copied = shared.copied.load(Ordering::Relaxed);
    report.zeroes = shared.zeroes.load(Ordering::Relaxed);
    report.resent = shared.resent.load(Ordering::Relaxed);
    report.bad = shared.plan().map().all(State::Bad).collect();
}

/// Copied is what is finished on stable storage, and nothing else.
fn conclude(
    shared: &Shared,
    course: &Course<'_>,
    saved: Result<(), Trouble>,
) -> Result<Copied, Outcome> {
    if let Some(trouble) = shared.take_trouble() {
        return Err(Outcome::Failed(trouble));
    }
    saved.map_err(Outcome::Failed)?;
    let map = shared.snapshot();
    let decided = map.sum(State::Finished).saturating_add(map.sum(State::Bad));
    if decided == map.bytes() {
        return Ok(Copied { map, forest: shared.take_forest() });
    }
    let why =
        if course.is_stopped() { Outcome::Interrupted } else { Outcome::Failed(Trouble::Mistake) };
    Err(why)
}

/// Keeps the map on disk, in a thread of its own: a disk that is busy takes long to have it on stable storage.
struct Saver {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), Trouble>>,
}

impl Saver {
    /// Begins, if there is to be a map.
    fn start(
        begun: &Begun,
        settings: &Settings,
        shared: &Arc<Shared>,
    ) -> Result<Option<Self>, Outcome> {
        let Some(path) = settings.map.clone() else { return Ok(None) };
        let over = Arc::new(AtomicBool::new(false));
        let (notes, theirs, shared) = (begun.map.notes.clone(), over.clone(), shared.clone());
        let thread = spawn(move || {
            let result = save_often(&shared, &notes, &path, &theirs);
            // A copy whose map cannot be saved would have to be done anew.
            result.map_err(|error| Trouble::Map {
                map: path.display().to_string(),
                why: error.to_string(),
            })
        })?;
        Ok(Some(Self { over, thread }))
    }

    /// Saves the map for the last time.
    fn finish(
        self,
        course: &mut Course<'_>,
        now: &dyn Fn() -> Now,
    ) -> Result<Result<(), Trouble>, Outcome> {
        self.over.store(true, Ordering::Release);
        self.thread.thread().unpark();
        course.allow_more();
        let saved = course.attend(vec![self.thread], &mut |_| now())?;
        Ok(saved.into_iter().collect())
    }
}

fn save_often(
    shared: &Shared,
    notes: &Notes,
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
        if let Err(error) = save(shared, notes, path) {
            shared.halt();
            return Err(error);
        }
        // The map of a disk in a bad state is long, and takes its time.
        pause = SAVE.max(begun.elapsed() * 10);
    }
    save(shared, notes, path)
}

fn save(shared: &Shared, notes: &Notes, path: &Path) -> std::io::Result<()> {
    let mut map = shared.snapshot();
    map.notes = notes.clone();
    if let Some(forest) = shared.take_forest() {
        map.notes.marks = forest.marks().collect();
    }
    map::save(&map, path)
}
