//! What a person carries from the target's screen to the other machine. It knows not how long it is good for.

use std::fmt;

use export::Secret;
use zeroize::Zeroizing;

use crate::cpace::lv_cat;

/// Digits of the code that is typed.
const DIGITS: usize = 8;
/// Letters of the long code: 128 bits by five.
const LETTERS: usize = 26;
/// RFC 4648 §6.
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// Which form of the code a client has. That is told to whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Eight digits, to be typed.
    Digits,
    /// 128 bits, to be scanned.
    Long,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Digits => "digits",
            Self::Long => "long",
        }
    }
}

/// A code. Good once, for ten minutes; never a key itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Code {
    kind: Kind,
    text: Secret,
}

impl Code {
    /// Eight digits out of 64 random bits.
    pub fn digits(random: [u8; 8]) -> Self {
        // Some digits are likelier than others by a 2^-37th.
        let number = u64::from_le_bytes(random) % 10_u64.pow(8);
        Self { kind: Kind::Digits, text: Secret::new(format!("{number:08}").into_bytes()) }
    }

    /// The long code of 128 random bits, in base32.
    pub fn long(random: [u8; 16]) -> Self {
        // Two bits are added, which are zero: 26 letters of five bits.
        let number = u128::from_be_bytes(random);
        let shift = |at: usize| 123_i32.saturating_sub(5 * i32::try_from(at).unwrap_or(i32::MAX));
        let five = |at: usize| match shift(at) {
            down @ 0.. => number >> down,
            up => number << up.unsigned_abs(),
        };
        let letter = |at: usize| ALPHABET[usize::try_from(five(at) & 31).unwrap_or_default()];
        Self { kind: Kind::Long, text: Secret::new((0..LETTERS).map(letter).collect()) }
    }

    /// The code that a person has typed, of either form; spaces, dashes and small letters do not matter.
    ///
    /// # Errors
    /// It is neither form.
    pub fn parse(text: &str) -> Result<Self, BadCode> {
        let kept = text.bytes().filter(|b| !b.is_ascii_whitespace() && *b != b'-');
        let mut found = Zeroizing::new(Vec::with_capacity(LETTERS));
        for byte in kept {
            if found.len() == LETTERS {
                return Err(BadCode);
            }
            found.push(byte.to_ascii_uppercase());
        }
        let kind = match found.len() {
            DIGITS if found.iter().all(u8::is_ascii_digit) => Kind::Digits,
            LETTERS if is_long(&found) => Kind::Long,
            _ => return Err(BadCode),
        };
        Ok(Self { kind, text: Secret::new(found.to_vec()) })
    }

    /// Which form it has.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The code as it is shown, without spaces. Only for the screen.
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.text.bytes()).unwrap_or_default()
    }

    /// What the exchange takes for a password.
    pub(crate) fn password(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(lv_cat(&[self.kind.name().as_bytes(), self.text.bytes()]))
    }
}

/// Whether it is base32 of 128 bits: the two bits beyond are zero.
fn is_long(text: &[u8]) -> bool {
    let last = text.last().and_then(|last| ALPHABET.iter().position(|letter| letter == last));
    text.iter().all(|b| ALPHABET.contains(b)) && last.is_some_and(|value| value % 4 == 0)
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({})", self.kind.name())
    }
}

/// What was typed is no code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadCode;

impl fmt::Display for BadCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "that is no pairing code: type the eight digits on the target's screen, or the text of its QR code",
        )
    }
}

impl std::error::Error for BadCode {}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn codes_are_made_of_all_their_bits() {
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
    fn a_code_is_taken_however_it_is_typed() {
        for text in ["12345678", "1234 5678", " 1234-5678\n", "1 2 3 4 5 6 7 8"] {
            let code = Code::parse(text).unwrap();
            assert_eq!((code.kind(), code.text()), (Kind::Digits, "12345678"));
        }
        let long = Code::parse("gayt-emzu-gu3d-oobz-mfrg-gzdf-my").unwrap();
        assert_eq!(long, Code::long(*b"0123456789abcdef"));
        let twenty_six = "1".repeat(26);
        for text in
            ["", "1234567", "123456789", "1234567x", "AAAA AAAA", "１２３４５６７８", &twenty_six]
        {
            assert_eq!(Code::parse(text), Err(BadCode), "{text}");
        }
        // A letter whose last bits are not zero is nobody's code.
        assert_eq!(Code::parse(&format!("{}B", "A".repeat(25))), Err(BadCode));
        assert_eq!(Code::parse(&"A".repeat(27)), Err(BadCode));
    }

    #[test]
    fn a_code_is_not_shown_by_debug_and_forms_differ_as_passwords() {
        let code = Code::parse("12345678").unwrap();
        assert_eq!(format!("{code:?}"), "Code(digits)");
        assert_eq!(*code.password(), b"\x06digits\x0812345678");
    }
}
