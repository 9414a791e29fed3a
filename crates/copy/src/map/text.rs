//! Text format of a map, as ddrescue reads and writes it.

use std::fmt::Write as _;

use super::{Map, MapMetadata, Position, State};

/// Why a map is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Malformed line.
    #[error("line {0} is not a valid line of a map")]
    Line(usize),
    /// Block that overlaps the previous one, or ends beyond 2^64.
    #[error("the block in line {0} overlaps the one before it")]
    Overlap(usize),
    /// No status line: not a map, or truncated.
    #[error("it has no status line")]
    NoStatus,
}

impl Map {
    /// The text of the map.
    pub fn emit(&self) -> String {
        let mut text = String::from("# Mapfile. Created by storagetm\n");
        self.metadata.emit(&mut text);
        let Position { at, doing, pass } = self.position;
        text.push_str("# current_pos  current_status  current_pass\n");
        let _ = writeln!(text, "0x{at:08X}     {}               {pass}", doing.character());
        text.push_str("#      pos        size  status\n");
        for (range, state) in self.runs() {
            let len = range.end - range.start;
            let _ = writeln!(text, "0x{:08X}  0x{len:08X}  {}", range.start, state.character());
        }
        if self.metadata.bytes.is_some() {
            MapMetadata::emit_end(&mut text);
        }
        text
    }

    /// Parses a map. Ranges that are not listed are untried; an incomplete last line is ignored.
    ///
    /// # Errors
    /// Fails if it is not a map.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let (mut metadata, mut position, mut blocks) = (MapMetadata::default(), None, Vec::new());
        let mut end = 0;
        let lines = text.split_inclusive('\n').enumerate().filter(|(_, line)| line.ends_with('\n'));
        for (number, line) in lines {
            let number = number.saturating_add(1);
            metadata.parse(line.trim_end());
            let words: Vec<&str> = code(line).split_ascii_whitespace().collect();
            match (words.as_slice(), &position) {
                ([], _) => {}
                (words, None) => position = Some(status(words).ok_or(ParseError::Line(number))?),
                (words, Some(_)) => {
                    let (start, len, state) = block(words).ok_or(ParseError::Line(number))?;
                    let next = start.checked_add(len).filter(|_| start >= end);
                    end = next.ok_or(ParseError::Overlap(number))?;
                    blocks.push((start..end, state));
                }
            }
        }
        let mut map = Self::new(end);
        blocks.into_iter().for_each(|(range, state)| map.set(range, state));
        map.position = position.ok_or(ParseError::NoStatus)?;
        map.metadata = metadata;
        Ok(map)
    }
}

/// The line without its comment.
fn code(line: &str) -> &str {
    let comment = |at: &usize| *at == 0 || line[..*at].ends_with(char::is_whitespace);
    let start = line.match_indices('#').map(|(at, _)| at).find(comment);
    start.and_then(|at| line.get(..at)).unwrap_or(line)
}

fn status(words: &[&str]) -> Option<Position> {
    let (at, doing, pass) = match words {
        [at, doing] => (at, doing, "1"),
        [at, doing, pass] => (at, doing, *pass),
        _ => return None,
    };
    // Filling and generate mode of ddrescue: the blocks contain all that is needed.
    let doing = match *doing {
        "F" | "G" => State::Untried,
        other => State::parse(other)?,
    };
    Some(Position { at: number(at)?, doing, pass: pass.parse().ok()? })
}

fn block(words: &[&str]) -> Option<(u64, u64, State)> {
    let [start, len, state] = words else { return None };
    Some((number(start)?, number(len)?, State::parse(state)?))
}

/// Parses a number in C++ notation: `0x` for base 16, `0` for base 8.
pub(super) fn number(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = match lower.strip_prefix("0x") {
        Some(hex) => (hex, 16),
        None if lower.len() > 1 && lower.starts_with('0') => (lower.get(1..)?, 8),
        None => (lower.as_str(), 10),
    };
    u64::from_str_radix(digits, radix).ok().filter(|_| !digits.starts_with('+'))
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::hash_tree::{HashValue, RangeHash};
    use proptest::prelude::*;

    /// The example of the manual.
    const DDRESCUE: &str = "\
# Mapfile. Created by GNU ddrescue version 1.27
# Command line: ddrescue -d -c18 /dev/fd0 fdimage mapfile
# Start time:   2015-07-21 09:37:44
# Copying non-tried blocks... Pass 1 (forwards)
# current_pos  current_status  current_pass
0x00120000     ?               1
#      pos        size  status
0x00000000  0x00117000  +
0x00117000  0x00000200  -
0x00117200  0x00001000  /
0x00118200  0x00007E00  *
0x00120000  0x00048000  ?
";

    #[test]
    fn r46_ddrescue_map_is_parsed() {
        let map = Map::parse(DDRESCUE).unwrap();
        assert_eq!(map.position, Position { at: 0x12_0000, doing: State::Untried, pass: 1 });
        assert_eq!((map.bytes(), map.sum(State::Finished)), (0x16_8000, 0x11_7000));
        assert!(map.all(State::Bad).eq(std::iter::once(0x11_7000..0x11_7200)));
        let body = |text: &str| text.lines().filter(|l| !l.starts_with("# ")).collect::<String>();
        assert_eq!(body(&map.emit()), body(DDRESCUE));
    }

    #[test]
    fn numbers_and_comments_follow_the_ddrescue_manual() {
        let map = Map::parse("16 + 2 # done\n#\n 0 010 +#\n").err();
        assert_eq!(map, Some(ParseError::Line(3)), "a comment needs white space before it");
        let map = Map::parse("16 + 2 # done\n\n0 010 + # eight\n8 0x8 -\n32 1 ?\n").unwrap();
        assert_eq!(map.position, Position { at: 16, doing: State::Finished, pass: 2 });
        let runs = [(0..8, State::Finished), (8..16, State::Bad), (16..33, State::Untried)];
        assert_eq!(map.runs().collect::<Vec<_>>(), runs);
        assert_eq!(Map::parse("0 +\n0 1 +\n").unwrap().position.pass, 1, "before ddrescue 1.20");
    }

    #[test]
    fn invalid_map_is_refused_with_its_line() {
        for (text, error) in [
            ("", ParseError::NoStatus),
            ("0 ? 1", ParseError::NoStatus),
            ("0 ? 1\n0 5 +\n4 5 +\n", ParseError::Overlap(3)),
            ("0 ? 1\n0 18446744073709551615 +\n18446744073709551615 5 +\n", ParseError::Overlap(3)),
            ("0 ? 1\n0 5 X\n", ParseError::Line(2)),
            ("0 ? x\n", ParseError::Line(1)),
            ("0 ? 1\n\0\0\0\n", ParseError::Line(2)),
            ("0 ? 1\n0 +5 +\n", ParseError::Line(2)),
        ] {
            assert_eq!(Map::parse(text).unwrap_err(), error, "{text:?}");
        }
    }

    #[test]
    fn r41_truncated_map_lists_nothing_wrong() {
        let text = sample().emit();
        for len in 0..text.len() {
            let Some(Ok(map)) = text.get(..len).map(Map::parse) else { continue };
            assert!(!map.metadata.complete);
            for range in map.all(State::Finished) {
                assert!(sample().all(State::Finished).any(|whole| whole == range), "{range:?}");
            }
        }
        assert!(Map::parse(&text).unwrap().metadata.complete);
    }

    fn sample() -> Map {
        let mut map = Map::new(1 << 33);
        map.set(0..0x1234_5600, State::Finished);
        map.set(0x1234_5600..0x1234_5800, State::Bad);
        map.set(0x1_2345_5800..0x1_3000_0000, State::Untrimmed);
        map.position = Position { at: 0x777, doing: State::Bad, pass: 3 };
        let hashes = vec![
            RangeHash { offset: 0, len: 1 << 20, value: HashValue::Hash([0xa5; 32]) },
            RangeHash { offset: 1 << 20, len: 1 << 20, value: HashValue::Zero },
        ];
        map.metadata = MapMetadata {
            bytes: Some(1 << 33),
            source: "uuid 1 é".into(),
            destination: String::new(),
            hashes,
            complete: true,
        };
        map
    }

    #[test]
    fn metadata_round_trips() {
        assert_eq!(Map::parse(&sample().emit()).unwrap(), sample());
        let mut evil = sample();
        evil.metadata.source = "a\n0 0 +\n".into();
        assert_eq!(Map::parse(&evil.emit()).unwrap().metadata.source, "a?0 0 +?");
    }

    proptest! {
        #[test]
        fn map_round_trips(sets in prop::collection::vec((0u64..1 << 40, 1u64..1 << 36, 0usize..5), 0..30)) {
            let mut map = Map::new(1 << 40);
            sets.into_iter().for_each(|(start, len, state)| map.set(start..start + len, State::ALL[state]));
            prop_assert_eq!(Map::parse(&map.emit()).unwrap(), map);
        }

        #[test]
        fn any_text_is_parsed_without_panic(text in "[#?*/+\\-0-9xX \n\\PC]{0,200}") {
            let _ = Map::parse(&text);
        }
    }
}
