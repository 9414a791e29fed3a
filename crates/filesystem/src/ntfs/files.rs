//! Directories and files of NTFS.

use linux::medium::ReadAt;

use std::ops::Range;

use super::record::{
    ATTRIBUTE_LIST, BITMAP as BITMAP_KIND, DATA, INDEX_ALLOCATION, INDEX_ROOT, NUMBER, REPARSE,
    Record, STANDARD_INFORMATION, fixups, lowest_vcn, mapping, value,
};
use super::{FIRST, MFT, ROOT, Volume};
use crate::OpaqueReason;
use crate::node::{
    Cursor, Entry, EntryKind, Extent, FileError, Modified, Place, Refusal, is_name, name_of,
};
use crate::window::{le16, le32, le64, read};

/// The name of the attributes of a directory, in UTF-16.
const I30: &[u8] = b"$\0I\x003\x000\0";
/// Flags of an attribute: compressed, encrypted.
const COMPRESSED: u16 = 0xff;
const ENCRYPTED: u16 = 0x4000;
/// Flags of a file.
const REPARSE_POINT: u32 = 0x400;
const DIRECTORY: u32 = 0x1000_0000;
/// Tags of reparse points that are links: mount point or junction, symbolic link, and that of Linux on Windows.
const LINKS: [u32; 3] = [0xa000_0003, 0xa000_000c, 0xa000_001d];
/// Tags of files that are also in a cloud, with four bits that differ.
const CLOUD: u32 = 0x9000_001a;
const CLOUD_MASK: u32 = 0xffff_0fff;
/// Flag of an index entry: the last one.
const LAST: u32 = 2;
/// Namespace of DOS names, which have a long name beside them.
const SHORT: u8 = 2;
/// The longest attribute list in bytes, and the most parts of the MFT that are looked for.
const MAX_LIST: u64 = 256 << 10;
const MAX_PARTS: usize = 32;
/// The most fragments of the MFT, which each lookup of a record goes through.
const MAX_FRAGMENTS: usize = 8192;
/// Bytes of the bitmap of a directory per call.
const BITMAP_BYTES: u64 = 512;
/// The largest index block in bytes.
const MAX_BLOCK: u64 = 64 << 10;
/// Extents per call.
const MAX_EXTENTS: usize = 512;
/// Seconds from 1601 to 1970, and units of a time per second.
const EPOCH: i64 = 11_644_473_600;
const PER_SECOND: u64 = 10_000_000;

/// The sizes of an attribute that is not resident.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    bytes: u64,
    /// Bytes from here on are zeros.
    valid: u64,
}

impl Volume {
    /// Opens a volume to read its files, also one that was not unmounted cleanly.
    ///
    /// # Errors
    /// The disk cannot be read, or the volume is damaged.
    pub(crate) fn open_files<R: ReadAt + ?Sized>(
        disk: &R,
        place: &Range<u64>,
    ) -> Result<Self, FileError> {
        let boot = read(disk, place.start, 512)?;
        let mut volume =
            boot.and_then(|boot| Self::parse(&boot, place)).ok_or(OpaqueReason::Damaged)?;
        let own = volume.record(disk, MFT)?.ok_or(OpaqueReason::Damaged)?;
        let first = own.attribute(DATA, &[], 0).ok_or(OpaqueReason::Damaged)?.to_vec();
        let sizes = sizes(&first).ok_or(OpaqueReason::Damaged)?;
        volume.mft = clusters(&own, &first)?;
        // Further parts are located by records in the earlier ones.
        for _ in 0..MAX_PARTS {
            if volume.mft.len() > MAX_FRAGMENTS {
                break;
            }
            let found: u64 = volume.mft.iter().map(|run| run.end - run.start).sum();
            if found.saturating_mul(volume.cluster) >= sizes.bytes {
                return Ok(volume);
            }
            let part = volume.attribute(disk, MFT, (DATA, &[]), found)?;
            let part =
                part.filter(|part| lowest_vcn(part) == found).ok_or(OpaqueReason::Damaged)?;
            volume.mft.extend(clusters(&own, &part)?);
        }
        Err(Refusal::TooMuch.into())
    }

    /// Returns the root directory.
    pub(crate) fn root_entry(&self) -> Entry {
        Entry::root(Place::Record(ROOT))
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
        let (number, _) = self.base(disk, directory)?;
        let root =
            self.attribute(disk, number, (INDEX_ROOT, I30), 0)?.ok_or(Refusal::NoDirectory)?;
        let root = value(&root).ok_or(Refusal::Damaged)?;
        let block = le32(root, 8).map(u64::from).filter(|len| (512..=MAX_BLOCK).contains(len));
        let block = block.filter(|len| len.is_power_of_two()).ok_or(Refusal::Damaged)?;
        match from.offset.checked_sub(1) {
            Some(index) => self.index_block(disk, number, index, block),
            None => Ok((index_entries(root, 16).ok_or(Refusal::Damaged)?, Some(position(1)))),
        }
    }

    /// Returns the entries of the next index block in use, of `block` bytes, from number `index` on.
    fn index_block<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        number: u64,
        index: u64,
        block: u64,
    ) -> Result<(Vec<Entry>, Option<Cursor>), FileError> {
        let allocation = (INDEX_ALLOCATION, I30);
        let Some(len) = self.attribute(disk, number, allocation, 0)? else {
            return Ok((Vec::new(), None));
        };
        let count = sizes(&len).ok_or(Refusal::Damaged)?.bytes / block;
        if index >= count {
            return Ok((Vec::new(), None));
        }
        let first = index / 8;
        let bits = first..count.div_ceil(8).min(first + BITMAP_BYTES);
        let end = bits.end * 8;
        let bits = self.content(disk, number, (BITMAP_KIND, I30), bits)?;
        let is_used = |at: &u64| {
            let byte = usize::try_from(at / 8 - first).ok().and_then(|byte| bits.get(byte));
            byte.is_some_and(|byte| byte >> (at % 8) & 1 == 1)
        };
        let Some(index) = (index..end.min(count)).find(is_used) else {
            return Ok((Vec::new(), Some(position(end + 1))));
        };
        let (offset, next) =
            (index.checked_mul(block).ok_or(Refusal::Damaged)?, position(index + 2));
        let mut bytes = self.content(disk, number, allocation, offset..offset + block)?;
        let array = le16(&bytes, 4).zip(le16(&bytes, 6));
        let (start, len) = array.ok_or(Refusal::Damaged)?;
        if !bytes.starts_with(b"INDX") || !fixups(&mut bytes, start.into(), len.into()) {
            return Err(Refusal::Damaged.into());
        }
        Ok((index_entries(&bytes, 24).ok_or(Refusal::Damaged)?, Some(next)))
    }

    /// Returns a file's entry with the length and the time in its file record. Those in the index are of when the file
    /// was last changed by this name, if it has several.
    ///
    /// # Errors
    /// The disk cannot be read, or the record is damaged.
    pub(crate) fn details<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        entry: &Entry,
    ) -> Result<Entry, FileError> {
        let (number, base) = self.base(disk, entry)?;
        let times = base.attribute(STANDARD_INFORMATION, &[], 0).and_then(value);
        let modified = times.and_then(|times| modified(times, 8)).or(entry.modified);
        let data = self.attribute(disk, number, (DATA, &[]), 0)?;
        let bytes = data.as_deref().map_or(Ok(0), length)?;
        Ok(Entry { bytes, modified, ..entry.clone() })
    }

    /// Returns an entry with the length in its file record, and checks that its contents can be read.
    ///
    /// # Errors
    /// The disk cannot be read, the record is damaged, or the contents are encrypted, compressed or elsewhere.
    pub(crate) fn check<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        entry: &Entry,
    ) -> Result<Entry, FileError> {
        let (number, base) = self.base(disk, entry)?;
        if base.is_directory() {
            return Ok(Entry { kind: EntryKind::Directory, ..entry.clone() });
        }
        if self.reparse_tag(disk, number)?.is_some_and(|tag| tag & CLOUD_MASK != CLOUD) {
            return Err(Refusal::Elsewhere.into());
        }
        let data = self.attribute(disk, number, (DATA, &[]), 0)?.ok_or(Refusal::NoContents)?;
        let bytes = length(&data)?;
        readable(&data)?;
        Ok(Entry { kind: EntryKind::File, bytes, ..entry.clone() })
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
        let (number, _) = self.base(disk, file)?;
        let data = self.attribute(disk, number, (DATA, &[]), 0)?.ok_or(Refusal::NoContents)?;
        readable(&data)?;
        if let Some(value) = value(&data) {
            let rest = usize::try_from(from.offset).ok().and_then(|start| value.get(start..));
            let rest = rest.filter(|_| value.len() as u64 == file.bytes).ok_or(Refusal::Damaged)?;
            return Ok((vec![Extent::Bytes(rest.to_vec())], position(file.bytes)));
        }
        let sizes =
            sizes(&data).filter(|sizes| sizes.bytes == file.bytes).ok_or(Refusal::Damaged)?;
        let valid = sizes.valid.min(sizes.bytes);
        if from.offset >= valid && self.reparse_tag(disk, number)?.is_some() {
            return Err(Refusal::Elsewhere.into());
        }
        if from.offset >= valid {
            return Ok((vec![Extent::Zeros(file.bytes - from.offset)], position(file.bytes)));
        }
        let range = from.offset..valid;
        let extents = self.extents_of(disk, number, (DATA, &[]), &range)?;
        // The file is in a cloud, and a part of it only there.
        let has_holes = extents.iter().any(|extent| matches!(extent, Extent::Zeros(_)));
        if has_holes && self.reparse_tag(disk, number)?.is_some() {
            return Err(Refusal::Elsewhere.into());
        }
        let len: u64 = extents.iter().map(Extent::bytes).sum();
        Ok((extents, position(from.offset + len)))
    }

    /// Returns the tag of a reparse point, which may be in another record than the file's first one; 0 if it is not resident.
    fn reparse_tag<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        number: u64,
    ) -> Result<Option<u32>, FileError> {
        let attribute = self.attribute(disk, number, (REPARSE, &[]), 0)?;
        Ok(attribute
            .map(|attribute| value(&attribute).and_then(|value| le32(value, 0)).unwrap_or(0)))
    }

    /// Returns the extents of a part of an attribute that is not resident, at least one of them, and none behind
    /// the part.
    fn extents_of<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        number: u64,
        kind: (u32, &[u8]),
        range: &Range<u64>,
    ) -> Result<Vec<Extent>, FileError> {
        let segment = self.attribute(disk, number, kind, range.start / self.cluster)?;
        let segment = segment.ok_or(Refusal::Damaged)?;
        let mut extents = Vec::new();
        let mut first = lowest_vcn(&segment).saturating_mul(self.cluster);
        for (count, start) in mapping(&segment) {
            if start.is_some_and(|start| start.saturating_add(count) > self.clusters) {
                return Err(Refusal::Damaged.into());
            }
            let len = count.checked_mul(self.cluster).ok_or(Refusal::Damaged)?;
            let end = first.checked_add(len).ok_or(Refusal::Damaged)?;
            let part = first.max(range.start)..end.min(range.end);
            if part.start < part.end {
                let len = part.end - part.start;
                extents.push(match start {
                    Some(start) => {
                        let at = self.bytes(&(start..start)).start + (part.start - first);
                        Extent::Disk(at..at + len)
                    }
                    None => Extent::Zeros(len),
                });
            }
            first = end;
            if first >= range.end || extents.len() >= MAX_EXTENTS {
                break;
            }
        }
        if extents.is_empty() { Err(Refusal::Damaged.into()) } else { Ok(extents) }
    }

    /// Reads a part of an attribute, of [`MAX_LIST`] bytes at most.
    fn content<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        number: u64,
        kind: (u32, &[u8]),
        range: Range<u64>,
    ) -> Result<Vec<u8>, FileError> {
        let attribute = self.attribute(disk, number, kind, 0)?.ok_or(Refusal::Damaged)?;
        if let Some(value) = value(&attribute) {
            let range = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
            let part = range.and_then(|(start, end)| value.get(start..end));
            return Ok(part.ok_or(Refusal::Damaged)?.to_vec());
        }
        let (mut bytes, mut at) = (Vec::new(), range.start);
        while at < range.end {
            for extent in self.extents_of(disk, number, kind, &(at..range.end))? {
                let Extent::Disk(part) = &extent else { return Err(Refusal::Damaged.into()) };
                let part = read(disk, part.start, extent.bytes().min(MAX_LIST))?;
                bytes.extend(part.ok_or(Refusal::Damaged)?);
                at += extent.bytes();
            }
        }
        Ok(bytes)
    }

    /// Returns the number and the base record of an entry.
    fn base<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        entry: &Entry,
    ) -> Result<(u64, Record), FileError> {
        let Place::Record(reference) = entry.place else { return Err(Refusal::Damaged.into()) };
        let (number, sequence) = (reference & NUMBER, reference >> 48);
        let base = self.record(disk, number)?.filter(|record| record.base().is_none());
        let base = base.filter(|record| sequence == 0 || record.sequence() == Some(sequence));
        Ok((number, base.ok_or(Refusal::Damaged)?))
    }

    /// Returns an attribute of a file; the part of it that has the cluster `vcn`, if it is not resident.
    fn attribute<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        number: u64,
        (kind, name): (u32, &[u8]),
        vcn: u64,
    ) -> Result<Option<Vec<u8>>, FileError> {
        let base = self.record(disk, number)?.ok_or(Refusal::Damaged)?;
        let own = base.attribute(kind, name, vcn).map(<[u8]>::to_vec);
        let list = base.attribute(ATTRIBUTE_LIST, &[], 0);
        let Some(list) = list.filter(|_| own.is_none()) else { return Ok(own) };
        let list = match value(list) {
            Some(list) => list.to_vec(),
            None => self.list(disk, list)?,
        };
        let Some(reference) = listed(&list, (kind, name), vcn) else { return Ok(None) };
        let other = self.record(disk, reference & NUMBER)?;
        let other = other.filter(|other| other.base() == Some(number)).ok_or(Refusal::Damaged)?;
        Ok(other.attribute(kind, name, vcn).map(<[u8]>::to_vec))
    }

    /// Reads an attribute list that is not resident.
    fn list<R: ReadAt + ?Sized>(&self, disk: &R, list: &[u8]) -> Result<Vec<u8>, FileError> {
        let len = sizes(list).map(|sizes| sizes.bytes).filter(|len| *len <= MAX_LIST);
        let len = len.ok_or(Refusal::Damaged)?;
        let mut bytes = Vec::new();
        for (count, start) in mapping(list) {
            let left = len.saturating_sub(bytes.len() as u64);
            let start = start.filter(|start| *start < self.clusters).ok_or(Refusal::Damaged)?;
            let part = count.saturating_mul(self.cluster).min(left);
            let at = self.bytes(&(start..start)).start;
            bytes.extend(read(disk, at, part)?.ok_or(Refusal::Damaged)?);
            if bytes.len() as u64 >= len {
                return Ok(bytes);
            }
        }
        Err(Refusal::Damaged.into())
    }
}

/// Returns a position: in bytes of a file; of a directory 1 and the number of an index block.
fn position(offset: u64) -> Cursor {
    Cursor { offset, ..Cursor::default() }
}

/// Returns the clusters of a part of the MFT, none of which is a hole.
fn clusters(record: &Record, part: &[u8]) -> Result<Vec<Range<u64>>, FileError> {
    let runs = record.runs(part);
    let is_whole = runs.len() == mapping(part).count() && !runs.is_empty();
    if is_whole { Ok(runs) } else { Err(OpaqueReason::Damaged.into()) }
}

/// Returns the sizes of the first part of an attribute that is not resident.
fn sizes(attribute: &[u8]) -> Option<Sizes> {
    Some(Sizes { bytes: le64(attribute, 48)?, valid: le64(attribute, 56)? })
}

/// Returns the length of the contents of an attribute in bytes.
fn length(attribute: &[u8]) -> Result<u64, Refusal> {
    match value(attribute) {
        Some(value) => Ok(value.len() as u64),
        None => Ok(sizes(attribute).ok_or(Refusal::Damaged)?.bytes),
    }
}

/// Returns a time of the last change.
fn modified(bytes: &[u8], at: usize) -> Option<Modified> {
    let seconds = i64::try_from(le64(bytes, at)? / PER_SECOND).ok()? - EPOCH;
    Some(Modified { seconds, is_utc: true })
}

/// Checks that an attribute is neither compressed nor encrypted.
fn readable(attribute: &[u8]) -> Result<(), Refusal> {
    let flags = le16(attribute, 12).ok_or(Refusal::Damaged)?;
    match flags {
        _ if flags & ENCRYPTED != 0 => Err(Refusal::Encrypted),
        _ if flags & COMPRESSED != 0 => Err(Refusal::Compressed),
        _ => Ok(()),
    }
}

/// Returns the reference of the record with the part of an attribute that has the cluster `vcn`.
fn listed(list: &[u8], (kind, name): (u32, &[u8]), vcn: u64) -> Option<u64> {
    let (mut rest, mut found) = (list, None);
    while let Some(len) = le16(rest, 4).map(usize::from).filter(|len| *len >= 26) {
        let Some(entry) = rest.get(..len) else { break };
        let units = entry.get(6).map_or(0, |len| usize::from(*len) * 2);
        let at = entry.get(7).map_or(0, |at| usize::from(*at));
        let is_it =
            le32(entry, 0) == Some(kind) && entry.get(at..at + units).unwrap_or_default() == name;
        if is_it && le64(entry, 8).is_some_and(|first| first <= vcn) {
            found = le64(entry, 16);
        }
        rest = rest.get(len..).unwrap_or_default();
    }
    found
}

/// Returns the entries of an index whose node header is at `header`; `None` if it is malformed.
fn index_entries(bytes: &[u8], header: usize) -> Option<Vec<Entry>> {
    let node = bytes.get(header..)?;
    let (start, end) =
        (usize::try_from(le32(node, 0)?).ok()?, usize::try_from(le32(node, 4)?).ok()?);
    let mut rest = node.get(start..end)?;
    let mut entries = Vec::new();
    loop {
        let len = usize::from(le16(rest, 8)?);
        let entry = rest.get(..len).filter(|entry| entry.len() >= 16)?;
        if le32(entry, 12)? & LAST != 0 {
            return Some(entries);
        }
        let key = entry.get(16..16 + usize::from(le16(entry, 10)?))?;
        entries.extend(index_entry(le64(entry, 0)?, key));
        rest = rest.get(len..)?;
    }
}

/// Returns the entry of a file by its reference and its name attribute, unless that is a DOS name or the file is
/// metadata.
fn index_entry(reference: u64, key: &[u8]) -> Option<Entry> {
    let (len, namespace) = (usize::from(*key.get(64)?) * 2, *key.get(65)?);
    let units = key.get(66..66 + len)?.chunks_exact(2).filter_map(|unit| le16(unit, 0));
    let (name, flags) = (name_of(units), le32(key, 56)?);
    if namespace == SHORT || reference & NUMBER < FIRST || !is_name(&name) {
        return None;
    }
    let is_link = flags & REPARSE_POINT != 0 && LINKS.contains(&le32(key, 60)?);
    let kind = match flags & DIRECTORY != 0 {
        _ if is_link => EntryKind::Link,
        true => EntryKind::Directory,
        false => EntryKind::File,
    };
    Some(Entry {
        name,
        kind,
        bytes: if kind == EntryKind::File { le64(key, 48)? } else { 0 },
        modified: modified(key, 16),
        place: Place::Record(reference),
    })
}
