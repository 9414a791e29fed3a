//! The `Range` field (RFC 9110 §14).

use std::ops::Range;

/// What a request asks for of a representation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All of it.
    Whole,
    /// These bytes, at least one.
    Part(Range<u64>),
    /// Bytes that it does not have.
    Unsatisfiable,
}

/// Returns what a `Range` field asks for of `len` bytes. A field that is malformed, that has another
/// unit or several ranges is ignored, as RFC 9110 §14.2 allows.
pub(crate) fn wanted(field: &str, len: u64) -> Wanted {
    let bounds =
        field.split_once('=').filter(|(unit, _)| unit.trim().eq_ignore_ascii_case("bytes"));
    let Some((first, last)) = bounds.and_then(|(_, set)| set.trim().split_once('-')) else {
        return Wanted::Whole;
    };
    match (first.trim(), last.trim()) {
        ("", last) => match number(last) {
            None => Wanted::Whole,
            Some(count) if count == 0 || len == 0 => Wanted::Unsatisfiable,
            Some(count) => Wanted::Part(len - count.min(len)..len),
        },
        (first, last) => {
            let last = if last.is_empty() { Some(u64::MAX) } else { number(last) };
            match number(first).zip(last).filter(|(first, last)| first <= last) {
                None => Wanted::Whole,
                Some((first, _)) if first >= len => Wanted::Unsatisfiable,
                Some((first, last)) => Wanted::Part(first..last.saturating_add(1).min(len)),
            }
        }
    }
}

/// Returns a decimal number; `u64::MAX` for larger ones.
fn number(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn ranges_are_clipped_to_the_representation() {
        for (field, part) in [
            ("bytes=0-0", 0..1),
            ("bytes=0-99", 0..100),
            ("BYTES = 10-19", 10..20),
            ("bytes=90-", 90..100),
            ("bytes=90-99999999999999999999", 90..100),
            ("bytes=-1", 99..100),
            ("bytes=-1000", 0..100),
        ] {
            assert_eq!(wanted(field, 100), Wanted::Part(part), "{field}");
        }
    }

    #[test]
    fn ranges_beyond_the_end_are_unsatisfiable() {
        for field in ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999999999999999999-"] {
            assert_eq!(wanted(field, 100), Wanted::Unsatisfiable, "{field}");
        }
        assert_eq!(wanted("bytes=0-", 0), Wanted::Unsatisfiable);
        assert_eq!(wanted("bytes=-5", 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn other_ranges_are_ignored() {
        for field in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=5-4",
            "bytes=a-b",
            "bytes=0-1,5-6",
            "lines=0-1",
            "bytes=+1-2",
            "bytes=1-2-3",
        ] {
            assert_eq!(wanted(field, 100), Wanted::Whole, "{field}");
        }
    }
}
