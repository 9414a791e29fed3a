//! Checks before the first write: both ends, their sizes, and whether the map belongs to these
//! disks.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use export::Pool;

use crate::compare::read;
use crate::hash_tree::is_zero;
use crate::map::{self, Map, State};
use crate::same_disk::read_sync;
use crate::sample;
use crate::sync_io::{SyncIo, SyncIoError};
use crate::thread_io::OpenedEndpoint;
use crate::{Connection, Disk, Endpoint, EndpointError, LossCause, Refusal, Settings};

/// A copy that can start.
pub(crate) struct PreparedCopy {
    pub(crate) source: OpenedEndpoint,
    pub(crate) destination: OpenedEndpoint,
    pub(crate) map: Map,
    /// Ranges that are not copied before a check has succeeded.
    pub(crate) held: Vec<Range<u64>>,
}

/// Bytes at each end of the destination that hold the partition table and its backup.
const HELD: u64 = 1 << 20;

/// Returns the ranges that are not copied before a check: the first bytes, and at least as many last ones.
fn held(bytes: u64) -> Vec<Range<u64>> {
    let end = bytes.min(HELD);
    let last = end.max(bytes.saturating_sub(HELD) / HELD * HELD);
    [0..end, last..bytes].into_iter().filter(|range| !range.is_empty()).collect()
}

/// How long a server may take to restart after a read has crashed it, and the retry interval.
const RESTART_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Number of samples of what an earlier run has finished, and bytes per sample.
const SAMPLES: u64 = 16;
const SAMPLE: u64 = 4096;

/// Performs all checks that need no reading, and creates the destination. If a check follows (`is_checked`), its
/// ends are copied after that, and again if an earlier run did.
pub(crate) fn prepare(
    source: Arc<dyn Endpoint>,
    destination: Arc<dyn Endpoint>,
    settings: &Settings,
    is_checked: bool,
    stop: &AtomicBool,
) -> Result<PreparedCopy, PrepareError> {
    let source = open_source(source, settings.reconnect_timeout)?;
    let disk = &*source.disk;
    let bytes = disk.bytes;
    let loaded = settings.map.as_deref().map(load).transpose()?.flatten();
    let map = match (&settings.map, loaded) {
        (Some(path), Some(map)) => matching_map(path, map, disk)?,
        _ => Map::new(bytes),
    };
    // Before an existing file is truncated.
    if let Some(path) = &settings.map {
        map::probe(&map, path).map_err(|error| refused(path, &error))?;
    }
    if let Some(path) = settings.map.as_deref().filter(|_| map.sum(State::Finished) > 0) {
        // Before a file that is too short is extended: it may not be the one of the map.
        let there = destination.open().ok().map(|(there, _)| there);
        if let Some(there) = there.filter(|there| there.bytes < bytes) {
            let ends = Ends {
                source: &source,
                destination: &OpenedEndpoint::new(destination.clone(), there),
            };
            compare_samples(ends, &map, path, settings.reconnect_timeout, stop)?;
        }
    }
    destination.prepare(bytes).map_err(Refusal::Destination)?;
    let (to, connection) = destination.open().map_err(Refusal::Destination)?;
    drop(connection);
    check_destination(&to, bytes)?;
    if let Some(path) = &settings.map {
        check_identity(path, "destination", &map.metadata.destination, &to.identity)?;
    }
    // A file that was just created contains nothing of what a map may list.
    let mut map = if to.blank { Map::new(bytes) } else { map };
    let held = if is_checked { held(bytes) } else { Vec::new() };
    held.iter().for_each(|range| map.set(range.clone(), State::Untried));
    let map = with_metadata(map, disk, &to);
    Ok(PreparedCopy { source, destination: OpenedEndpoint::new(destination, to), map, held })
}

/// Opens a source. Takes samples of a remote one, because all connections must lead to the same
/// disk. Fails if the server answers no read at all, and tries no further one after `reconnect_timeout` without
/// an answer.
pub(crate) fn open_source(
    endpoint: Arc<dyn Endpoint>,
    reconnect_timeout: Duration,
) -> Result<OpenedEndpoint, Refusal> {
    let (disk, mut connection) = endpoint.open().map_err(Refusal::Source)?;
    let source = OpenedEndpoint::new(endpoint, disk);
    let disk = &source.disk;
    if !disk.remote {
        return Ok(source);
    }
    let (mut answers, mut lost, mut answered) = (false, None, Instant::now());
    for offset in probe_offsets(disk) {
        if lost.is_some() {
            drop(connection);
            connection = match open_again(&*source.endpoint) {
                Ok(connection) => connection,
                Err(_) if answers => return Ok(source),
                Err(error) => return Err(Refusal::Source(error)),
            };
        }
        let len = sample::sample_len(disk.block).min(disk.bytes - offset);
        match read_sync(&mut *connection, offset, usize::try_from(len).unwrap_or(usize::MAX)) {
            Ok(read) => {
                (answers, lost, answered) = (true, None, Instant::now());
                read.iter().for_each(|buffer| source.keep_sample(offset, buffer.bytes()));
            }
            Err(reason) if reason.is_violation() => {
                return Err(Refusal::Source(EndpointError::Violation(format!(
                    "{}: {reason}",
                    disk.name
                ))));
            }
            Err(reason) => {
                let is_silent = reason.cause == LossCause::Silent;
                lost = Some(reason);
                if is_silent && answered.elapsed() >= reconnect_timeout {
                    break;
                }
            }
        }
    }
    match lost.filter(|_| !answers) {
        Some(reason) => Err(Refusal::Source(EndpointError::Temporary(format!(
            "{}: each connection is lost at the first read: {reason}",
            disk.name
        )))),
        None => Ok(source),
    }
}

/// Reopens an endpoint whose server was lost in a read. Waits for the server to restart.
fn open_again(endpoint: &dyn Endpoint) -> Result<Box<dyn Connection>, EndpointError> {
    let end = Instant::now() + RESTART_TIMEOUT;
    loop {
        match endpoint.open() {
            Ok((_, connection)) => return Ok(connection),
            Err(EndpointError::Temporary(_)) if Instant::now() < end => {
                std::thread::sleep(RETRY_INTERVAL)
            }
            Err(error) => return Err(error),
        }
    }
}

/// Offsets of the samples of a source: its start, its middle and its end.
fn probe_offsets(disk: &Disk) -> Vec<u64> {
    let unit = sample::sample_len(disk.block);
    let last = disk.bytes.saturating_sub(1) / unit * unit;
    let mut offsets = vec![0, last / 2 / unit * unit, last];
    offsets.dedup();
    if disk.bytes == 0 { Vec::new() } else { offsets }
}

fn refused(path: &Path, reason: &dyn ToString) -> Refusal {
    Refusal::Map { map: path.display().to_string(), reason: reason.to_string() }
}

fn wrong_disk(path: &Path, reason: String) -> Refusal {
    Refusal::AnotherDisk { map: path.display().to_string(), reason }
}

fn load(path: &Path) -> Result<Option<Map>, Refusal> {
    map::load(path).map_err(|error| refused(path, &error))
}

/// The map for this disk, if it belongs to it.
fn matching_map(path: &Path, map: Map, disk: &Disk) -> Result<Map, Refusal> {
    let recorded = map.metadata.bytes.unwrap_or(disk.bytes);
    // A ddrescue map may end before the end of the disk, but not beyond it.
    let beyond = map
        .runs()
        .filter(|(range, _)| range.end > disk.bytes)
        .any(|(_, state)| state != State::Untried);
    if recorded != disk.bytes || beyond {
        let there = if recorded == disk.bytes { map.bytes() } else { recorded };
        let name = &disk.name;
        return Err(wrong_disk(
            path,
            format!("it is for {there} bytes, {name} has {}", disk.bytes),
        ));
    }
    check_identity(path, "source", &map.metadata.source, &disk.identity)?;
    let mut map = map.resized(disk.bytes);
    if map.metadata.source.is_empty() && !disk.identity.is_empty() {
        // The hashes may be those of another source.
        map.metadata.hashes.clear();
    }
    Ok(map)
}

/// Fails if both identities are known and differ.
fn check_identity(path: &Path, which: &str, before: &str, now: &str) -> Result<(), Refusal> {
    let now = map::MapMetadata::saved_identity(now);
    if before.is_empty() || now.is_empty() || before == now {
        return Ok(());
    }
    Err(wrong_disk(path, format!("the {which} was \"{before}\", now it is \"{now}\"")))
}

fn check_destination(disk: &Disk, bytes: u64) -> Result<(), Refusal> {
    let destination = disk.name.clone();
    if !disk.writable {
        return Err(Refusal::ReadOnly { destination });
    }
    if disk.bytes < bytes {
        return Err(Refusal::Smaller { destination, there: disk.bytes, needed: bytes });
    }
    if !bytes.is_multiple_of(u64::from(disk.block.max(1))) {
        return Err(Refusal::Blocks { destination, block: disk.block, bytes });
    }
    Ok(())
}

/// The map with the identities of both ends, and without hashes of unfinished ranges.
fn with_metadata(mut map: Map, source: &Disk, destination: &Disk) -> Map {
    let mut metadata = std::mem::take(&mut map.metadata);
    let finished = |range: Range<u64>| {
        map.next(State::Finished, range.start)
            .is_some_and(|run| run.start == range.start && run.end >= range.end)
    };
    metadata.hashes.retain(|hash| finished(hash.range()));
    metadata.bytes = Some(source.bytes);
    metadata.complete = true;
    metadata.source = map::MapMetadata::saved_identity(&source.identity);
    metadata.destination = map::MapMetadata::saved_identity(&destination.identity);
    map.metadata = metadata;
    map
}

/// Compares samples of what an earlier run has finished, and checks that the map can be written.
pub(crate) fn confirm(
    begun: &PreparedCopy,
    settings: &Settings,
    stop: &AtomicBool,
) -> Result<(), PrepareError> {
    let Some(path) = &settings.map else { return Ok(()) };
    let ends = Ends { source: &begun.source, destination: &begun.destination };
    compare_samples(ends, &begun.map, path, settings.reconnect_timeout, stop)?;
    map::save(&begun.map, path).map_err(|error| PrepareError::Refused(refused(path, &error)))
}

/// Why a copy cannot start.
#[derive(Debug)]
pub(crate) enum PrepareError {
    Io(SyncIoError),
    Refused(Refusal),
}

impl From<Refusal> for PrepareError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<SyncIoError> for PrepareError {
    fn from(error: SyncIoError) -> Self {
        Self::Io(error)
    }
}

struct Ends<'a> {
    source: &'a OpenedEndpoint,
    destination: &'a OpenedEndpoint,
}

/// Compares samples of what an earlier run has finished at both ends: a map alone does not prove
/// which disks it belongs to. Beyond the end of the destination, zeros are expected.
fn compare_samples(
    ends: Ends<'_>,
    map: &Map,
    path: &Path,
    reconnect_timeout: Duration,
    stop: &AtomicBool,
) -> Result<(), PrepareError> {
    let finished: u64 = map.sum(State::Finished);
    if finished == 0 {
        return Ok(());
    }
    let mut source = SyncIo::new(ends.source, reconnect_timeout, stop);
    let mut destination = SyncIo::new(ends.destination, reconnect_timeout, stop);
    let account = Pool::new(Pool::MAX_BUFFER).open();
    for range in samples(map, finished) {
        let there = range.start..range.end.min(ends.destination.disk.bytes);
        let one = read(&mut source, &account, &range)?;
        let other = match there.is_empty() {
            true => Some(Vec::new()),
            false => read(&mut destination, &account, &there)?.map(|it| it.bytes().to_vec()),
        };
        // Unreadable samples are ignored.
        let (Some(one), Some(other)) = (one, other) else { continue };
        let (same, beyond) = one.bytes().split_at(other.len().min(one.len()));
        if same != other || !is_zero(beyond) {
            let at = range.start;
            let (from, to) = (&ends.source.disk.name, &ends.destination.disk.name);
            let reason =
                format!("it lists byte {at} as finished, but there {to} differs from {from}");
            return Err(PrepareError::Refused(wrong_disk(path, reason)));
        }
    }
    Ok(())
}

/// Ranges distributed evenly over what is finished.
fn samples(map: &Map, finished: u64) -> Vec<Range<u64>> {
    let step = (finished / SAMPLES).max(1);
    let (mut passed, mut wanted) = (0, 0);
    let mut samples = Vec::new();
    for run in map.all(State::Finished) {
        let len = run.end - run.start;
        while wanted < passed + len {
            let start = (run.start + (wanted - passed)) / SAMPLE * SAMPLE;
            let start = start.max(run.start);
            samples.push(start..run.end.min(start.saturating_add(SAMPLE)));
            wanted += step;
        }
        passed += len;
    }
    samples.truncate(usize::try_from(SAMPLES).unwrap_or(usize::MAX) + 1);
    samples
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn both_ends_wait_for_a_check() {
        assert!(held(0).is_empty());
        assert_eq!(held(512), vec![0..512; 1]);
        assert_eq!(held(HELD + 512), [0..HELD, HELD..HELD + 512]);
        assert_eq!(held(9 * HELD), [0..HELD, 8 * HELD..9 * HELD]);
        assert_eq!(held(9 * HELD + 512), [0..HELD, 8 * HELD..9 * HELD + 512]);
    }

    #[test]
    fn samples_cover_the_finished_ranges() {
        let mut map = Map::new(1 << 30);
        map.set(0..100 << 20, State::Finished);
        map.set(500 << 20..1 << 30, State::Finished);
        let samples = samples(&map, map.sum(State::Finished));
        assert!(samples.len() >= 16, "{samples:?}");
        let inside = |range: &Range<u64>| {
            map.all(State::Finished).any(|run| run.start <= range.start && range.end <= run.end)
        };
        assert!(samples.iter().all(|range| !range.is_empty() && inside(range)));
        assert!(samples.iter().any(|range| range.start > 900 << 20));
    }
}
