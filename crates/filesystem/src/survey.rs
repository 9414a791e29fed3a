//! Summary of a disk: its partition table, its file systems, and the block size that they were made
//! for.

use std::fmt;
use std::io;
use std::ops::Range;

use linux::gpt::backup_end;
use linux::medium::ReadAt;
use linux::partition::{Entry, Scheme, Table};
use linux::signature::{self, Kind, Signature};

use crate::{EXTENDED, PartitionView, window};

/// Maximum number of partitions to probe.
const MAX_PARTITIONS: usize = 32;
/// Bytes at each end of a disk that must be zeros for it to look empty, and bytes per read.
const MARGIN: u64 = 1 << 20;
const READ_LEN: u64 = 64 << 10;
/// Bytes at the start of a disk that contain a partition table.
const HEAD: u64 = 32 << 10;
/// Default block size of an MBR.
const DEFAULT_BLOCK: u32 = 512;
/// The other block size of disks, and the number of partitions that are probed for it.
const LARGE_BLOCK: u32 = 4096;
const MAX_PROBED: usize = 4;

/// Summary of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Kind of the partition table.
    pub table: Option<Scheme>,
    /// Block size of the table; 0 without a table.
    pub block: u32,
    /// Number of partitions.
    pub partitions: u32,
    /// End of the backup GPT, in bytes.
    pub backup_end: Option<u64>,
    /// Signatures found on the disk and in its partitions.
    pub contents: Vec<Content>,
    /// Whether no signature was found and both ends of the disk are zeros.
    pub empty: bool,
}

/// A file system or other content that has a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Partition number; 0 for the whole disk.
    pub partition: u32,
    /// Type, as printed by `blkid`.
    pub kind: String,
    pub label: Option<String>,
    /// Sector or block size in bytes: it cannot be mounted from a disk with larger logical blocks.
    /// `None` if it is not known or does not matter.
    pub unit: Option<u32>,
}

/// Surveys a disk of `bytes` bytes. `block` is its logical block size, if it has one, in which an
/// MBR counts.
///
/// # Errors
/// Fails if the disk cannot be read where it must be.
pub fn survey<R: ReadAt + ?Sized>(disk: &R, bytes: u64, block: Option<u32>) -> io::Result<Survey> {
    let found = signature::probe(disk, bytes)?;
    // A protective MBR is not a table by itself.
    let protects = |table: &Table| table.entries.iter().any(|entry| entry.kind == "ee");
    let hidden = found.table.as_ref().is_none_or(protects);
    if hidden && found.unreadable.is_some_and(|at| at < HEAD) {
        return Err(io::Error::other("the place of the partition table cannot be read"));
    }
    let mut survey =
        Survey { contents: contents(disk, 0, &found.signatures)?, ..Survey::default() };
    if let Some(table) = found.table {
        survey.block = match table.scheme {
            Scheme::Gpt => table.block_size,
            Scheme::Mbr => mbr_block(disk, &table.entries, bytes, block)?,
        };
        survey.table = Some(table.scheme);
        survey.partitions = u32::try_from(table.entries.len()).unwrap_or(u32::MAX);
        if table.scheme == Scheme::Gpt {
            survey.backup_end = backup_end(disk, table.block_size)?;
        }
        let scale = u64::from(survey.block / table.block_size.max(1)).max(1);
        for entry in table.entries.iter().take(MAX_PARTITIONS) {
            let Some(place) = place(entry, scale, bytes) else { continue };
            let inside = PartitionView { disk, place: place.clone() };
            let found = signature::probe(&inside, place.end - place.start)?;
            survey.contents.extend(contents(&inside, entry.number, &found.signatures)?);
        }
    }
    let nothing = survey.table.is_none() && survey.contents.is_empty();
    // Unreadable ranges may hold data.
    survey.empty = nothing && found.unreadable.is_none() && zeros(disk, bytes).unwrap_or(false);
    Ok(survey)
}

/// The block size of an MBR: the one with which a signature is found at the start of a partition,
/// else that of the disk.
fn mbr_block<R: ReadAt + ?Sized>(
    disk: &R,
    entries: &[Entry],
    bytes: u64,
    block: Option<u32>,
) -> io::Result<u32> {
    let default = block.filter(|block| *block >= DEFAULT_BLOCK).unwrap_or(DEFAULT_BLOCK);
    for block in [default, DEFAULT_BLOCK, LARGE_BLOCK] {
        let scale = u64::from(block / DEFAULT_BLOCK);
        for place in entries.iter().take(MAX_PROBED).filter_map(|entry| place(entry, scale, bytes))
        {
            let inside = PartitionView { disk, place: place.clone() };
            if !signature::probe(&inside, place.end - place.start)?.signatures.is_empty() {
                return Ok(block);
            }
        }
    }
    Ok(default)
}

fn place(entry: &Entry, scale: u64, bytes: u64) -> Option<Range<u64>> {
    let start = entry.start.checked_mul(scale)?;
    let end = entry.bytes.checked_mul(scale)?.checked_add(start)?;
    let plain = entry.bytes > 0 && !EXTENDED.contains(&&*entry.kind);
    (plain && end <= bytes).then_some(start..end)
}

fn contents<R: ReadAt + ?Sized>(
    disk: &R,
    partition: u32,
    signatures: &[Signature],
) -> io::Result<Vec<Content>> {
    let content = |signature: &Signature| {
        Ok(Content {
            partition,
            kind: signature.kind.word().to_owned(),
            label: signature.label.clone(),
            unit: unit(disk, signature.kind).unwrap_or(None),
        })
    };
    signatures.iter().map(content).collect()
}

/// The sector or block size of a file system, in bytes.
fn unit<R: ReadAt + ?Sized>(disk: &R, kind: Kind) -> io::Result<Option<u32>> {
    let field = |at: u64, len: u64| window::read(disk, at, len);
    let number = |bytes: Option<Vec<u8>>| {
        let bytes = bytes?;
        Some(bytes.iter().rev().fold(0_u32, |number, byte| number << 8 | u32::from(*byte)))
    };
    let power = |base: u32, shift: Option<u32>| base.checked_shl(shift.filter(|it| *it <= 16)?);
    Ok(match kind {
        Kind::Vfat | Kind::Ntfs => number(field(11, 2)?),
        Kind::Exfat => power(1, number(field(108, 1)?)),
        Kind::Ext2 | Kind::Ext3 | Kind::Ext4 => power(1024, number(field(1048, 4)?)),
        // Big-endian.
        Kind::Xfs => {
            field(102, 2)?.and_then(|it| Some(u16::from_be_bytes(*it.first_chunk()?).into()))
        }
        Kind::Btrfs => number(field(0x10090, 4)?),
        Kind::Iso9660 | Kind::Udf => Some(2048),
        _ => None,
    })
}

fn zeros<R: ReadAt + ?Sized>(disk: &R, bytes: u64) -> io::Result<bool> {
    let tail = bytes.saturating_sub(MARGIN);
    let step = usize::try_from(READ_LEN).unwrap_or(1);
    let head = (0..MARGIN.min(bytes)).step_by(step);
    for at in head.chain((tail.max(MARGIN)..bytes).step_by(step)) {
        let piece = window::read(disk, at, READ_LEN.min(bytes - at))?;
        if piece.is_none_or(|piece| piece.iter().any(|byte| *byte != 0)) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Survey {
    /// The file systems that cannot be mounted from a disk with this logical block size.
    pub fn unmountable(&self, block: u32) -> impl Iterator<Item = &Content> {
        self.contents.iter().filter(move |content| content.unit.is_some_and(|unit| unit < block))
    }

    /// Whether the block size of the table is certain: a GPT shows it, an MBR only by the contents
    /// of its partitions.
    pub fn block_is_certain(&self) -> bool {
        self.table == Some(Scheme::Gpt) || self.contents.iter().any(|it| it.partition > 0)
    }

    /// A short description of what would be overwritten.
    pub fn describe(&self) -> String {
        let table = self.table.map(|scheme| {
            let scheme = match scheme {
                Scheme::Gpt => "GPT",
                Scheme::Mbr => "MBR",
            };
            match self.partitions {
                1 => format!("a partition table ({scheme}) with 1 partition"),
                number => format!("a partition table ({scheme}) with {number} partitions"),
            }
        });
        let all: Vec<String> =
            table.into_iter().chain(self.contents.iter().map(ToString::to_string)).collect();
        match (all.is_empty(), self.empty) {
            (false, _) => all.join(", "),
            (true, true) => "looks empty".to_owned(),
            (true, false) => "holds data that is not recognised".to_owned(),
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if let Some(label) = &self.label {
            write!(f, " \"{label}\"")?;
        }
        match self.partition {
            0 => Ok(()),
            number => write!(f, " on partition {number}"),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use linux::gpt::{Gpt, Partition};

    /// A disk with a FAT of 512-byte sectors in its first partition.
    fn disk(block: u32) -> Vec<u8> {
        let size = u64::from(block);
        let partition = Partition {
            kind: [9; 16],
            guid: [8; 16],
            first: (1 << 20) / size,
            last: (2 << 20) / size - 1,
            name: "x",
        };
        let gpt = Gpt::new(block, (4 << 20) / size, [1; 16], &[partition]);
        let mut disk = vec![0; 4 << 20];
        let (start, end) = (gpt.start(), gpt.end());
        disk[..start.len()].copy_from_slice(&start);
        let at = disk.len() - end.len();
        disk[at..].copy_from_slice(&end);
        disk[(1 << 20) + 11..][..2].copy_from_slice(&512_u16.to_le_bytes());
        disk[(1 << 20) + 71..][..11].copy_from_slice(b"EFI        ");
        disk[(1 << 20) + 82..][..8].copy_from_slice(b"FAT32   ");
        disk[(1 << 20) + 510..][..2].copy_from_slice(&[0x55, 0xaa]);
        disk
    }

    #[test]
    fn table_and_file_systems_are_described() {
        for block in [512, 4096] {
            let disk = disk(block);
            let survey = survey(&disk[..], 4 << 20, None).unwrap();
            assert_eq!((survey.table, survey.block), (Some(Scheme::Gpt), block));
            assert_eq!(survey.backup_end, Some(4 << 20));
            let said = "a partition table (GPT) with 1 partition, vfat \"EFI\" on partition 1";
            assert_eq!(survey.describe(), said);
            assert_eq!(survey.unmountable(4096).count(), 1);
            assert_eq!(survey.unmountable(512).count(), 0);
        }
    }

    /// A disk with an MBR for this block size, and a FAT in its only partition.
    fn with_mbr(block: usize) -> Vec<u8> {
        let mut disk = disk(512);
        disk[..1 << 20].fill(0);
        disk[446 + 4] = 0x0c;
        let (first, count) = ((1 << 20) / block, (1 << 20) / block);
        disk[446 + 8..446 + 12].copy_from_slice(&u32::try_from(first).unwrap().to_le_bytes());
        disk[446 + 12..446 + 16].copy_from_slice(&u32::try_from(count).unwrap().to_le_bytes());
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk
    }

    #[test]
    fn mbr_block_size_is_found_by_signatures() {
        for (block, default) in [(512, None), (512, Some(4096)), (4096, None), (4096, Some(512))] {
            let disk = with_mbr(usize::try_from(block).unwrap());
            let survey = survey(&disk[..], 4 << 20, default).unwrap();
            assert_eq!((survey.table, survey.block), (Some(Scheme::Mbr), block), "{default:?}");
            assert_eq!(survey.contents.len(), 1);
        }
        let mut disk = with_mbr(512);
        disk[1 << 20..2 << 20].fill(0);
        assert_eq!(survey(&disk[..], 4 << 20, Some(4096)).unwrap().block, 4096);
    }

    /// A disk with an unreadable page.
    struct Broken(Vec<u8>, u64);

    impl ReadAt for Broken {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            if offset / 4096 == self.1 / 4096 {
                return Err(io::Error::from_raw_os_error(5));
            }
            let rest = usize::try_from(4096 - offset % 4096).unwrap().min(buffer.len());
            self.0[..].read_at(&mut buffer[..rest], offset)
        }
    }

    #[test]
    fn unreadable_page_hides_only_its_contents() {
        let survey = |at| survey(&Broken(disk(4096), at), 4 << 20, None);
        for at in [64 << 10, (4 << 20) - 4096] {
            assert_eq!(survey(at).unwrap().block, 4096, "{at}");
        }
        assert!(survey(4096).is_err(), "the table itself");
    }

    #[test]
    fn disk_with_zeros_at_both_ends_looks_empty() {
        let mut disk = vec![0; 4 << 20];
        assert!(survey(&disk[..], 4 << 20, None).unwrap().empty);
        disk[(4 << 20) - 1] = 1;
        let survey = survey(&disk[..], 4 << 20, None).unwrap();
        assert_eq!(survey.describe(), "holds data that is not recognised");
    }
}
