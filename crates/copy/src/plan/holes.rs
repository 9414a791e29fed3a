//! Holes of the source, queried ahead of the position that is read.

use std::collections::BTreeMap;
use std::ops::Range;

use export::Extent;

/// Known holes between two positions.
#[derive(Debug)]
pub(super) struct HoleMap {
    bytes: u64,
    /// Start and end of each hole between `known_start` and `known_end`.
    holes: BTreeMap<u64, u64>,
    known_start: u64,
    known_end: u64,
    pending: bool,
    /// Whether the source reports extents.
    supported: bool,
}

/// Holes are cut to multiples of this, in bytes: a smaller hole is read like data.
pub(super) const GRANULARITY: u64 = 1 << 16;

/// Bytes of a query, and how far to look ahead.
const QUERY_LEN: u64 = 2 << 30;
const LOOKAHEAD: u64 = 512 << 20;

impl HoleMap {
    pub(super) fn new(bytes: u64, supported: bool) -> Self {
        Self {
            bytes,
            holes: BTreeMap::new(),
            known_start: 0,
            known_end: 0,
            pending: false,
            supported,
        }
    }

    /// Returns the range to query now so that the extents from `at` on are known; `None` if a query is
    /// pending or enough is known.
    pub(super) fn query(&mut self, at: u64) -> Option<Range<u64>> {
        if !self.supported || self.pending {
            return None;
        }
        if at < self.known_start || at > self.known_end {
            self.holes.clear();
            (self.known_start, self.known_end) = (at, at);
        }
        while self.holes.first_entry().is_some_and(|first| *first.get() <= at) {
            self.holes.pop_first();
        }
        if self.known_end >= self.bytes || self.known_end - at >= LOOKAHEAD {
            return None;
        }
        self.pending = true;
        Some(self.known_end..self.known_end.saturating_add(QUERY_LEN).min(self.bytes))
    }

    /// Records the reply to a query. If it is empty, all of the source is treated as data.
    pub(super) fn record_reply(&mut self, queried: Range<u64>, extents: &[Extent]) {
        self.pending = false;
        let mut at = queried.start;
        for extent in extents {
            let end = at.saturating_add(extent.len).min(queried.end);
            if extent.zero {
                self.add(at..end);
            }
            at = end;
        }
        self.supported &= at > queried.start;
        self.known_end = self.known_end.max(at);
    }

    /// Records that a query was lost with its connection: it is repeated.
    pub(super) fn query_lost(&mut self) {
        self.pending = false;
    }

    fn add(&mut self, hole: Range<u64>) {
        let joined = self.holes.last_entry().filter(|last| *last.get() == hole.start);
        if let Some(mut last) = joined {
            *last.get_mut() = hole.end;
        } else if !hole.is_empty() {
            self.holes.insert(hole.start, hole.end);
        }
    }

    /// Returns the end of the extent at a position, and whether it is a hole; `None` if not known yet.
    pub(super) fn extent_at(&self, at: u64) -> Option<(u64, bool)> {
        if !self.supported {
            return Some((self.bytes, false));
        }
        if at < self.known_start || at >= self.known_end {
            return None;
        }
        let align_inward = |(&start, &end): (&u64, &u64)| {
            let end = if end == self.bytes { end } else { end / GRANULARITY * GRANULARITY };
            start.div_ceil(GRANULARITY).saturating_mul(GRANULARITY)..end
        };
        let holes =
            self.holes.range(..=at).next_back().into_iter().chain(self.holes.range(at + 1..));
        let next = holes.map(align_inward).find(|hole| !hole.is_empty() && hole.end > at);
        Some(match next {
            Some(hole) if hole.start <= at => (hole.end, true),
            Some(hole) => (hole.start, false),
            None => (self.known_end, false),
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn holes_are_aligned_and_merged() {
        let bytes = 16 * GRANULARITY + 100;
        let mut holes = HoleMap::new(bytes, true);
        let queried = holes.query(0).unwrap();
        assert_eq!(queried, 0..bytes);
        assert!(holes.query(0).is_none() && holes.extent_at(0).is_none());
        let parts = [
            Extent::data(GRANULARITY + 1),
            Extent::hole(GRANULARITY / 2),
            Extent::hole(2 * GRANULARITY),
        ];
        holes.record_reply(queried.clone(), &parts);
        let known_end = holes.known_end;
        assert_eq!(holes.extent_at(0), Some((2 * GRANULARITY, false)));
        assert_eq!(holes.extent_at(2 * GRANULARITY), Some((3 * GRANULARITY, true)));
        assert_eq!(holes.extent_at(3 * GRANULARITY), Some((known_end, false)));
        assert_eq!(holes.extent_at(known_end), None);
        let rest = holes.query(3 * GRANULARITY).unwrap();
        assert_eq!(rest, known_end..bytes);
        holes.record_reply(rest, &[Extent::hole(u64::MAX)]);
        assert_eq!(
            holes.extent_at(4 * GRANULARITY),
            Some((bytes, true)),
            "the last hole goes to the end"
        );
    }

    #[test]
    fn source_without_extents_is_all_data() {
        let mut holes = HoleMap::new(1 << 40, true);
        let queried = holes.query(5).unwrap();
        assert_eq!(queried, 5..5 + QUERY_LEN);
        holes.record_reply(queried, &[]);
        assert_eq!((holes.query(5), holes.extent_at(5)), (None, Some((1 << 40, false))));
    }
}
