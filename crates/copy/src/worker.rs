//! One thread of a copy: takes pieces of the plan, reads them, and writes them or compares them. It decides nothing about
//! their order.

mod piece;
mod writing;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Account, Buffer, Pool};

use crate::plan::Next;
use crate::sample::Sample;
use crate::shared::Shared;
use crate::traffic::{Came, Side, Traffic};
use crate::{Ended, Failed, Trouble, Work};
use piece::{Doing, Piece, Pieces};

/// One thread of a copy.
pub(crate) struct Worker {
    number: usize,
    shared: Arc<Shared>,
    traffic: Traffic,
    account: Account,
    pieces: Pieces,
    /// Pieces that wait for room at the destination, or for memory.
    ready: VecDeque<u32>,
    /// What was written and not put on stable storage, and since when; what a flush is under way for.
    unflushed: Vec<Range<u64>>,
    since: Option<Instant>,
    unsettled_bytes: u64,
    flushing: Option<Vec<Range<u64>>>,
    /// A sample of what was written since the last flush, and of what the flush under way is for.
    sample: Option<Sample>,
    flushing_sample: Option<Sample>,
    /// The longest range that the destination makes zero by itself, in bytes.
    zeroes: u64,
    /// Whether the kernel copies.
    kernel: bool,
    /// Whether an end was there once.
    begun: bool,
    /// When it was told to stop.
    halted: Option<Instant>,
}

/// The tag of a flush: above those of pieces.
const FLUSH: u32 = 64;

/// Pieces that a thread has under way at most.
const PIECES: usize = FLUSH as usize;

/// How long something that was written may wait to be put on stable storage: less than a map waits to be saved, so that
/// each map that is saved tells of it.
const SETTLE: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1500 });

/// How long a thread waits at once.
const WAIT: Duration = Duration::from_millis(100);

/// How long a thread that is told to stop waits for what is under way.
const GRACE: Duration = Duration::from_secs(5);

impl Worker {
    /// Works until nothing is left to do, or the copy ends.
    pub(crate) fn run(number: usize, shared: Arc<Shared>) {
        let alarm = Alarm(shared.clone());
        Self::new(number, shared).work();
        // A copy that ends has reached nothing again.
        if !alarm.0.is_halted() {
            alarm.0.reconnect(number, None);
        }
    }

    fn new(number: usize, shared: Arc<Shared>) -> Self {
        let how = shared.how;
        let destination = shared.destination.as_ref();
        let traffic = Traffic::new(Some(&shared.source), destination, how.patience);
        Self {
            number,
            // One thread must get a way to both ends; the others are welcome if they do.
            traffic: if number == 0 { traffic } else { traffic.at_once() },
            account: Pool::new(how.memory).open(),
            pieces: Pieces::default(),
            ready: VecDeque::new(),
            unflushed: Vec::new(),
            since: None,
            unsettled_bytes: 0,
            flushing: None,
            sample: None,
            flushing_sample: None,
            zeroes: destination.map_or(0, |target| target.disk.zeroes),
            kernel: how.kernel,
            begun: false,
            halted: None,
            shared,
        }
    }

    fn work(&mut self) {
        loop {
            let mut moved = false;
            while let Some(came) = self.traffic.next() {
                moved = true;
                if self.came(came) {
                    return;
                }
            }
            self.write_ready();
            let next = self.take();
            if self.is_over(next.as_ref()) {
                return;
            }
            moved |= self.settle(next == Some(Next::Done));
            match next {
                Some(next @ (Next::Read(_) | Next::Zero(_) | Next::Ask(_))) => self.begin(next),
                _ if moved => {}
                _ => self.pause(),
            }
        }
    }

    /// The next piece; nothing if none can be taken now.
    fn take(&mut self) -> Option<Next> {
        let room = self.traffic.is_whole() && self.traffic.has_room(Side::Source);
        let chunk = usize::try_from(self.shared.how.chunk).unwrap_or(usize::MAX);
        let memory = self.account.held().saturating_add(chunk) <= self.account.share();
        let few = self.pieces.len() < PIECES && (memory || self.pieces.is_empty());
        let settled = self.flushing.is_none() || self.unsettled_bytes <= self.shared.how.unflushed;
        let may =
            room && few && settled && !self.shared.is_halted() && self.shared.limit().is_zero();
        let next = may.then(|| self.shared.plan().take());
        // An end that is lost when there is nothing left to do is not waited for.
        let over = next.is_none() && self.pieces.is_empty() && self.shared.plan().is_done();
        if over { Some(Next::Done) } else { next }
    }

    /// Whether there is nothing left to do: all is done and on stable storage, or the copy ends.
    fn is_over(&mut self, next: Option<&Next>) -> bool {
        let idle = self.pieces.is_empty() && self.flushing.is_none();
        if !self.shared.is_halted() {
            return next == Some(&Next::Done) && idle && self.since.is_none();
        }
        let since = *self.halted.get_or_insert_with(Instant::now);
        // What was written is put on stable storage even if the source is away.
        let there = self.traffic.lane(Side::Destination).is_some();
        let idle = idle && (self.since.is_none() || !there);
        idle || since.elapsed() > GRACE || !self.begun
    }

    fn begin(&mut self, next: Next) {
        match next {
            Next::Read(range) if self.copy_in_kernel(&range) => {}
            Next::Read(range) => self.read(range),
            Next::Zero(range) => self.zero(range),
            Next::Ask(range) => {
                let work = Work::Extents { offset: range.start, len: range.end - range.start };
                let tag = self.pieces.add(Piece::new(range, Doing::Ask));
                self.traffic.submit(Side::Source, tag, work);
            }
            Next::Wait | Next::Done => {}
        }
    }

    fn read(&mut self, range: Range<u64>) {
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let Some(buffer) = self.account.take(len) else {
            return self.shared.change(|plan| plan.give_back(range, false));
        };
        self.shared.charge(range.end - range.start);
        let offset = range.start;
        let tag = self.pieces.add(Piece::new(range, Doing::Read));
        self.traffic.submit(Side::Source, tag, Work::Read { offset, buffer });
    }

    fn zero(&mut self, range: Range<u64>) {
        self.shared.sum_zeros(range.clone());
        let tag = self.pieces.add(Piece::zeros(range));
        self.go_on(tag);
    }

    /// Between two files of this machine the kernel can copy, if nothing of it is to be looked at.
    fn copy_in_kernel(&mut self, range: &Range<u64>) -> bool {
        if !self.kernel {
            return false;
        }
        let files = (self.traffic.local(Side::Source), self.traffic.local(Side::Destination));
        let (Some(source), Some(destination)) = files else { return false };
        self.kernel = piece::copy(source, destination, range);
        if self.kernel {
            self.shared.charge(range.end - range.start);
            self.shared.plan().read(range);
            self.count(range.end - range.start);
            self.finish(range.clone());
        }
        self.kernel
    }

    /// Something came. Tells whether this thread is to end.
    fn came(&mut self, came: Came) -> bool {
        match came {
            Came::Ended(_, ended) if ended.tag == FLUSH => self.flushed(ended.result),
            Came::Ended(Side::Source, ended) => self.source_ended(ended),
            Came::Ended(Side::Destination, ended) => self.destination_ended(ended),
            Came::Lost(side, why) => self.lost(side, why),
            Came::Back(side) => self.back(side),
            Came::Gone(side, why) => return self.gone(side, why),
            Came::Changed(side, why) => {
                self.shared.fail(Trouble::Changed { name: self.name(side), why });
            }
            Came::Broken(side, why) => {
                self.abandon(side);
                self.shared.fail(Trouble::Violation { name: self.name(side), why });
            }
        }
        false
    }

    fn back(&mut self, side: Side) {
        if self.shared.destination.is_none()
            && let Some(lane) = self.traffic.lane(side)
        {
            lane.distrust();
        }
        if self.traffic.is_whole() {
            self.begun = true;
            self.shared.reconnect(self.number, None);
        }
    }

    /// One end does not come back. A thread that never got a way there leaves the work to the others, if there are any:
    /// not every server takes as many connections as it is asked for.
    fn gone(&mut self, side: Side, why: String) -> bool {
        if self.begun || self.shared.desert() {
            self.shared.fail(Trouble::Lost { name: self.name(side), why });
        }
        true
    }

    fn lost(&mut self, side: Side, why: String) {
        self.shared.reconnect(self.number, Some((self.name(side), why)));
        self.abandon(side);
    }

    /// What was under way at an end does not come back.
    fn abandon(&mut self, side: Side) {
        match side {
            Side::Source => {
                for piece in self.pieces.take_if(|piece| !matches!(piece.doing, Doing::Write)) {
                    match piece.doing {
                        Doing::Ask => self.shared.change(|plan| plan.unanswered()),
                        _ => self.shared.change(|plan| plan.lost(piece.range.clone())),
                    }
                    self.count_resent(&piece.range);
                }
            }
            Side::Destination => self.lost_destination(),
        }
    }

    /// What was under way there, and what was not yet on stable storage, is to be done again.
    fn lost_destination(&mut self) {
        self.ready.clear();
        for piece in self.pieces.take_if(|piece| matches!(piece.doing, Doing::Write)) {
            self.count_resent(&piece.range);
            self.shared.change(|plan| plan.give_back(piece.range, piece.zeros));
        }
        let mut volatile = std::mem::take(&mut self.unflushed);
        volatile.extend(self.flushing.take().unwrap_or_default());
        (self.since, self.unsettled_bytes) = (None, 0);
        (self.sample, self.flushing_sample) = (None, None);
        for range in &volatile {
            self.count_resent(range);
            self.shared.change(|plan| plan.undo(range.clone()));
        }
        self.shared.settled(&volatile);
    }

    fn source_ended(&mut self, ended: Ended) {
        let Some(piece) = self.pieces.get(ended.tag) else { return };
        let range = piece.range.clone();
        match (ended.result, ended.buffer) {
            (result, None) => {
                self.pieces.remove(ended.tag);
                let extents = if result.is_ok() { ended.extents } else { Vec::new() };
                self.shared.change(|plan| plan.told(range, &extents));
            }
            (Ok(()), Some(buffer)) => self.was_read(ended.tag, &range, buffer),
            (Err(why), Some(_)) => {
                self.pieces.remove(ended.tag);
                self.read_failed(&range, why);
            }
        }
    }

    fn read_failed(&mut self, range: &Range<u64>, why: Failed) {
        if self.shared.destination.is_none() {
            // What cannot be read back is not known to be the same.
            return self.finish(range.clone());
        }
        if why == Failed::Media {
            return self.shared.change(|plan| plan.failed(range));
        }
        let (offset, len) = (range.start, range.end - range.start);
        self.shared.fail(Trouble::Read { name: self.name(Side::Source), offset, len, why });
    }

    fn was_read(&mut self, tag: u32, range: &Range<u64>, buffer: Buffer) {
        let marks = self.shared.sum(range.start, buffer.bytes());
        self.shared.source.keep_sample(range.start, buffer.bytes());
        self.shared.change(|plan| plan.read(range));
        if self.shared.destination.is_none() {
            self.pieces.remove(tag);
            return self.finish(range.clone());
        }
        let Some(piece) = self.pieces.get(tag) else { return };
        piece.divide(buffer, marks.as_deref(), self.shared.how.sparse);
        self.go_on(tag);
    }
}

/// Ends the copy if this thread ends by a mistake.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Trouble::Mistake);
        }
    }
}
