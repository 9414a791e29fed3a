//! Positioned reads from a disk, an image or a slice, without trust in its length.

use rustix::io::Errno;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

/// An open disk or image, or a slice.
pub trait ReadAt {
    /// Reads up to `buffer.len()` bytes at `offset`. Returns fewer, or 0, at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

/// The descriptor must not be opened with `O_DIRECT`: the reads are not aligned.
impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
}

impl<R: ReadAt + ?Sized> ReadAt for &R {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buffer, offset)
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

/// The kernel's page cache reads, and fails to read, whole pages.
const PAGE: u64 = 4096;
/// The number of failures after which a disk is not read any more: each may take half a minute.
const MOST_FAILURES: u32 = 8;

/// The errors with which the kernel reports a failure of the disk or of the path to it
/// (`blk_errors` in block/blk-core.c).
const DISK_ERRORS: [Errno; 7] = [
    Errno::IO,
    Errno::NODATA,
    Errno::REMOTEIO,
    Errno::ILSEQ,
    Errno::NOLINK,
    Errno::BADE,
    Errno::TIMEDOUT,
];

/// Reads zeros where the disk fails to read, and records the lowest such offset.
pub(crate) struct Tolerant<'a, R: ?Sized> {
    reader: &'a R,
    first: Cell<Option<u64>>,
    failures: Cell<u32>,
}

impl<'a, R: ReadAt + ?Sized> Tolerant<'a, R> {
    /// Reads from `reader`.
    pub(crate) fn new(reader: &'a R) -> Self {
        Self { reader, first: Cell::new(None), failures: Cell::new(0) }
    }

    /// The lowest offset in bytes at which reading failed.
    pub(crate) fn first_failure(&self) -> Option<u64> {
        self.first.get()
    }

    /// Records `offset` as unreadable. Fills the buffer with zeros up to the end of the page, and
    /// returns their number.
    fn skip(&self, buffer: &mut [u8], offset: u64) -> usize {
        self.first.set(Some(self.first.get().map_or(offset, |first| first.min(offset))));
        let left = PAGE.saturating_sub(offset.checked_rem(PAGE).unwrap_or(0));
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        buffer.iter_mut().take(length).for_each(|byte| *byte = 0);
        length
    }
}

impl<R: ReadAt + ?Sized> ReadAt for Tolerant<'_, R> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.failures.get() >= MOST_FAILURES {
            return Ok(self.skip(buffer, offset));
        }
        match self.reader.read_at(buffer, offset) {
            Err(error) if is_disk_error(&error) => {
                self.failures.set(self.failures.get().saturating_add(1));
                Ok(self.skip(buffer, offset))
            }
            other => other,
        }
    }
}

fn is_disk_error(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| DISK_ERRORS.contains(&errno))
}

/// Reads up to `length` bytes from `offset`; fewer if the end comes first.
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

/// Returns `N` bytes at `offset`.
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// Returns the 32-bit little-endian number at `offset`.
pub(crate) fn le32(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

/// Returns the 64-bit little-endian number at `offset`.
pub(crate) fn le64(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

/// Makes text from a disk printable: up to the first NUL, trimmed, control characters replaced.
/// Returns `None` if it is empty.
pub(crate) fn label(text: &str) -> Option<String> {
    let text = text.split('\0').next()?.trim();
    let shown = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    (!text.is_empty()).then_some(shown)
}

/// Decodes UTF-16, big-endian if `big`, as [`label`] does.
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
    fn window_ends_at_the_end_of_the_medium() {
        let medium: &[u8] = &[1, 2, 3, 4];
        assert_eq!(window(medium, 2, 8).unwrap(), [3, 4]);
        assert_eq!(window(medium, 9, 8).unwrap(), []);
        assert_eq!(window(medium, u64::MAX, 8).unwrap(), []);
    }

    /// A medium of 1 MiB, all ones, whose pages in `bad` cannot be read. The kernel reads up to the bad page.
    struct Failing {
        bad: std::ops::Range<u64>,
        asked: Cell<u32>,
    }

    impl ReadAt for Failing {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.asked.set(self.asked.get() + 1);
            let end = (1 << 20u64).min(offset + buffer.len() as u64);
            let stop = if offset < self.bad.end { end.min(self.bad.start) } else { end };
            if stop <= offset && offset < self.bad.end {
                return Err(Errno::IO.into());
            }
            let length = usize::try_from(stop.saturating_sub(offset)).unwrap();
            buffer[..length].fill(1);
            Ok(length)
        }
    }

    #[test]
    fn r61_bad_page_is_skipped() {
        let medium = Failing { bad: 8192..12_288, asked: Cell::new(0) };
        let reader = Tolerant::new(&medium);
        let bytes = window(&reader, 0, 72 << 10).unwrap();
        assert_eq!(bytes.len(), 72 << 10);
        assert!(bytes[..8192].iter().chain(&bytes[12_288..]).all(|byte| *byte == 1));
        assert!(bytes[8192..12_288].iter().all(|byte| *byte == 0));
        assert_eq!(reader.first_failure(), Some(8192));
    }

    #[test]
    fn r61_dead_medium_is_read_a_few_times_only() {
        let medium = Failing { bad: 0..1 << 20, asked: Cell::new(0) };
        let reader = Tolerant::new(&medium);
        let bytes = window(&reader, 512 << 10, 128 << 10).unwrap();
        assert!(bytes.len() == 128 << 10 && bytes.iter().all(|byte| *byte == 0));
        assert_eq!(window(&reader, 0, 512).unwrap().len(), 512);
        assert_eq!((reader.first_failure(), medium.asked.get()), (Some(0), MOST_FAILURES));
    }

    #[test]
    fn control_characters_in_labels_are_replaced() {
        assert_eq!(label("a\x1b[2J\nb\0rest").as_deref(), Some("a\u{fffd}[2J\u{fffd}b"));
        assert_eq!(label("  \0x"), None);
        assert_eq!(utf16(&[b'h', 0, b'i', 0, 0, 0, b'x', 0], false).as_deref(), Some("hi"));
        assert_eq!(utf16(&[0, b'h', 0xd8], true).as_deref(), Some("h"));
    }
}
