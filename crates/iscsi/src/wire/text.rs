//! Text keys: `KEY=VALUE`, each ended by a NUL (RFC 7143 §6.1).

/// Maximum length of a key in bytes (RFC 7143 §6.1).
pub const MAX_KEY: usize = 63;

/// Maximum length of the data segment of a PDU before MaxRecvDataSegmentLength is declared
/// (RFC 7143 §13.12), in bytes.
pub const MAX_TEXT: usize = 8192;

/// Maximum length of a name in bytes (RFC 7143 §4.2.7.1).
pub const MAX_NAME: usize = 223;

/// Maximum length of a value in bytes: a binary of 1024 bytes as hexadecimal digits
/// (RFC 7143 §12.1.3).
pub const MAX_VALUE: usize = 2 + 2 * 1024;

/// A text that is not a list of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Parses all pairs of a text.
///
/// # Errors
/// Fails if the last pair is not ended by a NUL, or a pair is not `KEY=VALUE` in UTF-8 of lengths
/// within the limits.
pub fn parse(text: &[u8]) -> Result<Vec<(&str, &str)>, Malformed> {
    let Some((0, inner)) = text.split_last() else {
        return if text.is_empty() { Ok(Vec::new()) } else { Err(Malformed) };
    };
    inner.split(|byte| *byte == 0).filter(|pair| !pair.is_empty()).map(pair).collect()
}

fn pair(bytes: &[u8]) -> Result<(&str, &str), Malformed> {
    let pair = std::str::from_utf8(bytes).map_err(|_| Malformed)?;
    let (key, value) = pair.split_once('=').ok_or(Malformed)?;
    let is_key = |c: char| c.is_ascii_alphanumeric() || ".-+@_".contains(c);
    let valid = !key.is_empty()
        && key.len() <= MAX_KEY
        && key.chars().all(is_key)
        && value.len() <= MAX_VALUE
        && !value.chars().any(char::is_control);
    valid.then_some((key, value)).ok_or(Malformed)
}

/// Appends a pair to a text.
pub fn push(text: &mut Vec<u8>, key: &str, value: &str) {
    text.extend_from_slice(key.as_bytes());
    text.push(b'=');
    text.extend_from_slice(value.as_bytes());
    text.push(0);
}

/// Parses a number, decimal or hexadecimal (RFC 7143 §6.1).
#[must_use]
pub fn number(value: &str) -> Option<u32> {
    match hex_digits(value) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok())?,
    }
}

/// Parses Yes or No.
#[must_use]
pub fn boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

fn hex_digits(value: &str) -> Option<&str> {
    value.strip_prefix("0x").or_else(|| value.strip_prefix("0X"))
}

/// Parses a binary value of at most 1024 bytes: hexadecimal, base64 or, if it is short, a decimal
/// number (RFC 7143 §6.1).
#[must_use]
pub fn binary(value: &str) -> Option<Vec<u8>> {
    if let Some(digits) = hex_digits(value) {
        return hex(digits);
    }
    match value.strip_prefix("0b").or_else(|| value.strip_prefix("0B")) {
        Some(text) => base64(text),
        None => number(value).and_then(|number| u8::try_from(number).ok()).map(|byte| vec![byte]),
    }
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = digits.chars().map(|c| c.to_digit(16)?.try_into().ok()).collect();
    let digits = digits?;
    // An odd number of digits lacks a leading zero.
    let (first, rest) = digits.split_at(digits.len() % 2);
    let pairs =
        rest.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit));
    Some(first.iter().copied().chain(pairs).collect())
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(text.len());
    let (mut bits, mut count) = (0_u32, 0_u8);
    for c in text.bytes() {
        let six = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(six)) & 0xffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            let [.., byte] = (bits >> count).to_be_bytes();
            bytes.push(byte);
        }
    }
    Some(bytes)
}

/// Returns the hexadecimal form of a binary value.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("0x");
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    text.extend(digits.filter_map(|digit| char::from_digit(digit.into(), 16)));
    text
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn pairs_are_parsed_in_order() {
        let text = b"InitiatorName=iqn.x:a\0AuthMethod=CHAP,None\0\0\0X-a=\0";
        let pairs = [("InitiatorName", "iqn.x:a"), ("AuthMethod", "CHAP,None"), ("X-a", "")];
        assert_eq!(parse(text), Ok(pairs.to_vec()));
        let mut written = Vec::new();
        pairs.iter().for_each(|(key, value)| push(&mut written, key, value));
        assert_eq!(parse(&written), Ok(pairs.to_vec()));
        assert_eq!(parse(b""), Ok(vec![]));
        assert_eq!(parse(b"a=b=c\0"), Ok(vec![("a", "b=c")]));
    }

    /// Case X34.
    #[test]
    fn x34_malformed_pairs_are_refused() {
        let long = |len: usize| [&vec![b'a'; len][..], b"=1\0"].concat();
        assert!(parse(&long(63)).is_ok());
        let value = |len: usize| [b"a=", &vec![b'1'; len][..], b"\0"].concat();
        assert!(parse(&value(MAX_VALUE)).is_ok());
        for text in [
            &b"a=b"[..],
            b"a\0",
            b"=b\0",
            b"a b=c\0",
            b"a=\xff\0",
            b"a=\x1b[31m\0",
            &long(64),
            &value(MAX_VALUE + 1),
            &[b'a'; 8192],
        ] {
            assert_eq!(parse(text), Err(Malformed), "{text:?}");
        }
    }

    #[test]
    fn values_are_parsed_in_every_form() {
        assert_eq!(["0", "262144", "0x40", "0XfF"].map(number), [0, 262_144, 64, 255].map(Some));
        assert_eq!(["", "-1", "+1", "1.5", "0x", "4294967296"].map(number), [None; 6]);
        assert_eq!(binary("0x0a0B"), Some(vec![10, 11]));
        assert_eq!(binary("0xa0B"), Some(vec![10, 11]));
        assert_eq!(binary("0bAAECAw=="), Some(vec![0, 1, 2, 3]));
        assert_eq!(binary("0bAAEC"), Some(vec![0, 1, 2]));
        assert_eq!(binary("200"), Some(vec![200]));
        assert_eq!(["0xg", "0b#", "256", "x"].map(binary), [const { None }; 4]);
        assert_eq!(to_hex(&[0, 255, 16]), "0x00ff10");
        assert_eq!(["Yes", "No", "yes"].map(boolean), [Some(true), Some(false), None]);
    }
}
