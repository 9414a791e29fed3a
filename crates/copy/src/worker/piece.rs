//! Pieces in flight, and which parts of them are still to be written.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use export::Buffer;

use crate::hash_tree::{HashValue, RangeHash, is_zero};

/// State of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceState {
    /// The extents of the source are queried.
    QueryingExtents,
    Reading,
    Writing,
    /// What was written is read from the destination.
    ReadingBack,
}

/// A piece in flight.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) range: Range<u64>,
    pub(super) state: PieceState,
    /// Whether it is zeros that were not read.
    pub(super) zeros: bool,
    /// The data; `None` while it is being written.
    pub(super) buffer: Option<Buffer>,
    /// The hashes of the data; empty if none are wanted.
    pub(super) hashes: Vec<RangeHash>,
    /// Ranges still to be written, and whether each is zeros.
    runs: VecDeque<(Range<u64>, bool)>,
    /// Length of the write in flight, and whether it is a request for zeros.
    pub(super) sent: (u64, bool),
}

/// Granularity of zeros within data, in bytes.
const GRANULARITY: usize = 1 << 16;

impl Piece {
    pub(super) fn new(range: Range<u64>, state: PieceState) -> Self {
        let (hashes, runs) = Default::default();
        Self { range, state, zeros: false, buffer: None, hashes, runs, sent: (0, false) }
    }

    /// A piece of zeros that were not read.
    pub(super) fn zeros(range: Range<u64>) -> Self {
        let runs = [(range.clone(), true)].into();
        Self { zeros: true, runs, ..Self::new(range, PieceState::Writing) }
    }

    /// Divides a piece that was read into data and zeros to write. `hashes` may show that it is
    /// zeros; otherwise zeros are searched for if `sparse`.
    pub(super) fn divide(&mut self, buffer: Buffer, hashes: Option<Vec<RangeHash>>, sparse: bool) {
        self.state = PieceState::Writing;
        let zero = |mark: &RangeHash| mark.value == HashValue::Zero;
        if !sparse {
            self.push(self.range.clone(), false);
        } else if hashes.as_ref().is_some_and(|hashes| hashes.iter().all(zero)) {
            self.push(self.range.clone(), true);
        } else {
            let mut at = self.range.start;
            for part in buffer.bytes().chunks(GRANULARITY) {
                let end = at.saturating_add(part.len() as u64);
                self.push(at..end, is_zero(part));
                at = end;
            }
        }
        self.buffer = Some(buffer);
        self.hashes = hashes.unwrap_or_default();
    }

    /// Whether its data has left the source.
    pub(super) fn is_at_destination(&self) -> bool {
        matches!(self.state, PieceState::Writing | PieceState::ReadingBack)
    }

    fn push(&mut self, range: Range<u64>, zero: bool) {
        match self.runs.back_mut() {
            Some((last, kind)) if *kind == zero && last.end == range.start => last.end = range.end,
            _ => self.runs.push_back((range, zero)),
        }
    }

    /// The next range to write, and whether it is zeros.
    pub(super) fn first(&self) -> Option<(Range<u64>, bool)> {
        self.runs.front().cloned()
    }

    /// Records that `len` bytes of the next range are written.
    pub(super) fn advance(&mut self, len: u64) {
        if let Some((first, _)) = self.runs.front_mut() {
            first.start = first.start.saturating_add(len);
            if first.is_empty() {
                self.runs.pop_front();
            }
        }
    }
}

/// The pieces in flight of a thread, by tag.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    slots: Vec<Option<Piece>>,
    count: usize,
}

impl Pieces {
    pub(super) fn add(&mut self, piece: Piece) -> u32 {
        self.count += 1;
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.slots.len());
        match self.slots.get_mut(slot) {
            Some(empty) => *empty = Some(piece),
            None => self.slots.push(Some(piece)),
        }
        u32::try_from(slot).unwrap_or(u32::MAX)
    }

    pub(super) fn get(&mut self, tag: u32) -> Option<&mut Piece> {
        self.slots.get_mut(usize::try_from(tag).ok()?)?.as_mut()
    }

    pub(super) fn remove(&mut self, tag: u32) -> Option<Piece> {
        let piece = self.slots.get_mut(usize::try_from(tag).ok()?)?.take()?;
        self.count -= 1;
        Some(piece)
    }

    /// Removes and returns the matching pieces.
    pub(super) fn take_if(&mut self, meant: impl Fn(&Piece) -> bool) -> Vec<Piece> {
        let meant = |slot: &mut Option<Piece>| slot.take_if(|piece| meant(piece));
        let taken: Vec<Piece> = self.slots.iter_mut().filter_map(meant).collect();
        self.count -= taken.len();
        taken
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Copies with `copy_file_range`. Returns whether all of the range was copied.
pub(super) fn copy(
    source: BorrowedFd<'_>,
    destination: BorrowedFd<'_>,
    range: &Range<u64>,
) -> bool {
    let (mut from, mut to) = (range.start, range.start);
    while from < range.end {
        let len = usize::try_from(range.end - from).unwrap_or(usize::MAX);
        let copied =
            rustix::fs::copy_file_range(source, Some(&mut from), destination, Some(&mut to), len);
        if !copied.is_ok_and(|copied| copied > 0) {
            return false;
        }
    }
    true
}
