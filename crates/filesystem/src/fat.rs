//! FAT12, FAT16 and FAT32: used clusters from the file allocation tables, and files. All numbers are little-endian. Terms
//! and sections are those of Microsoft's FAT specification (August 2005).

mod files;

use std::io;
use std::ops::Range;

use linux::medium::ReadAt;

use crate::node::FileError;
use crate::table::{Chains, Width};
use crate::window::{le16, le32, read};
use crate::{OpaqueReason, Ranges};

/// Bytes of a table per read; a multiple of the size of an entry.
const BATCH: u64 = 1 << 20;
/// Largest number of clusters with entries of 12 and of 16 bits, as Linux has it.
const MAX_FAT12: u64 = 4084;
const MAX_FAT16: u64 = 65524;
/// The most clusters of FAT32: entries have 28 bits.
const MAX_FAT32: u64 = 0x0fff_fff4;
/// Offsets of the byte whose first bit says that the volume is in use, as Linux sets it: for tables of 12 and
/// 16 bits, and of 32.
const STATE: usize = 37;
const STATE_32: usize = 65;

/// Layout of a volume from its boot sector (§3).
#[derive(Debug)]
pub(crate) struct Volume {
    cluster: u64,
    clusters: u64,
    width: Width,
    /// Positions of the tables.
    tables: Vec<u64>,
    /// Position of the first cluster, which has the number 2.
    data: u64,
    in_use: bool,
    /// Media descriptor, with which the first entry of a table begins (§4.1).
    media: u32,
    /// Number of the first cluster of the root directory, if that is in clusters.
    root: Option<u64>,
    /// Position of the root directory otherwise.
    fixed_root: Range<u64>,
    /// The table that counts (§3.3).
    active: usize,
}

/// Whether there is a boot sector of FAT at `start`.
pub(crate) fn is_at<R: ReadAt + ?Sized>(disk: &R, start: u64) -> io::Result<bool> {
    let boot = read(disk, start, 512)?;
    Ok(boot.is_some_and(|boot| Volume::parse(&boot, start).is_some()))
}

/// The used bytes of the volume at `place`, as positions on the disk. A cluster counts if any of the tables
/// has it.
pub(crate) fn usage<R: ReadAt + ?Sized>(
    disk: &R,
    place: &Range<u64>,
) -> io::Result<Result<Ranges, OpaqueReason>> {
    let boot = read(disk, place.start, 512)?;
    let Some(volume) = boot.and_then(|boot| Volume::parse(&boot, place.start)) else {
        return Ok(Err(OpaqueReason::Damaged));
    };
    if volume.bytes(&(0..volume.clusters)).end > place.end {
        return Ok(Err(OpaqueReason::Damaged));
    }
    if volume.in_use {
        return Ok(Err(OpaqueReason::Unclean));
    }
    let mut used = Ranges::default();
    for table in &volume.tables {
        match volume.table(disk, *table, &mut used)? {
            Ok(()) => {}
            Err(reason) => return Ok(Err(reason)),
        }
    }
    let has_root = |cluster: u64| {
        let first = cluster.checked_sub(2);
        first.is_some_and(|first| used.intersects(&(first..first + 1)))
    };
    if !volume.root.is_none_or(has_root) {
        return Ok(Err(OpaqueReason::Damaged));
    }
    let mut bytes: Ranges = used.iter().map(|clusters| volume.bytes(&clusters)).collect();
    // Boot sector, tables and the root directory of small volumes, and what follows the last cluster.
    bytes.insert(place.start..volume.data);
    bytes.insert(volume.bytes(&(0..volume.clusters)).end..place.end);
    Ok(Ok(bytes))
}

impl Volume {
    fn parse(boot: &[u8], start: u64) -> Option<Self> {
        let short = |offset| le16(boot, offset).map(u64::from);
        let long = |offset| le32(boot, offset).map(u64::from);
        let byte = |offset| boot.get(offset).map(|byte| u64::from(*byte));
        let is_either = |short: u64, long: u64| if short == 0 { long } else { short };
        let (sector, per_cluster) = (short(11)?, byte(13)?);
        let (reserved, number, media) = (short(14)?, byte(16)?, byte(21)?);
        let is_wide = short(22)? == 0;
        let mirrors = boot.get(40).copied();
        let table = is_either(short(22)?, long(36)?).checked_mul(sector)?;
        let sectors = is_either(short(19)?, long(32)?);
        let root = (short(17)? * 32).next_multiple_of(sector.max(1));
        let possible = boot.ends_with(&[0x55, 0xaa])
            && (boot.starts_with(&[0xeb]) || boot.starts_with(&[0xe9]))
            && sector.is_power_of_two()
            && (512..=4096).contains(&sector)
            && per_cluster.is_power_of_two()
            && (1..=2).contains(&number)
            && (reserved > 0 && media >= 0xf0 && table > 0)
            && is_wide == (root == 0);
        let first = start.checked_add(reserved * sector)?;
        let data = first.checked_add(number.checked_mul(table)?)?.checked_add(root)?;
        let end = start.checked_add(sectors.checked_mul(sector)?)?;
        let cluster = sector.checked_mul(per_cluster).filter(|_| possible)?;
        let clusters = end.checked_sub(data)? / cluster;
        let (width, limit, state) = match clusters {
            _ if is_wide => (Width::ThirtyTwo, MAX_FAT32, STATE_32),
            0..=MAX_FAT12 => (Width::Twelve, MAX_FAT12, STATE),
            _ => (Width::Sixteen, MAX_FAT16, STATE),
        };
        let fits = width.bytes(clusters + 2) <= table;
        let tables = (0..number).map(|number| first + number * table).collect();
        let in_use = byte(state)? & 1 != 0;
        (fits && (1..=limit).contains(&clusters)).then_some(Self {
            cluster,
            clusters,
            width,
            tables,
            data,
            in_use,
            media: u32::try_from(media).ok()?,
            root: is_wide.then(|| long(44)).flatten(),
            fixed_root: data - root..data,
            active: usize::from(mirrors.filter(|it| is_wide && it & 0x80 != 0).unwrap_or(0) & 15),
        })
    }

    /// Opens a volume to read its files, also one that was not unmounted cleanly.
    ///
    /// # Errors
    /// The disk cannot be read, or the volume is damaged.
    pub(crate) fn open<R: ReadAt + ?Sized>(
        disk: &R,
        place: &Range<u64>,
    ) -> Result<Self, FileError> {
        let boot = read(disk, place.start, 512)?;
        let volume = boot.and_then(|boot| Self::parse(&boot, place.start));
        let volume = volume.filter(|volume| volume.bytes(&(0..volume.clusters)).end <= place.end);
        Ok(volume.ok_or(OpaqueReason::Damaged)?)
    }

    /// Returns whether the volume was unmounted cleanly.
    pub(crate) fn is_clean<R: ReadAt + ?Sized>(&self, disk: &R) -> io::Result<bool> {
        let start = read(disk, self.chains().table, 8)?.unwrap_or_default();
        Ok(!self.in_use && !self.width.says_unclean(&start))
    }

    fn chains(&self) -> Chains {
        let table = self.tables.get(self.active).or_else(|| self.tables.first()).copied();
        let Self { width, data, cluster, clusters, .. } = *self;
        Chains { width, table: table.unwrap_or_default(), data, cluster, clusters }
    }

    /// Adds the clusters that a table does not have free, counted from 0.
    fn table<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        at: u64,
        used: &mut Ranges,
    ) -> io::Result<Result<(), OpaqueReason>> {
        let bytes = self.width.bytes(self.clusters + 2);
        for offset in (0..bytes).step_by(usize::try_from(BATCH).unwrap_or(usize::MAX)) {
            // An entry of 12 bits is in two bytes; such a table is read at once.
            let piece = read(disk, at + offset, BATCH.min(bytes - offset))?;
            let Some(piece) = piece else { return Ok(Err(OpaqueReason::Damaged)) };
            let first = self.width.entries(offset);
            if offset == 0 && self.width.entry(&piece, 0).map(|it| it & 0xff) != Some(self.media) {
                return Ok(Err(OpaqueReason::Damaged));
            }
            if offset == 0 && self.width.says_unclean(&piece) {
                return Ok(Err(OpaqueReason::Unclean));
            }
            let entries = first..self.width.entries(offset + piece.len() as u64);
            let (mut from, mut last) = (None, first);
            for entry in entries.start.max(2)..entries.end.min(self.clusters + 2) {
                let is_used = self.width.entry(&piece, entry - first) != Some(0);
                match (is_used, from) {
                    (true, None) => from = Some(entry - 2),
                    (false, Some(start)) => {
                        used.insert(start..entry - 2);
                        from = None;
                    }
                    _ => {}
                }
                last = entry + 1;
            }
            from.into_iter().for_each(|start| used.insert(start..last - 2));
        }
        Ok(Ok(()))
    }

    /// The position of clusters, counted from 0.
    fn bytes(&self, clusters: &Range<u64>) -> Range<u64> {
        self.chains().bytes(clusters)
    }
}

impl Width {
    /// Whether the second entry says that the volume is in use, or has errors (§4.1).
    fn says_unclean(self, table: &[u8]) -> bool {
        let good = match self {
            Self::Twelve | Self::Exfat => return false,
            Self::Sixteen => 0xc000,
            Self::ThirtyTwo => 0x0c00_0000,
        };
        self.entry(table, 1).is_none_or(|entry| entry & good != good)
    }
}
