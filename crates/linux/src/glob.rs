//! Wildcard patterns of the shell (glob(7)), without a special meaning of `/` and `.`.

/// Returns whether the pattern matches the whole text: `*`, `?`, `[a-f]`, `[!0]`, and `\` before a
/// plain character.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
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
}
