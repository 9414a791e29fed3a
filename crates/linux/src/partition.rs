//! Parses partition tables, GPT (UEFI 2.10 §5) and MBR, from untrusted bytes.

use crate::medium::{ReadAt, array, le32, le64, utf16, window};
use serde::{Deserialize, Serialize};
use std::io;

/// The block sizes with which a GPT is searched.
const BLOCK_SIZES: [u32; 2] = [512, 4096];
/// The maximum size of the entries; 128 entries of 128 bytes are usual.
const LONGEST_TABLE: u64 = 1 << 20;
/// The maximum length of the chain of logical partitions, which may be a loop.
const LONGEST_CHAIN: u32 = 128;
const MBR_SECTOR: u64 = 512;

/// The type of a partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scheme {
    /// GUID partition table.
    Gpt,
    /// Master boot record.
    Mbr,
}

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    pub scheme: Scheme,
    /// The logical block size that the table was written for, in bytes.
    pub block_size: u32,
    /// The disk's GUID, in the order of its text form (GPT only).
    pub guid: Option<[u8; 16]>,
    /// The partitions in use.
    pub entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The number, from 1; logical partitions of an MBR from 5.
    pub number: u32,
    /// The type: a GUID's text, or two hexadecimal digits.
    pub kind: String,
    /// The partition GUID, in the order of its text form (GPT only).
    pub guid: Option<[u8; 16]>,
    /// The name (GPT only).
    pub name: Option<String>,
    /// The start, in bytes.
    pub start: u64,
    /// The length in bytes.
    pub bytes: u64,
}

/// Reads the partition table, if there is one.
///
/// # Errors
/// Fails if the medium cannot be read.
pub fn read<R: ReadAt + ?Sized>(reader: &R) -> io::Result<Option<Table>> {
    for block_size in BLOCK_SIZES {
        if let Some(table) = gpt(reader, block_size)? {
            return Ok(Some(table));
        }
    }
    let sector = window(reader, 0, 512)?;
    if !is_mbr(&sector) {
        return Ok(None);
    }
    let entries = mbr_entries(reader, &sector)?;
    Ok(Some(Table { scheme: Scheme::Mbr, block_size: 512, guid: None, entries }))
}

/// Returns the logical block size that an image's partition table was written for: a GPT's own, 512
/// for an MBR or any other boot sector, else `None`.
pub fn block_size<R: ReadAt + ?Sized>(reader: &R) -> io::Result<Option<u32>> {
    for block_size in BLOCK_SIZES {
        if header(reader, block_size)?.is_some() {
            return Ok(Some(block_size));
        }
    }
    Ok(window(reader, 0, 512)?.ends_with(&[0x55, 0xaa]).then_some(512))
}

/// A GPT header (UEFI 2.10 §5.3.2).
pub(crate) struct Header {
    /// The disk's GUID, as it stands on disk.
    pub(crate) raw_guid: [u8; 16],
    /// The block of the backup header.
    pub(crate) alternate: u64,
    /// The first usable block.
    pub(crate) first_usable: u64,
    /// Bytes of an entry.
    pub(crate) entry_size: u32,
    /// The first block of the entries.
    pub(crate) first_entry: u64,
    entries: u32,
    entries_crc: u32,
}

/// Returns the primary header; `None` unless its signature, position and checksum are right.
pub(crate) fn header<R: ReadAt + ?Sized>(
    reader: &R,
    block_size: u32,
) -> io::Result<Option<Header>> {
    let block = window(reader, block_size.into(), 512)?;
    Ok(parse_header(&block))
}

fn parse_header(block: &[u8]) -> Option<Header> {
    let size = usize::try_from(le32(block, 12)?).ok()?;
    let mut checked = block.get(..size)?.to_vec();
    if !block.starts_with(b"EFI PART") || size < 92 || le64(block, 24)? != 1 {
        return None;
    }
    checked.get_mut(16..20)?.fill(0);
    if crc32(&checked) != le32(block, 16)? {
        return None;
    }
    Some(Header {
        raw_guid: array(block, 56)?,
        alternate: le64(block, 32)?,
        first_usable: le64(block, 40)?,
        first_entry: le64(block, 72)?,
        entries: le32(block, 80)?,
        entry_size: le32(block, 84)?,
        entries_crc: le32(block, 88)?,
    })
}

/// If the header is valid but the entries are not, the table has no entries.
fn gpt<R: ReadAt + ?Sized>(reader: &R, block_size: u32) -> io::Result<Option<Table>> {
    let Some(header) = header(reader, block_size)? else { return Ok(None) };
    let entries = entries(reader, &header, block_size)?;
    Ok(Some(Table {
        scheme: Scheme::Gpt,
        block_size,
        guid: Some(swap_guid(header.raw_guid)),
        entries,
    }))
}

fn entries<R: ReadAt + ?Sized>(
    reader: &R,
    header: &Header,
    block_size: u32,
) -> io::Result<Vec<Entry>> {
    let bytes = entry_bytes(reader, header, block_size)?.unwrap_or_default();
    let size = usize::try_from(header.entry_size).unwrap_or(usize::MAX);
    let numbered = (1..).zip(bytes.chunks_exact(size.max(1)));
    Ok(numbered.filter_map(|(number, entry)| parse_entry(number, entry, block_size)).collect())
}

/// Returns the raw entries; `None` unless their number is plausible and their checksum is right.
pub(crate) fn entry_bytes<R: ReadAt + ?Sized>(
    reader: &R,
    header: &Header,
    block_size: u32,
) -> io::Result<Option<Vec<u8>>> {
    let length = u64::from(header.entries) * u64::from(header.entry_size);
    let start = header.first_entry.checked_mul(block_size.into());
    let (Some(start), 128..=4096) = (start, header.entry_size) else { return Ok(None) };
    let Ok(length) = usize::try_from(length.min(LONGEST_TABLE + 1)) else { return Ok(None) };
    if length as u64 > LONGEST_TABLE {
        return Ok(None);
    }
    let bytes = window(reader, start, length)?;
    Ok((bytes.len() == length && crc32(&bytes) == header.entries_crc).then_some(bytes))
}

/// Returns the first and the last block of an entry in use.
pub(crate) fn extent(entry: &[u8]) -> Option<(u64, u64)> {
    let kind: [u8; 16] = array(entry, 0)?;
    (kind != [0; 16]).then_some((le64(entry, 32)?, le64(entry, 40)?))
}

/// UEFI 2.10 §5.3.3; an entry with a type of zeroes is unused.
fn parse_entry(number: u32, entry: &[u8], block_size: u32) -> Option<Entry> {
    let kind: [u8; 16] = array(entry, 0)?;
    let (first, last) = (le64(entry, 32)?, le64(entry, 40)?);
    let blocks = last.checked_sub(first)?.checked_add(1)?;
    (kind != [0; 16]).then_some(())?;
    Some(Entry {
        number,
        kind: guid_text(&swap_guid(kind)),
        guid: Some(swap_guid(array(entry, 16)?)),
        name: utf16(entry.get(56..128)?, false),
        start: first.checked_mul(block_size.into())?,
        bytes: blocks.checked_mul(block_size.into())?,
    })
}

/// Converts a GUID between the order of its text and its on-disk order, in which the first three
/// fields are little-endian (UEFI 2.10 appendix A).
pub fn swap_guid(mut guid: [u8; 16]) -> [u8; 16] {
    let (fields, _) = guid.split_at_mut(8);
    let (first, rest) = fields.split_at_mut(4);
    let (second, third) = rest.split_at_mut(2);
    first.reverse();
    second.reverse();
    third.reverse();
    guid
}

/// Formats 16 bytes as a UUID: `00112233-4455-6677-8899-aabbccddeeff`.
pub fn guid_text(guid: &[u8; 16]) -> String {
    let mut text = crate::hardware::hex(guid);
    for dash in [20, 16, 12, 8] {
        text.insert(dash, '-');
    }
    text
}

/// CRC-32 with the reflected polynomial EDB88320h, as UEFI specifies. The tables are short: a slow
/// implementation is enough.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let turn = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| turn(crc)))
}

/// A boot sector of a file system has the same signature; it is recognized by code in the place of
/// the table.
fn is_mbr(sector: &[u8]) -> bool {
    let flags_are_sound = rows(sector).all(|row| row.first().is_some_and(|flag| flag & 0x7f == 0));
    let used = rows(sector).any(|row| slot(row).is_some());
    sector.len() == 512
        && sector.ends_with(&[0x55, 0xaa])
        && flags_are_sound
        && used
        && !is_file_system(sector)
}

fn is_file_system(sector: &[u8]) -> bool {
    let marks: [(usize, &[u8]); 5] =
        [(3, b"NTFS    "), (3, b"EXFAT   "), (3, b"-FVE-FS-"), (54, b"FAT1"), (82, b"FAT32")];
    marks.iter().any(|(at, mark)| sector.get(*at..).is_some_and(|rest| rest.starts_with(mark)))
}

/// Returns the disk signature of an MBR, of which the kernel and udev make the PARTUUIDs of its partitions; `None` if it
/// has none.
///
/// # Errors
/// Fails if the medium cannot be read.
pub fn mbr_signature<R: ReadAt + ?Sized>(reader: &R) -> io::Result<Option<u32>> {
    let sector = window(reader, 0, 512)?;
    Ok(le32(&sector, 440).filter(|signature| *signature != 0))
}

/// The rows of an MBR.
pub(crate) fn rows(sector: &[u8]) -> impl Iterator<Item = &[u8]> {
    sector.get(446..510).unwrap_or_default().chunks_exact(16)
}

/// Returns the type, first sector and length of a row in use.
fn slot(row: &[u8]) -> Option<(u8, u64, u64)> {
    let kind = *row.get(4)?;
    let (first, length) = (le32(row, 8)?.into(), le32(row, 12)?.into());
    (kind != 0 && length > 0).then_some((kind, first, length))
}

/// Returns the type of a row in use.
pub(crate) fn kind(row: &[u8]) -> Option<u8> {
    slot(row).map(|(kind, _, _)| kind)
}

pub(crate) fn is_extended(kind: u8) -> bool {
    matches!(kind, 0x05 | 0x0f | 0x85)
}

/// Converts a row to an entry; `base` is added to its first sector. 32-bit sectors cannot overflow
/// 64-bit bytes.
fn mbr_entry(number: u32, row: (u8, u64, u64), base: u64) -> Entry {
    let (kind, first, length) = row;
    Entry {
        number,
        kind: format!("{kind:02x}"),
        guid: None,
        name: None,
        start: base.saturating_add(first).saturating_mul(MBR_SECTOR),
        bytes: length.saturating_mul(MBR_SECTOR),
    }
}

fn mbr_entries<R: ReadAt + ?Sized>(reader: &R, sector: &[u8]) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut chain = None;
    for (number, row) in (1..).zip(rows(sector)) {
        let Some(row) = slot(row) else { continue };
        if is_extended(row.0) {
            chain = chain.or(Some(row.1));
        }
        entries.push(mbr_entry(number, row, 0));
    }
    if let Some(start) = chain {
        logical(reader, start, &mut entries)?;
    }
    Ok(entries)
}

/// Follows the chain of logical partitions: the partition of each link is relative to the link, the
/// next link to the start of the chain.
fn logical<R: ReadAt + ?Sized>(reader: &R, start: u64, entries: &mut Vec<Entry>) -> io::Result<()> {
    let mut link = start;
    for number in 5..5 + LONGEST_CHAIN {
        let sector = window(reader, link.saturating_mul(MBR_SECTOR), 512)?;
        if sector.len() != 512 || !sector.ends_with(&[0x55, 0xaa]) {
            break;
        }
        let used = || rows(&sector).filter_map(slot);
        if let Some(row) = used().find(|row| !is_extended(row.0)) {
            entries.push(mbr_entry(number, row, link));
        }
        match used().find(|row| is_extended(row.0)) {
            Some((_, next, _)) if next > 0 => link = start.saturating_add(next),
            _ => break,
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod made {
    //! Partition tables made for tests.

    use super::crc32;

    /// A disk of `blocks` blocks with a GPT of one partition, from block 40 to block 47.
    pub(crate) fn gpt(block: usize, blocks: usize) -> Vec<u8> {
        let mut disk = vec![0; block * blocks];
        let mut entry = vec![0; 128 * 128];
        entry[..16].copy_from_slice(&[
            0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9,
            0x3b,
        ]);
        entry[16..32].copy_from_slice(&[7; 16]);
        entry[32] = 40;
        entry[40] = 47;
        entry[56] = b'x';
        disk[2 * block..2 * block + entry.len()].copy_from_slice(&entry);
        let mut header = vec![0; 92];
        header[..16].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
        header[24] = 1;
        header[56..72].copy_from_slice(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        header[72] = 2;
        header[80] = 128;
        header[84] = 128;
        header[88..92].copy_from_slice(&crc32(&entry).to_le_bytes());
        let crc = crc32(&header);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        disk[block..block + 92].copy_from_slice(&header);
        disk
    }

    /// Puts a row into a sector's table.
    pub(crate) fn row(sector: &mut [u8], slot: usize, kind: u8, first: u32, length: u32) {
        let at = 446 + 16 * slot;
        sector[at + 4] = kind;
        sector[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
        sector[at + 12..at + 16].copy_from_slice(&length.to_le_bytes());
        sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_matches_the_standard() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn signature_of_an_mbr_is_read() {
        let mut sector = vec![0; 512];
        assert_eq!(mbr_signature(&sector[..]).unwrap(), None, "zero is none");
        sector[440..444].copy_from_slice(&[0x78, 0x56, 0x34, 0x12]);
        assert_eq!(mbr_signature(&sector[..]).unwrap(), Some(0x1234_5678));
        assert_eq!(mbr_signature(&sector[..100]).unwrap(), None);
    }

    #[test]
    fn gpt_is_found_with_either_block_size() {
        for block in [512u32, 4096] {
            let disk = made::gpt(block as usize, 64);
            assert_eq!(block_size(&disk[..]).unwrap(), Some(block));
            let table = read(&disk[..]).unwrap().unwrap();
            assert_eq!((table.scheme, table.block_size), (Scheme::Gpt, block));
            let guid = guid_text(&table.guid.unwrap());
            assert_eq!(guid, "03020100-0504-0706-0809-0a0b0c0d0e0f");
            let [entry] = table.entries.as_slice() else { panic!("{table:?}") };
            assert_eq!(entry.kind, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
            assert_eq!((entry.number, entry.name.as_deref()), (1, Some("x")));
            assert_eq!((entry.start, entry.bytes), (40 * u64::from(block), 8 * u64::from(block)));
        }
    }

    #[test]
    fn gpt_with_a_wrong_checksum_is_ignored() {
        let mut disk = made::gpt(512, 64);
        disk[512 + 60] ^= 1;
        assert_eq!(block_size(&disk[..]).unwrap(), None);
        assert_eq!(read(&disk[..]).unwrap(), None);
    }

    #[test]
    fn entries_with_a_wrong_checksum_are_left_out() {
        let mut disk = made::gpt(512, 64);
        disk[1024 + 33] ^= 1;
        assert_eq!(read(&disk[..]).unwrap().unwrap().entries, []);
    }

    #[test]
    fn huge_table_is_not_allocated() {
        let mut disk = made::gpt(512, 64);
        disk[512 + 72..512 + 88].fill(0xff);
        disk[512 + 16..512 + 20].fill(0);
        let crc = crc32(&disk[512..512 + 92]);
        disk[512 + 16..512 + 20].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(read(&disk[..]).unwrap().unwrap().entries, []);
    }

    #[test]
    fn no_prefix_of_a_disk_panics() {
        let disk = made::gpt(512, 64);
        for cut in (0..2048).chain([20_000]) {
            read(&disk[..cut]).unwrap();
        }
    }

    #[test]
    fn logical_partitions_are_read() {
        let mut disk = vec![0; 512 * 300];
        made::row(&mut disk, 0, 0x83, 10, 20);
        made::row(&mut disk, 1, 0x05, 100, 200);
        made::row(&mut disk[512 * 100..], 0, 0x83, 1, 9);
        made::row(&mut disk[512 * 100..], 1, 0x05, 50, 60);
        made::row(&mut disk[512 * 150..], 0, 0x82, 2, 8);
        assert_eq!(block_size(&disk[..]).unwrap(), Some(512));
        let table = read(&disk[..]).unwrap().unwrap();
        let places: Vec<_> =
            table.entries.iter().map(|e| (e.number, e.kind.as_str(), e.start / 512)).collect();
        assert_eq!(places, [(1, "83", 10), (2, "05", 100), (5, "83", 101), (6, "82", 152)]);
    }

    #[test]
    fn circular_chain_ends() {
        let mut disk = vec![0; 512 * 300];
        made::row(&mut disk, 0, 0x05, 100, 200);
        made::row(&mut disk[512 * 100..], 0, 0x83, 1, 9);
        made::row(&mut disk[512 * 100..], 1, 0x05, 50, 60);
        made::row(&mut disk[512 * 150..], 1, 0x05, 50, 60);
        assert!(read(&disk[..]).unwrap().unwrap().entries.len() < 200);
    }

    #[test]
    fn boot_sector_of_a_file_system_is_not_a_table() {
        let mut disk = vec![0; 4096];
        made::row(&mut disk, 0, 0x83, 10, 20);
        disk[82..87].copy_from_slice(b"FAT32");
        assert_eq!(read(&disk[..]).unwrap(), None);
        disk[82] = 0;
        assert!(read(&disk[..]).unwrap().is_some());
        disk[446] = 0x12;
        assert_eq!(read(&disk[..]).unwrap(), None);
    }
}
