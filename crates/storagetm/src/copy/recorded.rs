//! Reads of a disk that are kept, so that what was read can be compared with what the disk has.

use std::cell::RefCell;
use std::io;

use linux::medium::ReadAt;

/// Most bytes that are kept: a partition table has less than 2 MiB at each end of a disk.
const MAX_BYTES: usize = 16 << 20;

/// What was read, and at which byte.
pub(super) type Reads = Vec<(u64, Vec<u8>)>;

/// A disk whose reads are kept.
pub(super) struct Recorded<'a, R: ?Sized> {
    disk: &'a R,
    reads: RefCell<Reads>,
}

impl<'a, R: ReadAt + ?Sized> Recorded<'a, R> {
    pub(super) fn new(disk: &'a R) -> Self {
        Self { disk, reads: RefCell::default() }
    }

    /// Returns what was read.
    pub(super) fn reads(self) -> Reads {
        self.reads.into_inner()
    }
}

impl<R: ReadAt + ?Sized> ReadAt for Recorded<'_, R> {
    /// Fails also if it is too much to be kept.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let count = self.disk.read_at(buffer, offset)?;
        let mut reads = self.reads.borrow_mut();
        let kept: usize = reads.iter().map(|(_, bytes)| bytes.len()).sum();
        if kept.saturating_add(count) > MAX_BYTES {
            return Err(io::Error::other("too much is read for a partition table"));
        }
        reads.push((offset, buffer.get(..count).unwrap_or_default().to_vec()));
        Ok(count)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn reads_are_kept_up_to_a_bound() {
        let disk = [5_u8; 1 << 20];
        let recorded = Recorded::new(&disk[..]);
        let mut buffer = vec![0; 1 << 20];
        assert_eq!(recorded.read_at(&mut buffer, (1 << 20) - 3).unwrap(), 3);
        let kept = (0..20).take_while(|_| recorded.read_at(&mut buffer, 0).is_ok()).count();
        assert_eq!(kept, 15);
        let reads = recorded.reads();
        assert_eq!(reads[0], ((1 << 20) - 3, vec![5; 3]));
        assert_eq!(reads.len(), 16);
    }
}
