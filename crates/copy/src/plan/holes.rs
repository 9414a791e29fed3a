//! Holes of the source, queried ahead of the position that is read.

use std::collections::BTreeMap;
use std::ops::Range;

use export::Extent;

/// Known holes between two positions.
#[derive(Debug)]
pub(super) struct HoleMap {
    bytes: u64,
    /// Start and end of each hole between `from` and `to`.
    holes: BTreeMap<u64, u64>,
    from: u64,
    to: u64,
    pending: bool,
    /// Whether the source reports extents.
    supported: bool,
}

/// Holes are cut to multiples of this, in bytes: a smaller hole is read like data.
pub(super) const GRAIN: u64 = 1 << 16;

/// Bytes of a query, and how far to look ahead.
const QUERY_LEN: u64 = 2 << 30;
const LOOKAHEAD: u64 = 512 << 20;

impl HoleMap {
    pub(super) fn new(bytes: u64, supported: bool) -> Self {
        Self { bytes, holes: BTreeMap::new(), from: 0, to: 0, pending: false, supported }
    }

    /// The range to query now, so that the extents at `at` and beyond are known.
    pub(super) fn query(&mut self, at: u64) -> Option<Range<u64>> {
        if !self.supported || self.pending {
            return None;
        }
        if at < self.from || at > self.to {
            self.holes.clear();
            (self.from, self.to) = (at, at);
        }
        self.holes.retain(|_, end| *end > at);
        if self.to >= self.bytes || self.to - at >= LOOKAHEAD {
            return None;
        }
        self.pending = true;
        Some(self.to..self.to.saturating_add(QUERY_LEN).min(self.bytes))
    }

    /// Records an answer. After an empty one everything counts as data.
    pub(super) fn answered(&mut self, asked: Range<u64>, extents: &[Extent]) {
        self.pending = false;
        let mut at = asked.start;
        for extent in extents {
            let end = at.saturating_add(extent.len).min(asked.end);
            if extent.zero {
                self.add(at..end);
            }
            at = end;
        }
        self.supported &= at > asked.start;
        self.to = self.to.max(at);
    }

    /// Records that a query was lost: it will be repeated.
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

    /// The end of the zone at a position, and whether it is a hole; `None` if it is not known yet.
    pub(super) fn at(&self, at: u64) -> Option<(u64, bool)> {
        if !self.supported {
            return Some((self.bytes, false));
        }
        if at < self.from || at >= self.to {
            return None;
        }
        let inward = |(&start, &end): (&u64, &u64)| {
            let end = if end == self.bytes { end } else { end / GRAIN * GRAIN };
            start.div_ceil(GRAIN).saturating_mul(GRAIN)..end
        };
        let holes =
            self.holes.range(..=at).next_back().into_iter().chain(self.holes.range(at + 1..));
        let next = holes.map(inward).find(|hole| !hole.is_empty() && hole.end > at);
        Some(match next {
            Some(hole) if hole.start <= at => (hole.end, true),
            Some(hole) => (hole.start, false),
            None => (self.to, false),
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn holes_are_aligned_and_merged() {
        let bytes = 16 * GRAIN + 100;
        let mut holes = HoleMap::new(bytes, true);
        let asked = holes.query(0).unwrap();
        assert_eq!(asked, 0..bytes);
        assert!(holes.query(0).is_none() && holes.at(0).is_none());
        let parts = [Extent::data(GRAIN + 1), Extent::hole(GRAIN / 2), Extent::hole(2 * GRAIN)];
        holes.answered(asked.clone(), &parts);
        let known_end = holes.to;
        assert_eq!(holes.at(0), Some((2 * GRAIN, false)));
        assert_eq!(holes.at(2 * GRAIN), Some((3 * GRAIN, true)));
        assert_eq!(holes.at(3 * GRAIN), Some((known_end, false)));
        assert_eq!(holes.at(known_end), None);
        let rest = holes.query(3 * GRAIN).unwrap();
        assert_eq!(rest, known_end..bytes);
        holes.answered(rest, &[Extent::hole(u64::MAX)]);
        assert_eq!(holes.at(4 * GRAIN), Some((bytes, true)), "the last hole goes to the end");
    }

    #[test]
    fn source_without_extents_is_all_data() {
        let mut holes = HoleMap::new(1 << 40, true);
        let asked = holes.query(5).unwrap();
        assert_eq!(asked, 5..5 + QUERY_LEN);
        holes.answered(asked, &[]);
        assert_eq!((holes.query(5), holes.at(5)), (None, Some((1 << 40, false))));
    }
}
