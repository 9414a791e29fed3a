//! Reading at an offset from whatever holds a disk's bytes, without trust in its length.
//!
//! Does not know what the bytes mean.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

/// Something with bytes at offsets: an open disk or image, or a slice.
pub trait ReadAt {
    /// Reads what is at `offset`; fewer bytes than asked for, or none, at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

/// The descriptor must not be opened with `O_DIRECT`: the reads are not aligned.
impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let rest = rest.unwrap_or_default();
        let length = rest.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(rest) {
            *to = *from;
        }
        Ok(length)
    }
}

/// Up to `length` bytes from `offset`; what lies beyond the end is missing.
pub(crate) fn window<R: ReadAt + ?Sized>(
    reader: &R,
    offset: u64,
    length: usize,
) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read_at(rest, offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// `N` bytes at `offset` of a window.
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// A 32-bit little-endian number at `offset` of a window.
pub(crate) fn le32(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

/// A 64-bit little-endian number at `offset` of a window.
pub(crate) fn le64(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

/// Text for people from the disk: up to the first NUL, trimmed, without control characters; `None` if empty.
pub(crate) fn label(text: &str) -> Option<String> {
    let text = text.split('\0').next()?.trim();
    let shown = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    (!text.is_empty()).then_some(shown)
}

/// Text in 16-bit characters, little-endian unless `big` says otherwise.
pub(crate) fn utf16(bytes: &[u8], big: bool) -> Option<String> {
    let pairs = bytes.chunks_exact(2).filter_map(|pair| pair.first_chunk().copied());
    let units: Vec<u16> =
        pairs.map(|p| if big { u16::from_be_bytes(p) } else { u16::from_le_bytes(p) }).collect();
    label(&String::from_utf16_lossy(&units))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_ends_where_the_medium_does() {
        let medium: &[u8] = &[1, 2, 3, 4];
        assert_eq!(window(medium, 2, 8).unwrap(), [3, 4]);
        assert_eq!(window(medium, 9, 8).unwrap(), []);
        assert_eq!(window(medium, u64::MAX, 8).unwrap(), []);
    }

    #[test]
    fn text_from_a_disk_cannot_speak_to_the_terminal() {
        assert_eq!(label("a\x1b[2J\nb\0rest").as_deref(), Some("a\u{fffd}[2J\u{fffd}b"));
        assert_eq!(label("  \0x"), None);
        assert_eq!(utf16(&[b'h', 0, b'i', 0, 0, 0, b'x', 0], false).as_deref(), Some("hi"));
        assert_eq!(utf16(&[0, b'h', 0xd8], true).as_deref(), Some("h"));
    }
}
