//! Writes GUID partition tables (UEFI 2.10 §5): new ones, and those of a disk whose block size or length has changed.
//!
//! Pure: takes bytes, returns the bytes to write and their offsets.

use std::fmt;
use std::io;

use crate::medium::{ReadAt, le32, window};
use crate::partition::{self, Header, Scheme, crc32};

mod edit;

pub use edit::{Edit, Expanded};

/// Partition entries of a new table, and bytes of each.
const ENTRIES: usize = 128;
const ENTRY: usize = 128;
const ENTRY_SIZE: u32 = 128;
/// Bytes of a header that this module writes.
const HEADER_SIZE: u32 = 92;
/// Bytes of the first sector before the MBR's partition entries.
const BOOT_CODE: usize = 446;
/// Bytes of code at most: the last six of the others are a disk signature.
const CODE: usize = 440;
/// An entry that is active and names no partition.
const ACTIVE_EMPTY: [u8; 16] = [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
const MBR_SECTOR: usize = 512;
/// The first block of the entries, unless the table was made with another.
const LIST: u64 = 2;
/// The partition type of the protective MBR.
const PROTECTIVE: u8 = 0xee;

/// A partition of a new table.
#[derive(Debug, Clone, Copy)]
pub struct Partition<'a> {
    /// The type GUID, in the on-disk order.
    pub kind: [u8; 16],
    /// The partition GUID, in the on-disk order.
    pub guid: [u8; 16],
    /// The first block.
    pub first: u64,
    /// The last block.
    pub last: u64,
    /// The name, at most 36 UTF-16 units.
    pub name: &'a str,
}

/// A table to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpt {
    block: u32,
    blocks: u64,
    guid: [u8; 16],
    /// The first block of the entries.
    list: u64,
    first_usable: u64,
    entry_size: u32,
    entries: Vec<u8>,
    /// The first sector, whose partition entries are replaced by a protective one.
    boot: Vec<u8>,
    /// The boot indicator of the protective entry: some firmware does not boot without one.
    active: u8,
    /// The second entry of the MBR, which names no partition.
    second: [u8; 16],
}

impl Gpt {
    /// Returns a table for a disk of `blocks` blocks of `block` bytes (512 or 4096). `guid` is in
    /// the on-disk order.
    pub fn new(block: u32, blocks: u64, guid: [u8; 16], partitions: &[Partition<'_>]) -> Self {
        let mut entries: Vec<u8> = partitions.iter().take(ENTRIES).flat_map(entry).collect();
        entries.resize(ENTRIES * ENTRY, 0);
        let first_usable = list_blocks(block, &entries).saturating_add(LIST);
        let boot = vec![0; BOOT_CODE];
        let (list, entry_size, active) = (LIST, ENTRY_SIZE, 0);
        let second = [0; 16];
        Self { block, blocks, guid, list, first_usable, entry_size, entries, boot, active, second }
    }

    /// Sets the code of the first sector, of which at most 440 bytes are taken, and marks an empty
    /// MBR entry as active: some BIOS does not boot without one, and the protective entry must not
    /// be (§5.2.3).
    #[must_use]
    pub fn bootable(self, mut code: Vec<u8>) -> Self {
        code.resize(CODE, 0);
        code.resize(BOOT_CODE, 0);
        Self { boot: code, second: ACTIVE_EMPTY, ..self }
    }

    /// Returns the blocks that a table with the usual number of entries occupies at the end of the
    /// disk.
    pub fn tail_blocks(block: u32) -> u64 {
        list_blocks(block, &[0; ENTRIES * ENTRY]).saturating_add(1)
    }

    /// Returns the start of the disk, in whole blocks: the protective MBR, the header, and the
    /// entries unless these are elsewhere.
    pub fn start(&self) -> Vec<u8> {
        let mut bytes = self.padded(self.protective_record());
        bytes.extend(self.padded(self.header(1, self.last(), self.list)));
        if self.list == LIST {
            bytes.extend(self.padded(self.entries.clone()));
        }
        bytes
    }

    /// Returns the last blocks: the backup entries and the backup header.
    pub fn end(&self) -> Vec<u8> {
        let list = self.last().saturating_sub(self.list_blocks());
        let mut bytes = self.padded(self.entries.clone());
        bytes.extend(self.padded(self.header(self.last(), 1, list)));
        bytes
    }

    fn last(&self) -> u64 {
        self.blocks.saturating_sub(1)
    }

    fn list_blocks(&self) -> u64 {
        list_blocks(self.block, &self.entries)
    }

    fn last_usable(&self) -> u64 {
        self.last().saturating_sub(self.list_blocks()).saturating_sub(1)
    }

    fn padded(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.resize(bytes.len().next_multiple_of(usize_of(self.block)), 0);
        bytes
    }

    /// A partition over the whole disk of a type that other programs do not touch (§5.2.3).
    fn protective_record(&self) -> Vec<u8> {
        let mut record = self.boot.clone();
        record.resize(BOOT_CODE, 0);
        record.extend([self.active, 0x00, 0x02, 0x00, PROTECTIVE, 0xff, 0xff, 0xff]);
        record.extend(1_u32.to_le_bytes());
        record.extend(u32::try_from(self.last()).unwrap_or(u32::MAX).to_le_bytes());
        record.extend(self.second);
        record.resize(MBR_SECTOR - 2, 0);
        record.extend([0x55, 0xaa]);
        record
    }

    /// §5.3.2
    fn header(&self, here: u64, other: u64, list: u64) -> Vec<u8> {
        let mut header = b"EFI PART\0\0\x01\0".to_vec();
        header.extend(HEADER_SIZE.to_le_bytes());
        header.extend([0; 8]);
        for place in [here, other, self.first_usable, self.last_usable()] {
            header.extend(place.to_le_bytes());
        }
        header.extend(self.guid);
        header.extend(list.to_le_bytes());
        let count = u32::try_from(self.entries.len()).unwrap_or(0) / self.entry_size.max(1);
        for word in [count, self.entry_size, crc32(&self.entries)] {
            header.extend(word.to_le_bytes());
        }
        let sum = crc32(&header).to_le_bytes();
        header.splice(16..20, sum);
        header
    }
}

/// §5.3.3
fn entry(partition: &Partition<'_>) -> Vec<u8> {
    let mut entry = [partition.kind, partition.guid].concat();
    entry.extend(partition.first.to_le_bytes());
    entry.extend(partition.last.to_le_bytes());
    entry.extend([0; 8]);
    entry.extend(partition.name.encode_utf16().flat_map(u16::to_le_bytes));
    entry.resize(ENTRY, 0);
    entry
}

fn list_blocks(block: u32, entries: &[u8]) -> u64 {
    (entries.len() as u64).div_ceil(u64::from(block).max(1))
}

fn usize_of(block: u32) -> usize {
    usize::try_from(block).unwrap_or(MBR_SECTOR).max(1)
}

/// A write to a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// The offset in bytes.
    pub offset: u64,
    /// The data; not empty.
    pub bytes: Vec<u8>,
}

/// The geometry of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of a logical block: 512 or 4096.
    pub block: u32,
    /// Bytes of the disk.
    pub bytes: u64,
}

/// Why a table cannot be converted. Each is a clause for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// No partition table.
    NoTable,
    /// The header is valid and the entries are not, or there is a protective MBR without a GPT.
    Damaged,
    /// The entries do not follow the header.
    List,
    /// A block size other than 512 or 4096.
    Block(u32),
    /// The MBR of a GPT disk has partitions of its own.
    Hybrid,
    /// An MBR with an extended partition.
    Extended,
    /// A partition that is not aligned to the new block size.
    Unaligned(u32),
    /// A partition overlaps the new table.
    InTheWay(u32),
    /// A partition is beyond the range of an MBR with the new block size.
    TooLarge(u32),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable => f.write_str("there is no partition table"),
            Self::Damaged => f.write_str("the partition table is damaged"),
            Self::List => f.write_str(
                "its list of partitions is not in its usual place, right behind the header (block 2)",
            ),
            Self::Block(block) => write!(f, "there are no tables for blocks of {block} bytes"),
            Self::Hybrid => f.write_str("its MBR is a hybrid one, with partitions of its own"),
            Self::Extended => f.write_str("it is an MBR with an extended partition"),
            Self::Unaligned(number) => {
                write!(f, "partition {number} does not begin and end at a multiple of that size")
            }
            Self::InTheWay(number) => {
                write!(f, "partition {number} lies where the new table has to be")
            }
            Self::TooLarge(number) => {
                write!(f, "partition {number} is too large for an MBR with blocks of that size")
            }
        }
    }
}

/// A changed partition table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fitted {
    /// The writes that change it, in order; empty for an MBR that needs no change.
    pub patches: Vec<Patch>,
    /// The partition that was expanded.
    pub expanded: Option<Expanded>,
}

/// Returns the writes that convert the partition table of a disk of the geometry `from` to one of
/// the geometry `to`, with further changes. Partitions keep their byte offsets. `from.block` is used
/// for an MBR only: a GPT has its own.
///
/// # Errors
/// The outer error is that of reading the disk, the inner one means that the table cannot be
/// converted.
pub fn fitted<R: ReadAt + ?Sized>(
    reader: &R,
    from: Shape,
    to: Shape,
    edit: &Edit,
) -> io::Result<Result<Fitted, Unfit>> {
    if ![512, 4096].contains(&to.block) {
        return Ok(Err(Unfit::Block(to.block)));
    }
    let Some(table) = partition::read(reader)? else { return Ok(Err(Unfit::NoTable)) };
    match table.scheme {
        Scheme::Mbr => {
            let sector = window(reader, 0, MBR_SECTOR)?;
            Ok(mbr_patch(sector, from.block, to, edit))
        }
        Scheme::Gpt => gpt_patches(reader, Shape { block: table.block_size, ..from }, to, edit),
    }
}

fn gpt_patches<R: ReadAt + ?Sized>(
    reader: &R,
    from: Shape,
    to: Shape,
    edit: &Edit,
) -> io::Result<Result<Fitted, Unfit>> {
    let Some(header) = partition::header(reader, from.block)? else {
        return Ok(Err(Unfit::NoTable));
    };
    let Some(entries) = partition::entry_bytes(reader, &header, from.block)? else {
        return Ok(Err(Unfit::Damaged));
    };
    let sector = window(reader, 0, MBR_SECTOR)?;
    let old = Old { header, entries, sector, from };
    let mut gpt = match old.table(to) {
        Ok(gpt) => gpt,
        Err(unfit) => return Ok(Err(unfit)),
    };
    let expanded = edit.apply(&mut gpt);
    let mut patches = vec![old.start(&gpt)];
    if gpt.list != LIST && gpt.entries != old.entries {
        let offset = gpt.list.saturating_mul(to.block.into());
        patches.push(Patch { offset, bytes: gpt.padded(gpt.entries.clone()) });
    }
    patches.extend(old.stale_backup(reader)?);
    let end = gpt.end();
    let offset = gpt.blocks.saturating_mul(to.block.into()).saturating_sub(end.len() as u64);
    patches.push(Patch { offset, bytes: end });
    Ok(Ok(Fitted { patches, expanded }))
}

/// The existing table.
struct Old {
    header: Header,
    entries: Vec<u8>,
    sector: Vec<u8>,
    from: Shape,
}

impl Old {
    /// Returns a table with the same partitions for another disk.
    fn table(&self, to: Shape) -> Result<Gpt, Unfit> {
        let used = || partition::rows(&self.sector).filter(|row| partition::kind(row).is_some());
        if used().any(|row| partition::kind(row) != Some(PROTECTIVE)) {
            return Err(Unfit::Hybrid);
        }
        // With the same block size it can stay in place.
        let list = self.header.first_entry;
        if list != LIST && (list < LIST || to.block != self.from.block) {
            return Err(Unfit::List);
        }
        let scale = Scale { from: self.from.block.into(), to: to.block.into() };
        let mut gpt = Gpt {
            block: to.block,
            blocks: to.bytes / u64::from(to.block),
            guid: self.header.raw_guid,
            list,
            first_usable: 0,
            entry_size: self.header.entry_size,
            entries: self.entries.clone(),
            boot: self.sector.get(..BOOT_CODE).unwrap_or_default().to_vec(),
            active: used().next().and_then(|row| row.first().copied()).unwrap_or(0),
            second: partition::rows(&self.sector)
                .nth(1)
                .filter(|row| partition::kind(row).is_none())
                .and_then(|row| row.try_into().ok())
                .unwrap_or_default(),
        };
        let lowest = gpt.list_blocks().saturating_add(list);
        // Space beyond the old table was reserved on purpose.
        let needed = list_blocks(self.from.block, &self.entries).saturating_add(list);
        let left_free = self.header.first_usable > needed;
        gpt.first_usable =
            if left_free { scale.up(self.header.first_usable).max(lowest) } else { lowest };
        let highest = gpt.last_usable();
        let size = usize_of(self.header.entry_size);
        for (number, entry) in (1..).zip(gpt.entries.chunks_exact_mut(size)) {
            let Some((first, last)) = partition::extent(entry) else { continue };
            let unaligned = Unfit::Unaligned(number);
            let first = scale.exact(first).ok_or(unaligned)?;
            let behind = last.checked_add(1).and_then(|last| scale.exact(last)).ok_or(unaligned)?;
            if first < lowest || behind > highest.saturating_add(1) || first >= behind {
                return Err(Unfit::InTheWay(number));
            }
            gpt.first_usable = gpt.first_usable.min(first);
            entry.get_mut(32..40).ok_or(unaligned)?.copy_from_slice(&first.to_le_bytes());
            let last = behind.saturating_sub(1).to_le_bytes();
            entry.get_mut(40..48).ok_or(unaligned)?.copy_from_slice(&last);
        }
        Ok(gpt)
    }

    /// Returns the new start of the disk; zeroes what the old one occupied beyond it.
    fn start(&self, gpt: &Gpt) -> Patch {
        let mut bytes = gpt.start();
        if gpt.list != LIST {
            return Patch { offset: 0, bytes };
        }
        let taken = self.entries.len().saturating_add(2 * usize_of(self.from.block));
        let free = usize::try_from(gpt.first_usable.saturating_mul(gpt.block.into()));
        let len = bytes.len().max(taken.min(free.unwrap_or(0)));
        bytes.resize(len, 0);
        Patch { offset: 0, bytes }
    }

    /// Zeroes the old backup table, unless it belongs to a partition.
    fn stale_backup<R: ReadAt + ?Sized>(&self, reader: &R) -> io::Result<Option<Patch>> {
        let block = u64::from(self.from.block);
        let list = list_blocks(self.from.block, &self.entries);
        let place = |number: u64| number.checked_mul(block);
        let (start, end) = (self.header.alternate.checked_sub(list), self.header.alternate);
        let (Some(start), Some(at)) = (start.and_then(place), place(end)) else { return Ok(None) };
        let end = at.saturating_add(block);
        let size = usize_of(self.header.entry_size);
        let used = self.entries.chunks_exact(size).filter_map(partition::extent);
        let highest = used.map(|(_, last)| last).max().unwrap_or(0);
        let free = self.header.alternate > highest.saturating_add(list);
        let there = window(reader, at, 8)? == b"EFI PART";
        let len = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
        let fits = end <= self.from.bytes && len > 0;
        Ok((free && there && fits).then(|| Patch { offset: start, bytes: vec![0; len] }))
    }
}

/// Converts between block sizes.
#[derive(Clone, Copy)]
struct Scale {
    from: u64,
    to: u64,
}

impl Scale {
    fn exact(self, block: u64) -> Option<u64> {
        let byte = block.checked_mul(self.from)?;
        byte.is_multiple_of(self.to).then(|| byte / self.to)
    }

    fn up(self, block: u64) -> u64 {
        block.saturating_mul(self.from).div_ceil(self.to)
    }
}

fn mbr_patch(mut sector: Vec<u8>, from: u32, to: Shape, edit: &Edit) -> Result<Fitted, Unfit> {
    let before = sector.clone();
    // Of a GPT whose header is damaged.
    let changes = from != to.block || *edit != Edit::default();
    if changes && partition::rows(&sector).any(|row| partition::kind(row) == Some(PROTECTIVE)) {
        return Err(Unfit::Damaged);
    }
    if from != to.block {
        scale_mbr(&mut sector, Scale { from: from.into(), to: to.block.into() })?;
    }
    let expanded = edit.apply_to_mbr(&mut sector, to);
    let changed = (sector != before).then_some(Patch { offset: 0, bytes: sector });
    Ok(Fitted { patches: changed.into_iter().collect(), expanded })
}

fn scale_mbr(sector: &mut [u8], scale: Scale) -> Result<(), Unfit> {
    let rows = sector.get_mut(BOOT_CODE..MBR_SECTOR - 2).ok_or(Unfit::Damaged)?;
    for (number, row) in (1..).zip(rows.chunks_exact_mut(16)) {
        let Some(kind) = partition::kind(row) else { continue };
        if partition::is_extended(kind) {
            return Err(Unfit::Extended);
        }
        for at in [8, 12] {
            let blocks = le32(row, at).ok_or(Unfit::Damaged)?;
            let scaled = scale.exact(blocks.into()).ok_or(Unfit::Unaligned(number))?;
            let scaled = u32::try_from(scaled).map_err(|_| Unfit::TooLarge(number))?;
            let field = row.get_mut(at..at + 4).ok_or(Unfit::Damaged)?;
            field.copy_from_slice(&scaled.to_le_bytes());
        }
    }
    Ok(())
}

/// Returns the end of the backup GPT according to the primary header, in bytes from the start of
/// the disk.
///
/// # Errors
/// Fails if the disk cannot be read.
pub fn backup_end<R: ReadAt + ?Sized>(reader: &R, block: u32) -> io::Result<Option<u64>> {
    let header = partition::header(reader, block)?;
    Ok(header.and_then(|header| header.alternate.checked_add(1)?.checked_mul(block.into())))
}

#[cfg(test)]
mod test {
    use super::*;

    /// A disk with partitions at these bytes.
    fn disk(block: u32, bytes: u64, places: &[(u64, u64)]) -> Vec<u8> {
        let size = u64::from(block);
        let numbered = (1..).zip(places);
        let partitions: Vec<Partition<'_>> = numbered
            .map(|(number, (start, end))| Partition {
                kind: [9; 16],
                guid: [number; 16],
                first: start / size,
                last: end / size - 1,
                name: "data",
            })
            .collect();
        let gpt = Gpt::new(block, bytes / size, [1; 16], &partitions);
        let mut disk = vec![0; usize::try_from(bytes).unwrap()];
        let (start, end) = (gpt.start(), gpt.end());
        disk[..start.len()].copy_from_slice(&start);
        let at = disk.len() - end.len();
        disk[at..].copy_from_slice(&end);
        disk
    }

    fn patched(disk: &[u8], to: Shape) -> Result<Vec<u8>, Unfit> {
        let from = Shape { block: 512, bytes: disk.len() as u64 };
        let patches = fitted(disk, from, to, &Edit::default()).unwrap()?.patches;
        let mut changed = disk.to_vec();
        changed.resize(usize::try_from(to.bytes).unwrap(), 0);
        for patch in patches {
            let at = usize::try_from(patch.offset).unwrap();
            changed[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
        }
        Ok(changed)
    }

    const MIB: u64 = 1 << 20;
    const PLACES: [(u64, u64); 2] = [(MIB, 3 * MIB), (4 * MIB, 6 * MIB)];

    #[test]
    fn r49_gpt_is_rewritten_for_the_other_block_size() {
        for (from, to) in [(512, 4096), (4096, 512)] {
            for bytes in [8 * MIB, 9 * MIB, 8 * MIB + 4096] {
                let changed =
                    patched(&disk(from, 8 * MIB, &PLACES), Shape { block: to, bytes }).unwrap();
                assert!(changed == disk(to, bytes, &PLACES), "{from} to {to}, {bytes} bytes");
            }
        }
    }

    #[test]
    fn r54_backup_is_moved_to_the_end_of_a_larger_disk_once() {
        let to = Shape { block: 512, bytes: 16 * MIB };
        let small = disk(512, 8 * MIB, &PLACES);
        assert_eq!(backup_end(&small[..], 512).unwrap(), Some(8 * MIB));
        let moved = patched(&small, to).unwrap();
        assert!(moved == disk(512, 16 * MIB, &PLACES));
        assert!(patched(&moved, to).unwrap() == moved);
    }

    /// A list at block 2048, and a boot loader in the gap before it.
    fn with_far_list() -> Vec<u8> {
        let size = 512 * 2048;
        let mut disk = disk(512, 8 * MIB, &[(2 * MIB, 3 * MIB)]);
        let list = disk[1024..1024 + ENTRIES * ENTRY].to_vec();
        disk[size..size + list.len()].copy_from_slice(&list);
        disk[1024..size].fill(0xb0);
        disk[512 + 40..512 + 48].copy_from_slice(&2080_u64.to_le_bytes());
        disk[512 + 72..512 + 80].copy_from_slice(&2048_u64.to_le_bytes());
        disk[512 + 16..512 + 20].fill(0);
        let sum = crc32(&disk[512..512 + 92]).to_le_bytes();
        disk[512 + 16..512 + 20].copy_from_slice(&sum);
        disk
    }

    #[test]
    fn changed_list_in_another_place_is_written_there() {
        let disk = with_far_list();
        let shape = Shape { block: 512, bytes: disk.len() as u64 };
        let edit = Edit { expand: true, ids: Some([7; 16]) };
        let fitted = fitted(&disk[..], shape, shape, &edit).unwrap().unwrap();
        let mut changed = disk.clone();
        for patch in fitted.patches {
            let at = usize::try_from(patch.offset).unwrap();
            changed[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
        }
        assert_eq!(changed[1024..512 * 2048], disk[1024..512 * 2048]);
        let table = partition::read(&changed[..]).unwrap().unwrap();
        assert_eq!((table.entries[0].start, table.entries[0].bytes), (2 * MIB, 5 * MIB));
        assert_eq!(table.scheme, Scheme::Gpt);
    }

    #[test]
    fn list_in_another_place_stays_there_or_is_refused() {
        let disk = with_far_list();
        let moved = patched(&disk, Shape { block: 512, bytes: 16 * MIB }).unwrap();
        assert!(moved[1024..2 << 20] == disk[1024..2 << 20], "the gap and the list");
        let header = partition::header(&moved[..], 512).unwrap().unwrap();
        assert_eq!((header.first_entry, header.first_usable), (2048, 2080));
        assert_eq!(header.alternate, 16 * MIB / 512 - 1);
        assert_eq!(partition::read(&moved[..]).unwrap().unwrap().entries.len(), 1);
        assert_eq!(patched(&disk, Shape { block: 4096, bytes: 8 * MIB }), Err(Unfit::List));
    }

    #[test]
    fn boot_indicator_of_the_protective_row_is_kept() {
        let mut disk = disk(512, 8 * MIB, &PLACES);
        disk[BOOT_CODE] = 0x80;
        let moved = patched(&disk, Shape { block: 512, bytes: 16 * MIB }).unwrap();
        assert_eq!(moved[BOOT_CODE], 0x80);
    }

    #[test]
    fn protective_row_without_a_gpt_is_damage() {
        let mut disk = vec![0; 8 << 20];
        partition::made::row(&mut disk, 0, PROTECTIVE, 8, 4096);
        assert_eq!(patched(&disk, Shape { block: 4096, bytes: 8 * MIB }), Err(Unfit::Damaged));
    }

    #[test]
    fn partition_that_prevents_conversion_is_named() {
        let to = Shape { block: 4096, bytes: 8 * MIB };
        let place = |places: &[(u64, u64)]| patched(&disk(512, 8 * MIB, places), to).unwrap_err();
        assert_eq!(place(&[(MIB, 2 * MIB), (2 * MIB + 512, 3 * MIB)]), Unfit::Unaligned(2));
        assert_eq!(place(&[(20480, MIB)]), Unfit::InTheWay(1));
        // As far as a table for blocks of 512 bytes allows.
        assert_eq!(place(&[(MIB, 8 * MIB - 5 * 4096 + 4096)]), Unfit::InTheWay(1));
        let mut damaged = disk(512, 8 * MIB, &PLACES);
        damaged[1024 + 40] ^= 1;
        assert_eq!(patched(&damaged, to), Err(Unfit::Damaged));
        assert_eq!(patched(&vec![0; 8 << 20], to), Err(Unfit::NoTable));
        let mut hybrid = disk(512, 8 * MIB, &PLACES);
        partition::made::row(&mut hybrid, 1, 0x83, 2048, 2048);
        assert_eq!(patched(&hybrid, to), Err(Unfit::Hybrid));
    }

    #[test]
    fn r49_mbr_is_rewritten_unless_it_has_an_extended_partition() {
        let mut disk = vec![0; 8 << 20];
        partition::made::row(&mut disk, 0, 0x83, 2048, 4096);
        let to = Shape { block: 4096, bytes: 8 * MIB };
        let changed = patched(&disk, to).unwrap();
        assert_eq!((le32(&changed, 454), le32(&changed, 458)), (Some(256), Some(512)));
        partition::made::row(&mut disk, 1, 0x83, 8192, 7);
        assert_eq!(patched(&disk, to), Err(Unfit::Unaligned(2)));
        partition::made::row(&mut disk, 1, 0x05, 8192, 8);
        assert_eq!(patched(&disk, to), Err(Unfit::Extended));
    }
}
