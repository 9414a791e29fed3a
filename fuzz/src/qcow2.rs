//! Any bytes as a qcow2 image, and as a disk that is looked at: neither panics, reads for ever nor takes much memory.

use std::io::{self, Write};

use filesystem::Qcow2;

/// Bytes of a disk that are written before its end is of no interest.
const MOST: usize = 8 << 20;

/// Takes so many bytes.
struct Bounded(usize);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        if self.0 > MOST { Err(io::ErrorKind::StorageFull.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Plays `data`.
pub fn run(data: &[u8]) {
    if let Ok(image) = Qcow2::open(data) {
        let mut written = Bounded(0);
        if image.write_to(&mut written).is_ok() {
            assert_eq!(written.0 as u64, image.bytes(), "all of the disk comes out");
        }
    }
    if let Ok(survey) = filesystem::survey(data, data.len() as u64, None) {
        assert!(!survey.describe().is_empty());
    }
}
