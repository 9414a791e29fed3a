//! The used bytes of a disk that begins with the input, followed by zeros. Checks that they are bytes of the disk,
//! and that nothing panics.

use std::io;

use filesystem::Ranges;
use linux::medium::ReadAt;

/// Size of the disk in bytes.
const BYTES: u64 = 320 << 20;

struct Disk<'a>(&'a [u8]);

impl ReadAt for Disk<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(BYTES.saturating_sub(offset)).unwrap_or(0);
        let len = buffer.len().min(rest);
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let there = self.0.get(at..).unwrap_or_default();
        let known = there.len().min(len);
        buffer[..known].copy_from_slice(&there[..known]);
        buffer[known..len].fill(0);
        Ok(len)
    }
}

/// Determines the used bytes of the disk `data`, and whose they are.
pub fn run(data: &[u8]) {
    let disk = Disk(data);
    let usage = filesystem::usage(&disk, BYTES).expect("the disk can be read");
    assert!(usage.used.iter().all(|range| range.start < range.end && range.end <= BYTES));
    filesystem::owners(&disk, BYTES, &Ranges::of(0..1 << 20)).expect("the disk can be read");
}
