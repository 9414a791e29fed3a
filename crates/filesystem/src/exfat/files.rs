//! Directories and files of exFAT.

use linux::medium::ReadAt;

use super::{END, ENTRY, Volume};
use crate::node::{
    Cursor, Entry, EntryKind, Extent, FileError, Modified, Place, dos_time, is_name, name_of,
};
use crate::table::Contents;
use crate::window::{le16, le32, le64};

/// Types of entries in use: of a file (§7.4), of its contents (§7.6), of its name (§7.7).
const FILE: u8 = 0x85;
const STREAM: u8 = 0xc0;
const NAME: u8 = 0xc1;
/// File attribute (§7.4.4), and flag of the clusters: they are contiguous (§6.3.4.2).
const DIRECTORY: u16 = 16;
const CONTIGUOUS: u8 = 2;
/// The longest directory in bytes (§7.6.4).
const MAX_DIRECTORY: u64 = 256 << 20;

impl Volume {
    /// Returns the root directory.
    pub(crate) fn root_entry(&self) -> Entry {
        let valid = MAX_DIRECTORY;
        let mut root =
            Entry::root(Place::Clusters { first: self.root, is_contiguous: false, valid });
        root.bytes = MAX_DIRECTORY;
        root
    }

    /// Returns entries of a directory from `from` on, and where the next ones are; `None` at the end.
    ///
    /// # Errors
    /// As [`crate::Volume::entries`].
    pub(crate) fn entries<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        directory: &Entry,
        from: &Cursor,
    ) -> Result<(Vec<Entry>, Option<Cursor>), FileError> {
        let contents = Contents::of(directory, directory.bytes.min(MAX_DIRECTORY))?;
        let (mut entries, next) = self.chains().entries(disk, &contents, from, parse)?;
        let capacity = self.clusters.saturating_mul(self.cluster);
        let too_long = entries.iter_mut().filter(|entry| entry.bytes > capacity);
        too_long.for_each(|entry| entry.kind = EntryKind::Damaged);
        Ok((entries, next))
    }

    /// Returns extents of a file from `from` on, and where they end.
    ///
    /// # Errors
    /// As [`crate::Volume::extents`].
    pub(crate) fn extents<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        file: &Entry,
        from: &Cursor,
    ) -> Result<(Vec<Extent>, Cursor), FileError> {
        self.chains().extents(disk, &Contents::of(file, file.bytes)?, from)
    }
}

/// Returns the entries in a part of a directory, how many of its bytes they take, and whether it is the last one.
fn parse(bytes: &[u8]) -> (Vec<Entry>, usize, bool) {
    let (mut entries, mut used) = (Vec::new(), 0);
    while let Some(slot) = bytes.get(used..).and_then(|rest| rest.get(..ENTRY)) {
        let more = match slot.first() {
            Some(&END) => return (entries, bytes.len(), true),
            // The number of entries that belong to it.
            Some(&FILE) => slot.get(1).map_or(0, |count| usize::from(*count)),
            _ => 0,
        };
        let len = ENTRY * (1 + more);
        let Some(set) = bytes.get(used..used + len) else { break };
        if more > 0 {
            entries.extend(entry(set));
        }
        used += len;
    }
    (entries, used, false)
}

/// Returns the entry of a set of a file.
fn entry(set: &[u8]) -> Option<Entry> {
    let stream = set.get(ENTRY..2 * ENTRY).filter(|stream| stream.first() == Some(&STREAM))?;
    let parts =
        set.get(2 * ENTRY..)?.chunks_exact(ENTRY).take_while(|part| part.first() == Some(&NAME));
    let units = parts.flat_map(|part| (2..ENTRY).step_by(2).map(|at| le16(part, at).unwrap_or(0)));
    let len = usize::from(*stream.get(3)?);
    let units: Vec<u16> = units.take(len).collect();
    let name = name_of(units.iter().copied()).to_vec();
    if units.len() != len || !is_name(&name) {
        return None;
    }
    let is_directory = le16(set, 4)? & DIRECTORY != 0;
    let (valid, bytes) = (le64(stream, 8)?, le64(stream, 24)?);
    let is_contiguous = stream.get(1)? & CONTIGUOUS != 0;
    Some(Entry {
        name,
        kind: if is_directory { EntryKind::Directory } else { EntryKind::File },
        bytes,
        modified: modified(set),
        place: Place::Clusters { first: le32(stream, 20)?, is_contiguous, valid },
    })
}

/// Returns the time of the last change (§7.4.8, §7.4.10).
fn modified(set: &[u8]) -> Option<Modified> {
    let seconds = dos_time(le16(set, 14)?, le16(set, 12)?)?;
    let offset = *set.get(23)?;
    // Seven bits with a sign, in quarters of an hour.
    let quarters = i64::from((offset << 1).cast_signed() >> 1);
    let is_utc = offset & 0x80 != 0;
    Some(Modified { seconds: if is_utc { seconds - quarters * 900 } else { seconds }, is_utc })
}
