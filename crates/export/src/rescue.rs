//! A failing disk: what was read of it is kept in an image, and what could not be read is not read again.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use crate::{BlockMap, Source};

/// How a [`RescuedDisk`] is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RescueLayout {
    /// Whether there is an image.
    pub has_image: bool,
    /// The most memory that the map may take, in bytes.
    pub limit: u64,
}

impl RescueLayout {
    /// Returns the number of files.
    pub(crate) fn files(self) -> usize {
        if self.has_image { 3 } else { 2 }
    }
}

/// The open files of a failing disk: the disk, which is only read, the record, and perhaps an image in which every
/// byte has the offset that it has on the disk.
///
/// The record is a file in memory: a page with a [`RescueTrouble`], and the [`RescueState`] of each block, as
/// a [`BlockMap`] stores it.
#[derive(Debug)]
pub struct RescuedDisk {
    files: Vec<OwnedFd>,
    layout: RescueLayout,
    map: OnceLock<BlockMap>,
    reader: Mutex<RescueReader>,
}

/// What is known of a block of a failing disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RescueState {
    /// It has to be read from the disk.
    Unknown,
    /// It is in the image.
    Kept,
    /// It cannot be read.
    Bad,
}

// The two bits of a block in the map have these meanings for a failing disk, and others for an overlay.
impl From<RescueState> for Source {
    fn from(state: RescueState) -> Self {
        match state {
            RescueState::Unknown => Self::Base,
            RescueState::Kept => Self::Overlay,
            RescueState::Bad => Self::Zeros,
        }
    }
}

impl From<Source> for RescueState {
    fn from(bits: Source) -> Self {
        match bits {
            Source::Base => Self::Unknown,
            Source::Overlay => Self::Kept,
            Source::Zeros => Self::Bad,
        }
    }
}

/// What only one thread at a time does: reading the disk.
#[derive(Debug, Default)]
pub struct RescueReader {
    /// Whether the image was compared with the disk: `Some(false)` if it is of another one.
    pub is_verified: Option<bool>,
    /// How many blocks of the image could not be compared, because the disk did not give them.
    pub unread: usize,
    /// Offset of a block that was read from the disk without an error.
    pub good: Option<u64>,
    /// Offset of a piece of the disk that failed as a whole, in a block that is not known.
    pub failed_piece: Option<u64>,
    /// Whether what was read last could not be kept: no more is read than hosts want.
    pub is_full: bool,
}

/// What prevents that more is kept: at the start of the record, for the process that saves the map.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RescueTrouble {
    /// The errno of a write to the image.
    pub image_error: Option<i32>,
    /// Offset of a block that is different on the disk and in the image.
    pub differs_at: Option<u64>,
}

impl RescueTrouble {
    /// Bytes in the record.
    pub const BYTES: usize = 16;

    /// Returns the bytes in the record.
    pub fn emit(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let (errno, offset) = bytes.split_at_mut(8);
        errno.copy_from_slice(&i64::from(self.image_error.unwrap_or(0)).to_le_bytes());
        let offset_after = self.differs_at.map_or(0, |at| at.saturating_add(1));
        offset.copy_from_slice(&offset_after.to_le_bytes());
        bytes
    }

    /// Parses the bytes of the record.
    pub fn parse(bytes: [u8; Self::BYTES]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        let [errno, offset_after] = [0, 1].map(|at| words.get(at).copied().unwrap_or_default());
        let errno = i32::try_from(i64::from_le_bytes(errno)).ok();
        Self {
            image_error: errno.filter(|errno| *errno != 0),
            differs_at: u64::from_le_bytes(offset_after).checked_sub(1),
        }
    }
}

impl RescuedDisk {
    /// Index of the disk in [`RescuedDisk::files`].
    pub const DISK: usize = 0;
    /// Index of the record.
    pub const RECORD: usize = 1;
    /// Index of the image, if there is one.
    pub const IMAGE: usize = 2;

    /// Returns the disk in these files. Returns `None` if the layout has another number of them.
    pub fn new(files: Vec<OwnedFd>, layout: RescueLayout) -> Option<Self> {
        let (map, reader) = (OnceLock::new(), Mutex::default());
        (files.len() == layout.files()).then_some(Self { files, layout, map, reader })
    }

    /// Returns the files.
    pub fn files(&self) -> &[OwnedFd] {
        &self.files
    }

    /// Returns the layout.
    pub fn layout(&self) -> RescueLayout {
        self.layout
    }

    /// Returns the disk.
    pub fn disk(&self) -> &OwnedFd {
        &self.files[Self::DISK]
    }

    /// Returns the record.
    pub fn record(&self) -> &OwnedFd {
        &self.files[Self::RECORD]
    }

    /// Returns the image.
    pub fn image(&self) -> Option<&OwnedFd> {
        self.files.get(Self::IMAGE)
    }

    /// Sets the map, once.
    pub fn set_map(&self, map: BlockMap) {
        let _ = self.map.set(map);
    }

    /// Returns the map.
    pub fn map(&self) -> Option<&BlockMap> {
        self.map.get()
    }

    /// Returns what is known of the block `start`, and of how many of the blocks up to `end` that holds. Without a map
    /// no block can be read.
    pub fn find(&self, start: u64, end: u64) -> (RescueState, u64) {
        let Some(map) = self.map.get() else {
            return (RescueState::Bad, end.saturating_sub(start));
        };
        let (bits, blocks) = map.run(start, end);
        (bits.into(), blocks)
    }

    /// Sets what is known of a range of blocks. `store` writes bytes to an offset of the record.
    ///
    /// # Errors
    /// The error of `store`.
    pub fn set<E>(
        &self,
        range: Range<u64>,
        state: RescueState,
        store: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.map.get().map_or(Ok(()), |map| map.set(range, state.into(), store))
    }

    /// Waits until no other thread reads the disk.
    pub fn reader(&self) -> MutexGuard<'_, RescueReader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn trouble_survives_the_record() {
        for image_error in [None, Some(28)] {
            for differs_at in [None, Some(0), Some(1 << 40)] {
                let trouble = RescueTrouble { image_error, differs_at };
                assert_eq!(RescueTrouble::parse(trouble.emit()), trouble);
            }
        }
        assert_eq!(RescueTrouble::parse([0; 16]), RescueTrouble::default());
    }

    #[test]
    fn disk_without_a_map_cannot_be_read() {
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let layout = RescueLayout { has_image: false, limit: 0 };
        assert!(RescuedDisk::new(vec![file()], layout).is_none());
        let disk = RescuedDisk::new(vec![file(), file()], layout).unwrap();
        assert_eq!(disk.find(3, 9), (RescueState::Bad, 6));
        disk.set_map(BlockMap::new(9));
        assert_eq!(disk.find(3, 9), (RescueState::Unknown, 6));
    }
}
