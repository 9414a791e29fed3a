//! Arbitrary bytes as a virtual disk of each format and as a disk to inspect: no panic, no endless read, bounded
//! memory.

use std::io::{self, Write};

use filesystem::{Container, virtual_disk};

const FORMATS: [Container; 5] =
    [Container::Qcow2, Container::Vhd, Container::Vhdx, Container::Vmdk, Container::Vdi];

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
    let len = data.len() as u64;
    for format in FORMATS {
        let Ok(disk) = virtual_disk::open(format, &data, len) else { continue };
        let mut written = Bounded(0);
        if disk.write_to(&data, &mut written).is_ok() {
            assert_eq!(written.0 as u64, disk.bytes(), "output of another size");
        }
    }
    if let Ok(survey) = filesystem::survey(data, data.len() as u64, None) {
        assert!(!survey.describe().is_empty());
    }
}
