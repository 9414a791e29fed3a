//! The half of a thread that writes: pieces that were read go to the destination, and on stable storage in time. It knows
//! nothing of reading.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::piece::Piece;
use super::{FLUSH, SETTLE, WAIT, Worker};
use crate::sample::Sample;
use crate::traffic::Side;
use crate::{Ended, Failed, Trouble, Work};

impl Worker {
    /// Writes what is next of a piece, or finishes it.
    pub(super) fn go_on(&mut self, tag: u32) {
        while let Some((range, zero)) = self.pieces.get(tag).and_then(|piece| piece.first()) {
            if zero && self.is_zero_already() {
                self.advance(tag, range.end - range.start, true);
                continue;
            }
            if !self.traffic.has_room(Side::Destination) {
                return self.ready.push_back(tag);
            }
            let work = if zero { self.make_zero(tag, &range) } else { self.write(tag, &range) };
            let Some((len, work)) = work else { return self.ready.push_back(tag) };
            if let Some(piece) = self.pieces.get(tag) {
                piece.sent = (len, matches!(work, Work::Zero { .. }));
            }
            return self.traffic.submit(Side::Destination, tag, work);
        }
        if let Some(piece) = self.pieces.remove(tag) {
            self.take_sample(&piece);
            self.finish(piece.range);
        }
    }

    /// Keeps a sample of what was written to another machine, one for each flush.
    fn take_sample(&mut self, piece: &Piece) {
        let Some(disk) = self.shared.destination.as_ref().map(|target| &target.disk) else {
            return;
        };
        if let Some(buffer) = piece.buffer.as_ref().filter(|_| disk.remote && self.sample.is_none())
        {
            self.sample = Sample::of(piece.range.start, buffer.bytes(), disk.block);
        }
    }

    /// Whether zeros need no writing.
    fn is_zero_already(&self) -> bool {
        let how = &self.shared.how;
        self.shared.destination.is_none() || (how.sparse && how.fresh)
    }

    /// Has the destination make zeros, or writes them if it cannot, or should not.
    fn make_zero(&mut self, tag: u32, range: &Range<u64>) -> Option<(u64, Work)> {
        if !self.shared.how.sparse || self.zeroes == 0 {
            return self.write(tag, range);
        }
        let len = self.zeroes.min(range.end - range.start);
        Some((len, Work::Zero { offset: range.start, len }))
    }

    /// Writes what was read, or zeros; nothing if there is no memory for them now.
    fn write(&mut self, tag: u32, range: &Range<u64>) -> Option<(u64, Work)> {
        let piece = self.pieces.get(tag)?;
        let base = piece.range.start;
        if let Some(buffer) = piece.buffer.take() {
            let part = usize::try_from(range.start - base).ok()?
                ..usize::try_from(range.end - base).ok()?;
            return Some((
                range.end - range.start,
                Work::Write { offset: range.start, buffer, part },
            ));
        }
        let len = self.shared.how.chunk.min(range.end - range.start);
        let mut buffer = self.account.take(usize::try_from(len).ok()?)?;
        buffer.bytes_mut().fill(0);
        let part = 0..buffer.len();
        Some((len, Work::Write { offset: range.start, buffer, part }))
    }

    /// Goes on with pieces that waited.
    pub(super) fn write_ready(&mut self) {
        for _ in 0..self.ready.len() {
            if !self.traffic.has_room(Side::Destination) {
                return;
            }
            if let Some(tag) = self.ready.pop_front() {
                self.go_on(tag);
            }
        }
    }

    pub(super) fn destination_ended(&mut self, ended: Ended) {
        let Some(piece) = self.pieces.get(ended.tag) else { return };
        if !piece.zeros {
            piece.buffer = piece.buffer.take().or(ended.buffer);
        }
        let (len, zero) = piece.sent;
        match ended.result {
            Ok(()) => self.advance(ended.tag, len, zero),
            Err(Failed::Unsupported) if zero => self.zeroes = 0,
            Err(why) => return self.write_failed(ended.tag, len, why),
        }
        self.go_on(ended.tag);
    }

    fn write_failed(&mut self, tag: u32, len: u64, why: Failed) {
        let Some(piece) = self.pieces.remove(tag) else { return };
        let offset = piece.first().map_or(piece.range.start, |(range, _)| range.start);
        let name = self.name(Side::Destination);
        self.shared.fail(Trouble::Write { name, offset, len, why });
    }

    fn advance(&mut self, tag: u32, len: u64, zero: bool) {
        if let Some(piece) = self.pieces.get(tag) {
            piece.advance(len);
        }
        let counter = if zero { &self.shared.zeroes } else { &self.shared.copied };
        counter.fetch_add(len, Ordering::Relaxed);
    }

    /// A piece is at the destination; or while verifying, it was looked at.
    pub(super) fn finish(&mut self, range: Range<u64>) {
        if self.shared.destination.is_some() {
            self.since.get_or_insert_with(Instant::now);
            if self.shared.how.tracks {
                self.unsettled_bytes += range.end - range.start;
                self.shared.unsettled(&range);
                self.unflushed.push(range.clone());
            }
        }
        self.shared.change(|plan| plan.written(range));
    }

    /// Begins a flush if it is time for one. Tells whether it did.
    pub(super) fn settle(&mut self, done: bool) -> bool {
        let Some(since) = self.since.filter(|_| self.flushing.is_none()) else { return false };
        let how = &self.shared.how;
        let over = done || (self.shared.is_halted() && self.pieces.is_empty());
        let due = how.tracks && (since.elapsed() > SETTLE || self.unsettled_bytes > how.unflushed);
        if !(over || due) || !self.traffic.has_room(Side::Destination) {
            return false;
        }
        self.since = None;
        self.unsettled_bytes = 0;
        self.flushing = Some(std::mem::take(&mut self.unflushed));
        self.flushing_sample = self.sample.take();
        self.traffic.submit(Side::Destination, FLUSH, Work::Flush);
        true
    }

    pub(super) fn flushed(&mut self, result: Result<(), Failed>) {
        let settled = self.flushing.take().unwrap_or_default();
        let sample = self.flushing_sample.take();
        match result {
            Ok(()) => {
                self.shared.settled(&settled);
                if let (Some(sample), Some(target)) = (sample, &self.shared.destination) {
                    target.samples.add(sample);
                }
            }
            Err(why) => {
                self.shared.fail(Trouble::Flush { name: self.name(Side::Destination), why })
            }
        }
    }

    /// Waits until there may be something to do.
    pub(super) fn pause(&self) {
        let limit = self.shared.limit();
        let most = if limit.is_zero() { WAIT } else { limit.min(WAIT) };
        let idle = self.pieces.is_empty() && self.flushing.is_none();
        if idle || !self.traffic.wait(most) {
            self.shared.wait(most / 4);
        }
    }

    pub(super) fn name(&self, side: Side) -> String {
        let target = match side {
            Side::Source => Some(&self.shared.source),
            Side::Destination => self.shared.destination.as_ref(),
        };
        target.map(|target| target.disk.name.clone()).unwrap_or_default()
    }

    pub(super) fn count(&self, bytes: u64) {
        self.shared.copied.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_resent(&self, range: &Range<u64>) {
        self.shared.resent.fetch_add(range.end - range.start, Ordering::Relaxed);
    }
}
