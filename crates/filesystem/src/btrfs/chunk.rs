//! Chunks: the places of logical addresses on the device.

use std::collections::BTreeMap;
use std::ops::Range;

use super::key::Key;
use crate::Ranges;
use crate::window::{le16, le64};

/// The type of an item that is a chunk, and its object.
const CHUNK_ITEM: u8 = 228;
const CHUNKS: u64 = 256;
/// Bytes of a chunk item without its stripes, and of a stripe.
const HEADER: usize = 48;
const STRIPE: usize = 32;
/// Kinds of contents, and of redundancy: one copy, or two on the same device (DUP).
const CONTENTS: u64 = 0x1 | 0x2 | 0x4;
const DUP: u64 = 0x20;

#[derive(Debug, Clone)]
struct Chunk {
    /// End of the logical addresses.
    end: u64,
    /// Number of the device, and position of each copy; none if the kind of redundancy is not supported.
    copies: Vec<(u64, u64)>,
}

/// Chunks by the first logical address.
#[derive(Debug, Clone, Default)]
pub(super) struct Chunks(BTreeMap<u64, Chunk>);

impl Chunks {
    /// Adds a chunk item. Returns its length; `None` if it is none.
    pub(super) fn add(&mut self, key: &Key, item: &[u8]) -> Option<usize> {
        if (key.object, key.kind) != (CHUNKS, CHUNK_ITEM) {
            return None;
        }
        let (length, kind) = (le64(item, 0)?, le64(item, 24)?);
        let stripes = usize::from(le16(item, 44)?);
        if stripes == 0 || length == 0 {
            return None;
        }
        let is_supported =
            kind & !(CONTENTS | DUP) == 0 && stripes == if kind & DUP == 0 { 1 } else { 2 };
        let stripe = |at: usize| {
            let at = HEADER + at * STRIPE;
            let (device, position) = (le64(item, at)?, le64(item, at + 8)?);
            position.checked_add(length).map(|_| (device, position))
        };
        let copies = (0..stripes).map(stripe).collect::<Option<Vec<_>>>()?;
        let copies = if is_supported { copies } else { Vec::new() };
        let end = key.offset.checked_add(length)?;
        self.0.insert(key.offset, Chunk { end, copies });
        Some(HEADER + stripes * STRIPE)
    }

    /// Whether there are chunks of a kind of redundancy that is not supported.
    pub(super) fn has_unsupported(&self) -> bool {
        self.0.values().any(|chunk| chunk.copies.is_empty())
    }

    /// Whether no chunks overlap, and all of them are on this device, within its first `total` bytes.
    pub(super) fn are_within(&self, device: u64, total: u64) -> bool {
        let is_within = |(start, chunk): (&u64, &Chunk)| {
            let end = |at: u64| at.saturating_add(chunk.end - start);
            chunk.copies.iter().all(|(on, at)| *on == device && end(*at) <= total)
        };
        let next = self.0.keys().skip(1);
        self.0.iter().all(is_within)
            && self.0.values().zip(next).all(|(chunk, next)| chunk.end <= *next)
    }

    /// The places of the copies of logical addresses that are in one chunk.
    pub(super) fn copies(&self, addresses: &Range<u64>) -> Option<Vec<Range<u64>>> {
        let (start, chunk) = self.0.range(..=addresses.start).next_back()?;
        if addresses.end > chunk.end {
            return None;
        }
        let (from, to) = (addresses.start - start, addresses.end.checked_sub(*start)?);
        let copy = |(_, at): &(u64, u64)| Some(at.checked_add(from)?..at.checked_add(to)?);
        chunk.copies.iter().map(copy).collect()
    }

    /// The places of all copies of these addresses; `None` if some are in no chunk.
    pub(super) fn places(&self, addresses: &Ranges) -> Option<Ranges> {
        let mut places = Ranges::default();
        for range in addresses.iter() {
            let mut at = range.start;
            while at < range.end {
                let (_, chunk) = self.0.range(..=at).next_back()?;
                let end = range.end.min(chunk.end);
                // Past the end of its chunk the first address is in none.
                self.copies(&(at..end.max(at + 1)))?.into_iter().for_each(|it| places.insert(it));
                at = end;
            }
        }
        Some(places)
    }
}
