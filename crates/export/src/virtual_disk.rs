//! A virtual disk: an image file that holds the blocks of a disk in pieces, and the table of where they are.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

/// The open files of a virtual disk: the image, and the index, which has the data that is compressed in the
/// image, and the [`RunTable`].
#[derive(Debug)]
pub struct VirtualDisk {
    files: [OwnedFd; 2],
    table: OnceLock<RunTable>,
}

impl VirtualDisk {
    /// Index of the image in [`VirtualDisk::files`].
    pub const IMAGE: usize = 0;
    /// Index of the file with what is compressed in the image, and the table.
    pub const INDEX: usize = 1;

    /// Returns the virtual disk in these files. Returns `None` if there are not two.
    pub fn new(files: Vec<OwnedFd>) -> Option<Self> {
        Some(Self { files: files.try_into().ok()?, table: OnceLock::new() })
    }

    /// Returns the files.
    pub fn files(&self) -> &[OwnedFd] {
        &self.files
    }

    /// Returns the image.
    pub fn image(&self) -> &OwnedFd {
        &self.files[Self::IMAGE]
    }

    /// Returns the index.
    pub fn index(&self) -> &OwnedFd {
        &self.files[Self::INDEX]
    }

    /// Sets the table, once.
    pub fn set_table(&self, table: RunTable) {
        let _ = self.table.set(table);
    }

    /// Returns where the byte at `offset` is, and for how many of the bytes up to `end` that holds. Without a
    /// table, and beyond it, no byte can be read: they are nowhere in the image.
    pub fn find(&self, offset: u64, end: u64) -> (Stored, u64) {
        let found = self.table.get().and_then(|table| table.find(offset));
        let rest = end.saturating_sub(offset);
        found.map_or((Stored::Image(u64::MAX >> 2), rest), |(stored, len)| (stored, len.min(rest)))
    }
}

/// Where the bytes of a run are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// They are zeros.
    Zeros,
    /// In the image, from this offset on.
    Image(u64),
    /// In the index, from this offset on.
    Index(u64),
}

/// The two highest bits of an offset in the table are the file.
const FILE: u32 = 62;
const OFFSET: u64 = (1 << FILE) - 1;

impl Stored {
    fn encode(self) -> u64 {
        match self {
            Self::Zeros => 0,
            Self::Image(offset) => 1 << FILE | offset & OFFSET,
            Self::Index(offset) => 2 << FILE | offset & OFFSET,
        }
    }

    fn decode(number: u64) -> Option<Self> {
        match (number >> FILE, number & OFFSET) {
            (0, 0) => Some(Self::Zeros),
            (1, offset) => Some(Self::Image(offset)),
            (2, offset) => Some(Self::Index(offset)),
            _ => None,
        }
    }

    /// Returns where the bytes are that follow `len` bytes later.
    fn after(self, len: u64) -> Self {
        match self {
            Self::Zeros => Self::Zeros,
            Self::Image(offset) => Self::Image(offset.saturating_add(len)),
            Self::Index(offset) => Self::Index(offset.saturating_add(len)),
        }
    }
}

/// The runs of a virtual disk, in order.
#[derive(Debug, Default)]
pub struct RunTable {
    /// The end of each, and where its bytes are.
    runs: Vec<(u64, Stored)>,
}

impl RunTable {
    /// Bytes of a run in the index.
    const RECORD: usize = 16;
    /// Most runs: their memory is 24 bytes each.
    pub const MAX_RUNS: usize = 4 << 20;
    /// Most bytes of a table.
    pub const MAX_BYTES: usize = Self::MAX_RUNS * Self::RECORD;

    /// Appends a run of `len` bytes, to the one before if it continues that. Returns false if there are too
    /// many. Offsets are below 2⁶².
    pub fn push(&mut self, len: u64, stored: Stored) -> bool {
        let start = self.bytes();
        let end = start.saturating_add(len);
        let before = self.runs.len().checked_sub(2).and_then(|at| self.runs.get(at));
        let before = before.map_or(0, |run| run.0);
        if let Some(last) = self.runs.last_mut()
            && last.1.after(start - before) == stored
        {
            last.0 = end;
            return true;
        }
        self.runs.push((end, stored));
        self.runs.len() <= Self::MAX_RUNS
    }

    /// Returns the number of bytes of the disk.
    pub fn bytes(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.0)
    }

    /// Returns the table as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let numbers = self.runs.iter().flat_map(|(end, stored)| [*end, stored.encode()]);
        numbers.flat_map(u64::to_le_bytes).collect()
    }

    /// Parses the bytes of a table, which may be of a hostile process. Returns `None` if they are not those of
    /// a table in order, of at least `bytes` bytes: its last run ends with a block.
    pub fn parse(table: &[u8], bytes: u64) -> Option<Self> {
        let (records, rest) = table.as_chunks::<{ Self::RECORD }>();
        if !rest.is_empty() || records.len() > Self::MAX_RUNS {
            return None;
        }
        let mut runs: Vec<(u64, Stored)> = Vec::with_capacity(records.len());
        for record in records {
            let (end, stored) = record.split_first_chunk::<8>()?;
            let end = u64::from_le_bytes(*end);
            let stored = u64::from_le_bytes(*stored.first_chunk()?);
            if runs.last().map_or(0, |run| run.0) >= end {
                return None;
            }
            runs.push((end, Stored::decode(stored)?));
        }
        let table = Self { runs };
        (table.bytes() >= bytes && i64::try_from(table.bytes()).is_ok()).then_some(table)
    }

    /// Returns where the byte at `offset` is, and for how many bytes that holds.
    pub fn find(&self, offset: u64) -> Option<(Stored, u64)> {
        let at = self.runs.partition_point(|run| run.0 <= offset);
        let (end, stored) = *self.runs.get(at)?;
        let start = at.checked_sub(1).and_then(|before| self.runs.get(before));
        let start = start.map_or(0, |run| run.0);
        Some((stored.after(offset - start), end - offset))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn table() -> RunTable {
        let mut table = RunTable::default();
        for (len, stored) in [
            (512, Stored::Zeros),
            (512, Stored::Zeros),
            (1024, Stored::Image(4096)),
            (1024, Stored::Image(5120)),
            (512, Stored::Index(0)),
            (512, Stored::Image(0)),
        ] {
            assert!(table.push(len, stored));
        }
        table
    }

    #[test]
    fn runs_that_continue_are_one() {
        assert_eq!(table().runs.len(), 4);
        assert_eq!(table().bytes(), 4096);
    }

    #[test]
    fn table_is_read_as_it_was_written() {
        let bytes = table().encode();
        let read = RunTable::parse(&bytes, 4096).unwrap();
        assert_eq!(read.find(0), Some((Stored::Zeros, 1024)));
        assert_eq!(read.find(1000), Some((Stored::Zeros, 24)));
        assert_eq!(read.find(1536), Some((Stored::Image(4608), 1536)));
        assert_eq!(read.find(3072), Some((Stored::Index(0), 512)));
        assert_eq!(read.find(4095), Some((Stored::Image(511), 1)));
        assert_eq!(read.find(4096), None);
    }

    #[test]
    fn malformed_tables_are_refused() {
        let bytes = table().encode();
        assert!(RunTable::parse(&bytes, 4097).is_none());
        assert!(RunTable::parse(&bytes[..bytes.len() - 1], 4096).is_none());
        let mut swapped = bytes.clone();
        swapped[..32].rotate_left(16);
        assert!(RunTable::parse(&swapped, 4096).is_none());
        let mut unknown = bytes;
        unknown[15] = 0xff;
        assert!(RunTable::parse(&unknown, 4096).is_none());
        assert!(RunTable::parse(&[], 0).is_some());
    }
}
