//! VHDX (MS-VHDX): fixed and dynamic images. Differencing ones are refused, and those whose log holds changes.

use std::io;

use crc_fast::{CrcAlgorithm, checksum};
use linux::medium::ReadAt;

use super::{
    Place, Run, TakeRun, Unreadable, VirtualDisk, cut_off, damaged, le16, le32, le64, table,
};
use crate::window;

/// Offsets of the two headers and of the two region tables (MS-VHDX §2.2).
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
const HEADER: u64 = 4 << 10;
const REGION_TABLE: u64 = 64 << 10;
/// Most entries of a region table, and of the metadata table.
const MAX_ENTRIES: usize = 2047;
/// Bytes of an entry of either.
const ENTRY: usize = 32;
const MIB: u64 = 1 << 20;

/// Identifiers of regions and metadata items, as they are stored (§2.2.3.2, §2.6.2).
const BAT: u128 = 0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08;
const METADATA: u128 = 0x8b7c_a206_4790_4b9a_b8fe_575f_050f_886e;
const FILE_PARAMETERS: u128 = 0xcaa1_6737_fa36_4d43_b3b6_33f0_aa44_e76b;
const DISK_SIZE: u128 = 0x2fa5_4224_cd1b_4876_b211_5dbe_d83b_f4b8;
const LOGICAL_SECTOR: u128 = 0x8141_bf1d_a96f_4709_ba47_f233_a8fa_ab5f;
/// Items that are required and have no influence on the data: page 83 data, physical sector size, and the
/// parent of an image that is refused for another reason.
const HARMLESS: [u128; 3] = [
    0xbeca_12ab_b2e6_4523_93ef_c309_e000_c746,
    0xcda3_48c7_445d_4471_9cc9_e988_5251_c556,
    0xa8d3_5f2d_b30b_454d_abf7_d3d8_4834_ab0c,
];
/// An entry that a reader must know.
const REQUIRED_REGION: u32 = 1;
const REQUIRED_ITEM: u32 = 1 << 2;
/// Flag of the file parameters.
const HAS_PARENT: u32 = 1 << 1;
/// States of a block (§2.5.1.1).
const NOT_PRESENT: u64 = 0;
const UNDEFINED: u64 = 1;
const ZERO: u64 = 2;
const UNMAPPED: u64 = 3;
/// UNMAPPED of an earlier version of the format.
const UNMAPPED_BEFORE: u64 = 5;
const FULLY_PRESENT: u64 = 6;

/// A VHDX image.
pub(super) struct Vhdx {
    bytes: u64,
    /// Bytes of a block.
    block: u64,
    sector: u32,
    /// After this many entries for blocks, the table has one for a bitmap of sectors.
    ratio: u64,
    table: Vec<u8>,
}

impl Vhdx {
    pub(super) fn open(file: &dyn ReadAt) -> io::Result<Self> {
        check_header(file)?;
        let regions = regions(file)?;
        let region = |id| regions.iter().find(|it| it.id == id).ok_or(Unreadable::Header);
        let metadata = items(file, region(METADATA)?)?;
        let item = |id: u128, len: u64| -> io::Result<Vec<u8>> {
            let item = metadata.iter().find(|it| it.id == id && it.len >= len);
            let item = item.ok_or(Unreadable::Header)?;
            window::read(file, item.offset, len)?.ok_or_else(cut_off)
        };
        let parameters = item(FILE_PARAMETERS, 8)?;
        let bytes = le64(&item(DISK_SIZE, 8)?, 0);
        let sector = le32(&item(LOGICAL_SECTOR, 4)?, 0);
        if le32(&parameters, 4) & HAS_PARENT != 0 {
            return Err(Unreadable::Parent.into());
        }
        let block = u64::from(le32(&parameters, 0));
        let is_known = block.is_power_of_two()
            && (MIB..=256 * MIB).contains(&block)
            && matches!(sector, 512 | 4096)
            && bytes <= 64 << 40;
        if !is_known {
            return Err(Unreadable::Header.into());
        }
        let ratio = (u64::from(sector) << 23) / block;
        let blocks = bytes.div_ceil(block);
        let entries = blocks + blocks.saturating_sub(1) / ratio;
        let bat = region(BAT)?;
        if entries * 8 > bat.len {
            return Err(Unreadable::Header.into());
        }
        Ok(Self { bytes, block, sector, ratio, table: table(file, bat.offset, entries * 8)? })
    }
}

/// Checks that the header which is in force has no log.
fn check_header(file: &dyn ReadAt) -> io::Result<()> {
    let identifier = window::read(file, 0, 8)?.ok_or(Unreadable::Header)?;
    if identifier != b"vhdxfile" {
        return Err(Unreadable::Header.into());
    }
    let mut newest: Option<Vec<u8>> = None;
    for offset in HEADERS {
        let Some(header) = checked(file, offset, HEADER, b"head")? else { continue };
        if newest.as_ref().is_none_or(|newest| le64(newest, 8) < le64(&header, 8)) {
            newest = Some(header);
        }
    }
    let header = newest.ok_or(Unreadable::Header)?;
    if le16(&header, 66) != 1 {
        return Err(Unreadable::Version(le16(&header, 66).into()).into());
    }
    let has_log = header.get(48..64).is_none_or(|log| log.iter().any(|byte| *byte != 0));
    if has_log { Err(Unreadable::Log.into()) } else { Ok(()) }
}

/// Returns a structure with this signature, if its checksum is right (§2.1).
fn checked(
    file: &dyn ReadAt,
    offset: u64,
    len: u64,
    signature: &[u8],
) -> io::Result<Option<Vec<u8>>> {
    let Some(bytes) = window::read(file, offset, len)? else { return Ok(None) };
    let mut zeroed = bytes.clone();
    zeroed.iter_mut().skip(4).take(4).for_each(|byte| *byte = 0);
    let sum = checksum(CrcAlgorithm::Crc32Iscsi, &zeroed);
    let is_valid = bytes.starts_with(signature) && u64::from(le32(&bytes, 4)) == sum;
    Ok(is_valid.then_some(bytes))
}

/// A region, or a metadata item.
struct Part {
    id: u128,
    offset: u64,
    len: u64,
}

fn regions(file: &dyn ReadAt) -> io::Result<Vec<Part>> {
    for offset in REGION_TABLES {
        let Some(table) = checked(file, offset, REGION_TABLE, b"regi")? else { continue };
        let count = usize::try_from(le32(&table, 8)).unwrap_or(usize::MAX);
        return parts(&table, 16, count, |entry| {
            let (offset, len) = (le64(entry, 16), u64::from(le32(entry, 24)));
            let id = guid(entry);
            let is_required = le32(entry, 28) & REQUIRED_REGION != 0;
            (is_required && ![BAT, METADATA].contains(&id), Part { id, offset, len })
        });
    }
    Err(Unreadable::Header.into())
}

fn items(file: &dyn ReadAt, region: &Part) -> io::Result<Vec<Part>> {
    let table = window::read(file, region.offset, REGION_TABLE)?.ok_or_else(cut_off)?;
    if !table.starts_with(b"metadata") {
        return Err(Unreadable::Header.into());
    }
    const KNOWN: [u128; 3] = [FILE_PARAMETERS, DISK_SIZE, LOGICAL_SECTOR];
    parts(&table, ENTRY, le16(&table, 10).into(), |entry| {
        let (offset, len) = (u64::from(le32(entry, 16)), u64::from(le32(entry, 20)));
        let id = guid(entry);
        let is_required = le32(entry, 24) & REQUIRED_ITEM != 0;
        let is_unknown = !KNOWN.contains(&id) && !HARMLESS.contains(&id);
        (is_required && is_unknown, Part { id, offset: region.offset.saturating_add(offset), len })
    })
}

/// Returns the entries of a table, of which `each` says whether it is one that must be known and is not.
fn parts(
    table: &[u8],
    start: usize,
    count: usize,
    each: impl Fn(&[u8]) -> (bool, Part),
) -> io::Result<Vec<Part>> {
    if count > MAX_ENTRIES {
        return Err(Unreadable::Header.into());
    }
    let entries = table.get(start..).unwrap_or_default().chunks_exact(ENTRY).take(count);
    let mut parts = Vec::new();
    for (is_unknown, part) in entries.map(each) {
        if is_unknown {
            #[allow(clippy::cast_possible_truncation, reason = "enough to find it")]
            return Err(Unreadable::Feature((part.id >> 64) as u64).into());
        }
        parts.push(part);
    }
    Ok(parts)
}

/// The GUID at the start of an entry, whose first three fields are little-endian.
fn guid(entry: &[u8]) -> u128 {
    let (first, second, third) = (le32(entry, 0), le16(entry, 4), le16(entry, 6));
    let rest = u64::from_be_bytes(super::array(entry, 8));
    u128::from(first) << 96 | u128::from(second) << 80 | u128::from(third) << 64 | u128::from(rest)
}

impl VirtualDisk for Vhdx {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn block(&self) -> Option<u32> {
        Some(self.sector)
    }

    fn runs(&self, each: TakeRun<'_>) -> io::Result<()> {
        let (mut at, mut number) = (0, 0);
        while at < self.bytes {
            let index = usize::try_from(number + number / self.ratio).map_err(|_| damaged())?;
            let entry = le64(&self.table, index * 8);
            let len = self.block.min(self.bytes - at);
            let place = match entry & 7 {
                NOT_PRESENT | UNDEFINED | ZERO | UNMAPPED | UNMAPPED_BEFORE => Place::Zeros,
                FULLY_PRESENT => Place::File(entry & !(MIB - 1)),
                _ => return Err(damaged()),
            };
            each(Run { len, place })?;
            at += len;
            number += 1;
        }
        Ok(())
    }
}
