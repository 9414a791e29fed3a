//! Module aliases: shell wildcard patterns that are matched against modaliases.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use crate::glob::matches;

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

#[cfg(test)]
mod tests {
    use super::*;

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
