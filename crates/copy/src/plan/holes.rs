//! What the source has told of its holes, a good way ahead of where it is read. It knows no disk.

use std::collections::BTreeMap;
use std::ops::Range;

use export::Extent;

/// Holes are known in order, from one position to another.
#[derive(Debug)]
pub(super) struct HoleMap {
    bytes: u64,
    /// Where each hole begins and ends, between `from` and `to`.
    holes: BTreeMap<u64, u64>,
    from: u64,
    to: u64,
    pending: bool,
    /// Whether the source tells.
    supported: bool,
}

/// Holes begin and end at multiples of this, in bytes: a smaller hole is read like data, and found to be zeros.
pub(super) const GRAIN: u64 = 1 << 16;

/// Bytes that are asked for at once, and how far ahead.
const QUERY_LEN: u64 = 2 << 30;
const LOOKAHEAD: u64 = 512 << 20;

impl HoleMap {
    /// Nothing known yet of a disk.
    pub(super) fn new(bytes: u64, supported: bool) -> Self {
        Self { bytes, holes: BTreeMap::new(), from: 0, to: 0, pending: false, supported }
    }

    /// What is to be asked now, so that `at` and what follows it is known.
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

    /// The answer. Without one all is data, from now on.
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

    /// There was no answer: it is asked again.
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

    /// Where the zone ends that a position lies in, and whether it is zeros; nothing if that is not known yet.
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
    fn holes_are_cut_to_the_grain_and_joined() {
        let bytes = 16 * GRAIN + 100;
        let mut holes = HoleMap::new(bytes, true);
        let asked = holes.query(0).unwrap();
        assert_eq!(asked, 0..bytes);
        assert!(holes.query(0).is_none() && holes.at(0).is_none());
        let parts = [Extent::data(GRAIN + 1), Extent::hole(GRAIN / 2), Extent::hole(2 * GRAIN)];
        holes.answered(asked.clone(), &parts);
        let told = holes.to;
        assert_eq!(holes.at(0), Some((2 * GRAIN, false)));
        assert_eq!(holes.at(2 * GRAIN), Some((3 * GRAIN, true)));
        assert_eq!(holes.at(3 * GRAIN), Some((told, false)));
        assert_eq!(holes.at(told), None);
        let rest = holes.query(3 * GRAIN).unwrap();
        assert_eq!(rest, told..bytes);
        holes.answered(rest, &[Extent::hole(u64::MAX)]);
        assert_eq!(holes.at(4 * GRAIN), Some((bytes, true)), "the last hole goes to the end");
    }

    #[test]
    fn a_source_that_does_not_tell_is_all_data() {
        let mut holes = HoleMap::new(1 << 40, true);
        let asked = holes.query(5).unwrap();
        assert_eq!(asked, 5..5 + QUERY_LEN);
        holes.answered(asked, &[]);
        assert_eq!((holes.query(5), holes.at(5)), (None, Some((1 << 40, false))));
    }
}
