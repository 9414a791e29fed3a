//! Wire format of NBD: structs, constants and parsers, byte for byte. All numbers are big-endian.

pub(crate) mod description;
pub mod errno;
pub mod handshake;
pub mod meta;
pub mod option;
pub mod reply;
pub mod request;

/// The TCP port that IANA assigned to NBD.
pub const PORT: u16 = 10809;

/// Maximum length of a string in bytes: export and context names, messages (NBD, Conventions).
pub const STRING: usize = 4096;

/// Parses a string of the protocol (NBD, Conventions): UTF-8 without NUL, at most [`STRING`] bytes.
/// Returns `None` if `bytes` is anything else.
#[must_use]
pub fn text(bytes: &[u8]) -> Option<&str> {
    let fits = bytes.len() <= STRING && !bytes.contains(&0);
    std::str::from_utf8(bytes).ok().filter(|_| fits)
}

/// Truncates `string` at a character boundary to at most [`STRING`] bytes.
pub(crate) fn cut(string: &str) -> &str {
    let ends = (0..=STRING.min(string.len())).rev();
    let end = ends.into_iter().find(|&end| string.is_char_boundary(end));
    string.get(..end.unwrap_or(0)).unwrap_or_default()
}

/// Splits off a leading big-endian `u32`.
fn split_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_be_bytes(*number), rest))
}

/// Splits off a `u32` length and as many bytes as it counts.
fn split_counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = split_u32(bytes)?;
    rest.split_at_checked(usize::try_from(len).ok()?)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn invalid_strings_are_refused() {
        assert_eq!(text("größe".as_bytes()), Some("größe"));
        assert_eq!(text(&[b'a'; 4096]).map(str::len), Some(4096));
        for wrong in [&[b'a'; 4097][..], b"a\0b", &[0xff, 0xfe]] {
            assert_eq!(text(wrong), None);
        }
    }

    #[test]
    fn string_is_truncated_between_characters() {
        assert_eq!(cut("sda"), "sda");
        assert_eq!(cut(&"ö".repeat(3000)).len(), STRING);
        assert_eq!(cut(&format!("a{}", "ö".repeat(3000))).len(), STRING - 1);
    }

    #[test]
    fn counted_bytes_stay_inside_the_input() {
        assert_eq!(split_counted(&[0, 0, 0, 2, 7, 8, 9]), Some((&[7, 8][..], &[9][..])));
        assert_eq!(split_counted(&[0, 0, 0, 2, 7]), None);
        assert_eq!(split_counted(&[0xff, 0xff, 0xff, 0xff, 7]), None);
        assert_eq!(split_counted(&[0, 0, 0]), None);
    }
}
