//! A piece of a disk on its way: what of it is still to be written. It knows no connection.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use export::Buffer;

use crate::hash_tree::{HashValue, RangeHash, is_zero};

/// What is being done with a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceState {
    /// The source is asked for its extents.
    QueryingExtents,
    /// It is being read.
    Reading,
    /// It is being written.
    Writing,
}

/// A piece of a disk on its way.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) range: Range<u64>,
    pub(super) state: PieceState,
    /// Whether it is zeros that were not read.
    pub(super) zeros: bool,
    /// What was read; away while it is being written.
    pub(super) buffer: Option<Buffer>,
    /// What is still to be written, and whether it is zeros.
    runs: VecDeque<(Range<u64>, bool)>,
    /// What is being written: its length, and whether the destination makes it zero by itself.
    pub(super) sent: (u64, bool),
}

/// Zeros that begin or end elsewhere than at a multiple of this are written like data, in bytes.
const GRAIN: usize = 1 << 16;

impl Piece {
    pub(super) fn new(range: Range<u64>, state: PieceState) -> Self {
        Self { range, state, zeros: false, buffer: None, runs: VecDeque::new(), sent: (0, false) }
    }

    /// Zeros that were not read, to be written.
    pub(super) fn zeros(range: Range<u64>) -> Self {
        let runs = [(range.clone(), true)].into();
        Self { zeros: true, runs, ..Self::new(range, PieceState::Writing) }
    }

    /// It was read: what is to be written of it. `marks` may tell that it is zeros; without them, if zeros are to
    /// become holes, they are looked for.
    pub(super) fn divide(&mut self, buffer: Buffer, hashes: Option<&[RangeHash]>, sparse: bool) {
        self.state = PieceState::Writing;
        let zero = |mark: &RangeHash| mark.value == HashValue::Zero;
        if !sparse {
            self.push(self.range.clone(), false);
        } else if hashes.is_some_and(|hashes| hashes.iter().all(zero)) {
            self.push(self.range.clone(), true);
        } else {
            let mut at = self.range.start;
            for part in buffer.bytes().chunks(GRAIN) {
                let end = at.saturating_add(part.len() as u64);
                self.push(at..end, is_zero(part));
                at = end;
            }
        }
        self.buffer = Some(buffer);
    }

    fn push(&mut self, range: Range<u64>, zero: bool) {
        match self.runs.back_mut() {
            Some((last, kind)) if *kind == zero && last.end == range.start => last.end = range.end,
            _ => self.runs.push_back((range, zero)),
        }
    }

    /// What is to be written next, and whether it is zeros.
    pub(super) fn first(&self) -> Option<(Range<u64>, bool)> {
        self.runs.front().cloned()
    }

    /// So much of what was next is written.
    pub(super) fn advance(&mut self, len: u64) {
        if let Some((first, _)) = self.runs.front_mut() {
            first.start = first.start.saturating_add(len);
            if first.is_empty() {
                self.runs.pop_front();
            }
        }
    }
}

/// The pieces that a thread has under way, by their tags.
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

    /// Removes those that are meant.
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

/// Has the kernel copy between two files. Tells whether it did, and all of it.
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
