//! Copies from a pipe to a disk and from a disk to a pipe: in order, in one thread, without going back. It knows no
//! plan.
//!
//! What goes into a pipe cannot be read back: there is a hash of it, and no verification. What comes out of a pipe cannot
//! be read again: if the way to its destination is lost, the copy ends.

use std::io::{self, Cursor, Read as _, Write as _};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use export::{Account, Buffer, Pool};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::begin;
use crate::compare::read;
use crate::errand::{Errand, Undone};
use crate::forest::{Forest, Mark, Shape, is_zero};
use crate::map::{Map, State};
use crate::rate::Limit;
use crate::run::{Course, Ended, Now, spawn, undone, verifying};
use crate::traffic::Target;
use crate::{Disk, Failed, Finish, Outcome, Phase, Pipe, Place, Refusal, Settings, Trouble, Work};

/// Bytes of a piece.
const PIECE: usize = Pool::MAX_BUFFER;

/// How long to wait at once.
const WAIT: Duration = Duration::from_millis(100);

/// How far it is.
#[derive(Debug, Default)]
struct Counters {
    done: AtomicU64,
    zeroes: AtomicU64,
}

/// Copies a disk into a pipe.
pub(crate) fn into_pipe(
    place: Arc<dyn Place>,
    pipe: Pipe,
    settings: &Settings,
    course: &mut Course<'_>,
) -> Ended {
    let looked = course.aside(Phase::Checking, move || begin::look(place))?;
    let source = looked.map_err(Outcome::Refused)?;
    let total = source.disk.bytes;
    course.report.bytes = total;
    let (halt, patience) = (course.halt.clone(), settings.patience);
    let limit = Limit::new(settings.rate, Instant::now());
    let work = move |counters: &Counters| {
        let mut errand = Errand::new(&source, patience, &halt);
        drain(&mut errand, total, pipe.descriptor.into(), limit, counters)
    };
    let (result, counters) = attend(course, Some(total), work)?;
    course.report.copied = counters.done.load(Ordering::Relaxed);
    let hash = result?;
    course.report.hash = settings.hash.then_some(hash);
    Ok(())
}

/// Does the work in a thread of its own, and tells how far it is.
fn attend<T: Send + 'static>(
    course: &mut Course<'_>,
    total: Option<u64>,
    work: impl FnOnce(&Counters) -> T + Send + 'static,
) -> Result<(T, Arc<Counters>), Outcome> {
    let counters = Arc::new(Counters::default());
    let theirs = counters.clone();
    let thread = spawn(move || work(&theirs))?;
    let mut results = course.attend(vec![thread], &mut |_| Now {
        done: counters.done.load(Ordering::Relaxed),
        zeroes: counters.zeroes.load(Ordering::Relaxed),
        total,
        ..Now::only(Phase::Copying)
    })?;
    let result = results.pop().ok_or(Outcome::Failed(Trouble::Mistake))?;
    Ok((result, counters))
}

fn drain(
    errand: &mut Errand<'_>,
    total: u64,
    mut pipe: std::fs::File,
    mut limit: Limit,
    counters: &Counters,
) -> Result<[u8; 32], Outcome> {
    let account = Pool::new(PIECE).open();
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    while at < total {
        let end = total.min(at + PIECE as u64);
        hold(&limit, &mut || match errand.tend() {
            // What is read is read again.
            Err(Undone::Lost) => Ok(()),
            tended => tended.map_err(undone),
        })?;
        limit.take(end - at, Instant::now());
        let buffer = read(errand, &account, &(at..end)).map_err(undone)?;
        let bad = || undone(errand.failed(&(at..end), Err(Failed::Media)));
        let buffer = buffer.ok_or_else(bad)?;
        hasher.update(buffer.bytes());
        pipe.write_all(buffer.bytes()).map_err(broken)?;
        at = end;
        counters.done.store(at, Ordering::Relaxed);
    }
    settle(&pipe)?;
    Ok(*hasher.finalize().as_bytes())
}

/// Waits until something may be moved. What has to be done meanwhile does `tend`.
fn hold(limit: &Limit, tend: &mut dyn FnMut() -> Result<(), Outcome>) -> Result<(), Outcome> {
    loop {
        tend()?;
        let rest = limit.wait(Instant::now());
        if rest.is_zero() {
            return Ok(());
        }
        std::thread::sleep(rest.min(WAIT));
    }
}

/// Behind what looks like a pipe may be a file or a disk, which fails what it took when it is flushed. Nothing else has
/// anything to flush, and says so.
fn settle(pipe: &std::fs::File) -> Result<(), Outcome> {
    match rustix::io::retry_on_intr(|| rustix::fs::fdatasync(pipe)) {
        Ok(()) | Err(Errno::INVAL | Errno::ROFS | Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(broken(error.into())),
    }
}

fn broken(error: io::Error) -> Outcome {
    Outcome::Failed(Trouble::Pipe(error))
}

/// Copies a pipe to a disk.
pub(crate) fn into_disk(
    pipe: Pipe,
    place: Arc<dyn Place>,
    settings: &Settings,
    course: &mut Course<'_>,
) -> Ended {
    let to = place.clone();
    let disk = course.aside(Phase::Checking, move || admit(&*to))??;
    let target = Target::new(place.clone(), disk.clone());
    let (halt, patience, verify, sparse) =
        (course.halt.clone(), settings.patience, settings.verify, settings.sparse);
    let limit = Limit::new(settings.rate, Instant::now());
    let (total, unpacked) = (pipe.bytes, pipe.finish.is_some());
    let work = move |counters: &Counters| {
        let errand = Errand::new(&target, patience, &halt);
        let spout =
            Spout { errand, disk: target.disk.clone(), sparse, counters, marks: Vec::new() };
        spout.fill(Stream::new(pipe), limit, verify)
    };
    let (result, counters) = attend(course, total, work)?;
    course.report.zeroes = counters.zeroes.load(Ordering::Relaxed);
    let done = counters.done.load(Ordering::Relaxed);
    course.report.copied = done.saturating_sub(course.report.zeroes);
    let Filled { bytes, padded, forest } = result?;
    course.report.padded = padded;
    // A program that failed leaves an empty pipe.
    if bytes == 0 {
        let nothing =
            || Trouble::Broken("what was unpacked is empty: there is nothing to copy".to_owned());
        return Err(Outcome::Failed(if unpacked { nothing() } else { Trouble::Empty }));
    }
    course.report.bytes = bytes;
    if !verify {
        return Ok(());
    }
    // A file has grown meanwhile.
    let to = place.clone();
    let opened = course.aside(Phase::Verifying, move || to.open().map(|(disk, _)| disk))?;
    let disk = opened.map_err(|why| lost(&disk.name, &why))?;
    let mut map = Map::new(bytes);
    map.set(0..bytes, State::Finished);
    let target = Target::new(place, disk);
    verifying::verify(None, &target, &map, forest, settings, course)
}

fn lost(name: &str, why: &dyn ToString) -> Outcome {
    Outcome::Failed(Trouble::Lost { name: name.to_owned(), why: why.to_string() })
}

/// The destination, if it can be written at all. How much it is to take is not known.
fn admit(place: &dyn Place) -> Result<Disk, Outcome> {
    let refused = |why| Outcome::Refused(Refusal::Destination(why));
    place.prepare(0).map_err(refused)?;
    let (disk, _) = place.open().map_err(refused)?;
    if disk.writable {
        return Ok(disk);
    }
    Err(Outcome::Refused(Refusal::ReadOnly { destination: disk.name }))
}

/// What comes out of a pipe.
struct Stream {
    head: Cursor<Vec<u8>>,
    pipe: std::fs::File,
    bytes: Option<u64>,
    finish: Option<Finish>,
}

impl Stream {
    fn new(pipe: Pipe) -> Self {
        let Pipe { descriptor, head, bytes, finish } = pipe;
        Self { head: Cursor::new(head), pipe: descriptor.into(), bytes, finish }
    }

    /// Reads what there is, or waits for it; nothing at the end. What has to be done meanwhile does `tend`.
    fn read(
        &mut self,
        bytes: &mut [u8],
        tend: &mut dyn FnMut() -> Result<(), Outcome>,
    ) -> Result<usize, Outcome> {
        let got = self.head.read(bytes).unwrap_or(0);
        if got > 0 {
            return Ok(got);
        }
        loop {
            await_pipe(&self.pipe, tend)?;
            match self.pipe.read(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map_err(broken),
            }
        }
    }
}

/// What a pipe has come to at the destination.
struct Filled {
    /// Bytes, with those that fill up the last block.
    bytes: u64,
    padded: u64,
    forest: Forest,
}

/// Writes what comes out of a pipe.
struct Spout<'a> {
    errand: Errand<'a>,
    disk: Arc<Disk>,
    sparse: bool,
    counters: &'a Counters,
    marks: Vec<Mark>,
}

impl Spout<'_> {
    /// Until the pipe ends.
    fn fill(
        mut self,
        mut stream: Stream,
        mut limit: Limit,
        verify: bool,
    ) -> Result<Filled, Outcome> {
        let account = Pool::new(4 * PIECE).open();
        let _ = rustix::pipe::fcntl_setpipe_size(&stream.pipe, PIECE);
        let (mut at, mut last) = (0, None);
        // Each piece waits for the next one: the last is treated in another way.
        while let Some(buffer) = self.next(&mut stream, &account, &limit)? {
            let len = buffer.len() as u64;
            limit.take(len, Instant::now());
            if let Some((offset, buffer)) = last.replace((at, buffer)) {
                self.write(offset, buffer, verify.then(Shape::endless))?;
            }
            at += len;
        }
        // Checked before success is reported: the data may be incomplete.
        if let Some(finish) = stream.finish.take() {
            finish().map_err(|why| Outcome::Failed(Trouble::Broken(why)))?;
        }
        if let Some(announced) = stream.bytes.filter(|announced| *announced != at) {
            let why = format!("{announced} bytes were announced, and {at} came out of the pipe");
            return Err(Outcome::Failed(Trouble::Broken(why)));
        }
        let bytes = at.next_multiple_of(u64::from(self.disk.block.max(1)));
        let shape = Shape::new(bytes);
        if let Some((offset, buffer)) = last {
            let buffer = padded(buffer, &account, bytes - offset)?;
            self.sparse = false;
            self.write(offset, buffer, verify.then_some(shape))?;
        }
        self.run(Work::Flush, |name, why| Trouble::Flush { name, why })?;
        let mut forest = Forest::new(bytes);
        self.marks.into_iter().for_each(|mark| forest.insert(mark));
        Ok(Filled { bytes, padded: bytes - at, forest })
    }

    /// The next piece of the pipe. The way to the disk is kept alive meanwhile, however long that takes.
    fn next(
        &mut self,
        stream: &mut Stream,
        account: &Account,
        limit: &Limit,
    ) -> Result<Option<Buffer>, Outcome> {
        let mut tend = || self.errand.tend().map_err(|undone| ended(&self.disk, undone));
        hold(limit, &mut tend)?;
        next(stream, account, &mut tend)
    }

    fn write(&mut self, offset: u64, buffer: Buffer, shape: Option<Shape>) -> Result<(), Outcome> {
        let len = buffer.len() as u64;
        let name = self.disk.name.clone();
        // A file that was just made grows; everything else is as large as it is.
        if self.disk.bytes != 0 && offset + len > self.disk.bytes {
            let why = Failed::NoSpace;
            return Err(Outcome::Failed(Trouble::Write { name, offset, len, why }));
        }
        if let Some(shape) = shape {
            self.marks.extend(shape.sum(offset, buffer.bytes()));
        }
        self.counters.done.fetch_add(len, Ordering::Relaxed);
        if self.sparse && is_zero(buffer.bytes()) && self.zero(offset, len)? {
            self.counters.zeroes.fetch_add(len, Ordering::Relaxed);
            return Ok(());
        }
        self.write_all(offset, buffer)
    }

    fn write_all(&mut self, offset: u64, buffer: Buffer) -> Result<(), Outcome> {
        let most = usize::try_from(self.disk.largest).unwrap_or(PIECE).max(512);
        let (mut from, all) = (0, buffer.len());
        let mut buffer = Some(buffer);
        while let Some(memory) = buffer.take().filter(|_| from < all) {
            let to = all.min(from + most);
            let at = offset + from as u64;
            let work = Work::Write { offset: at, buffer: memory, part: from..to };
            let trouble =
                |name, why| Trouble::Write { name, offset: at, len: (to - from) as u64, why };
            buffer = self.run(work, trouble)?;
            from = to;
        }
        Ok(())
    }

    /// Has a range be zeros without writing them; tells whether that could be done.
    fn zero(&mut self, offset: u64, len: u64) -> Result<bool, Outcome> {
        if self.disk.fresh {
            return Ok(true);
        }
        if self.disk.zeroes < len {
            return Ok(false);
        }
        match self
            .errand
            .run(Work::Zero { offset, len })
            .map_err(|undone| self.undone(undone))?
            .result
        {
            Ok(()) => Ok(true),
            Err(Failed::Unsupported) => Ok(false),
            Err(why) => {
                let name = self.disk.name.clone();
                Err(Outcome::Failed(Trouble::Write { name, offset, len, why }))
            }
        }
    }

    fn run(
        &mut self,
        work: Work,
        trouble: impl FnOnce(String, Failed) -> Trouble,
    ) -> Result<Option<Buffer>, Outcome> {
        let ended = self.errand.run(work).map_err(|undone| self.undone(undone))?;
        let name = self.disk.name.clone();
        ended.result.map_err(|why| Outcome::Failed(trouble(name, why)))?;
        Ok(ended.buffer)
    }

    fn undone(&self, undone: Undone) -> Outcome {
        ended(&self.disk, undone)
    }
}

/// What a work that was not done makes of a copy whose source cannot be read again.
fn ended(disk: &Disk, undone: Undone) -> Outcome {
    match undone {
        Undone::Lost => lost(&disk.name, &"what came from the pipe cannot be read again"),
        other => self::undone(other),
    }
}

/// The next piece of a pipe, whole but for the last; nothing at its end.
fn next(
    stream: &mut Stream,
    account: &Account,
    tend: &mut dyn FnMut() -> Result<(), Outcome>,
) -> Result<Option<Buffer>, Outcome> {
    let mut buffer = memory(account, PIECE)?;
    let mut got = 0;
    while got < PIECE {
        let rest = buffer.bytes_mut().get_mut(got..).unwrap_or_default();
        match stream.read(rest, tend)? {
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

/// Waits for a pipe, and looks now and then at what else there is to do, and whether to stop.
fn await_pipe(
    pipe: &std::fs::File,
    tend: &mut dyn FnMut() -> Result<(), Outcome>,
) -> Result<(), Outcome> {
    let tick = Timespec::try_from(WAIT).unwrap_or_default();
    loop {
        tend()?;
        let mut fds = [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)];
        if poll(&mut fds, Some(&tick)).is_ok_and(|ready| ready > 0) {
            return Ok(());
        }
    }
}

fn memory(account: &Account, len: usize) -> Result<Buffer, Outcome> {
    account.take(len).ok_or(Outcome::Failed(Trouble::Mistake))
}

/// The beginning of a buffer.
fn cut(buffer: &Buffer, account: &Account, len: usize) -> Result<Buffer, Outcome> {
    let mut short = memory(account, len)?;
    short.bytes_mut().copy_from_slice(buffer.bytes().get(..len).unwrap_or_default());
    Ok(short)
}

/// A buffer with zeros at its end, so that it is `len` bytes.
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
