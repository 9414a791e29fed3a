//! Module aliases: shell wildcard patterns that are matched against modaliases.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

/// Patterns and their modules, indexed by the part before the first wildcard.
///
/// There are some ten thousand, and the machine waits for them before it has disks: they stay in
/// the text that was read, and only their positions are sorted.
#[derive(Debug, Default)]
pub(super) struct Aliases {
    text: String,
    places: Vec<Place>,
    lengths: BTreeSet<usize>,
}

/// The positions of a pattern, the part before its first wildcard, and its module in the text.
#[derive(Debug)]
struct Place {
    pattern: Range<usize>,
    start: Range<usize>,
    module: Range<usize>,
}

impl Aliases {
    /// Parses lines of `alias PATTERN MODULE`; skips others.
    pub(super) fn parse(text: &str) -> Self {
        let text = normal(text).into_owned();
        let mut offset = 0_usize;
        let mut places = Vec::new();
        for line in text.split_inclusive('\n') {
            places.extend(place(line, offset));
            offset = offset.saturating_add(line.len());
        }
        let part = |range: &Range<usize>| text.get(range.clone()).unwrap_or_default();
        places.sort_by(|a, b| part(&a.start).cmp(part(&b.start)));
        let lengths = places.iter().map(|place| place.start.len()).collect();
        Self { text, places, lengths }
    }

    /// Returns the modules whose patterns match, each once, the most general pattern first.
    pub(super) fn find(&self, name: &str) -> Vec<&str> {
        let name = normal(name.trim());
        let name = name.as_bytes();
        let mut found: Vec<&str> = Vec::new();
        for start in self.lengths.iter().filter_map(|&length| name.get(..length)) {
            for place in self.starting_with(start) {
                let module = self.part(&place.module);
                let pattern = self.part(&place.pattern).as_bytes();
                if !found.contains(&module) && matches(pattern, name) {
                    found.push(module);
                }
            }
        }
        found
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.places.iter().map(|place| (self.part(&place.pattern), self.part(&place.module)))
    }

    /// Returns the patterns with exactly this prefix before their first wildcard.
    fn starting_with(&self, start: &[u8]) -> impl Iterator<Item = &Place> {
        let of = |place: &Place| self.part(&place.start).as_bytes();
        let first = self.places.partition_point(|place| of(place) < start);
        self.places.iter().skip(first).take_while(move |place| of(place) == start)
    }

    fn part(&self, range: &Range<usize>) -> &str {
        self.text.get(range.clone()).unwrap_or_default()
    }
}

/// Parses a line at `offset`.
fn place(line: &str, offset: usize) -> Option<Place> {
    let rest = line.strip_prefix("alias ")?;
    let (pattern, module) = rest.split_once(' ')?;
    let from = offset.checked_add(line.len().checked_sub(rest.len())?)?;
    let until = from.checked_add(pattern.len())?;
    let start = pattern.bytes().position(is_special).unwrap_or(pattern.len());
    let module_from = until.checked_add(1)?;
    let module_until = module_from.checked_add(module.trim_end().len())?;
    let start = from..from.checked_add(start)?;
    Some(Place { pattern: from..until, start, module: module_from..module_until })
}

/// Replaces `-` by `_`, which are equivalent in module names, except inside of brackets.
pub(super) fn normal(name: &str) -> Cow<'_, str> {
    if !name.contains('-') {
        return Cow::Borrowed(name);
    }
    let mut inside = false;
    let mut change = |c: char| {
        inside = (inside || c == '[') && c != ']' && c != '\n';
        if c == '-' && !inside { '_' } else { c }
    };
    Cow::Owned(name.chars().map(&mut change).collect())
}

fn is_special(byte: u8) -> bool {
    matches!(byte, b'*' | b'?' | b'[' | b'\\')
}

/// Returns whether the pattern matches the whole text: `*`, `?`, `[a-f]`, `[!0]`, and `\` before a
/// plain character.
pub(super) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern, mut text) = (pattern, text);
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', rest @ ..] = pattern {
            retry = Some((rest, text));
            pattern = rest;
        } else if pattern.is_empty() && text.is_empty() {
            return true;
        } else if let Some(next) = step(pattern, text) {
            (pattern, text) = next;
        } else {
            // The last star matches one more byte.
            let Some((after, [_, rest @ ..])) = retry else { return false };
            retry = Some((after, rest));
            (pattern, text) = (after, rest);
        }
    }
}

/// Matches one character. Returns the rest of both, or `None`.
fn step<'a>(pattern: &'a [u8], text: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (&byte, text) = text.split_first()?;
    let rest = match pattern {
        [b'?', rest @ ..] => rest,
        [b'[', rest @ ..] => class(rest, byte)?,
        [b'\\', plain, rest @ ..] | [plain, rest @ ..] if *plain == byte => rest,
        _ => return None,
    };
    Some((rest, text))
}

/// Returns the rest of the pattern after the class if the byte is in it.
fn class(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    let (negated, mut rest) = match pattern {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, pattern),
    };
    let mut found = false;
    let mut first = true;
    loop {
        rest = match rest {
            [b']', rest @ ..] if !first => return (found != negated).then_some(rest),
            [low, b'-', high, rest @ ..] if *high != b']' => {
                found |= (*low..=*high).contains(&byte);
                rest
            }
            [one, rest @ ..] => {
                found |= *one == byte;
                rest
            }
            [] => return None,
        };
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn is(pattern: &str, text: &str) -> bool {
        matches(pattern.as_bytes(), text.as_bytes())
    }

    #[test]
    fn wildcards_are_those_of_the_shell() {
        for (pattern, text) in [
            ("", ""),
            ("*", ""),
            ("a*c", "abcbc"),
            ("a?c", "abc"),
            ("usb:v*p*d*dc*ic08isc06ip50in*", "usb:v0781p5581d0100dc00ic08isc06ip50in00"),
            ("x[0-9A-F]y", "xBy"),
            ("x[!0-9]y", "xBy"),
            ("x[]a]y", "x]y"),
            ("x[a-]y", "x-y"),
            (r"a\*b", "a*b"),
            ("**a**", "a"),
        ] {
            assert!(is(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "a"),
            ("a", ""),
            ("?", ""),
            ("a*c", "abcb"),
            ("x[0-9]y", "xay"),
            ("x[!0-9]y", "x5y"),
            ("x[0-9", "x5"),
            (r"a\*b", "acb"),
            ("abc", "abcd"),
        ] {
            assert!(!is(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn pattern_of_many_stars_is_matched_quickly() {
        let begun = Instant::now();
        assert!(!is(&"a*".repeat(200), &"a".repeat(4000).replace("aaaaaaaaaa", "b")));
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn dashes_are_underscores_outside_of_brackets() {
        assert_eq!(normal("nvme-core"), "nvme_core");
        assert_eq!(normal("a-b[c-d]e-f[\n-"), "a_b[c-d]e_f[\n_");
        let aliases = Aliases::parse("alias scsi:t-0x00* sd-mod\n");
        assert_eq!(aliases.find("scsi:t-0x00\n"), ["sd_mod"]);
    }

    #[test]
    fn every_matching_module_is_found_once() {
        let aliases = Aliases::parse(
            "# a comment\nalias pci:v00008086d*sv*sd*bc01sc06i01* ahci\nalias\nalias x\n\
             alias pci:v*d*sv*sd*bc01sc06i01* ahci\nalias pci:v*d*sv*sd*bc01sc06i01* other\nalias * any",
        );
        let name = "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01";
        assert_eq!(aliases.find(name), ["any", "ahci", "other"]);
        assert_eq!(aliases.find("usb:é"), ["any"]);
        assert_eq!(aliases.all().count(), 4);
    }
}
