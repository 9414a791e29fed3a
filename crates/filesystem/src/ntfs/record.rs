//! File records of NTFS: attributes and their clusters.

use std::ops::Range;

use crate::window::{le16, le32, le64};

/// Flags of a record.
const IN_USE: u16 = 1;
const DIRECTORY: u16 = 2;
/// Types of attributes.
pub(super) const STANDARD_INFORMATION: u32 = 0x10;
pub(super) const ATTRIBUTE_LIST: u32 = 0x20;
const FILE_NAME: u32 = 0x30;
const VOLUME_INFORMATION: u32 = 0x70;
pub(super) const DATA: u32 = 0x80;
pub(super) const INDEX_ROOT: u32 = 0x90;
pub(super) const INDEX_ALLOCATION: u32 = 0xa0;
pub(super) const BITMAP: u32 = 0xb0;
pub(super) const REPARSE: u32 = 0xc0;
const END: u32 = u32::MAX;
/// Namespace of a DOS 8.3 name, which has a long name beside it.
const SHORT: u8 = 2;
/// Mask of the record number in a file reference.
pub(super) const NUMBER: u64 = (1 << 48) - 1;
/// Bytes per update sequence number, to detect torn writes.
const STRIDE: usize = 512;

/// A file record in use.
#[derive(Debug)]
pub(super) struct Record {
    bytes: Vec<u8>,
    /// Number of clusters of the volume.
    clusters: u64,
}

/// Contents of an attribute.
#[derive(Debug)]
pub(super) enum Content {
    /// Resident in the record.
    Resident(Vec<u8>),
    /// Clusters, and the length in bytes.
    Clusters(Vec<Range<u64>>, u64),
}

impl Record {
    /// Parses a record of a volume with this number of clusters. Returns `None` if it is not in use
    /// or was torn.
    pub(super) fn parse(bytes: Vec<u8>, clusters: u64) -> Option<Self> {
        let (at, count) = (usize::from(le16(&bytes, 4)?), usize::from(le16(&bytes, 6)?));
        if !bytes.starts_with(b"FILE") || le16(&bytes, 22)? & IN_USE == 0 {
            return None;
        }
        let mut this = Self { bytes, clusters };
        fixups(&mut this.bytes, at, count).then_some(this)
    }

    /// The attributes: type and bytes.
    fn attributes(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let first = le16(&self.bytes, 20).map_or(usize::MAX, usize::from);
        let mut rest = self.bytes.get(first..).unwrap_or_default();
        std::iter::from_fn(move || {
            let (kind, len) = (le32(rest, 0)?, usize::try_from(le32(rest, 4)?).ok()?);
            let attribute = rest.get(..len).filter(|_| kind != END && len >= 24)?;
            rest = rest.get(len..).unwrap_or_default();
            Some((kind, attribute))
        })
    }

    /// The number of the base record, if this one is an extension. That of the MFT is 0, and its sequence number is not.
    pub(super) fn base(&self) -> Option<u64> {
        le64(&self.bytes, 32).filter(|base| *base != 0).map(|base| base & NUMBER)
    }

    /// Whether there are extension records.
    pub(super) fn is_split(&self) -> bool {
        self.attributes().any(|(kind, _)| kind == ATTRIBUTE_LIST)
    }

    /// The unnamed data attribute.
    pub(super) fn data(&self) -> Option<Content> {
        let unnamed =
            |(kind, attribute): &(u32, &[u8])| *kind == DATA && attribute.get(9) == Some(&0);
        let (_, attribute) = self.attributes().find(unnamed)?;
        if is_resident(attribute) {
            return value(attribute).map(|value| Content::Resident(value.to_vec()));
        }
        Some(Content::Clusters(self.runs(attribute), le64(attribute, 48)?))
    }

    /// All clusters of all attributes.
    pub(super) fn clusters(&self) -> Vec<Range<u64>> {
        let outside = self.attributes().filter(|(_, attribute)| !is_resident(attribute));
        outside.flat_map(|(_, attribute)| self.runs(attribute)).collect()
    }

    /// Parent directory and name.
    pub(super) fn name(&self) -> Option<(u64, String)> {
        let names = self.attributes().filter(|(kind, _)| *kind == FILE_NAME);
        let values: Vec<&[u8]> = names.filter_map(|(_, attribute)| value(attribute)).collect();
        let is_long = |value: &&&[u8]| value.get(65).is_some_and(|space| *space != SHORT);
        let value = values.iter().find(is_long).or_else(|| values.first())?;
        let len = usize::from(*value.get(64)?) * 2;
        let units = value.get(66..66 + len)?.chunks_exact(2);
        let units: Vec<u16> = units.filter_map(|unit| le16(unit, 0)).collect();
        Some((le64(value, 0)? & NUMBER, String::from_utf16_lossy(&units)))
    }

    /// Volume flags; only in the record of the volume.
    pub(super) fn volume_flags(&self) -> Option<u16> {
        let (_, attribute) = self.attributes().find(|(kind, _)| *kind == VOLUME_INFORMATION)?;
        le16(value(attribute)?, 10)
    }

    /// The data runs of a non-resident attribute, without those beyond the end of the volume.
    pub(super) fn runs(&self, attribute: &[u8]) -> Vec<Range<u64>> {
        let run = |(len, start): (u64, Option<u64>)| {
            let start = start?;
            start.checked_add(len).filter(|end| *end <= self.clusters).map(|end| start..end)
        };
        mapping(attribute).filter_map(run).collect()
    }

    /// The attribute of this type and name in UTF-16, or the part of it that has the cluster `vcn`.
    pub(super) fn attribute(&self, kind: u32, name: &[u8], vcn: u64) -> Option<&[u8]> {
        let is_it = |attribute: &&[u8]| {
            let units = attribute.get(9).map_or(0, |len| usize::from(*len) * 2);
            let at = le16(attribute, 10).map_or(0, usize::from);
            let has_cluster = is_resident(attribute)
                || lowest_vcn(attribute) <= vcn
                    && (vcn == 0 || le64(attribute, 24).is_some_and(|last| vcn <= last));
            attribute.get(at..at.saturating_add(units)) == Some(name) && has_cluster
        };
        let mut all = self.attributes().filter(|(other, _)| *other == kind);
        all.find_map(|(_, attribute)| Some(attribute).filter(is_it))
    }

    /// The number of times that the record was used.
    pub(super) fn sequence(&self) -> Option<u64> {
        le16(&self.bytes, 16).map(u64::from)
    }

    pub(super) fn is_directory(&self) -> bool {
        le16(&self.bytes, 22).is_some_and(|flags| flags & DIRECTORY != 0)
    }
}

/// Applies the update sequence array. Returns whether all sectors are of the same write.
pub(super) fn fixups(bytes: &mut [u8], at: usize, count: usize) -> bool {
    let Some(mark) = le16(bytes, at) else { return false };
    if count != bytes.len() / STRIDE + 1 {
        return false;
    }
    (1..count).all(|stride| {
        let kept = le16(bytes, at + 2 * stride);
        let end = stride * STRIDE - 2;
        let (Some(kept), true) = (kept, le16(bytes, end) == Some(mark)) else {
            return false;
        };
        let place = bytes.get_mut(end..end + 2).unwrap_or_default();
        place.copy_from_slice(&kept.to_le_bytes());
        true
    })
}

/// The first cluster of the file that a part of a non-resident attribute has.
pub(super) fn lowest_vcn(attribute: &[u8]) -> u64 {
    le64(attribute, 16).unwrap_or(u64::MAX)
}

/// The data runs of a non-resident attribute: the number of clusters, and the first one unless they are sparse. One
/// before the volume counts as one behind it.
pub(super) fn mapping(attribute: &[u8]) -> impl Iterator<Item = (u64, Option<u64>)> {
    let at = le16(attribute, 32).map_or(usize::MAX, usize::from);
    let (mut rest, mut from) = (attribute.get(at..).unwrap_or_default(), 0_i64);
    std::iter::from_fn(move || {
        let (&head, behind) = rest.split_first().filter(|(head, _)| **head != 0)?;
        let (lens, offsets) = (usize::from(head & 15), usize::from(head >> 4));
        let (len, behind) = behind.split_at_checked(lens)?;
        let (offset, behind) = behind.split_at_checked(offsets)?;
        rest = behind;
        from = from.checked_add(signed(offset)?)?;
        let len = u64::try_from(signed(len)?).unwrap_or(0);
        // A run without an offset is sparse.
        let start = (offsets > 0).then(|| u64::try_from(from).unwrap_or(u64::MAX));
        Some((len, start))
    })
}

fn is_resident(attribute: &[u8]) -> bool {
    attribute.get(8) == Some(&0)
}

/// The value of a resident attribute.
pub(super) fn value(attribute: &[u8]) -> Option<&[u8]> {
    let (len, at) =
        (usize::try_from(le32(attribute, 16)?).ok()?, usize::from(le16(attribute, 20)?));
    attribute.get(at..at.checked_add(len)?).filter(|_| is_resident(attribute))
}

/// A signed little-endian number of up to eight bytes.
fn signed(bytes: &[u8]) -> Option<i64> {
    let negative = bytes.last().is_some_and(|byte| *byte & 0x80 != 0);
    let mut whole = [if negative { 0xff } else { 0 }; 8];
    whole.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(whole))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn run_lengths_are_signed() {
        assert_eq!(
            [signed(&[]), signed(&[0xff]), signed(&[0xff, 0])],
            [Some(0), Some(-1), Some(255)]
        );
        assert_eq!(signed(&[0; 9]), None);
    }
}
