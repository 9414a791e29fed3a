//! Directories and files of FAT.

use std::ops::Range;

use linux::medium::ReadAt;

use super::Volume;
use crate::node::{
    Cursor, Entry, EntryKind, Extent, FileError, Modified, Place, dos_time, is_name, name_of,
};
use crate::table::{Contents, Width};
use crate::window::{le16, le32};

/// Size of a directory entry (§6), and the longest directory in bytes (§6.1).
const ENTRY: usize = 32;
const MAX_DIRECTORY: u64 = 65536 * ENTRY as u64;
/// Attributes (§6).
const LABEL: u8 = 8;
const DIRECTORY: u8 = 16;
const LONG_NAME: u8 = 15;
const ATTRIBUTES: u8 = 63;
/// First bytes of an entry that is free, of the first one after the last, and what stands for the former.
const FREE: u8 = 0xe5;
const END: u8 = 0;
const KANJI: u8 = 5;
/// Flags of the byte that Windows NT uses: the name or the extension is in lower case.
const LOWER_NAME: u8 = 8;
const LOWER_EXTENSION: u8 = 16;
/// The most entries of a long name (§7), and the flag of the last part.
const MAX_PARTS: usize = 20;
const LAST: u8 = 0x40;
/// Offsets of the units of UTF-16 in a part.
const UNITS: [usize; 13] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

impl Volume {
    /// Returns the root directory.
    pub(crate) fn root_entry(&self) -> Entry {
        let first = self.root.and_then(|first| u32::try_from(first).ok());
        let clusters =
            |first| Place::Clusters { first, is_contiguous: false, valid: MAX_DIRECTORY };
        Entry::root(first.map_or(Place::FixedRoot, clusters))
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
        let mut chains = self.chains();
        let contents = if directory.place == Place::FixedRoot {
            // As one cluster.
            let Range { start, end } = self.fixed_root;
            (chains.data, chains.cluster, chains.clusters) = (start, end - start, 1);
            Contents { first: 2, is_contiguous: true, bytes: end - start, valid: end - start }
        } else {
            Contents::of(directory, MAX_DIRECTORY)?
        };
        let (mut entries, next) = chains.entries(disk, &contents, from, parse)?;
        if !matches!(chains.width, Width::ThirtyTwo) {
            // The other half is an index of extended attributes there.
            let first = entries.iter_mut().filter_map(|entry| match &mut entry.place {
                Place::Clusters { first, .. } => Some(first),
                _ => None,
            });
            first.for_each(|first| *first &= 0xffff);
        }
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
    let (mut entries, mut used, mut parts) = (Vec::new(), 0, Vec::new());
    for (at, slot) in (0..).step_by(ENTRY).zip(bytes.chunks_exact(ENTRY)) {
        let (first, attributes) = (slot.first().copied(), slot.get(11).copied().unwrap_or(0));
        if first == Some(END) {
            return (entries, bytes.len(), true);
        }
        let is_part = attributes & ATTRIBUTES == LONG_NAME && first != Some(FREE);
        if is_part && parts.len() < MAX_PARTS {
            parts.push(slot);
            continue;
        }
        if first != Some(FREE) && attributes & LABEL == 0 {
            entries.extend(entry(slot, &parts));
        }
        parts.clear();
        used = at + ENTRY;
    }
    (entries, used, false)
}

/// Returns an entry with the parts of its long name, in the order of the directory.
fn entry(slot: &[u8], parts: &[&[u8]]) -> Option<Entry> {
    let name = long_name(slot, parts).or_else(|| short_name(slot)).filter(|name| is_name(name))?;
    let is_directory = slot.get(11)? & DIRECTORY != 0;
    let bytes = if is_directory { 0 } else { u64::from(le32(slot, 28)?) };
    let first = u32::from(le16(slot, 26)?) | u32::from(le16(slot, 20)?) << 16;
    let time = dos_time(le16(slot, 24)?, le16(slot, 22)?);
    Some(Entry {
        name,
        kind: if is_directory { EntryKind::Directory } else { EntryKind::File },
        bytes,
        modified: time.map(|seconds| Modified { seconds, is_utc: false }),
        place: Place::Clusters { first, is_contiguous: false, valid: bytes },
    })
}

/// Returns the long name (§7), if its parts are complete and belong to this entry.
fn long_name(slot: &[u8], parts: &[&[u8]]) -> Option<Vec<u8>> {
    let (count, sum) = (u8::try_from(parts.len()).ok().filter(|count| *count > 0)?, checksum(slot));
    for (part, number) in parts.iter().zip((1..=count).rev()) {
        let last = if number == count { LAST } else { 0 };
        if part.first() != Some(&(number | last)) || part.get(13) != Some(&sum) {
            return None;
        }
    }
    let units = parts.iter().rev().flat_map(|part| UNITS.map(|at| le16(part, at).unwrap_or(0)));
    Some(name_of(units.take_while(|unit| *unit != 0)))
}

/// Returns the checksum of a short name (§7.2).
fn checksum(slot: &[u8]) -> u8 {
    slot.iter().take(11).fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// Returns the short name (§6.1), in the code page of the machine that wrote it.
fn short_name(slot: &[u8]) -> Option<Vec<u8>> {
    let cases = slot.get(12)?;
    let part = |range: Range<usize>, flag: u8| {
        let part = slot.get(range)?.trim_ascii_end();
        let is_lower = cases & flag != 0;
        Some(if is_lower { part.to_ascii_lowercase() } else { part.to_vec() })
    };
    let (mut name, extension) = (part(0..8, LOWER_NAME)?, part(8..11, LOWER_EXTENSION)?);
    if let Some(first) = name.first_mut().filter(|first| **first == KANJI) {
        *first = FREE;
    }
    if !extension.is_empty() {
        name.push(b'.');
        name.extend(extension);
    }
    Some(name)
}
