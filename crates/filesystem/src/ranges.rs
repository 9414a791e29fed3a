//! Sets of bytes, as ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes as ordered ranges that neither touch nor overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// The set of one range.
    pub fn of(range: Range<u64>) -> Self {
        let mut ranges = Self::default();
        ranges.insert(range);
        ranges
    }

    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        while let Some((&at, &to)) =
            self.0.range(..=end).next_back().filter(|(_, to)| **to >= start)
        {
            self.0.remove(&at);
            (start, end) = (start.min(at), end.max(to));
        }
        self.0.insert(start, end);
    }

    /// Removes a range.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        while let Some((&at, &to)) =
            self.0.range(..range.end).next_back().filter(|(_, to)| **to > range.start)
        {
            self.0.remove(&at);
            if to > range.end {
                self.0.insert(range.end, to);
            }
            if at < range.start {
                self.0.insert(at, range.start);
                return;
            }
        }
    }

    /// Adds all ranges of another set.
    pub fn extend(&mut self, other: &Self) {
        other.iter().for_each(|range| self.insert(range));
    }

    /// The intersection with `place`.
    pub fn within(&self, place: Range<u64>) -> Self {
        let cut = |(&at, &to): (&u64, &u64)| (at.max(place.start), to.min(place.end));
        let before = self.0.range(..place.end).map(cut);
        Self(before.filter(|(at, to)| at < to).collect())
    }

    /// Whether any byte of the range is in the set.
    pub fn intersects(&self, range: &Range<u64>) -> bool {
        let last = self.0.range(..range.end).next_back();
        range.start < range.end && last.is_some_and(|(_, to)| *to > range.start)
    }

    /// The ranges in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().map(|(at, to)| *at..*to)
    }

    /// Total number of bytes.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|(at, to)| to - at).sum()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Range<u64>> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut set = Self::default();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u64, u64),
        Remove(u64, u64),
    }

    proptest! {
        #[test]
        fn ranges_equal_a_set_of_bytes(
            steps in prop::collection::vec(
                prop_oneof![
                    (0..64u64, 0..20u64).prop_map(|(at, len)| Step::Insert(at, at + len)),
                    (0..64u64, 0..20u64).prop_map(|(at, len)| Step::Remove(at, at + len)),
                ],
                0..40,
            ),
            (at, len) in (0..90u64, 0..20u64),
        ) {
            let (mut ranges, mut bytes) = (Ranges::default(), [false; 100]);
            for step in steps {
                let (range, to) = match step {
                    Step::Insert(at, end) => { ranges.insert(at..end); (at..end, true) }
                    Step::Remove(at, end) => { ranges.remove(at..end); (at..end, false) }
                };
                range.for_each(|byte| bytes[usize::try_from(byte).unwrap()] = to);
            }
            let set: Vec<u64> = ranges.iter().flatten().collect();
            let model: Vec<u64> = (0..100).filter(|byte| bytes[usize::try_from(*byte).unwrap()]).collect();
            prop_assert_eq!(&set, &model);
            prop_assert_eq!(ranges.bytes(), model.len() as u64);
            let ends: Vec<_> = ranges.iter().collect();
            prop_assert!(ends.windows(2).all(|two| two[0].end < two[1].start));
            let inside: Vec<u64> = ranges.within(at..at + len).iter().flatten().collect();
            let wanted: Vec<u64> = model.into_iter().filter(|b| (at..at + len).contains(b)).collect();
            prop_assert_eq!(!wanted.is_empty(), ranges.intersects(&(at..at + len)));
            prop_assert_eq!(inside, wanted);
        }
    }
}
