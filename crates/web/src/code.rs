//! The code that admits to reading by HTTPS, which a person types in a browser.

use std::fmt;

use export::Secret;

/// Number of letters of a code.
const LETTERS: usize = 12;

/// Bits of a letter.
const BITS: usize = 5;

/// Letters of a group, as a code is shown.
const GROUP: usize = 4;

/// The letters: digits and capitals without I, L, O and U, which are mistaken for others or for each
/// other.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// A code of 60 random bits. Valid until it is replaced.
#[derive(Clone, PartialEq, Eq)]
pub struct Code(Secret);

impl Code {
    /// Creates a code from random bits, of which it uses 60.
    pub fn new(random: [u8; 8]) -> Self {
        let number = u64::from_le_bytes(random);
        let letter = |at: usize| {
            let five = number.checked_shr(u32::try_from(at * BITS).unwrap_or_default());
            ALPHABET[usize::try_from(five.unwrap_or_default() & 31).unwrap_or_default()]
        };
        Self(Secret::new((0..LETTERS).map(letter).collect()))
    }

    /// Parses a typed code. Ignores spaces, dashes and case, and takes O for 0, I and L for 1. Returns
    /// `None` if it is not a code.
    pub fn parse(text: &str) -> Option<Self> {
        let mut letters = Vec::with_capacity(LETTERS);
        for byte in text.bytes().filter(|byte| !byte.is_ascii_whitespace() && *byte != b'-') {
            let letter = match byte.to_ascii_uppercase() {
                b'O' => b'0',
                b'I' | b'L' => b'1',
                other => other,
            };
            if letters.len() == LETTERS || !ALPHABET.contains(&letter) {
                return None;
            }
            letters.push(letter);
        }
        (letters.len() == LETTERS).then(|| Self(Secret::new(letters)))
    }

    /// Returns the letters alone. Must only be shown on the screen.
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.0.bytes()).unwrap_or_default()
    }

    /// Returns the letters in groups: `ABCD-EFGH-JKMN`. Must only be shown on the screen.
    pub fn grouped(&self) -> String {
        let groups: Vec<_> = self.0.bytes().chunks(GROUP).map(String::from_utf8_lossy).collect();
        groups.join("-")
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Code")
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn code_is_parsed_as_people_type_it() {
        let code = Code::parse("0123-4567-89AB").unwrap();
        assert_eq!((code.text(), code.grouped().as_str()), ("0123456789AB", "0123-4567-89AB"));
        for text in ["0123456789ab", "oi23-4567-89aB", " OL23 4567 89AB\n"] {
            assert_eq!(Code::parse(text), Some(code.clone()), "{text}");
        }
        for text in
            ["", "0123-4567-89A", "0123-4567-89ABC", "0123-4567-89AU", "0123-4567-89A\u{e9}"]
        {
            assert_eq!(Code::parse(text), None, "{text}");
        }
        assert!(!format!("{code:?}").contains("0123"));
    }

    #[test]
    fn codes_use_sixty_random_bits() {
        for bit in 0..60 {
            assert_ne!(Code::new((1_u64 << bit).to_le_bytes()), Code::new([0; 8]), "{bit}");
        }
        let all = Code::new([0xff; 8]);
        assert_eq!(all.text(), "Z".repeat(12));
    }
}
