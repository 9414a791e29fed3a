//! Pairing codes, which the user transfers from the target's screen to the other machine.

use std::fmt;

use export::Secret;
use zeroize::Zeroizing;

use crate::cpace::lv_cat;

/// Number of digits of a short code.
const DIGITS: usize = 8;
/// Number of letters of a long code: 128 bits, five per letter.
const LETTERS: usize = 26;
/// Base32 (RFC 4648 §6).
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// The form of a code. Not secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeKind {
    /// Eight digits, to be typed.
    Digits,
    /// 128 bits, to be scanned.
    Long,
}

impl CodeKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Digits => "digits",
            Self::Long => "long",
        }
    }
}

/// A pairing code. Valid for one pairing within ten minutes; never used as a key.
#[derive(Clone, PartialEq, Eq)]
pub struct Code {
    kind: CodeKind,
    text: Secret,
}

impl Code {
    /// Creates a code of eight digits from 64 random bits.
    pub fn digits(random: [u8; 8]) -> Self {
        // The modulo bias is below 2^-37.
        let number = u64::from_le_bytes(random) % 10_u64.pow(8);
        Self { kind: CodeKind::Digits, text: Secret::new(format!("{number:08}").into_bytes()) }
    }

    /// Creates a long code from 128 random bits, encoded in base32.
    pub fn long(random: [u8; 16]) -> Self {
        // Padded by two zero bits to 26 letters of five bits.
        let number = u128::from_be_bytes(random);
        let shift = |at: usize| 123_i32.saturating_sub(5 * i32::try_from(at).unwrap_or(i32::MAX));
        let five = |at: usize| match shift(at) {
            down @ 0.. => number >> down,
            up => number << up.unsigned_abs(),
        };
        let letter = |at: usize| ALPHABET[usize::try_from(five(at) & 31).unwrap_or_default()];
        Self { kind: CodeKind::Long, text: Secret::new((0..LETTERS).map(letter).collect()) }
    }

    /// Parses a typed code of either form. Ignores spaces, dashes and case.
    ///
    /// # Errors
    /// Fails if the text has neither form.
    pub fn parse(text: &str) -> Result<Self, InvalidCode> {
        let kept = text.bytes().filter(|b| !b.is_ascii_whitespace() && *b != b'-');
        let mut found = Zeroizing::new(Vec::with_capacity(LETTERS));
        for byte in kept {
            if found.len() == LETTERS {
                return Err(InvalidCode);
            }
            found.push(byte.to_ascii_uppercase());
        }
        let kind = match found.len() {
            DIGITS if found.iter().all(u8::is_ascii_digit) => CodeKind::Digits,
            LETTERS if is_long(&found) => CodeKind::Long,
            _ => return Err(InvalidCode),
        };
        Ok(Self { kind, text: Secret::new(found.to_vec()) })
    }

    /// Returns the form of the code.
    pub fn kind(&self) -> CodeKind {
        self.kind
    }

    /// Returns the code without spaces. Must only be shown on the screen.
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.text.bytes()).unwrap_or_default()
    }

    /// Returns the password of the CPace exchange.
    pub(crate) fn password(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(lv_cat(&[self.kind.name().as_bytes(), self.text.bytes()]))
    }
}

/// Returns whether it is the base32 encoding of 128 bits: the two padding bits are zero.
fn is_long(text: &[u8]) -> bool {
    let last = text.last().and_then(|last| ALPHABET.iter().position(|letter| letter == last));
    text.iter().all(|b| ALPHABET.contains(b)) && last.is_some_and(|value| value % 4 == 0)
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({})", self.kind.name())
    }
}

/// The text is not a pairing code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidCode;

impl fmt::Display for InvalidCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "invalid pairing code: type the eight digits on the target's screen, or the text of its QR code",
        )
    }
}

impl std::error::Error for InvalidCode {}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn codes_use_all_random_bits() {
        assert_eq!(Code::digits(12_345_678_901_u64.to_le_bytes()).text(), "45678901");
        assert_eq!(Code::digits([0; 8]).text(), "00000000");
        assert_eq!(Code::long([0; 16]).text(), "A".repeat(26));
        assert_eq!(Code::long([0xff; 16]).text(), format!("{}4", "7".repeat(25)));
        let mut random = *b"0123456789abcdef";
        // RFC 4648 base32 of that text, without its padding.
        assert_eq!(Code::long(random).text(), "GAYTEMZUGU3DOOBZMFRGGZDFMY");
        let before = Code::long(random);
        random[15] ^= 1;
        assert_ne!(Code::long(random), before);
    }

    #[test]
    fn codes_are_parsed_in_any_notation() {
        for text in ["12345678", "1234 5678", " 1234-5678\n", "1 2 3 4 5 6 7 8"] {
            let code = Code::parse(text).unwrap();
            assert_eq!((code.kind(), code.text()), (CodeKind::Digits, "12345678"));
        }
        let long = Code::parse("gayt-emzu-gu3d-oobz-mfrg-gzdf-my").unwrap();
        assert_eq!(long, Code::long(*b"0123456789abcdef"));
        let twenty_six = "1".repeat(26);
        for text in
            ["", "1234567", "123456789", "1234567x", "AAAA AAAA", "１２３４５６７８", &twenty_six]
        {
            assert_eq!(Code::parse(text), Err(InvalidCode), "{text}");
        }
        // The padding bits are not zero.
        assert_eq!(Code::parse(&format!("{}B", "A".repeat(25))), Err(InvalidCode));
        assert_eq!(Code::parse(&"A".repeat(27)), Err(InvalidCode));
    }

    #[test]
    fn debug_hides_the_code_and_password_includes_the_form() {
        let code = Code::parse("12345678").unwrap();
        assert_eq!(format!("{code:?}"), "Code(digits)");
        assert_eq!(*code.password(), b"\x06digits\x0812345678");
    }
}
