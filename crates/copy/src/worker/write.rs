//! Writing side of a worker: writes pieces to the destination and flushes them.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::piece::{Piece, PieceState};
use super::{FLUSH, FLUSH_INTERVAL, WAIT, Worker};
use export::Buffer;

use crate::sample::Sample;
use crate::thread_io::Side;
use crate::{Completion, CopyError, Request, RequestError};

impl Worker {
    /// Writes the next range of a piece, or finishes it. `urgent` if there is nothing else to do.
    pub(super) fn write_next(&mut self, tag: u32, urgent: bool) {
        let shared = self.shared.clone();
        while let Some((range, zero)) = self.pieces.get(tag).and_then(|piece| piece.first()) {
            if zero && self.is_already_zero() {
                self.advance(tag, range.end - range.start, true);
                continue;
            }
            if !self.io.has_free_slot(Side::Destination) {
                return self.waiting.push_back(tag);
            }
            let Some(_turn) = shared.write_turn(urgent) else {
                self.turn_refused = true;
                return self.waiting.push_back(tag);
            };
            let request = if zero { self.make_zero(tag, &range) } else { self.write(tag, &range) };
            let Some((len, request)) = request else { return self.waiting.push_back(tag) };
            if let Some(piece) = self.pieces.get(tag) {
                piece.sent = (len, matches!(request, Request::Zero { .. }));
            }
            return self.io.submit(Side::Destination, tag, request);
        }
        self.read_back(tag);
    }

    /// Reads a written piece back, if that is due now, or finishes it.
    fn read_back(&mut self, tag: u32) {
        let Some(piece) = self.pieces.get(tag) else { return };
        // Long ranges of zeros are verified at the end, by the extents of the destination.
        let Some(written) = piece.buffer.as_ref().filter(|_| self.shared.reads_back()) else {
            return self.finish_piece(tag);
        };
        let free = self.io.has_free_slot(Side::Destination);
        let Some(buffer) = free.then(|| self.read_back.take(written.len())).flatten() else {
            return self.waiting.push_back(tag);
        };
        piece.state = PieceState::ReadingBack;
        let offset = piece.range.start;
        self.io.submit(Side::Destination, tag, Request::Read { offset, buffer });
    }

    fn finish_piece(&mut self, tag: u32) {
        if let Some(piece) = self.pieces.remove(tag) {
            self.sample_written(&piece);
            // Long ranges of zeros are verified at the end.
            if piece.buffer.is_some() {
                self.shared.record_written(&piece.range);
            }
            self.finish(piece.range);
        }
    }

    /// Keeps a sample of written data for a remote destination, one per flush.
    fn sample_written(&mut self, piece: &Piece) {
        let Some(disk) = self.shared.destination.as_ref().map(|end| &end.disk) else {
            return;
        };
        if let Some(buffer) = piece.buffer.as_ref().filter(|_| disk.remote && self.sample.is_none())
        {
            let sample = Sample::of(piece.range.start, buffer.bytes(), disk.block);
            self.sample = sample.map(Sample::written);
        }
    }

    /// Whether zeros need not be written.
    fn is_already_zero(&self) -> bool {
        let config = &self.shared.config;
        self.shared.destination.is_none() || (config.sparse && config.blank)
    }

    /// A request for zeros, or a write of zeros if the destination does not support it.
    fn make_zero(&mut self, tag: u32, range: &Range<u64>) -> Option<(u64, Request)> {
        if !self.shared.config.sparse || self.max_zero == 0 {
            return self.write(tag, range);
        }
        let len = self.max_zero.min(range.end - range.start);
        Some((len, Request::Zero { offset: range.start, len }))
    }

    /// A write of data or zeros; `None` if no memory is available now.
    fn write(&mut self, tag: u32, range: &Range<u64>) -> Option<(u64, Request)> {
        let piece = self.pieces.get(tag)?;
        let base = piece.range.start;
        if let Some(buffer) = piece.buffer.take() {
            let part = usize::try_from(range.start - base).ok()?
                ..usize::try_from(range.end - base).ok()?;
            return Some((
                range.end - range.start,
                Request::Write { offset: range.start, buffer, part },
            ));
        }
        let len = self.shared.config.chunk.min(range.end - range.start);
        let mut buffer = self.account.take(usize::try_from(len).ok()?)?;
        buffer.bytes_mut().fill(0);
        let part = 0..buffer.len();
        Some((len, Request::Write { offset: range.start, buffer, part }))
    }

    /// Continues waiting pieces.
    pub(super) fn write_waiting(&mut self) {
        self.turn_refused = false;
        for _ in 0..self.waiting.len() {
            if !self.io.has_free_slot(Side::Destination) {
                return;
            }
            if let Some(tag) = self.waiting.pop_front() {
                self.write_next(tag, false);
            }
        }
    }

    /// Writes a piece although another thread writes. Returns `false` if none waits for that.
    pub(super) fn write_urgently(&mut self) -> bool {
        let tag = if self.turn_refused { self.waiting.pop_front() } else { None };
        tag.map(|tag| self.write_next(tag, true)).is_some()
    }

    pub(super) fn destination_completed(&mut self, completion: Completion) {
        let Some(piece) = self.pieces.get(completion.tag) else { return };
        if piece.state == PieceState::ReadingBack {
            return self.read_back_completed(&completion);
        }
        if !piece.zeros {
            piece.buffer = piece.buffer.take().or(completion.buffer);
        }
        let (len, zero) = piece.sent;
        match completion.result {
            Ok(()) => self.advance(completion.tag, len, zero),
            Err(RequestError::Unsupported) if zero => self.max_zero = 0,
            Err(reason) => return self.write_failed(completion.tag, len, reason),
        }
        self.write_next(completion.tag, false);
    }

    /// Records what was read back. What cannot be read is tried again at the end.
    fn read_back_completed(&mut self, completion: &Completion) {
        let Some(piece) = self.pieces.get(completion.tag) else { return };
        if let Some(written) = &piece.buffer {
            let there = completion.buffer.as_ref().filter(|_| completion.result.is_ok());
            let (there, written) = (there.map(Buffer::bytes), written.bytes());
            self.shared.record_read_back(piece.range.start, there, written, &piece.hashes);
        }
        self.finish_piece(completion.tag);
    }

    fn write_failed(&mut self, tag: u32, len: u64, reason: RequestError) {
        let Some(piece) = self.pieces.remove(tag) else { return };
        let offset = piece.first().map_or(piece.range.start, |(range, _)| range.start);
        let name = self.name(Side::Destination);
        self.shared.fail(CopyError::Write { name, offset, len, reason });
    }

    fn advance(&mut self, tag: u32, len: u64, zero: bool) {
        if let Some(piece) = self.pieces.get(tag) {
            piece.advance(len);
        }
        let counter = if zero { &self.shared.zeroes } else { &self.shared.copied };
        counter.fetch_add(len, Ordering::Relaxed);
    }

    /// Records that a piece is written or, while verifying, read.
    pub(super) fn finish(&mut self, range: Range<u64>) {
        if self.shared.destination.is_some() {
            self.unflushed_since.get_or_insert_with(Instant::now);
            if self.shared.config.track_unflushed {
                self.unflushed_bytes += range.end - range.start;
                self.shared.add_unflushed(&range);
                self.unflushed.push(range.clone());
            }
        }
        self.shared.change(|plan| plan.written(range));
    }

    /// Starts a flush if one is due. Returns whether it did.
    pub(super) fn flush_if_due(&mut self, done: bool) -> bool {
        let Some(unflushed_since) = self.unflushed_since.filter(|_| self.flushing.is_none()) else {
            return false;
        };
        let config = &self.shared.config;
        let over = done || (self.shared.is_halted() && self.pieces.is_empty());
        let due = config.track_unflushed
            && (unflushed_since.elapsed() > FLUSH_INTERVAL
                || self.unflushed_bytes > config.max_unflushed.min(self.flush_after));
        if !(over || due) || !self.io.has_free_slot(Side::Destination) {
            return false;
        }
        self.unflushed_since = None;
        self.unflushed_bytes = 0;
        self.flushing = Some(std::mem::take(&mut self.unflushed));
        self.flushing_sample = self.sample.take();
        self.io.submit(Side::Destination, FLUSH, Request::Flush);
        true
    }

    pub(super) fn flush_completed(&mut self, result: Result<(), RequestError>) {
        let flushed = self.flushing.take().unwrap_or_default();
        let sample = self.flushing_sample.take();
        match result {
            Ok(()) => {
                self.shared.remove_unflushed(&flushed);
                if let (Some(sample), Some(end)) = (sample, &self.shared.destination) {
                    end.samples.add(sample);
                }
            }
            Err(reason) => {
                self.shared.fail(CopyError::Flush { name: self.name(Side::Destination), reason })
            }
        }
    }

    /// Waits for an event or a change of the plan.
    pub(super) fn wait(&self) {
        let delay = self.shared.rate_delay();
        let timeout = if delay.is_zero() { WAIT } else { delay.min(WAIT) };
        let idle = self.pieces.is_empty() && self.flushing.is_none();
        if idle || !self.io.wait(timeout) {
            self.shared.wait(timeout / 4);
        }
    }

    pub(super) fn name(&self, side: Side) -> String {
        let end = match side {
            Side::Source => Some(&self.shared.source),
            Side::Destination => self.shared.destination.as_ref(),
        };
        end.map(|end| end.disk.name.clone()).unwrap_or_default()
    }

    pub(super) fn count(&self, bytes: u64) {
        self.shared.copied.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_resent(&self, range: &Range<u64>) {
        self.shared.resent.fetch_add(range.end - range.start, Ordering::Relaxed);
    }
}
