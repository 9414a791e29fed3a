//! Arbitrary bytes as a qcow2 image and as a disk to inspect: no panic, no endless read, bounded
//! memory.

use std::io::{self, Write};

use filesystem::Qcow2;

/// Limit of the output in bytes.
const MAX_OUTPUT: usize = 8 << 20;

/// A writer that fails after a number of bytes.
struct Bounded(usize);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        if self.0 > MAX_OUTPUT { Err(io::ErrorKind::StorageFull.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs the target on `data`.
pub fn run(data: &[u8]) {
    if let Ok(image) = Qcow2::open(data) {
        let mut written = Bounded(0);
        if image.write_to(&mut written).is_ok() {
            assert_eq!(written.0 as u64, image.bytes(), "output of another size");
        }
    }
    if let Ok(survey) = filesystem::survey(data, data.len() as u64, None) {
        assert!(!survey.describe().is_empty());
    }
}
