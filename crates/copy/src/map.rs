//! Progress of a copy for each byte of the disk, in the format of a GNU ddrescue mapfile.
//!
//! The format is that of the chapter "Mapfile structure" of the ddrescue manual. Additional data is
//! in comments, which ddrescue drops; then only the speed of the verification is lost.

mod file;
mod metadata;
mod text;

use std::collections::BTreeMap;
use std::ops::Range;

pub(crate) use file::probe;
pub use file::{MapReadError, load, save};
pub use metadata::MapMetadata;
pub use text::ParseError;

/// State of a range. Each one is a character in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// `?`: not tried.
    Untried,
    /// `*`: a large read failed; the edges of the bad area are not known.
    Untrimmed,
    /// `/`: between bad sectors, not read sector by sector yet.
    Unscraped,
    /// `-`: unreadable sectors.
    Bad,
    /// `+`: finished.
    Finished,
}

impl State {
    /// All states.
    pub const ALL: [Self; 5] =
        [Self::Untried, Self::Untrimmed, Self::Unscraped, Self::Bad, Self::Finished];

    /// The character in the file.
    pub fn character(self) -> char {
        match self {
            Self::Untried => '?',
            Self::Untrimmed => '*',
            Self::Unscraped => '/',
            Self::Bad => '-',
            Self::Finished => '+',
        }
    }

    /// The state of a character.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| text.chars().eq([state.character()]))
    }
}

/// The status line of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The current position in bytes.
    pub at: u64,
    /// The state of the ranges that are being processed; [`State::Finished`] if the copy is
    /// complete.
    pub doing: State,
    /// The pass, from 1.
    pub pass: u32,
}

impl Default for Position {
    fn default() -> Self {
        Self { at: 0, doing: State::Untried, pass: 1 }
    }
}

/// Progress of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    pub position: Position,
    /// Data that only storagetm uses.
    pub metadata: MapMetadata,
    bytes: u64,
    /// The start of each run of one state. The first starts at 0; adjacent runs differ.
    runs: BTreeMap<u64, State>,
}

impl Map {
    /// The map of a disk of `bytes` bytes, all untried.
    pub fn new(bytes: u64) -> Self {
        let runs = if bytes == 0 { BTreeMap::new() } else { [(0, State::Untried)].into() };
        Self { position: Position::default(), metadata: MapMetadata::default(), bytes, runs }
    }

    /// The length of the disk in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sets the state of a range, cut to the length of the disk.
    pub fn set(&mut self, range: Range<u64>, state: State) {
        let range = range.start..range.end.min(self.bytes);
        if range.is_empty() {
            return;
        }
        let (before, after) = (self.before(range.start), self.state(range.end));
        while let Some((&start, _)) = self.runs.range(range.clone()).next() {
            self.runs.remove(&start);
        }
        if before != Some(state) {
            self.runs.insert(range.start, state);
        }
        match after {
            Some(after) if after == state => drop(self.runs.remove(&range.end)),
            Some(after) => drop(self.runs.insert(range.end, after)),
            None => {}
        }
    }

    /// The state of the byte before `at`; `None` at the start.
    pub fn before(&self, at: u64) -> Option<State> {
        self.state(at.checked_sub(1)?)
    }

    /// The state of a byte; `None` beyond the end.
    pub fn state(&self, at: u64) -> Option<State> {
        let run = self.runs.range(..=at).next_back().filter(|_| at < self.bytes);
        run.map(|(_, state)| *state)
    }

    /// All runs, without gaps.
    pub fn runs(&self) -> impl DoubleEndedIterator<Item = (Range<u64>, State)> + '_ {
        self.runs.iter().map(|(&start, &state)| (start..self.end_of(start), state))
    }

    fn end_of(&self, start: u64) -> u64 {
        let after = (std::ops::Bound::Excluded(start), std::ops::Bound::Unbounded);
        self.runs.range(after).next().map_or(self.bytes, |(&end, _)| end)
    }

    /// The runs in a state.
    pub fn all(&self, state: State) -> impl DoubleEndedIterator<Item = Range<u64>> + '_ {
        self.runs().filter(move |(_, other)| *other == state).map(|(range, _)| range)
    }

    /// Bytes in a state.
    pub fn sum(&self, state: State) -> u64 {
        self.all(state).map(|range| range.end - range.start).sum()
    }

    /// The first range in a state at or after `from`.
    pub fn next(&self, state: State, from: u64) -> Option<Range<u64>> {
        let start = self.runs.range(..=from).next_back().map_or(0, |(&start, _)| start);
        let found = self.runs.range(start..).find(|(_, other)| **other == state).map(|(&at, _)| at);
        // The run that contains `from` ends before it only if `from` is beyond the disk.
        let start = found.filter(|_| from < self.bytes)?;
        Some(start.max(from)..self.end_of(start))
    }

    /// The last range in a state before `to`.
    pub fn last(&self, state: State, to: u64) -> Option<Range<u64>> {
        let (&start, _) = self.runs.range(..to).rev().find(|(_, other)| **other == state)?;
        Some(start..self.end_of(start).min(to))
    }

    /// The map for a disk of another length. A new range at the end is untried.
    pub fn resized(mut self, bytes: u64) -> Self {
        let end = self.bytes;
        self.runs.split_off(&bytes);
        self.bytes = bytes;
        if end < bytes {
            self.runs.insert(end, State::Untried);
            self.set(end..bytes, State::Untried);
        }
        self
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    fn states(map: &Map) -> Vec<State> {
        (0..map.bytes()).map(|at| map.state(at).unwrap()).collect()
    }

    proptest! {
        #[test]
        fn map_equals_an_array_of_states(ops in prop::collection::vec((0u64..60, 0u64..30, 0usize..5), 0..40)) {
            let mut map = Map::new(64);
            let mut model = vec![State::Untried; 64];
            for (start, len, state) in ops {
                let state = State::ALL[state];
                map.set(start..start + len, state);
                let range = start..(start + len).min(64);
                range.for_each(|at| model[usize::try_from(at).unwrap()] = state);
            }
            prop_assert_eq!(states(&map), model.clone());
            let runs: Vec<_> = map.runs().collect();
            prop_assert!(runs.windows(2).all(|pair| pair[0].0.end == pair[1].0.start && pair[0].1 != pair[1].1));
            prop_assert_eq!(runs.last().unwrap().0.end, 64);
            for at in 0..64usize {
                let from = u64::try_from(at).unwrap();
                let first = (at..64).find(|at| model[*at] == State::Bad).map(|at| u64::try_from(at).unwrap());
                prop_assert_eq!(map.next(State::Bad, from).map(|range| range.start), first);
                let last = (0..at).rev().find(|at| model[*at] == State::Bad).map(|at| u64::try_from(at).unwrap() + 1);
                prop_assert_eq!(map.last(State::Bad, from).map(|range| range.end), last);
            }
        }
    }

    #[test]
    fn map_grows_and_shrinks() {
        let mut map = Map::new(10);
        map.set(0..10, State::Finished);
        let map = map.resized(20);
        assert_eq!(
            map.runs().collect::<Vec<_>>(),
            [(0..10, State::Finished), (10..20, State::Untried)]
        );
        assert_eq!(map.resized(5).runs().collect::<Vec<_>>(), [(0..5, State::Finished)]);
    }
}
