//! Sequential copies from a pipe to a disk and from a disk to a pipe, in one thread.
//!
//! Data written to a pipe cannot be read back: it is hashed and not verified. Data from a pipe
//! cannot be read again: the copy ends if the connection to its destination is lost.

use std::io::{self, Cursor, Read as _, Write as _};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use export::{Account, Buffer, Pool};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::monitor::{Monitor, StageProgress, spawn};
use super::verifying::{self, Written};
use super::{StageResult, sync_io_error};
use crate::compare::read;
use crate::hash_tree::{HashTree, RangeHash, TreeShape, is_zero};
use crate::map::{Map, State};
use crate::prepare;
use crate::rate::RateLimit;
use crate::read_back::ReadBack;
use crate::sync_io::{SyncIo, SyncIoError};
use crate::thread_io::OpenedEndpoint;
use crate::{
    CopyError, Disk, Endpoint, Finish, Outcome, Phase, Pipe, Refusal, Request, RequestError,
    Settings,
};

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

/// Copies a pipe to a disk.
pub(crate) fn into_disk(
    pipe: Pipe,
    endpoint: Arc<dyn Endpoint>,
    settings: &Settings,
    monitor: &mut Monitor<'_>,
) -> StageResult {
    let to = endpoint.clone();
    let disk = monitor.run_in_thread(Phase::Checking, move || admit(&*to))??;
    let end = OpenedEndpoint::new(endpoint.clone(), disk.clone());
    let (halt, reconnect_timeout, verify, sparse) =
        (monitor.halt.clone(), settings.reconnect_timeout, settings.verify, settings.sparse);
    let limit = RateLimit::new(settings.rate, Instant::now());
    let (total, unpacked) = (pipe.bytes, pipe.finish.is_some());
    let work = move |counters: &Counters| {
        let io = SyncIo::new(&end, reconnect_timeout, &halt);
        let writer =
            PipeToDisk { io, disk: end.disk.clone(), sparse, counters, hashes: Vec::new() };
        writer.copy_from(PipeReader::new(pipe), limit, verify)
    };
    let (result, counters) = run_with_progress(monitor, total, work)?;
    monitor.report.zeroes = counters.zeroes.load(Ordering::Relaxed);
    let done = counters.done.load(Ordering::Relaxed);
    monitor.report.copied = done.saturating_sub(monitor.report.zeroes);
    let PipeCopied { bytes, padded, tree } = result?;
    monitor.report.padded = padded;
    // The program before the pipe may have failed.
    if bytes == 0 {
        let nothing =
            || CopyError::Incomplete("the source is empty: there is nothing to copy".to_owned());
        return Err(Outcome::Failed(if unpacked { nothing() } else { CopyError::EmptyPipe }));
    }
    monitor.report.bytes = bytes;
    if !verify {
        return Ok(());
    }
    // A file has grown: reopen for its new size.
    let to = endpoint.clone();
    let opened =
        monitor.run_in_thread(Phase::Verifying, move || to.open().map(|(disk, _)| disk))?;
    let disk = opened.map_err(|reason| lost(&disk.name, &reason))?;
    let mut map = Map::new(bytes);
    map.set(0..bytes, State::Finished);
    let end = OpenedEndpoint::new(endpoint, disk);
    let written = Written { tree, read_back: ReadBack::new(map.bytes()) };
    verifying::verify(None, &end, &map, written, settings, monitor)
}

fn lost(name: &str, reason: &dyn ToString) -> Outcome {
    Outcome::Failed(CopyError::Lost { name: name.to_owned(), reason: reason.to_string() })
}

/// Opens the destination for an unknown number of bytes, and checks that it is writable.
fn admit(endpoint: &dyn Endpoint) -> Result<Disk, Outcome> {
    let refused = |reason| Outcome::Refused(Refusal::Destination(reason));
    endpoint.prepare(0).map_err(refused)?;
    let (disk, _) = endpoint.open().map_err(refused)?;
    if disk.writable {
        return Ok(disk);
    }
    Err(Outcome::Refused(Refusal::ReadOnly { destination: disk.name }))
}

/// Reads a pipe.
struct PipeReader {
    head: Cursor<Vec<u8>>,
    pipe: std::fs::File,
    bytes: Option<u64>,
    finish: Option<Finish>,
}

impl PipeReader {
    fn new(pipe: Pipe) -> Self {
        let Pipe { descriptor, head, bytes, finish } = pipe;
        Self { head: Cursor::new(head), pipe: descriptor.into(), bytes, finish }
    }

    /// Reads some bytes, waiting for them; returns 0 at the end. Calls `keep_alive` while waiting.
    fn read(
        &mut self,
        bytes: &mut [u8],
        keep_alive: &mut dyn FnMut() -> Result<(), Outcome>,
    ) -> Result<usize, Outcome> {
        let got = self.head.read(bytes).unwrap_or(0);
        if got > 0 {
            return Ok(got);
        }
        loop {
            wait_for_pipe(&self.pipe, keep_alive)?;
            match self.pipe.read(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map_err(broken),
            }
        }
    }
}

/// Result of copying a pipe to a disk.
struct PipeCopied {
    /// Total bytes, including the padding of the last block.
    bytes: u64,
    padded: u64,
    tree: HashTree,
}

/// Writes the data of a pipe to a disk.
struct PipeToDisk<'a> {
    io: SyncIo<'a>,
    disk: Arc<Disk>,
    sparse: bool,
    counters: &'a Counters,
    hashes: Vec<RangeHash>,
}

impl PipeToDisk<'_> {
    /// Copies until the end of the pipe.
    fn copy_from(
        mut self,
        mut stream: PipeReader,
        mut limit: RateLimit,
        verify: bool,
    ) -> Result<PipeCopied, Outcome> {
        let account = Pool::new(4 * PIECE).open();
        let _ = rustix::pipe::fcntl_setpipe_size(&stream.pipe, PIECE);
        let is_checked = stream.finish.is_some();
        let (mut at, mut first, mut last) = (0, None, None);
        // Writing is delayed by one piece, because the last one is padded.
        while let Some(buffer) = self.next(&mut stream, &account, &limit)? {
            let len = buffer.len() as u64;
            limit.charge(len, Instant::now());
            if at == 0 && is_checked {
                self.clear_start(&account)?;
                first = Some(buffer);
            } else if let Some((offset, buffer)) = last.replace((at, buffer)) {
                self.write(offset, buffer, verify.then(TreeShape::endless))?;
            }
            at += len;
        }
        if let Some(finish) = stream.finish.take() {
            finish().map_err(Outcome::Failed)?;
        }
        if let Some(announced) = stream.bytes.filter(|announced| *announced != at) {
            let reason = format!("{announced} bytes were announced, and the pipe delivered {at}");
            return Err(Outcome::Failed(CopyError::Incomplete(reason)));
        }
        let bytes = at.next_multiple_of(u64::from(self.disk.block.max(1)));
        let shape = TreeShape::new(bytes);
        let is_single = last.is_none();
        if let Some((offset, buffer)) = last {
            let buffer = padded(buffer, &account, bytes - offset)?;
            self.sparse = false;
            self.write(offset, buffer, verify.then_some(shape))?;
        }
        self.flush()?;
        if let Some(buffer) = first {
            let buffer = if is_single { padded(buffer, &account, bytes)? } else { buffer };
            self.sparse = false;
            let shape = if is_single { shape } else { TreeShape::endless() };
            self.write(0, buffer, verify.then_some(shape))?;
            self.flush()?;
        }
        let mut tree = HashTree::new(bytes);
        self.hashes.into_iter().for_each(|hash| tree.insert(hash));
        Ok(PipeCopied { bytes, padded: bytes - at, tree })
    }

    /// Zeroes the start of the disk: a partition table that is there describes what is overwritten,
    /// and that of the pipe is written when its data is known to be what was expected.
    fn clear_start(&mut self, account: &Account) -> Result<(), Outcome> {
        let len = match self.disk.bytes {
            // A new file.
            0 => return Ok(()),
            bytes => bytes.min(PIECE as u64),
        };
        if self.disk.blank || self.zero(0, len)? {
            return Ok(());
        }
        let mut zeros = memory(account, usize::try_from(len).unwrap_or(PIECE))?;
        zeros.bytes_mut().fill(0);
        self.write_all(0, zeros)
    }

    fn flush(&mut self) -> Result<(), Outcome> {
        self.run(Request::Flush, |name, reason| CopyError::Flush { name, reason }).map(drop)
    }

    /// The next piece of the pipe. Keeps the connection to the disk alive meanwhile.
    fn next(
        &mut self,
        stream: &mut PipeReader,
        account: &Account,
        limit: &RateLimit,
    ) -> Result<Option<Buffer>, Outcome> {
        let mut keep_alive = || self.io.keep_alive().map_err(|error| outcome(&self.disk, error));
        wait_for_rate_limit(limit, &mut keep_alive)?;
        next(stream, account, &mut keep_alive)
    }

    fn write(
        &mut self,
        offset: u64,
        buffer: Buffer,
        shape: Option<TreeShape>,
    ) -> Result<(), Outcome> {
        let len = buffer.len() as u64;
        let name = self.disk.name.clone();
        // A new file grows; everything else has a fixed size.
        if self.disk.bytes != 0 && offset + len > self.disk.bytes {
            let reason = RequestError::NoSpace;
            return Err(Outcome::Failed(CopyError::Write { name, offset, len, reason }));
        }
        if let Some(shape) = shape {
            self.hashes.extend(shape.hash_range(offset, buffer.bytes()));
        }
        self.counters.done.fetch_add(len, Ordering::Relaxed);
        if self.sparse && is_zero(buffer.bytes()) && self.zero(offset, len)? {
            self.counters.zeroes.fetch_add(len, Ordering::Relaxed);
            return Ok(());
        }
        self.write_all(offset, buffer)
    }

    fn write_all(&mut self, offset: u64, buffer: Buffer) -> Result<(), Outcome> {
        let max = usize::try_from(self.disk.max_transfer).unwrap_or(PIECE).max(512);
        let (mut from, all) = (0, buffer.len());
        let mut buffer = Some(buffer);
        while let Some(memory) = buffer.take().filter(|_| from < all) {
            let to = all.min(from + max);
            let at = offset + from as u64;
            let work = Request::Write { offset: at, buffer: memory, part: from..to };
            let error = |name, reason| CopyError::Write {
                name,
                offset: at,
                len: (to - from) as u64,
                reason,
            };
            buffer = self.run(work, error)?;
            from = to;
        }
        Ok(())
    }

    /// Zeroes a range without writing. Returns `false` if that is not possible.
    fn zero(&mut self, offset: u64, len: u64) -> Result<bool, Outcome> {
        if self.disk.blank {
            return Ok(true);
        }
        if self.disk.max_zero < len {
            return Ok(false);
        }
        match self
            .io
            .run(Request::Zero { offset, len })
            .map_err(|error| self.outcome(error))?
            .result
        {
            Ok(()) => Ok(true),
            Err(RequestError::Unsupported) => Ok(false),
            Err(reason) => {
                let name = self.disk.name.clone();
                Err(Outcome::Failed(CopyError::Write { name, offset, len, reason }))
            }
        }
    }

    fn run(
        &mut self,
        work: Request,
        error: impl FnOnce(String, RequestError) -> CopyError,
    ) -> Result<Option<Buffer>, Outcome> {
        let ended = self.io.run(work).map_err(|error| self.outcome(error))?;
        let name = self.disk.name.clone();
        ended.result.map_err(|reason| Outcome::Failed(error(name, reason)))?;
        Ok(ended.buffer)
    }

    fn outcome(&self, error: SyncIoError) -> Outcome {
        outcome(&self.disk, error)
    }
}

/// The outcome of a failed request when the source cannot be read again.
fn outcome(disk: &Disk, error: SyncIoError) -> Outcome {
    match error {
        SyncIoError::Disconnected => {
            lost(&disk.name, &"what came from the pipe cannot be read again")
        }
        other => sync_io_error(other),
    }
}

/// The next piece, full except at the end of the pipe; `None` at the end.
fn next(
    stream: &mut PipeReader,
    account: &Account,
    keep_alive: &mut dyn FnMut() -> Result<(), Outcome>,
) -> Result<Option<Buffer>, Outcome> {
    let mut buffer = memory(account, PIECE)?;
    let mut got = 0;
    while got < PIECE {
        let rest = buffer.bytes_mut().get_mut(got..).unwrap_or_default();
        match stream.read(rest, keep_alive)? {
            0 => break,
            more => got += more,
        }
    }
    match got {
        0 => Ok(None),
        PIECE => Ok(Some(buffer)),
        _ => cut(&buffer, account, got).map(Some),
    }
}

/// Waits until the pipe is readable, calling `keep_alive` meanwhile.
fn wait_for_pipe(
    pipe: &std::fs::File,
    keep_alive: &mut dyn FnMut() -> Result<(), Outcome>,
) -> Result<(), Outcome> {
    let tick = Timespec::try_from(WAIT).unwrap_or_default();
    loop {
        keep_alive()?;
        let mut fds = [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)];
        if poll(&mut fds, Some(&tick)).is_ok_and(|ready| ready > 0) {
            return Ok(());
        }
    }
}

fn memory(account: &Account, len: usize) -> Result<Buffer, Outcome> {
    account.take(len).ok_or(Outcome::Failed(CopyError::Internal))
}

/// A copy of the first `len` bytes of a buffer.
fn cut(buffer: &Buffer, account: &Account, len: usize) -> Result<Buffer, Outcome> {
    let mut short = memory(account, len)?;
    short.bytes_mut().copy_from_slice(buffer.bytes().get(..len).unwrap_or_default());
    Ok(short)
}

/// The buffer padded with zeros to `len` bytes.
fn padded(buffer: Buffer, account: &Account, len: u64) -> Result<Buffer, Outcome> {
    let (used, len) = (buffer.len(), usize::try_from(len).unwrap_or(usize::MAX));
    if used == len {
        return Ok(buffer);
    }
    let mut long = memory(account, len)?;
    let (head, tail) = long.bytes_mut().split_at_mut(used.min(len));
    head.copy_from_slice(buffer.bytes().get(..head.len()).unwrap_or_default());
    tail.fill(0);
    Ok(long)
}
