//! Tracks which bytes of a read have arrived, each exactly once.

use super::Violation;

/// Maximum number of disjoint parts of a read. A server that replies in order needs one.
const MAX_PARTS: usize = 256;

/// The bytes of a read that have arrived, as sorted parts that do not touch each other.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    parts: Vec<(u32, u32)>,
}

impl Coverage {
    /// Adds the bytes from `start` up to `end`, which is greater than `start`.
    ///
    /// # Errors
    /// Fails if some of them arrived before, or if there are too many disjoint parts.
    pub(super) fn add(&mut self, start: u32, end: u32) -> Result<(), Violation> {
        let at = self.parts.partition_point(|part| part.1 < start);
        let touching = self.parts.get(at..).unwrap_or_default();
        let count = touching.iter().take_while(|part| part.0 <= end).count();
        let touching = touching.get(..count).unwrap_or_default();
        if touching.iter().any(|part| part.0 < end && start < part.1) {
            return Err(Violation::ContentRepeated);
        }
        let first = touching.first().map_or(start, |part| part.0.min(start));
        let last = touching.last().map_or(end, |part| part.1.max(end));
        self.parts.splice(at..at + count, [(first, last)]);
        if self.parts.len() > MAX_PARTS { Err(Violation::TooManyFragments) } else { Ok(()) }
    }

    /// Returns whether all of the `len` bytes have arrived.
    pub(super) fn is_whole(&self, len: u32) -> bool {
        self.parts == [(0, len)]
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_in_any_order_complete_a_read() {
        let mut coverage = Coverage::default();
        for (start, end) in [(10, 20), (40, 50), (0, 10), (30, 40), (20, 30)] {
            assert!(!coverage.is_whole(50));
            coverage.add(start, end).unwrap();
        }
        assert!(coverage.is_whole(50));
        assert!(!coverage.is_whole(51));
    }

    #[test]
    fn repeated_bytes_are_refused() {
        for (start, end) in [(0, 11), (10, 20), (15, 16), (19, 30), (0, 50)] {
            let mut coverage = Coverage::default();
            coverage.add(10, 20).unwrap();
            assert_eq!(coverage.add(start, end), Err(Violation::ContentRepeated), "{start}");
        }
    }

    #[test]
    fn too_many_disjoint_parts_are_refused() {
        let mut coverage = Coverage::default();
        let ended = (0..1000).map(|at| coverage.add(at * 2, at * 2 + 1)).find(Result::is_err);
        assert_eq!(ended, Some(Err(Violation::TooManyFragments)));
    }

    proptest! {
        #[test]
        fn coverage_agrees_with_a_byte_map(parts in prop::collection::vec((0..60_u32, 1..9_u32), 1..40)) {
            let (mut coverage, mut map) = (Coverage::default(), [false; 80]);
            for (start, len) in parts {
                let place = &mut map[start as usize..(start + len) as usize];
                let free = place.iter().all(|&byte| !byte);
                prop_assert_eq!(coverage.add(start, start + len).is_ok(), free);
                if !free {
                    break;
                }
                place.fill(true);
            }
            let whole = map.iter().take_while(|&&byte| byte).count();
            if map.iter().filter(|&&byte| byte).count() == whole && whole > 0 {
                prop_assert!(coverage.is_whole(u32::try_from(whole).unwrap()));
            }
        }
    }
}
