//! exFAT: used clusters from the allocation bitmap, and files. All numbers are little-endian. Terms and sections are those
//! of Microsoft's exFAT specification (August 2019).

mod files;

use std::io;
use std::ops::Range;

use linux::medium::ReadAt;

use crate::node::FileError;
use crate::table::{Chains, Link, Width};
use crate::window::{le16, le32, le64, read, runs};
use crate::{OpaqueReason, Ranges};

const NAME: &[u8] = b"EXFAT   ";
/// Volume flags (§3.1.13): the second table and bitmap are in use, the volume is in use, it has errors.
const SECOND: u16 = 1;
const UNCLEAN: u16 = 2 | 4;
/// Type of the directory entry of the allocation bitmap (§7.1), of the end of a directory, and their size.
const BITMAP: u8 = 0x81;
const END: u8 = 0;
const ENTRY: usize = 32;
/// The most clusters (§3.1.9).
const MAX_CLUSTERS: u32 = u32::MAX - 10;
/// The most clusters of the root directory that are searched: the bitmap is at its beginning.
const MAX_ROOT: usize = 64;

/// Layout of a volume from its boot sector (§3.1).
#[derive(Debug)]
pub(crate) struct Volume {
    cluster: u64,
    clusters: u64,
    /// Position of the table.
    table: u64,
    /// Position of the first cluster, which has the number 2.
    data: u64,
    root: u32,
    is_clean: bool,
}

/// Whether there is a boot sector of exFAT at `start`.
pub(crate) fn is_at<R: ReadAt + ?Sized>(disk: &R, start: u64) -> io::Result<bool> {
    let boot = read(disk, start, 512)?;
    Ok(boot.is_some_and(|boot| boot.get(3..11) == Some(NAME)))
}

/// The used bytes of the volume at `place`, as positions on the disk.
pub(crate) fn usage<R: ReadAt + ?Sized>(
    disk: &R,
    place: &Range<u64>,
) -> io::Result<Result<Ranges, OpaqueReason>> {
    let Some(boot) = read(disk, place.start, 512)? else { return Ok(Err(OpaqueReason::Damaged)) };
    let volume = match Volume::parse(&boot, place) {
        Ok(volume) if !volume.is_clean => return Ok(Err(OpaqueReason::Unclean)),
        Ok(volume) => volume,
        Err(reason) => return Ok(Err(reason)),
    };
    let Some(bitmap) = volume.bitmap(disk)? else { return Ok(Err(OpaqueReason::Damaged)) };
    let used = runs(&bitmap.bytes, volume.clusters);
    // It has itself and the root directory.
    let is_used = |cluster: &u32| {
        let from_zero = u64::from(*cluster).saturating_sub(2);
        used.iter().any(|run| run.contains(&from_zero))
    };
    if !bitmap.clusters.iter().all(is_used) || !is_used(&volume.root) {
        return Ok(Err(OpaqueReason::Damaged));
    }
    let mut bytes: Ranges = used.iter().map(|clusters| volume.bytes(clusters)).collect();
    // Boot regions and tables, and what follows the last cluster.
    bytes.insert(place.start..volume.data);
    bytes.insert(volume.bytes(&(0..volume.clusters)).end..place.end);
    Ok(Ok(bytes))
}

/// The allocation bitmap, and the clusters that hold it.
struct Bitmap {
    bytes: Vec<u8>,
    clusters: Vec<u32>,
}

impl Volume {
    fn parse(boot: &[u8], place: &Range<u64>) -> Result<Self, OpaqueReason> {
        let flags = le16(boot, 106).ok_or(OpaqueReason::Damaged)?;
        if flags & SECOND != 0 || boot.get(110) != Some(&1) {
            return Err(OpaqueReason::Feature);
        }
        Self::layout(boot, place, flags & UNCLEAN == 0).ok_or(OpaqueReason::Damaged)
    }

    /// Opens a volume to read its files, also one that was not unmounted cleanly.
    ///
    /// # Errors
    /// The disk cannot be read, or the volume is damaged or not supported.
    pub(crate) fn open<R: ReadAt + ?Sized>(
        disk: &R,
        place: &Range<u64>,
    ) -> Result<Self, FileError> {
        let boot = read(disk, place.start, 512)?.ok_or(OpaqueReason::Damaged)?;
        Ok(Self::parse(&boot, place)?)
    }

    /// Returns whether the volume was unmounted cleanly.
    pub(crate) fn is_clean(&self) -> bool {
        self.is_clean
    }

    fn chains(&self) -> Chains {
        let Self { table, data, cluster, clusters, .. } = *self;
        Chains { width: Width::Exfat, table, data, cluster, clusters }
    }

    fn layout(boot: &[u8], place: &Range<u64>, is_clean: bool) -> Option<Self> {
        let shift = |at: usize, max: u8| boot.get(at).copied().filter(|shift| *shift <= max);
        let (sector_shift, cluster_shift) =
            (shift(108, 12).filter(|it| *it >= 9)?, shift(109, 25)?);
        let sector = 1_u64 << sector_shift;
        let cluster = sector.checked_shl(cluster_shift.into()).filter(|size| *size <= 32 << 20)?;
        let at = |offset| place.start.checked_add(u64::from(le32(boot, offset)?) * sector);
        let (table, data) = (at(80)?, at(88)?);
        let length = u64::from(le32(boot, 84)?) * sector;
        let clusters = le32(boot, 92).filter(|clusters| *clusters <= MAX_CLUSTERS)?;
        let clusters = u64::from(clusters);
        let end = clusters.checked_mul(cluster)?.checked_add(data)?;
        let possible = clusters > 0
            && end <= place.end
            && table > place.start
            && table.checked_add(length)? <= data
            && (clusters + 2) * 4 <= length;
        let root = le32(boot, 96).filter(|_| possible)?;
        Some(Self { cluster, clusters, table, data, root, is_clean })
    }

    /// Reads the allocation bitmap; `None` if it is not found.
    fn bitmap<R: ReadAt + ?Sized>(&self, disk: &R) -> io::Result<Option<Bitmap>> {
        let mut at = self.root;
        for _ in 0..MAX_ROOT {
            let Some(place) = self.place(at) else { return Ok(None) };
            // The part of a cluster that is read at most.
            let Some(bytes) = read(disk, place, self.cluster.min(1 << 20))? else {
                return Ok(None);
            };
            for entry in bytes.chunks_exact(ENTRY) {
                match entry.first() {
                    Some(&BITMAP) if entry.get(1).is_some_and(|flags| flags & 1 == 0) => {
                        let found = le32(entry, 20).zip(le64(entry, 24));
                        let Some((first, length)) = found else { return Ok(None) };
                        return self.chain(disk, first, length);
                    }
                    Some(&END) | None => return Ok(None),
                    _ => {}
                }
            }
            let Some(next) = self.next(disk, at)? else { return Ok(None) };
            at = next;
        }
        Ok(None)
    }

    /// Reads the bitmap, a chain of clusters; `None` if that is too short or too long.
    fn chain<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        first: u32,
        length: u64,
    ) -> io::Result<Option<Bitmap>> {
        if length != self.clusters.div_ceil(8) {
            return Ok(None);
        }
        let (mut at, mut bytes, mut clusters) = (first, Vec::new(), Vec::new());
        loop {
            let Some(place) = self.place(at) else { return Ok(None) };
            let missing = length - bytes.len() as u64;
            let Some(piece) = read(disk, place, self.cluster.min(missing).min(16 << 20))? else {
                return Ok(None);
            };
            let is_whole = piece.len() as u64 == self.cluster.min(missing);
            bytes.extend(piece);
            clusters.push(at);
            if bytes.len() as u64 == length {
                return Ok(Some(Bitmap { bytes, clusters }));
            }
            match self.next(disk, at)?.filter(|_| is_whole) {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
    }

    /// Returns the next cluster of a chain (§4.1).
    fn next<R: ReadAt + ?Sized>(&self, disk: &R, cluster: u32) -> io::Result<Option<u32>> {
        Ok(match self.chains().link(disk, cluster)? {
            Link::Next(next) => Some(next),
            Link::End | Link::Broken => None,
        })
    }

    /// The position of a cluster by its number, if there is such a one.
    fn place(&self, cluster: u32) -> Option<u64> {
        self.chains().place(cluster)
    }

    /// The position of clusters, counted from 0.
    fn bytes(&self, clusters: &Range<u64>) -> Range<u64> {
        self.chains().bytes(clusters)
    }
}
