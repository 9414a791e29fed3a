//! Worker thread of a copy: takes pieces of the plan, reads them, and writes or verifies them.

mod piece;
mod write;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Account, Buffer, Pool};

use crate::plan::Next;
use crate::sample::Sample;
use crate::shared::Shared;
use crate::thread_io::{IoEvent, Side, ThreadIo};
use crate::{Completion, CopyError, Request, RequestError};
use piece::{Piece, PieceState, Pieces};

pub(crate) struct Worker {
    number: usize,
    shared: Arc<Shared>,
    io: ThreadIo,
    account: Account,
    /// Memory of what is read back.
    read_back: Account,
    pieces: Pieces,
    /// Pieces that wait for a free slot at the destination, for memory, or for their turn.
    waiting: VecDeque<u32>,
    /// Whether any of them waits because another thread writes to the file in memory.
    turn_refused: bool,
    /// Written ranges that are not flushed, and the ranges of the flush in flight.
    unflushed: Vec<Range<u64>>,
    unflushed_since: Option<Instant>,
    unflushed_bytes: u64,
    /// A flush is due after this many bytes. Each loss halves it: a destination that is restarted again and
    /// again before a flush would never be done.
    flush_after: u64,
    flushing: Option<Vec<Range<u64>>>,
    /// A sample of the data written since the last flush, and one of the flush in flight.
    sample: Option<Sample>,
    flushing_sample: Option<Sample>,
    /// Maximum bytes that the destination zeroes by itself; 0 once it has refused.
    max_zero: u64,
    /// Whether to try `copy_file_range`.
    kernel_copy: bool,
    /// Whether both ends were connected once.
    has_connected: bool,
    stopping_since: Option<Instant>,
}

/// The tag of a flush: above those of pieces.
const FLUSH: u32 = 64;

/// Maximum pieces in flight per thread.
const PIECES: usize = FLUSH as usize;

/// Maximum pieces that are read from a file while others are written.
const MAX_READ_AHEAD: usize = 2;

/// Maximum time until written data is flushed. Shorter than the interval of saving the map, so that
/// each saved map includes it.
const FLUSH_INTERVAL: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1500 });

/// Maximum time of one poll.
const WAIT: Duration = Duration::from_millis(100);

/// How long a thread that is stopped waits for requests in flight.
const GRACE: Duration = Duration::from_secs(5);

impl Worker {
    /// Runs until nothing is left to do, or the copy ends.
    pub(crate) fn run(number: usize, shared: Arc<Shared>) {
        let guard = PanicGuard(shared.clone());
        Self::new(number, shared).request();
        // After a halt, an end that is being reconnected stays in the report.
        if !guard.0.is_halted() {
            guard.0.reconnect(number, None);
        }
    }

    fn new(number: usize, shared: Arc<Shared>) -> Self {
        let config = shared.config;
        let destination = shared.destination.as_ref();
        let io = ThreadIo::new(Some(&shared.source), destination, config.reconnect_timeout);
        Self {
            number,
            // One thread must connect; the others are optional.
            io: if number == 0 { io } else { io.without_first_wait() },
            account: Pool::new(config.memory).open(),
            read_back: Pool::new(usize::try_from(config.chunk).unwrap_or(usize::MAX)).open(),
            pieces: Pieces::default(),
            waiting: VecDeque::new(),
            turn_refused: false,
            unflushed: Vec::new(),
            unflushed_since: None,
            unflushed_bytes: 0,
            flush_after: u64::MAX,
            flushing: None,
            sample: None,
            flushing_sample: None,
            max_zero: destination.map_or(0, |end| end.disk.max_zero),
            kernel_copy: config.kernel_copy,
            has_connected: false,
            stopping_since: None,
            shared,
        }
    }

    fn request(&mut self) {
        loop {
            let mut moved = false;
            while let Some(event) = self.io.next() {
                moved = true;
                if self.handle_event(event) {
                    return;
                }
            }
            self.write_waiting();
            let next = self.take();
            if self.is_finished(next.as_ref()) {
                return;
            }
            moved |= self.flush_if_due(next == Some(Next::Done));
            match next {
                Some(next @ (Next::Read(_) | Next::Zero(_) | Next::QueryExtents(_))) => {
                    self.begin(next)
                }
                _ if moved || self.write_urgently() => {}
                _ => self.wait(),
            }
        }
    }

    /// The next action; `None` if none can be started now.
    fn take(&mut self) -> Option<Next> {
        let room = self.io.is_connected() && self.io.has_free_slot(Side::Source);
        let chunk = usize::try_from(self.shared.config.chunk).unwrap_or(usize::MAX);
        let memory = self.account.held().saturating_add(chunk) <= self.account.share();
        // What is read too early from a file has left the processor's cache when it is written.
        let ahead = self.turn_refused
            && !self.shared.source.disk.remote
            && self.waiting.len() >= MAX_READ_AHEAD;
        let few = self.pieces.len() < PIECES && !ahead && (memory || self.pieces.is_empty());
        let flushed =
            self.flushing.is_none() || self.unflushed_bytes <= self.shared.config.max_unflushed;
        let may = room
            && few
            && flushed
            && !self.shared.is_halted()
            && self.shared.rate_delay().is_zero();
        let next = may.then(|| self.shared.plan().next());
        // An end that is lost when nothing is left to do is not waited for.
        let over = next.is_none() && self.pieces.is_empty() && self.shared.plan().is_done();
        if over { Some(Next::Done) } else { next }
    }

    /// Whether this thread is done: everything is written and flushed, or the copy ends.
    fn is_finished(&mut self, next: Option<&Next>) -> bool {
        let idle = self.pieces.is_empty() && self.flushing.is_none();
        if !self.shared.is_halted() {
            return next == Some(&Next::Done) && idle && self.unflushed_since.is_none();
        }
        let since = *self.stopping_since.get_or_insert_with(Instant::now);
        // Written data is flushed even if the source is lost.
        let there = self.io.connection(Side::Destination).is_some();
        let idle = idle && (self.unflushed_since.is_none() || !there);
        idle || since.elapsed() > GRACE || !self.has_connected
    }

    fn begin(&mut self, next: Next) {
        match next {
            Next::Read(range) if self.copy_in_kernel(&range) => {}
            Next::Read(range) => self.read(range),
            Next::Zero(range) => self.zero(range),
            Next::QueryExtents(range) => {
                let request =
                    Request::Extents { offset: range.start, len: range.end - range.start };
                let tag = self.pieces.add(Piece::new(range, PieceState::QueryingExtents));
                self.io.submit(Side::Source, tag, request);
            }
            Next::Wait | Next::Done => {}
        }
    }

    fn read(&mut self, range: Range<u64>) {
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let Some(buffer) = self.account.take(len) else {
            return self.shared.change(|plan| plan.requeue(range, false));
        };
        self.shared.charge_rate(range.end - range.start);
        let offset = range.start;
        let tag = self.pieces.add(Piece::new(range, PieceState::Reading));
        self.io.submit(Side::Source, tag, Request::Read { offset, buffer });
    }

    fn zero(&mut self, range: Range<u64>) {
        self.shared.hash_zeros(range.clone());
        let tag = self.pieces.add(Piece::zeros(range));
        self.write_next(tag, false);
    }

    /// Lets the kernel copy between two local files, if the data is not needed here.
    fn copy_in_kernel(&mut self, range: &Range<u64>) -> bool {
        if !self.kernel_copy {
            return false;
        }
        let files = (self.io.local_fd(Side::Source), self.io.local_fd(Side::Destination));
        let (Some(source), Some(destination)) = files else { return false };
        self.kernel_copy = piece::copy(source, destination, range);
        if self.kernel_copy {
            if let Some(connection) = self.io.connection(Side::Destination) {
                connection.kernel_wrote(range);
            }
            self.shared.charge_rate(range.end - range.start);
            self.shared.plan().read(range);
            self.count(range.end - range.start);
            self.finish(range.clone());
        }
        self.kernel_copy
    }

    /// Handles an event. Returns whether this thread must end.
    fn handle_event(&mut self, event: IoEvent) -> bool {
        match event {
            IoEvent::Completed(_, completion) if completion.tag == FLUSH => {
                self.flush_completed(completion.result)
            }
            IoEvent::Completed(Side::Source, completion) => self.source_completed(completion),
            IoEvent::Completed(Side::Destination, completion) => {
                self.destination_completed(completion)
            }
            IoEvent::Disconnected(side, reason) => self.disconnected(side, reason),
            IoEvent::Connected(side) => self.connected(side),
            IoEvent::Unreachable(side, reason) => return self.unreachable(side, reason),
            IoEvent::DifferentDisk(side, reason) => {
                self.shared.fail(CopyError::DifferentDisk { name: self.name(side), reason });
            }
            IoEvent::Violation(side, reason) => {
                self.requeue_in_flight(side);
                self.shared.fail(CopyError::Violation { name: self.name(side), reason });
            }
        }
        false
    }

    fn connected(&mut self, side: Side) {
        if self.shared.destination.is_none()
            && let Some(connection) = self.io.connection(side)
        {
            connection.drop_caches();
        }
        if self.io.is_connected() {
            self.has_connected = true;
            self.shared.reconnect(self.number, None);
        }
    }

    /// Handles an end that cannot be reached. A thread that was never connected leaves the work to
    /// the others, if there are any: some servers accept fewer connections than requested.
    fn unreachable(&mut self, side: Side, reason: String) -> bool {
        if self.has_connected || self.shared.give_up() {
            self.shared.fail(CopyError::Lost { name: self.name(side), reason });
        }
        true
    }

    fn disconnected(&mut self, side: Side, reason: String) {
        self.shared.reconnect(self.number, Some((self.name(side), reason)));
        self.requeue_in_flight(side);
    }

    /// Requeues the requests in flight at a lost end.
    fn requeue_in_flight(&mut self, side: Side) {
        match side {
            Side::Source => {
                for piece in self.pieces.take_if(|piece| !piece.is_at_destination()) {
                    match piece.state {
                        PieceState::QueryingExtents => {
                            self.shared.change(|plan| plan.extents_lost())
                        }
                        _ => self.shared.change(|plan| plan.lost(piece.range.clone())),
                    }
                    self.count_resent(&piece.range);
                }
            }
            Side::Destination => self.requeue_unflushed(),
        }
    }

    /// Requeues the writes in flight and everything not flushed.
    fn requeue_unflushed(&mut self) {
        self.waiting.clear();
        for piece in self.pieces.take_if(Piece::is_at_destination) {
            self.count_resent(&piece.range);
            self.shared.change(|plan| plan.requeue(piece.range, piece.zeros));
        }
        let mut volatile = std::mem::take(&mut self.unflushed);
        volatile.extend(self.flushing.take().unwrap_or_default());
        let lost: u64 = volatile.iter().map(|range| range.end - range.start).sum();
        if lost > 0 {
            self.flush_after = (lost / 2).max(self.shared.config.chunk);
        }
        (self.unflushed_since, self.unflushed_bytes) = (None, 0);
        (self.sample, self.flushing_sample) = (None, None);
        for range in &volatile {
            self.count_resent(range);
            self.shared.change(|plan| plan.invalidate(range.clone()));
        }
        self.shared.remove_unflushed(&volatile);
    }

    fn source_completed(&mut self, completion: Completion) {
        let Some(piece) = self.pieces.get(completion.tag) else { return };
        let range = piece.range.clone();
        match (completion.result, completion.buffer) {
            (result, None) => {
                self.pieces.remove(completion.tag);
                let extents = if result.is_ok() { completion.extents } else { Vec::new() };
                self.shared.change(|plan| plan.extents_received(range, &extents));
            }
            (Ok(()), Some(buffer)) => self.read_completed(completion.tag, &range, buffer),
            (Err(reason), Some(_)) => {
                self.pieces.remove(completion.tag);
                self.read_failed(&range, reason);
            }
        }
    }

    fn read_failed(&mut self, range: &Range<u64>, reason: RequestError) {
        if self.shared.destination.is_none() && reason != RequestError::Busy {
            // Unreadable data counts as different: no hash is recorded.
            return self.finish(range.clone());
        }
        if reason == RequestError::Media {
            return self.shared.change(|plan| plan.failed(range));
        }
        let (offset, len) = (range.start, range.end - range.start);
        self.shared.fail(CopyError::Read { name: self.name(Side::Source), offset, len, reason });
    }

    fn read_completed(&mut self, tag: u32, range: &Range<u64>, buffer: Buffer) {
        let hashes = self.shared.hash(range.start, buffer.bytes());
        self.shared.source.keep_sample(range.start, buffer.bytes());
        self.shared.change(|plan| plan.read(range));
        if self.shared.destination.is_none() {
            self.pieces.remove(tag);
            return self.finish(range.clone());
        }
        let Some(piece) = self.pieces.get(tag) else { return };
        piece.divide(buffer, hashes, self.shared.config.sparse);
        self.write_next(tag, false);
    }
}

/// Fails the copy if this thread panics.
struct PanicGuard(Arc<Shared>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(CopyError::Internal);
        }
    }
}
