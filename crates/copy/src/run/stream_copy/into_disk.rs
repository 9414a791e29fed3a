//! Copies a pipe to a disk: several threads take turns to read a piece, and then hash and write it at
//! the same time, each over a connection of its own.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use super::input::{Input, Piece};
use super::writer::{Writer, WrittenHashes};
use super::{Counters, run_with_progress};
use crate::hash_tree::{HashTree, TreeShape};
use crate::map::{Map, State};
use crate::rate::RateLimit;
use crate::read_back::ReadBack;
use crate::read_behind::{self, ReadBehind};
use crate::run::monitor::Monitor;
use crate::run::verifying::{self, Written};
use crate::run::{StageResult, copying, lost};
use crate::sync_io::SyncIo;
use crate::thread_io::OpenedEndpoint;
use crate::{CopyError, Disk, Endpoint, Outcome, Phase, Pipe, Refusal, Settings};

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
    let (total, is_checked) = (pipe.bytes, pipe.finish.is_some());
    let (halt, theirs) = (monitor.halt.clone(), settings.clone());
    let work = move |counters: &Counters| {
        let behind = copying::read_behind(&theirs, &end, TreeShape::endless());
        let (state, settings) = (Mutex::default(), &theirs);
        let copy =
            PipeCopy { end: &end, settings, halt: &halt, counters, behind, is_checked, state };
        copy.run(pipe)
    };
    let (result, counters) = run_with_progress(monitor, total, work)?;
    monitor.report.zeroes = counters.zeroes.load(Ordering::Relaxed);
    let done = counters.done.load(Ordering::Relaxed);
    monitor.report.copied = done.saturating_sub(monitor.report.zeroes);
    let PipeCopied { bytes, padded, written, read_behind } = result?;
    monitor.report.read_behind = read_behind;
    monitor.report.padded = padded;
    // The program before the pipe may have failed.
    if bytes == 0 {
        let nothing =
            || CopyError::Incomplete("the source is empty: there is nothing to copy".to_owned());
        return Err(Outcome::Failed(if is_checked { nothing() } else { CopyError::EmptyPipe }));
    }
    monitor.report.bytes = bytes;
    if !settings.verify {
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
    verifying::verify(None, &end, &map, written, settings, monitor)
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

/// Result of copying a pipe to a disk.
struct PipeCopied {
    /// Total bytes, including the padding of the last block.
    bytes: u64,
    padded: u64,
    written: Written,
    /// Bytes that were read back, and are not once more after the last write.
    read_behind: u64,
}

/// State of the threads that copy.
struct PipeCopy<'a> {
    end: &'a OpenedEndpoint,
    settings: &'a Settings,
    halt: &'a AtomicBool,
    counters: &'a Counters,
    behind: Option<ReadBehind>,
    /// Whether it is known only at the end whether the data is what was expected.
    is_checked: bool,
    state: Mutex<CopyState>,
}

#[derive(Default)]
struct CopyState {
    /// The first piece, if the data is checked: the partition table.
    first: Option<Vec<u8>>,
    /// The last piece with its offset, unless it is the first one.
    last: Option<(u64, Vec<u8>)>,
    hashes: WrittenHashes,
    failed: Option<Outcome>,
}

impl PipeCopy<'_> {
    /// Copies until the end of the pipe.
    fn run(&self, pipe: Pipe) -> Result<PipeCopied, Outcome> {
        let Pipe { descriptor, head, bytes: announced, finish } = pipe;
        let limit = RateLimit::new(self.settings.rate, Instant::now());
        let input = Input::new(File::from(descriptor), head, limit);
        let mut writer = self.writer();
        self.run_threads(&input, &mut writer);
        let CopyState { first, last, hashes, failed } = std::mem::take(&mut *self.state());
        if let Some(failed) = failed {
            return Err(failed);
        }
        if let Some(finish) = finish {
            finish().map_err(Outcome::Failed)?;
        }
        let only = || first.as_ref().map_or(0, |piece| piece.len() as u64);
        let at = last.as_ref().map_or_else(only, |(offset, piece)| offset + piece.len() as u64);
        if let Some(announced) = announced.filter(|announced| *announced != at) {
            let reason = format!("{announced} bytes were announced, and the pipe delivered {at}");
            return Err(Outcome::Failed(CopyError::Incomplete(reason)));
        }
        writer.hashes = hashes;
        let bytes = at.next_multiple_of(u64::from(self.end.disk.block.max(1)));
        write_held(&mut writer, first, last, bytes)?;
        let mut tree = HashTree::new(bytes);
        writer.hashes.written.into_iter().for_each(|hash| tree.insert(hash));
        let mut read_back = ReadBack::new(bytes);
        read_back.record_hashes(writer.hashes.read_back);
        let behind = self.behind.as_ref();
        let read_behind = behind.map_or(0, |behind| behind.conclude(&mut read_back));
        let written = Written { tree, read_back };
        Ok(PipeCopied { bytes, padded: bytes - at, written, read_behind })
    }

    /// Writes all but the held pieces. What a thread that cannot be started would do is left to the
    /// others.
    fn run_threads(&self, input: &Input, writer: &mut Writer<'_>) {
        let others = 1..copying::threads(self.settings, &[self.end]);
        let builder = || thread::Builder::new().name("copy".to_owned());
        thread::scope(|scope| {
            let _end = EndGuard(self.behind.as_ref());
            for behind in self.behind.iter().flat_map(|it| [it; read_behind::THREADS]) {
                let work = || self.record(behind.run(self.halt).map_err(Outcome::Failed), input);
                let _ = builder().spawn_scoped(scope, work);
            }
            let work = || self.write_from(input, &mut self.writer(), true);
            let spawn = |_| builder().spawn_scoped(scope, work).ok();
            let others: Vec<_> = others.filter_map(spawn).collect();
            self.write_from(input, writer, false);
            let panicked = others.into_iter().filter_map(|thread| thread.join().err()).next();
            if let Some(panic) = panicked {
                std::panic::resume_unwind(panic);
            }
        });
    }

    /// Ends the copy if a thread has failed.
    fn record(&self, result: Result<(), Outcome>, input: &Input) {
        if let Err(outcome) = result {
            self.state().failed.get_or_insert(outcome);
            input.end();
        }
    }

    fn writer(&self) -> Writer<'_> {
        let io = SyncIo::new(self.end, self.settings.reconnect_timeout, self.halt);
        Writer::new(io, self.end, self.settings, self.counters, self.behind.as_ref())
    }

    fn state(&self) -> MutexGuard<'_, CopyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes pieces until the end of the pipe, and flushes them. If the thread `is_optional`, it leaves
    /// the work to the others if it cannot connect: some servers accept fewer connections than
    /// requested.
    fn write_from(&self, input: &Input, writer: &mut Writer<'_>, is_optional: bool) {
        if is_optional && writer.try_connect().is_err() {
            return;
        }
        let result = self.write_pieces(input, writer);
        self.state().hashes.append(std::mem::take(&mut writer.hashes));
        self.record(result, input);
    }

    fn write_pieces(&self, input: &Input, writer: &mut Writer<'_>) -> Result<(), Outcome> {
        let account = writer.account.clone();
        while let Some(piece) = input.next(&account, &mut || writer.keep_alive())? {
            let is_first = piece.offset == 0 && self.is_checked;
            if is_first {
                writer.clear_start()?;
            }
            if is_first || piece.is_last {
                self.hold(&piece, is_first);
            } else {
                writer.write(piece)?;
            }
        }
        writer.flush()
    }

    /// Keeps a piece until everything else is written.
    fn hold(&self, piece: &Piece, is_first: bool) {
        let bytes = piece.buffer.bytes().to_vec();
        let mut state = self.state();
        match is_first {
            true => state.first = Some(bytes),
            false => state.last = Some((piece.offset, bytes)),
        }
    }
}

/// Ends the threads that read back, also on a panic.
struct EndGuard<'a>(Option<&'a ReadBehind>);

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        if let Some(behind) = self.0 {
            behind.end();
        }
    }
}

/// Writes the last and then the first piece, padded to `bytes` bytes in all.
fn write_held(
    writer: &mut Writer<'_>,
    first: Option<Vec<u8>>,
    last: Option<(u64, Vec<u8>)>,
    bytes: u64,
) -> Result<(), Outcome> {
    let is_single = last.is_none();
    if let Some((offset, piece)) = last {
        writer.write_held(offset, &padded(piece, bytes - offset), TreeShape::new(bytes))?;
        writer.flush()?;
    }
    if let Some(piece) = first {
        let piece = if is_single { padded(piece, bytes) } else { piece };
        let shape = if is_single { TreeShape::new(bytes) } else { TreeShape::endless() };
        writer.write_held(0, &piece, shape)?;
        writer.flush()?;
    }
    Ok(())
}

/// The piece with zeros appended, so that it has `len` bytes.
fn padded(mut piece: Vec<u8>, len: u64) -> Vec<u8> {
    piece.resize(usize::try_from(len).unwrap_or(piece.len()), 0);
    piece
}
