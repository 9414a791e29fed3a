//! Plan of a copy: which range to read next. Pure: no I/O, no threads, no clock.
//!
//! A healthy disk is read once, from start to end, in large pieces, without its holes. After a
//! failed read the order is that of GNU ddrescue, which spares a failing disk: skip ahead, further
//! each time, and copy everything easy; return backward; sweep up the rest; then find the edges of
//! the bad areas sector by sector (trimming), read between them (scraping), and retry the bad
//! sectors. While a disk is bad, one request is in flight at a time.
//!
//! The whole state is in the [`Map`], so that a copy can be resumed from it, here or with ddrescue.

mod holes;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use export::Extent;

use crate::Phase;
use crate::map::{Map, Position, State};
use holes::HoleMap;

/// Limits of both ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Smallest read that both ends support, in bytes.
    pub(crate) sector: u64,
    /// Bytes of a read while the disk is healthy.
    pub(crate) chunk: u64,
    /// Maximum bytes of a piece of zeros.
    pub(crate) zeros: u64,
    /// Whether the source reports extents.
    pub(crate) extents: bool,
    /// Number of retries of bad sectors.
    pub(crate) retries: u32,
}

/// The next action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// Read the range and write it to the destination; then call [`Plan::read`] and
    /// [`Plan::written`], or [`Plan::failed`].
    Read(Range<u64>),
    /// Zero the range at the destination; then call [`Plan::written`].
    Zero(Range<u64>),
    /// Query the extents of the source; then call [`Plan::extents_received`].
    QueryExtents(Range<u64>),
    /// Nothing until a piece in flight ends.
    Wait,
    /// The plan is complete.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Forward,
    Backward,
    Sweep,
    Trim,
    Scrape,
    Retry(u32),
    Done,
}

#[derive(Debug)]
pub(crate) struct Plan {
    map: Map,
    limits: Limits,
    stage: Stage,
    /// Position of the stage; in a backward stage, the end of what is left.
    cursor: u64,
    /// Bytes to skip after the next error.
    skip: u64,
    /// Bytes to read without an error before more than one request may be in flight.
    cautious_bytes: u64,
    /// Pieces in flight: taken, and neither written nor failed.
    in_flight: usize,
    /// Pieces to do again, with whether they are zeros.
    requeued: VecDeque<(Range<u64>, bool)>,
    /// How often the source was lost while a piece was read, by the start of the piece.
    lost: BTreeMap<u64, u32>,
    holes: HoleMap,
    errors: u64,
}

/// Bytes to read without an error after an error before requests are concurrent again.
const CAUTIOUS_BYTES: u64 = 64 << 20;

/// Maximum skip in bytes, and as a fraction of the disk.
const SKIP: u64 = 1 << 30;
const SKIP_PART: u64 = 100;

/// A piece counts as bad after the source was lost this often while reading it.
const MAX_LOSSES: u32 = 3;

/// Sectors in flight while scraping.
const SCRAPE_DEPTH: usize = 4;

impl Plan {
    /// Starts with a map, which may be new.
    pub(crate) fn new(map: Map, limits: Limits) -> Self {
        let holes = HoleMap::new(map.bytes(), limits.extents);
        let mut plan = Self {
            stage: Stage::Forward,
            cursor: 0,
            skip: limits.chunk,
            cautious_bytes: 0,
            in_flight: 0,
            requeued: VecDeque::new(),
            lost: BTreeMap::new(),
            holes,
            errors: 0,
            map,
            limits,
        };
        plan.resume();
        plan
    }

    /// Restores the stage of a map with bad sectors, so that skipped areas are not retried too
    /// early.
    fn resume(&mut self) {
        let bad = [State::Untrimmed, State::Unscraped, State::Bad];
        let Position { at, doing, pass } = self.map.position;
        if doing != State::Untried || bad.iter().all(|state| self.map.sum(*state) == 0) {
            return;
        }
        self.cautious_bytes = CAUTIOUS_BYTES;
        (self.stage, self.cursor) = match pass {
            0 | 1 => (Stage::Forward, at),
            2 => (Stage::Backward, at),
            _ => (Stage::Sweep, 0),
        };
    }

    pub(crate) fn map(&self) -> &Map {
        &self.map
    }

    /// The map to save. Ranges in `volatile` may not be on stable storage and become untried.
    pub(crate) fn snapshot(&self, volatile: impl Iterator<Item = Range<u64>>) -> Map {
        let mut map = self.map.clone();
        volatile.for_each(|range| map.set(range, State::Untried));
        map.position = self.position();
        map
    }

    fn position(&self) -> Position {
        let (doing, pass) = match self.stage {
            Stage::Forward => (State::Untried, 1),
            Stage::Backward => (State::Untried, 2),
            Stage::Sweep => (State::Untried, 5),
            Stage::Trim => (State::Untrimmed, 1),
            Stage::Scrape => (State::Unscraped, 1),
            Stage::Retry(pass) => (State::Bad, pass),
            Stage::Done => (State::Finished, 1),
        };
        Position { at: self.cursor, doing, pass }
    }

    /// The phase to report.
    pub(crate) fn phase(&self) -> Phase {
        match self.stage {
            Stage::Forward | Stage::Backward | Stage::Sweep => Phase::Copying,
            Stage::Trim => Phase::Trimming,
            Stage::Scrape => Phase::Scraping,
            Stage::Retry(pass) => Phase::Retrying(pass),
            Stage::Done => Phase::Flushing,
        }
    }

    /// Number of failed reads.
    pub(crate) fn errors(&self) -> u64 {
        self.errors
    }

    /// The next action.
    pub(crate) fn next(&mut self) -> Next {
        loop {
            let next = self.step();
            match &next {
                Some(Next::Read(_) | Next::Zero(_)) => self.in_flight += 1,
                None if self.in_flight == 0 && self.enter_next_stage() => continue,
                _ => {}
            }
            let over = if self.stage == Stage::Done { Next::Done } else { Next::Wait };
            return next.unwrap_or(over);
        }
    }

    /// Whether nothing is left to do or in flight.
    pub(crate) fn is_done(&self) -> bool {
        let whole = || self.map.next(State::Finished, 0) == Some(0..self.map.bytes());
        self.stage == Stage::Done || (self.in_flight == 0 && self.requeued.is_empty() && whole())
    }

    /// The next action of the stage; `None` if it has none now.
    fn step(&mut self) -> Option<Next> {
        if self.in_flight >= self.max_in_flight() {
            return Some(Next::Wait);
        }
        if let Some((range, zero)) = self.requeued.pop_front() {
            return Some(if zero {
                Next::Zero(range)
            } else {
                Next::Read(self.split_chunk(range))
            });
        }
        match self.stage {
            Stage::Forward => self.forward(),
            Stage::Backward => self.backward(),
            Stage::Sweep => self.sweep(),
            Stage::Trim => self.trim(),
            Stage::Scrape => self.next_sector(State::Unscraped),
            Stage::Retry(pass) if pass % 2 == 0 => self.previous_bad_sector(),
            Stage::Retry(_) => self.next_sector(State::Bad),
            Stage::Done => None,
        }
    }

    /// The first chunk of a requeued range, which may have been a long range of zeros.
    fn split_chunk(&mut self, range: Range<u64>) -> Range<u64> {
        let end = range.end.min(above(range.start, self.limits.chunk));
        if end < range.end {
            self.requeued.push_front((end..range.end, false));
        }
        range.start..end
    }

    /// Maximum pieces in flight.
    fn max_in_flight(&self) -> usize {
        match self.stage {
            Stage::Trim | Stage::Retry(_) => 1,
            Stage::Scrape => SCRAPE_DEPTH,
            _ if self.cautious_bytes > 0 => 1,
            _ => usize::MAX,
        }
    }

    /// Enters the next stage. Returns `false` if the last one was over.
    fn enter_next_stage(&mut self) -> bool {
        let next = self.next_stage();
        let over = self.stage == Stage::Done;
        self.stage = next;
        self.cursor = match next {
            Stage::Backward => self.map.bytes(),
            Stage::Retry(pass) if pass % 2 == 0 => self.map.bytes(),
            _ => 0,
        };
        !over
    }

    fn next_stage(&self) -> Stage {
        let any = |state| self.map.next(state, 0).is_some();
        let retried = if let Stage::Retry(pass) = self.stage { pass } else { 0 };
        match self.stage {
            Stage::Done => Stage::Done,
            Stage::Forward if any(State::Untried) => Stage::Backward,
            _ if any(State::Untried) => Stage::Sweep,
            _ if any(State::Untrimmed) => Stage::Trim,
            _ if any(State::Unscraped) => Stage::Scrape,
            _ if any(State::Bad) && retried < self.limits.retries => Stage::Retry(retried + 1),
            _ => Stage::Done,
        }
    }

    fn forward(&mut self) -> Option<Next> {
        let run = self.map.next(State::Untried, self.cursor)?;
        if let Some(range) = self.holes.query(run.start) {
            return Some(Next::QueryExtents(range));
        }
        let Some((end, zero)) = self.holes.extent_at(run.start) else { return Some(Next::Wait) };
        let end = end.min(run.end);
        let unit = if zero { self.limits.zeros } else { self.limits.chunk };
        let range = run.start..end.min(above(run.start, unit));
        self.cursor = range.end;
        Some(if zero { Next::Zero(range) } else { Next::Read(range) })
    }

    fn backward(&mut self) -> Option<Next> {
        let run = self.map.last(State::Untried, self.cursor)?;
        let start = below(run.end, self.limits.chunk).max(run.start);
        self.cursor = start;
        Some(Next::Read(start..run.end))
    }

    fn sweep(&mut self) -> Option<Next> {
        let run = self.map.next(State::Untried, self.cursor)?;
        let range = run.start..run.end.min(above(run.start, self.limits.chunk));
        self.cursor = range.end;
        Some(Next::Read(range))
    }

    /// The next edge of the first untrimmed run, until both of its neighbours are bad sectors.
    fn trim(&mut self) -> Option<Next> {
        while let Some(run) = self.map.next(State::Untrimmed, 0) {
            self.cursor = run.start;
            if self.map.before(run.start) != Some(State::Bad) {
                return Some(Next::Read(self.first_sector(&run)));
            }
            if self.map.state(run.end) != Some(State::Bad) {
                return Some(Next::Read(self.last_sector(&run)));
            }
            self.map.set(run, State::Unscraped);
        }
        None
    }

    fn next_sector(&mut self, state: State) -> Option<Next> {
        let run = self.map.next(state, self.cursor)?;
        let sector = self.first_sector(&run);
        self.cursor = sector.end;
        Some(Next::Read(sector))
    }

    fn previous_bad_sector(&mut self) -> Option<Next> {
        let run = self.map.last(State::Bad, self.cursor)?;
        let sector = self.last_sector(&run);
        self.cursor = sector.start;
        Some(Next::Read(sector))
    }

    fn first_sector(&self, run: &Range<u64>) -> Range<u64> {
        run.start..run.end.min(above(run.start, self.limits.sector))
    }

    fn last_sector(&self, run: &Range<u64>) -> Range<u64> {
        below(run.end, self.limits.sector).max(run.start)..run.end
    }

    /// Records the answer to a query; without extents the source is taken not to support them.
    pub(crate) fn extents_received(&mut self, asked: Range<u64>, extents: &[Extent]) {
        self.holes.record_reply(asked, extents);
    }

    /// Records that a query was lost with its connection.
    pub(crate) fn extents_lost(&mut self) {
        self.holes.query_lost();
    }

    /// Records a successful read.
    pub(crate) fn read(&mut self, range: &Range<u64>) {
        self.cautious_bytes = self.cautious_bytes.saturating_sub(range.end - range.start);
        self.skip = self.limits.chunk;
        self.lost.remove(&range.start);
    }

    /// Records that a piece is at the destination.
    pub(crate) fn written(&mut self, range: Range<u64>) {
        self.map.set(range, State::Finished);
        self.piece_ended();
    }

    /// Records a failed read.
    pub(crate) fn failed(&mut self, range: &Range<u64>) {
        let single = range.end - range.start <= self.limits.sector;
        self.map.set(range.clone(), if single { State::Bad } else { State::Untrimmed });
        self.errors += 1;
        self.cautious_bytes = CAUTIOUS_BYTES;
        match self.stage {
            Stage::Forward => {
                let max = (self.map.bytes() / SKIP_PART).clamp(self.limits.chunk, SKIP);
                let end = below(range.end.saturating_add(self.skip), self.limits.chunk);
                self.cursor = self.cursor.max(end);
                self.skip = self.skip.saturating_mul(2).min(max);
            }
            // The rest of the run is left for the sweep.
            Stage::Backward => {
                let rest = self.map.last(State::Untried, range.start);
                let rest = rest.filter(|rest| rest.end == range.start);
                self.cursor = rest.map_or(self.cursor, |rest| self.cursor.min(rest.start));
            }
            _ => {}
        }
        self.piece_ended();
    }

    /// Requeues a piece that was not completed.
    pub(crate) fn requeue(&mut self, range: Range<u64>, zero: bool) {
        self.requeued.push_back((range, zero));
        self.piece_ended();
    }

    /// Requeues a piece that was being read when the source was lost.
    pub(crate) fn lost(&mut self, range: Range<u64>) {
        let losses = self.lost.entry(range.start).or_default();
        *losses += 1;
        if *losses >= MAX_LOSSES {
            self.lost.remove(&range.start);
            return self.failed(&range);
        }
        // One at a time, to find the piece that causes the loss.
        if *losses > 1 {
            self.cautious_bytes = self.cautious_bytes.max(1);
        }
        self.requeue(range, false);
    }

    /// Requeues a written range that may not have reached stable storage.
    pub(crate) fn invalidate(&mut self, range: Range<u64>) {
        self.map.set(range.clone(), State::Untried);
        self.requeued.push_back((range, false));
        if self.stage == Stage::Done {
            (self.stage, self.cursor) = (Stage::Sweep, self.map.bytes());
        }
    }

    fn piece_ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }
}

/// The next multiple of `unit` above a position.
fn above(at: u64, unit: u64) -> u64 {
    (at / unit).saturating_add(1).saturating_mul(unit)
}

/// The last multiple of `unit` below a position.
fn below(at: u64, unit: u64) -> u64 {
    at.saturating_sub(1) / unit * unit
}

#[cfg(test)]
mod test;
