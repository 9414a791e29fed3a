//! Text fields: ASCII strings padded with spaces, and NQNs terminated by NUL.

use core::fmt;

/// Length of an NQN field in bytes.
pub const NQN_FIELD: usize = 256;

/// Maximum length of an NQN in bytes, without NUL (NVMe Base 2.0 §4.5).
pub const NQN_MAX: usize = 223;

/// Why a field or text is not a valid NQN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NqnError {
    /// The field contains no NUL.
    NotTerminated,
    /// Empty.
    Empty,
    /// More than 223 bytes.
    TooLong,
    /// Not UTF-8, or contains a NUL.
    NotText,
}

impl fmt::Display for NqnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotTerminated => "the NQN is not terminated by NUL",
            Self::Empty => "the NQN is empty",
            Self::TooLong => "the NQN is longer than 223 bytes",
            Self::NotText => "the NQN is not valid UTF-8 or contains NUL",
        })
    }
}

impl core::error::Error for NqnError {}

/// Returns the NQN in a field: the text before the first NUL (NVMe Base 2.0 §4.5).
///
/// # Errors
/// Fails with [`NqnError`] if the field is not a valid NQN.
pub fn parse_nqn(field: &[u8; NQN_FIELD]) -> Result<&str, NqnError> {
    let mut parts = field.splitn(2, |&byte| byte == 0);
    let (text, rest) = (parts.next().unwrap_or_default(), parts.next());
    if rest.is_none() {
        return Err(NqnError::NotTerminated);
    }
    let nqn = core::str::from_utf8(text).map_err(|_| NqnError::NotText)?;
    check_nqn(nqn)?;
    Ok(nqn)
}

/// Returns the field for `nqn`, padded with NUL.
///
/// # Errors
/// Fails if the text is empty, longer than 223 bytes, or contains a NUL.
pub fn emit_nqn(nqn: &str) -> Result<[u8; NQN_FIELD], NqnError> {
    check_nqn(nqn)?;
    Ok(padded(nqn.as_bytes(), 0))
}

fn check_nqn(nqn: &str) -> Result<(), NqnError> {
    match nqn.len() {
        0 => Err(NqnError::Empty),
        len if len > NQN_MAX => Err(NqnError::TooLong),
        _ if nqn.contains('\0') => Err(NqnError::NotText),
        _ => Ok(()),
    }
}

/// Returns an ASCII string field: left justified, truncated to `N` bytes, padded with spaces;
/// `?` replaces characters that are not printable ASCII (NVMe Base 2.0 §1.4.2).
#[must_use]
pub fn emit_ascii<const N: usize>(text: &str) -> [u8; N] {
    let printable = text.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' });
    padded(printable.collect::<String>().as_bytes(), b' ')
}

/// Returns the text of an ASCII string field, without trailing spaces and NULs.
#[must_use]
pub fn parse_ascii(field: &[u8]) -> String {
    String::from_utf8_lossy(field).trim_end_matches(['\0', ' ']).to_owned()
}

fn padded<const N: usize>(text: &[u8], padding: u8) -> [u8; N] {
    let mut field = [padding; N];
    field.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
    field
}

#[cfg(test)]
mod test {
    use super::*;

    fn field(text: &[u8]) -> [u8; NQN_FIELD] {
        padded(text, 0)
    }

    #[test]
    fn nqn_ends_at_the_first_nul() {
        assert_eq!(
            parse_nqn(&field(b"nqn.2014-08.org.example:a\0rest")),
            Ok("nqn.2014-08.org.example:a")
        );
        assert_eq!(parse_nqn(&field(&[b'a'; 223])), Ok("a".repeat(223).as_str()));
    }

    #[test]
    fn invalid_nqn_fields_are_refused() {
        assert_eq!(parse_nqn(&[b'a'; NQN_FIELD]), Err(NqnError::NotTerminated));
        assert_eq!(parse_nqn(&[0; NQN_FIELD]), Err(NqnError::Empty));
        assert_eq!(parse_nqn(&field(&[b'a'; 224])), Err(NqnError::TooLong));
        assert_eq!(parse_nqn(&field(&[b'a'; 255])), Err(NqnError::TooLong));
        assert_eq!(parse_nqn(&field(&[0xff, 0xfe])), Err(NqnError::NotText));
    }

    #[test]
    fn nqn_round_trips() {
        assert_eq!(parse_nqn(&emit_nqn("nqn.x").unwrap()), Ok("nqn.x"));
        assert_eq!(emit_nqn(""), Err(NqnError::Empty));
        assert_eq!(emit_nqn("a\0b"), Err(NqnError::NotText));
        assert_eq!(emit_nqn(&"a".repeat(224)), Err(NqnError::TooLong));
    }

    #[test]
    fn ascii_is_truncated_and_padded() {
        assert_eq!(&emit_ascii::<8>("1.0"), b"1.0     ");
        assert_eq!(&emit_ascii::<4>("abcdef"), b"abcd");
        assert_eq!(&emit_ascii::<4>("a\u{e9}\n"), b"a?? ");
        assert_eq!(parse_ascii(b"1.0     "), "1.0");
        assert_eq!(parse_ascii(b"4420\0\0\0"), "4420");
    }
}
