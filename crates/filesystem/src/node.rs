//! Files and directories of a volume: their names, kinds and contents, as all file systems have them.

use std::fmt;
use std::io;
use std::ops::Range;

use crate::OpaqueReason;

/// What an entry of a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EntryKind {
    Directory,
    File,
    /// A symbolic link, a junction or a mount point of NTFS. They are not followed.
    Link,
    /// A device, socket or pipe.
    Special,
    /// Its inode or file record is inconsistent.
    Damaged,
}

/// The time of the last change of a file's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modified {
    /// Seconds since 1970-01-01 00:00.
    pub seconds: i64,
    /// Whether that is in UTC. FAT has the local time of the machine that wrote.
    pub is_utc: bool,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name as bytes: of ext as they are on the disk, else UTF-8, with unpaired surrogates as three bytes
    /// each (generalized UTF-8). Never empty, `.` or `..`; any other bytes are possible.
    pub name: Vec<u8>,
    pub kind: EntryKind,
    /// Length of a file in bytes.
    pub bytes: u64,
    pub modified: Option<Modified>,
    pub(crate) place: Place,
}

impl Entry {
    /// Creates the entry of a root directory.
    pub(crate) fn root(place: Place) -> Self {
        Self { name: Vec::new(), kind: EntryKind::Directory, bytes: 0, modified: None, place }
    }
}

/// Where a file system has the contents of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A chain of clusters, or contiguous ones; 0 is none. Bytes from `valid` on are zeros.
    Clusters { first: u32, is_contiguous: bool, valid: u64 },
    /// The number of an inode, or a file reference of NTFS.
    Record(u64),
    /// The fixed root directory of FAT12 and FAT16.
    FixedRoot,
}

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// Bytes of the disk.
    Disk(Range<u64>),
    /// So many zeros.
    Zeros(u64),
    /// These bytes, which the file system has among its metadata.
    Bytes(Vec<u8>),
}

impl Extent {
    /// Returns its length in bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Disk(range) => range.end.saturating_sub(range.start),
            Self::Zeros(bytes) => *bytes,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

/// A position in a file or directory, from which reading goes on; by default the beginning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    /// In bytes; of directories of NTFS in index blocks.
    pub(crate) offset: u64,
    /// The cluster with this position.
    pub(crate) cluster: u32,
    /// The beginning of an entry that continues there.
    pub(crate) carry: Vec<u8>,
}

impl Cursor {
    /// Returns the position in a file, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

/// Why files are not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The file system as a whole.
    Opaque(OpaqueReason),
    /// More than one file system is recognized in one place.
    Ambiguous,
    Encrypted,
    Compressed,
    /// A reparse point of NTFS: the contents are elsewhere.
    Elsewhere,
    /// No file with contents: a link, a device.
    NoContents,
    NoDirectory,
    NotFound,
    Damaged,
    /// It takes more of the disk than a caller reads at once, or more reads than it makes.
    TooMuch,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opaque(OpaqueReason::Unknown) => "The files of this kind of contents cannot be read here.",
            Self::Opaque(OpaqueReason::Unclean) => "The file system was not unmounted cleanly.",
            Self::Opaque(OpaqueReason::Feature) => {
                "The file system uses a feature that is not supported here."
            }
            Self::Ambiguous => "More than one file system is recognized here: which of them counts is not certain.",
            Self::Encrypted => "This is encrypted by the file system.",
            Self::Compressed => "This is compressed by the file system, which is not supported here.",
            Self::Elsewhere => "The contents are not in this file: it is a reparse point, as of files in the cloud.",
            Self::NoContents => "This is not a file whose contents can be read.",
            Self::NoDirectory => "This is not a folder.",
            Self::NotFound => "There is no such file.",
            Self::TooMuch => {
                "This takes more reads than are made here: it is too large or in too many parts, or the file system is damaged."
            }
            Self::Damaged | Self::Opaque(OpaqueReason::Damaged) => "The file system is damaged here.",
        })
    }
}

/// Why a read of files failed.
#[derive(Debug)]
pub enum FileError {
    /// The disk cannot be read.
    Io(io::Error),
    Refused(Refusal),
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Refusal> for FileError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<OpaqueReason> for FileError {
    fn from(reason: OpaqueReason) -> Self {
        Self::Refused(Refusal::Opaque(reason))
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Refused(refusal) => refusal.fmt(f),
        }
    }
}

impl std::error::Error for FileError {}

/// Returns whether a directory may have an entry of this name.
pub(crate) fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
}

/// Returns UTF-16 as bytes in UTF-8, with unpaired surrogates as three bytes each.
pub(crate) fn name_of(units: impl Iterator<Item = u16>) -> Vec<u8> {
    let mut name = Vec::new();
    for unit in char::decode_utf16(units) {
        match unit {
            Ok(c) => name.extend(c.encode_utf8(&mut [0; 4]).bytes()),
            Err(error) => {
                let bits = error.unpaired_surrogate().to_be_bytes();
                let [high, low] = bits;
                name.extend([
                    0xe0 | high >> 4,
                    0x80 | (high & 15) << 2 | low >> 6,
                    0x80 | low & 63,
                ]);
            }
        }
    }
    name
}

/// Returns the seconds of a date and a time of FAT (FAT specification §6.3) and exFAT (§7.4.8); `None` if there is
/// no such date.
pub(crate) fn dos_time(date: u16, time: u16) -> Option<i64> {
    let (year, month, day) =
        (i64::from(date >> 9) + 1980, i64::from(date >> 5 & 15), i64::from(date & 31));
    let (hour, minute, second) =
        (i64::from(time >> 11), i64::from(time >> 5 & 63), i64::from(time & 31) * 2);
    let is_valid = (1..=12).contains(&month) && day > 0 && hour < 24 && minute < 60 && second < 60;
    // Years begin in March, so that the leap day is the last one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    is_valid.then_some((days - 719_468) * 86400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn dates_are_seconds_since_1970() {
        // 2026-12-01 13:37:58, 1980-01-01, 2000-02-29.
        assert_eq!(dos_time(46 << 9 | 12 << 5 | 1, 13 << 11 | 37 << 5 | 29), Some(1_796_132_278));
        assert_eq!(dos_time(1 << 5 | 1, 0), Some(315_532_800));
        assert_eq!(dos_time(20 << 9 | 2 << 5 | 29, 0), Some(951_782_400));
        for (date, time) in
            [(0, 0), (13 << 5 | 1, 0), (1 << 5 | 1, 24 << 11), (1 << 5 | 1, 60 << 5)]
        {
            assert_eq!(dos_time(date, time), None);
        }
    }

    #[test]
    fn unpaired_surrogates_are_kept_apart() {
        assert_eq!(name_of("é😀".encode_utf16()), "é😀".as_bytes());
        assert_eq!(name_of([0xd800].into_iter()), [0xed, 0xa0, 0x80]);
        assert_eq!(name_of([0xdfff, 0x61].into_iter()), [0xed, 0xbf, 0xbf, b'a']);
    }
}
