//! NTFS: used clusters from the bitmap and the file records, the file that a cluster belongs to, and
//! files. All numbers are little-endian.

mod files;
mod journal;
mod record;

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use linux::medium::ReadAt;

use crate::window::{le16, le64, read, runs};
use crate::{DirEntries, OpaqueReason, Owner, Ranges, path, replace_control};
use record::{Content, Record};

const NAME: &[u8] = b"NTFS    ";
/// Numbers of metadata records.
const MFT: u64 = 0;
const JOURNAL: u64 = 2;
const VOLUME: u64 = 3;
const ROOT: u64 = 5;
const BITMAP: u64 = 6;
/// First record of a user's file.
const FIRST: u64 = 24;
/// Volume flag: not cleanly unmounted.
const DIRTY: u16 = 1;
const MOST_RECORDS: u64 = 1 << 28;
/// Bytes of records per read.
const BATCH: u64 = 1 << 20;

/// Layout of a volume from its boot sector.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    start: u64,
    cluster: u64,
    clusters: u64,
    record: u64,
    /// Clusters of the MFT, in order.
    mft: Vec<Range<u64>>,
}

/// Whether there is a boot sector of NTFS at `start`.
pub(crate) fn is_at<R: ReadAt + ?Sized>(disk: &R, start: u64) -> bool {
    let boot = read(disk, start, 512);
    boot.is_ok_and(|boot| boot.is_some_and(|boot| boot.get(3..11) == Some(NAME)))
}

/// The used bytes of the volume at `place`, as positions on the disk. Clusters of a file count even
/// if the bitmap has them free.
pub(crate) fn usage<R: ReadAt + ?Sized>(
    disk: &R,
    place: &Range<u64>,
) -> io::Result<Result<Ranges, OpaqueReason>> {
    let volume = match Volume::open(disk, place)? {
        Ok(volume) => volume,
        Err(reason) => return Ok(Err(reason)),
    };
    let Some(mut used) = volume.bitmap(disk)? else { return Ok(Err(OpaqueReason::Damaged)) };
    volume.each_record(disk, &mut |_, record| {
        record.clusters().into_iter().for_each(|clusters| used.insert(clusters));
    })?;
    let mut bytes: Ranges = used.iter().map(|clusters| volume.bytes(&clusters)).collect();
    // The boot sector, and its copy behind the last cluster.
    bytes.insert(place.start..place.start.saturating_add(volume.cluster));
    bytes.insert(volume.bytes(&(0..volume.clusters)).end..place.end);
    Ok(Ok(bytes))
}

/// The owners of byte ranges.
pub(crate) fn owners<R: ReadAt + ?Sized>(
    disk: &R,
    place: &Range<u64>,
    wanted: &Ranges,
) -> io::Result<Result<BTreeSet<Owner>, OpaqueReason>> {
    let volume = match Volume::open(disk, place)? {
        Ok(volume) => volume,
        Err(reason) => return Ok(Err(reason)),
    };
    let wanted: Ranges = wanted.iter().map(|bytes| volume.clusters_of(&bytes)).collect();
    let (mut rest, mut held) = (wanted.clone(), BTreeSet::new());
    let mut named = DirEntries::new();
    volume.each_record(disk, &mut |number, record| {
        let number = record.base().unwrap_or(number);
        for clusters in record.clusters() {
            if wanted.intersects(&clusters) {
                held.insert(number);
                rest.remove(clusters);
            }
        }
        if let Some((parent, name)) = record.name() {
            named.insert(number, (parent, replace_control(&name)));
        }
    })?;
    let owner = |number: &u64| match path(&named, ROOT, *number) {
        _ if *number < FIRST && *number != ROOT => Owner::Structure,
        Some(path) => Owner::File(path),
        None => Owner::File(format!("record {number}")),
    };
    let mut found: BTreeSet<Owner> = held.iter().map(owner).collect();
    found.extend((!rest.is_empty()).then_some(Owner::Free));
    Ok(Ok(found))
}

impl Volume {
    fn open<R: ReadAt + ?Sized>(
        disk: &R,
        place: &Range<u64>,
    ) -> io::Result<Result<Self, OpaqueReason>> {
        let boot = read(disk, place.start, 512)?;
        let volume = boot.and_then(|boot| Self::parse(&boot, place));
        let Some(mut volume) = volume else { return Ok(Err(OpaqueReason::Damaged)) };
        // The first record locates the others.
        let Some(own) = volume.record(disk, MFT)? else { return Ok(Err(OpaqueReason::Damaged)) };
        match own.data() {
            // Further records have the rest of it.
            _ if own.is_split() => return Ok(Err(OpaqueReason::Feature)),
            Some(Content::Clusters(runs, _)) => volume.mft = runs,
            _ => return Ok(Err(OpaqueReason::Damaged)),
        }
        Ok(volume.check_clean(disk)?.map(|()| volume))
    }

    fn parse(boot: &[u8], place: &Range<u64>) -> Option<Self> {
        let sector = u64::from(le16(boot, 11)?);
        let per_cluster = match *boot.get(13)? {
            few @ 1..=128 => u64::from(few),
            shift => 1_u64.checked_shl(256 - u32::from(shift))?,
        };
        let cluster = sector.checked_mul(per_cluster).filter(|size| size.is_power_of_two())?;
        let record = match boot.get(64)?.cast_signed() {
            shift @ -31..=-1 => 1_u64 << shift.unsigned_abs(),
            clusters @ 1.. => u64::try_from(clusters).ok()?.checked_mul(cluster)?,
            _ => return None,
        };
        let clusters = le64(boot, 40)?.checked_mul(sector)? / cluster;
        let end = clusters.checked_mul(cluster)?.checked_add(place.start)?;
        let first = le64(boot, 48).filter(|first| *first < clusters)?;
        let possible = (512..=2 << 20).contains(&cluster)
            && (256..=65536).contains(&record)
            && record.is_power_of_two()
            && end <= place.end;
        // At first only the record of the MFT itself, which locates the others.
        let mft = std::iter::once(first..first + record.div_ceil(cluster)).collect();
        possible.then_some(Self { start: place.start, cluster, clusters, record, mft })
    }

    /// Checks that the volume was cleanly unmounted.
    pub(crate) fn check_clean<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
    ) -> io::Result<Result<(), OpaqueReason>> {
        let volume = self.record(disk, VOLUME)?;
        Ok(match volume.and_then(|record| record.volume_flags()) {
            None => Err(OpaqueReason::Damaged),
            Some(flags) if flags & DIRTY != 0 => Err(OpaqueReason::Unclean),
            Some(_) if !self.is_clean(disk)? => Err(OpaqueReason::Unclean),
            Some(_) => Ok(()),
        })
    }

    /// Whether the journal needs no replay. A Windows that is hibernated or has used fast startup
    /// marks the volume in no other way.
    fn is_clean<R: ReadAt + ?Sized>(&self, disk: &R) -> io::Result<bool> {
        let Some(record) = self.record(disk, JOURNAL)? else { return Ok(false) };
        let Some(Content::Clusters(runs, len)) = record.data() else { return Ok(false) };
        let Some(first) = runs.first().map(|run| self.bytes(run)) else { return Ok(false) };
        let len = len.min(first.end - first.start).min(journal::HEAD);
        Ok(read(disk, first.start, len)?.is_some_and(|head| journal::is_clean(&head)))
    }

    /// The clusters that are used in the bitmap.
    fn bitmap<R: ReadAt + ?Sized>(&self, disk: &R) -> io::Result<Option<Ranges>> {
        let Some(record) = self.record(disk, BITMAP)? else { return Ok(None) };
        let bytes = match record.data() {
            _ if record.is_split() => return Ok(None),
            Some(Content::Clusters(runs, len)) => self.whole(disk, &runs, len)?,
            Some(Content::Resident(bytes)) => Some(bytes),
            None => None,
        };
        let long_enough = |bytes: &Vec<u8>| bytes.len() as u64 >= self.clusters.div_ceil(8);
        let bytes = bytes.filter(long_enough);
        Ok(bytes.map(|bytes| runs(&bytes, self.clusters).into_iter().collect()))
    }

    fn whole<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        runs: &[Range<u64>],
        len: u64,
    ) -> io::Result<Option<Vec<u8>>> {
        if len > self.clusters.div_ceil(8).saturating_add(self.cluster) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        for run in runs {
            let mut place = self.bytes(run);
            while place.start < place.end {
                let len = BATCH.min(place.end - place.start);
                let Some(part) = read(disk, place.start, len)? else { return Ok(None) };
                bytes.extend(part);
                place.start += len;
            }
        }
        bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX));
        Ok(Some(bytes))
    }

    /// A record by its number; `None` if it is not in use.
    fn record<R: ReadAt + ?Sized>(&self, disk: &R, number: u64) -> io::Result<Option<Record>> {
        let Some(at) = self.record_range(number) else { return Ok(None) };
        Ok(read(disk, at, self.record)?.and_then(|bytes| Record::parse(bytes, self.clusters)))
    }

    /// The position of a record on the disk, in bytes.
    fn record_range(&self, number: u64) -> Option<u64> {
        let mut offset = number.checked_mul(self.record)?;
        for run in &self.mft {
            let place = self.bytes(run);
            if offset < place.end - place.start {
                return Some(place.start + offset);
            }
            offset -= place.end - place.start;
        }
        None
    }

    /// Calls `take` for each record in use, with its number.
    fn each_record<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        tell: &mut dyn FnMut(u64, &Record),
    ) -> io::Result<()> {
        let mut number = 0;
        for run in &self.mft {
            let mut place = self.bytes(run);
            while place.start < place.end && number < MOST_RECORDS {
                let len = BATCH.min(place.end - place.start);
                let bytes = read(disk, place.start, len)?.unwrap_or_default();
                let size = usize::try_from(self.record).unwrap_or(1024);
                for record in bytes.chunks_exact(size) {
                    if let Some(record) = Record::parse(record.to_vec(), self.clusters) {
                        tell(number, &record);
                    }
                    number += 1;
                }
                place.start += len;
            }
        }
        Ok(())
    }

    fn bytes(&self, clusters: &Range<u64>) -> Range<u64> {
        let at = |cluster: u64| self.start.saturating_add(cluster.saturating_mul(self.cluster));
        at(clusters.start)..at(clusters.end)
    }

    fn clusters_of(&self, bytes: &Range<u64>) -> Range<u64> {
        let at = |byte: u64| byte.saturating_sub(self.start);
        at(bytes.start) / self.cluster..at(bytes.end).div_ceil(self.cluster)
    }
}
