//! Copies all but the ends of a disk, and has the destination checked before these are copied, so that it has no
//! partition table until it is known to hold what was expected.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use export::Pool;

use super::copying::{self, Copied};
use super::monitor::{Monitor, StageProgress, spawn};
use super::{sync_io_error, verify};
use crate::map::{self, Map, MapMetadata, Position};
use crate::prepare::PreparedCopy;
use crate::sync_io::{SyncIo, SyncIoError};
use crate::thread_io::OpenedEndpoint;
use crate::{Check, CopyError, Outcome, Phase, Request, Settings, Unchecked};

/// Largest write of zeros, in bytes.
const PIECE: u64 = 256 << 10;

/// Copies all but the held ranges, and runs the check. Returns what is left to copy.
///
/// # Errors
/// Fails with the outcome of the verification if the destination is not what was expected because it does not hold
/// what was written to it.
pub(super) fn copy(
    mut prepared: PreparedCopy,
    settings: &Settings,
    check: Check,
    monitor: &mut Monitor<'_>,
) -> Result<PreparedCopy, Outcome> {
    clear_start(&prepared, settings, monitor)?;
    // All is read by the check, after the last write of this stage.
    let all_after = Settings { read_behind: false, ..settings.clone() };
    let copied = copying::copy(&prepared, &all_after, monitor)?;
    match run(&prepared, settings, check, monitor)? {
        Ok(()) => {}
        Err(unexpected @ CopyError::Unexpected(_)) => {
            verify(&prepared, copied, &all_after, monitor)?;
            begin_anew(&prepared, settings);
            return Err(Outcome::Failed(unexpected));
        }
        Err(error) => return Err(Outcome::Failed(error)),
    }
    let Copied { mut map, tree, .. } = copied;
    map.metadata = prepared.map.metadata;
    // Without a verification, those of earlier runs stay: what they are of was not written again.
    if let Some(tree) = tree {
        map.metadata.hashes = tree.hashes().collect();
    }
    map.position = Position::default();
    prepared.map = map;
    prepared.held.clear();
    Ok(prepared)
}

/// Zeroes the start of the destination: a partition table that is there describes what is overwritten.
fn clear_start(
    prepared: &PreparedCopy,
    settings: &Settings,
    monitor: &mut Monitor<'_>,
) -> Result<(), Outcome> {
    let Some(start) = prepared.held.first().cloned() else { return Ok(()) };
    if prepared.destination.disk.blank {
        return Ok(());
    }
    let (end, halt) = (prepared.destination.clone(), monitor.halt.clone());
    let patience = settings.reconnect_timeout;
    let work = move || clear(&end, start.end, patience, &halt);
    monitor.run_in_thread(Phase::Checking, work)?
}

/// Writes zeros up to the byte `to`, and flushes them.
fn clear(
    end: &OpenedEndpoint,
    to: u64,
    reconnect_timeout: Duration,
    stop: &AtomicBool,
) -> Result<(), Outcome> {
    let mut io = SyncIo::new(end, reconnect_timeout, stop);
    let account = Pool::new(Pool::MAX_BUFFER).open();
    let (mut at, name) = (0, || end.disk.name.clone());
    loop {
        let len = (to - at).min(PIECE).min(end.disk.max_transfer.into());
        let request = match usize::try_from(len).unwrap_or(0) {
            0 => Request::Flush,
            part => {
                let mut buffer = account.take(part).ok_or(Outcome::Failed(CopyError::Internal))?;
                buffer.bytes_mut().fill(0);
                Request::Write { offset: at, buffer, part: 0..part }
            }
        };
        match io.run(request) {
            // What was not flushed may be lost.
            Err(SyncIoError::Disconnected) => at = 0,
            Err(error) => return Err(sync_io_error(error)),
            Ok(completion) => match completion.result {
                Ok(()) if len == 0 => return Ok(()),
                Ok(()) => at += len,
                Err(reason) if len == 0 => {
                    return Err(Outcome::Failed(CopyError::Flush { name: name(), reason }));
                }
                Err(reason) => {
                    let error = CopyError::Write { name: name(), offset: at, len, reason };
                    return Err(Outcome::Failed(error));
                }
            },
        }
    }
}

/// Runs the check in a thread, and returns its result.
fn run(
    prepared: &PreparedCopy,
    settings: &Settings,
    Check(check): Check,
    monitor: &mut Monitor<'_>,
) -> Result<Result<(), CopyError>, Outcome> {
    let (held, done, stop) = (prepared.held.clone(), AtomicU64::new(0), monitor.halt.clone());
    let (destination, reconnect_timeout) =
        (prepared.destination.clone(), settings.reconnect_timeout);
    let unchecked = Unchecked { held, done, stop, destination, reconnect_timeout };
    let unchecked = Arc::new(unchecked);
    let theirs = unchecked.clone();
    let thread = spawn(move || check(&theirs))?;
    let total = Some(prepared.map.bytes());
    let mut ended = monitor.join(vec![thread], &mut |_| StageProgress {
        done: unchecked.done.load(Ordering::Relaxed),
        total,
        ..StageProgress::only(Phase::Verifying)
    })?;
    if monitor.is_stopped() {
        return Err(Outcome::Interrupted);
    }
    ended.pop().ok_or(Outcome::Failed(CopyError::Internal))
}

/// Saves a map by which all is copied again: what was copied is not what was expected.
fn begin_anew(prepared: &PreparedCopy, settings: &Settings) {
    let Some(path) = &settings.map else { return };
    let mut map = Map::new(prepared.map.bytes());
    map.metadata = MapMetadata { hashes: Vec::new(), ..prepared.map.metadata.clone() };
    // If it cannot be saved, the outcome is still that of the check.
    let _ = map::save(&map, path);
}
