//! The files of a volume, whatever its file system: directories are listed, and files are located, in steps.
//!
//! Each call reads a bounded part of the disk, and goes on where a [`Cursor`] says: so a caller whose reads are
//! asynchronous can repeat a call until all that it needs has been read.

use std::io;
use std::ops::Range;

use linux::medium::ReadAt;
use linux::signature;

use crate::node::{Cursor, Entry, EntryKind, Extent, FileError, Refusal};
use crate::{
    OpaqueReason, PartKind, PartitionView, exfat, ext, fat, has_only_signatures, kind_at, ntfs,
};

/// Entries that [`Volume::find`] looks at, and extents that [`Volume::read`] reads, at most.
const MAX_CALLS: u32 = 1 << 20;

/// A volume whose files can be read.
#[derive(Debug)]
pub struct Volume {
    format: Format,
    is_clean: bool,
}

#[derive(Debug)]
enum Format {
    Ext(ext::Volume),
    Ntfs(ntfs::Volume),
    Fat(fat::Volume),
    Exfat(exfat::Volume),
}

/// What is in a partition, or on an unpartitioned disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recognized {
    /// Types of what has a signature, as printed by `blkid`.
    pub kinds: Vec<&'static str>,
    pub label: Option<String>,
    /// Whether [`Volume::open`] supports it.
    pub has_files: bool,
}

/// Recognizes the contents of a partition.
///
/// # Errors
/// Fails if the disk cannot be read where it must be.
pub fn recognize<R: ReadAt + ?Sized>(disk: &R, place: &Range<u64>) -> io::Result<Recognized> {
    let inside = PartitionView { disk, place: place.clone() };
    let found = signature::probe(&inside, place.end - place.start)?.signatures;
    let kinds = found.iter().map(|signature| signature.kind.word()).collect();
    let label = found.into_iter().find_map(|signature| signature.label);
    let kind = kind_at(disk, place.start)?.map(|(kind, _)| kind);
    let is_read =
        |kind| matches!(kind, PartKind::Ext | PartKind::Ntfs | PartKind::Fat | PartKind::Exfat);
    let has_files = kind.is_some_and(is_read);
    Ok(Recognized { kinds, label, has_files })
}

impl Volume {
    /// Determines the file system at `place` on a disk. Reads less than a mebibyte.
    ///
    /// # Errors
    /// The disk cannot be read, or no file system is recognized there, or several.
    pub fn identify<R: ReadAt + ?Sized>(
        disk: &R,
        place: &Range<u64>,
    ) -> Result<PartKind, FileError> {
        let (kind, marks) = kind_at(disk, place.start)?.ok_or(OpaqueReason::Unknown)?;
        // What cannot be read says nothing: the files of a failing disk are wanted, too.
        match has_only_signatures(disk, place, marks)?.0 {
            true => Ok(kind),
            false => Err(Refusal::Ambiguous.into()),
        }
    }

    /// Opens the volume at `place` on a disk, also if it was not unmounted cleanly.
    ///
    /// # Errors
    /// The disk cannot be read, or the volume is damaged, not supported, or one of several in that place.
    pub fn open<R: ReadAt + ?Sized>(disk: &R, place: &Range<u64>) -> Result<Self, FileError> {
        Self::open_as(disk, place, Self::identify(disk, place)?)
    }

    /// Opens a volume whose file system [is known](Volume::identify).
    ///
    /// # Errors
    /// The disk cannot be read, or the volume is damaged or not supported.
    pub fn open_as<R: ReadAt + ?Sized>(
        disk: &R,
        place: &Range<u64>,
        kind: PartKind,
    ) -> Result<Self, FileError> {
        let (format, is_clean) = match kind {
            PartKind::Ext => {
                let volume = ext::Volume::open(disk, place)?;
                let is_clean = volume.is_clean;
                (Format::Ext(volume), is_clean)
            }
            PartKind::Ntfs => {
                let volume = ntfs::Volume::open_files(disk, place)?;
                let is_clean = volume.check_clean(disk)?.is_ok();
                (Format::Ntfs(volume), is_clean)
            }
            PartKind::Fat => {
                let volume = fat::Volume::open(disk, place)?;
                let is_clean = volume.is_clean(disk)?;
                (Format::Fat(volume), is_clean)
            }
            PartKind::Exfat => {
                let volume = exfat::Volume::open(disk, place)?;
                let is_clean = volume.is_clean();
                (Format::Exfat(volume), is_clean)
            }
            PartKind::Xfs | PartKind::Btrfs | PartKind::Opaque(_) => {
                return Err(OpaqueReason::Unknown.into());
            }
        };
        Ok(Self { format, is_clean })
    }

    /// Returns whether it was unmounted cleanly. Else what was written last may be missing or wrong.
    pub fn is_clean(&self) -> bool {
        self.is_clean
    }

    /// Returns the root directory.
    pub fn root(&self) -> Entry {
        match &self.format {
            Format::Ext(volume) => volume.root_entry(),
            Format::Ntfs(volume) => volume.root_entry(),
            Format::Fat(volume) => volume.root_entry(),
            Format::Exfat(volume) => volume.root_entry(),
        }
    }

    /// Returns some entries of a directory from `from` on, perhaps none, and where the next ones are; `None` at
    /// the end. What is in inodes of ext and in file records of NTFS only is added by [`Volume::details`].
    ///
    /// # Errors
    /// The disk cannot be read, or the directory is damaged, encrypted or none.
    pub fn entries<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        directory: &Entry,
        from: &Cursor,
    ) -> Result<(Vec<Entry>, Option<Cursor>), FileError> {
        if directory.kind != EntryKind::Directory {
            return Err(Refusal::NoDirectory.into());
        }
        match &self.format {
            Format::Ext(volume) => volume.entries(disk, directory, from),
            Format::Ntfs(volume) => volume.entries(disk, directory, from),
            Format::Fat(volume) => volume.entries(disk, directory, from),
            Format::Exfat(volume) => volume.entries(disk, directory, from),
        }
    }

    /// Returns an entry with its kind, length and time; with [`EntryKind::Damaged`] if its inode or file record is damaged
    /// or cannot be read.
    pub fn details<R: ReadAt + ?Sized>(&self, disk: &R, entry: &Entry) -> Entry {
        let details = match &self.format {
            Format::Ext(volume) => volume.details(disk, entry),
            Format::Ntfs(volume) if entry.kind == EntryKind::File => volume.details(disk, entry),
            _ => Ok(entry.clone()),
        };
        details.unwrap_or_else(|_| Entry { kind: EntryKind::Damaged, ..entry.clone() })
    }

    /// Returns an entry of [`Volume::entries`] with its exact kind and length. Checks that a file can be read.
    ///
    /// # Errors
    /// The disk cannot be read, or the file has no contents that can be read.
    pub fn check<R: ReadAt + ?Sized>(&self, disk: &R, entry: &Entry) -> Result<Entry, FileError> {
        let entry = match (&self.format, entry.kind) {
            (Format::Ext(volume), _) => volume.details(disk, entry)?,
            (Format::Ntfs(volume), EntryKind::File | EntryKind::Directory) => {
                volume.check(disk, entry)?
            }
            _ => entry.clone(),
        };
        match entry.kind {
            EntryKind::Link | EntryKind::Special => return Err(Refusal::NoContents.into()),
            EntryKind::Damaged => return Err(Refusal::Damaged.into()),
            EntryKind::Directory | EntryKind::File => {}
        }
        if let Format::Ext(volume) = &self.format {
            volume.check(disk, &entry)?;
        }
        Ok(entry)
    }

    /// Returns extents of a file that was [checked](Volume::check), from `from` on, and where they end: at its
    /// length, or somewhere before.
    ///
    /// # Errors
    /// The disk cannot be read, or the file is damaged or cannot be read.
    pub fn extents<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        file: &Entry,
        from: &Cursor,
    ) -> Result<(Vec<Extent>, Cursor), FileError> {
        if file.kind != EntryKind::File {
            return Err(Refusal::NoContents.into());
        }
        if from.offset >= file.bytes {
            return Ok((Vec::new(), from.clone()));
        }
        let (extents, end) = match &self.format {
            Format::Ext(volume) => volume.extents(disk, file, from)?,
            Format::Ntfs(volume) => volume.extents(disk, file, from)?,
            Format::Fat(volume) => volume.extents(disk, file, from)?,
            Format::Exfat(volume) => volume.extents(disk, file, from)?,
        };
        let is_further = end.offset > from.offset && end.offset <= file.bytes;
        if is_further { Ok((extents, end)) } else { Err(Refusal::Damaged.into()) }
    }

    /// Returns whether `wanted` names an entry: by its exact name, or (`false`) without regard to the case of
    /// letters of ASCII, except on ext.
    pub fn is_named(&self, entry: &Entry, wanted: &[u8]) -> Option<bool> {
        if entry.name == wanted {
            return Some(true);
        }
        let is_similar =
            !matches!(self.format, Format::Ext(_)) && entry.name.eq_ignore_ascii_case(wanted);
        is_similar.then_some(false)
    }

    /// Finds a file or directory by the names on its path from the root directory, and checks it as
    /// [`Volume::check`] does.
    ///
    /// # Errors
    /// The disk cannot be read, or such a file is missing or cannot be read.
    pub fn find<R: ReadAt + ?Sized>(&self, disk: &R, path: &[&[u8]]) -> Result<Entry, FileError> {
        let (mut entry, mut calls) = (self.root(), 0);
        for name in path {
            let (mut from, mut found) = (Some(Cursor::default()), None);
            while let Some(at) = from.filter(|_| calls < MAX_CALLS) {
                let (entries, next) = self.entries(disk, &entry, &at)?;
                let by =
                    |exact| entries.iter().find(|entry| self.is_named(entry, name) == Some(exact));
                let (exact, similar) = (by(true), by(false));
                found = exact.cloned().or(found).or_else(|| similar.cloned());
                from = next.filter(|_| exact.is_none());
                calls += 1;
            }
            entry = self.check(disk, &found.ok_or(Refusal::NotFound)?)?;
        }
        Ok(entry)
    }

    /// Reads a whole file that was [checked](Volume::check) and has `most` bytes at most.
    ///
    /// # Errors
    /// The disk cannot be read, or the file is longer, damaged or cannot be read.
    pub fn read<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        file: &Entry,
        most: u64,
    ) -> Result<Vec<u8>, FileError> {
        if file.bytes > most {
            return Err(io::Error::other("the file is too long").into());
        }
        let (mut bytes, mut at) = (Vec::new(), Cursor::default());
        while at.offset < file.bytes {
            let (extents, next) = self.extents(disk, file, &at)?;
            for extent in extents {
                match extent {
                    Extent::Bytes(part) => bytes.extend(part),
                    Extent::Zeros(len) => {
                        bytes.resize(bytes.len() + usize::try_from(len).unwrap_or(0), 0)
                    }
                    Extent::Disk(range) => read_range(disk, range, &mut bytes)?,
                }
            }
            at = next;
        }
        Ok(bytes)
    }
}

/// Appends the bytes of a range of a disk.
fn read_range<R: ReadAt + ?Sized>(
    disk: &R,
    range: Range<u64>,
    bytes: &mut Vec<u8>,
) -> Result<(), FileError> {
    const PIECE: u64 = 1 << 20;
    let mut at = range.start;
    while at < range.end {
        let len = PIECE.min(range.end - at);
        bytes.extend(crate::window::read(disk, at, len)?.ok_or(Refusal::Damaged)?);
        at += len;
    }
    Ok(())
}
