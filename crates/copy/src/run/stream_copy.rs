//! Copies from a pipe to a disk and from a disk to a pipe.
//!
//! Data written to a pipe cannot be read back: it is hashed and not verified. Data from a pipe
//! cannot be read again: the copy ends if the connection to its destination is lost.

mod input;
mod into_disk;
mod writer;

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use export::Pool;
use rustix::io::Errno;

use super::monitor::{Monitor, StageProgress, spawn};
use super::{StageResult, sync_io_error};
use crate::compare::read;
use crate::prepare;
use crate::rate::RateLimit;
use crate::sync_io::{SyncIo, SyncIoError};
use crate::{CopyError, Endpoint, Outcome, Phase, Pipe, RequestError, Settings};

pub(crate) use into_disk::into_disk;

/// Bytes of a piece.
const PIECE: usize = Pool::MAX_BUFFER;

/// Maximum time of one poll.
const WAIT: Duration = Duration::from_millis(100);

/// Progress counters.
#[derive(Debug, Default)]
struct Counters {
    done: AtomicU64,
    zeroes: AtomicU64,
}

/// Copies a disk into a pipe.
pub(crate) fn into_pipe(
    endpoint: Arc<dyn Endpoint>,
    pipe: Pipe,
    settings: &Settings,
    monitor: &mut Monitor<'_>,
) -> StageResult {
    let (halt, reconnect_timeout) = (monitor.halt.clone(), settings.reconnect_timeout);
    let open = move || prepare::open_source(endpoint, reconnect_timeout);
    let looked = monitor.run_in_thread(Phase::Checking, open)?;
    let source = looked.map_err(Outcome::Refused)?;
    let total = source.disk.bytes;
    monitor.report.bytes = total;
    let limit = RateLimit::new(settings.rate, Instant::now());
    let work = move |counters: &Counters| {
        let mut io = SyncIo::new(&source, reconnect_timeout, &halt);
        disk_to_pipe(&mut io, total, pipe.descriptor.into(), limit, counters)
    };
    let (result, counters) = run_with_progress(monitor, Some(total), work)?;
    monitor.report.copied = counters.done.load(Ordering::Relaxed);
    let hash = result?;
    monitor.report.hash = settings.hash.then_some(hash);
    Ok(())
}

/// Runs `work` in a thread and reports its progress.
fn run_with_progress<T: Send + 'static>(
    monitor: &mut Monitor<'_>,
    total: Option<u64>,
    work: impl FnOnce(&Counters) -> T + Send + 'static,
) -> Result<(T, Arc<Counters>), Outcome> {
    let counters = Arc::new(Counters::default());
    let theirs = counters.clone();
    let thread = spawn(move || work(&theirs))?;
    let mut results = monitor.join(vec![thread], &mut |_| StageProgress {
        done: counters.done.load(Ordering::Relaxed),
        zeroes: counters.zeroes.load(Ordering::Relaxed),
        total,
        ..StageProgress::only(Phase::Copying)
    })?;
    let result = results.pop().ok_or(Outcome::Failed(CopyError::Internal))?;
    Ok((result, counters))
}

fn disk_to_pipe(
    io: &mut SyncIo<'_>,
    total: u64,
    mut pipe: std::fs::File,
    mut limit: RateLimit,
    counters: &Counters,
) -> Result<[u8; 32], Outcome> {
    let account = Pool::new(PIECE).open();
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    while at < total {
        let end = total.min(at + PIECE as u64);
        wait_for_rate_limit(&limit, &mut || match io.keep_alive() {
            // The pending read will be repeated.
            Err(SyncIoError::Disconnected) => Ok(()),
            keep_alive => keep_alive.map_err(sync_io_error),
        })?;
        limit.charge(end - at, Instant::now());
        let buffer = read(io, &account, &(at..end)).map_err(sync_io_error)?;
        let bad = || sync_io_error(io.failed(&(at..end), Err(RequestError::Media)));
        let buffer = buffer.ok_or_else(bad)?;
        hasher.update(buffer.bytes());
        pipe.write_all(buffer.bytes()).map_err(broken)?;
        at = end;
        counters.done.store(at, Ordering::Relaxed);
    }
    sync_pipe(&pipe)?;
    Ok(*hasher.finalize().as_bytes())
}

/// Waits for the rate limit, calling `keep_alive` meanwhile.
fn wait_for_rate_limit(
    limit: &RateLimit,
    keep_alive: &mut dyn FnMut() -> Result<(), Outcome>,
) -> Result<(), Outcome> {
    loop {
        keep_alive()?;
        let rest = limit.delay(Instant::now());
        if rest.is_zero() {
            return Ok(());
        }
        std::thread::sleep(rest.min(WAIT));
    }
}

/// Flushes the output, which may be a file or a disk. Real pipes fail with an error that is
/// ignored.
fn sync_pipe(pipe: &std::fs::File) -> Result<(), Outcome> {
    match rustix::io::retry_on_intr(|| rustix::fs::fdatasync(pipe)) {
        Ok(()) | Err(Errno::INVAL | Errno::ROFS | Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(broken(error.into())),
    }
}

fn broken(error: io::Error) -> Outcome {
    Outcome::Failed(CopyError::Pipe(error))
}
