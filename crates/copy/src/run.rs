//! Runs a job: checks, copying, verification, and the report.

mod checking;
mod copying;
mod monitor;
mod stream_copy;
mod verifying;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::map::{self, Map, MapMetadata, Position, State};
use crate::prepare::{self, PrepareError, PreparedCopy};
use crate::sync_io::SyncIoError;
use crate::{
    Check, CopyError, End, Endpoint, Job, Outcome, Phase, Progress, Refusal, Report, Settings,
};
use monitor::Monitor;

/// Runs a copy.
pub(crate) fn run(job: Job, stop: &AtomicBool, watch: &mut dyn FnMut(&Progress)) -> Report {
    let Job { source, destination, settings, check } = job;
    let mut monitor = Monitor::new(stop, watch);
    let outcome = match (source, destination) {
        (End::Disk(source), End::Disk(destination)) => {
            disks(source.into(), destination.into(), &settings, check, &mut monitor)
        }
        (End::Pipe(_), End::Pipe(_)) => Err(Outcome::Refused(Refusal::Pipes)),
        _ if settings.map.is_some() => Err(Outcome::Refused(Refusal::PipeWithMap)),
        (End::Pipe(pipe), End::Disk(disk)) => {
            stream_copy::into_disk(pipe, disk.into(), &settings, &mut monitor)
        }
        (End::Disk(disk), End::Pipe(pipe)) => {
            stream_copy::into_pipe(disk.into(), pipe, &settings, &mut monitor)
        }
    };
    monitor.finish(outcome.err())
}

/// An early end of the copy; otherwise the outcome follows from the report.
type StageResult = Result<(), Outcome>;

fn disks(
    source: Arc<dyn Endpoint>,
    destination: Arc<dyn Endpoint>,
    settings: &Settings,
    check: Option<Check>,
    monitor: &mut Monitor<'_>,
) -> StageResult {
    let prepared = self::check(source, destination, settings, check.is_some(), monitor)?;
    monitor.report.bytes = prepared.source.disk.bytes;
    monitor.report.earlier = prepared.map.sum(State::Finished);
    let prepared = match check {
        Some(check) => checking::copy(prepared, settings, check, monitor)?,
        None => prepared,
    };
    let copied = copying::copy(&prepared, settings, monitor)?;
    verify(&prepared, copied, settings, monitor)
}

/// Verifies what was copied, if that is wanted.
fn verify(
    prepared: &PreparedCopy,
    copied: copying::Copied,
    settings: &Settings,
    monitor: &mut Monitor<'_>,
) -> StageResult {
    let copying::Copied { map, tree, read_back } = copied;
    let Some(tree) = tree.filter(|_| settings.verify) else { return Ok(()) };
    let (source, known) = (Some(&prepared.source), tree.hashes().collect());
    let destination = prepared.destination.unknown();
    let written = verifying::Written { tree, read_back };
    let ended = verifying::verify(source, &destination, &map, written, settings, monitor);
    if let (Err(Outcome::VerifyFailed(differing_ranges)), Some(path)) = (&ended, &settings.map) {
        let metadata = MapMetadata { hashes: known, ..prepared.map.metadata.clone() };
        // If it cannot be saved, the outcome is still that of the verification.
        let _ = map::save(&invalidated(map, metadata, differing_ranges), path);
    }
    ended
}

/// The map after a failed verification: the differing ranges are untried again.
fn invalidated(mut map: Map, metadata: MapMetadata, differing_ranges: &[Range<u64>]) -> Map {
    differing_ranges.iter().for_each(|range| map.set(range.clone(), State::Untried));
    map.metadata = metadata;
    map.position = Position::default();
    map
}

/// Performs the checks in a thread, so that progress is reported even if an address does not
/// answer.
fn check(
    source: Arc<dyn Endpoint>,
    destination: Arc<dyn Endpoint>,
    settings: &Settings,
    is_checked: bool,
    monitor: &mut Monitor<'_>,
) -> Result<PreparedCopy, Outcome> {
    let (settings, halt) = (settings.clone(), monitor.halt.clone());
    let work = move || {
        let prepared = prepare::prepare(source, destination, &settings, is_checked, &halt)
            .map_err(prepare_error)?;
        prepare::confirm(&prepared, &settings, &halt).map_err(prepare_error)?;
        Ok(prepared)
    };
    monitor.run_in_thread(Phase::Checking, work)?
}

fn prepare_error(prepare_error: PrepareError) -> Outcome {
    match prepare_error {
        PrepareError::Refused(reason) => Outcome::Refused(reason),
        PrepareError::Io(sync_io_error) => self::sync_io_error(sync_io_error),
    }
}

/// The outcome of a failed synchronous request.
fn sync_io_error(sync_io_error: SyncIoError) -> Outcome {
    match sync_io_error {
        SyncIoError::Cancelled => Outcome::Interrupted,
        SyncIoError::Disconnected => Outcome::Failed(CopyError::Internal),
        SyncIoError::Failed(error) => Outcome::Failed(error),
    }
}

/// The outcome of the loss of an end that cannot be used again.
fn lost(name: &str, reason: &dyn ToString) -> Outcome {
    Outcome::Failed(CopyError::Lost { name: name.to_owned(), reason: reason.to_string() })
}

#[cfg(test)]
mod test;
