//! VMDK (VMware Virtual Disk Format 5.0): images of one file (monolithicSparse, streamOptimized). Those of
//! several files, and those that need a parent, are refused.

use std::io;

use linux::medium::ReadAt;

use super::{
    Place, Run, TakeRun, Unreadable, VirtualDisk, cut_off, damaged, inflate, le16, le32, le64,
    read_packed, table,
};
use crate::window;

const SECTOR: u64 = 512;
const MAGIC: &[u8] = b"KDMV";
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=3;
/// Flags of the header.
const ZERO_GRAINS: u32 = 1 << 2;
const COMPRESSED: u32 = 1 << 16;
/// Each compressed grain is preceded by its length.
const MARKERS: u32 = 1 << 17;
/// The grain directory is at the end, with a copy of the header that says where.
const AT_END: u64 = u64::MAX;
/// From the end of the file to that copy: it and the end-of-stream marker.
const FOOTER: u64 = 2 * SECTOR;
const DEFLATE: u16 = 1;
/// Entries of a grain table.
const GRAINS: u64 = 512;
/// Limits of a grain in sectors.
const GRAIN: std::ops::RangeInclusive<u64> = 1..=1 << 14;
/// Most bytes of the descriptor.
const DESCRIPTOR: u64 = 64 << 10;
/// Bytes in front of a compressed grain: its first sector, and its length.
const MARKER: u64 = 12;
/// An entry of a grain of zeros.
const ZERO: u32 = 1;
/// The content identifier of no parent.
const NO_PARENT: &str = "ffffffff";

/// A VMDK image.
pub(super) struct Vmdk<'a> {
    file: &'a dyn ReadAt,
    bytes: u64,
    /// Bytes of a grain.
    grain: u64,
    has_zero_grains: bool,
    is_compressed: bool,
    /// The sector of each grain table, or 0.
    directory: Vec<u8>,
}

impl<'a> Vmdk<'a> {
    pub(super) fn open(file: &'a dyn ReadAt, file_bytes: u64) -> io::Result<Self> {
        let first = header(file, 0)?;
        check_descriptor(file, &first)?;
        let header = match le64(&first, 56) {
            AT_END => header(file, file_bytes.checked_sub(FOOTER).ok_or(Unreadable::Header)?)?,
            _ => first,
        };
        let flags = le32(&header, 8);
        let is_compressed = flags & COMPRESSED != 0;
        if is_compressed && flags & MARKERS == 0 {
            return Err(Unreadable::Variant.into());
        }
        if is_compressed && le16(&header, 77) != DEFLATE {
            let [kind, _] = le16(&header, 77).to_le_bytes();
            return Err(Unreadable::Compression(kind).into());
        }
        let (capacity, grain) = (le64(&header, 12), le64(&header, 20));
        let bytes = capacity.checked_mul(SECTOR).filter(|bytes| i64::try_from(*bytes).is_ok());
        let bytes = bytes.ok_or(Unreadable::Header)?;
        let is_known = grain.is_power_of_two() && GRAIN.contains(&grain);
        if !is_known || u64::from(le32(&header, 44)) != GRAINS {
            return Err(Unreadable::Header.into());
        }
        let grain = grain * SECTOR;
        let tables = bytes.div_ceil(grain * GRAINS);
        let directory = le64(&header, 56).checked_mul(SECTOR).ok_or(Unreadable::Header)?;
        let directory = table(file, directory, tables * 4)?;
        let has_zero_grains = flags & ZERO_GRAINS != 0;
        Ok(Self { file, bytes, grain, has_zero_grains, is_compressed, directory })
    }

    /// Returns where a grain is whose table entry is `sector`.
    fn place(&self, sector: u32) -> io::Result<Place> {
        let offset = u64::from(sector) * SECTOR;
        Ok(match sector {
            0 => Place::Zeros,
            ZERO if self.has_zero_grains => Place::Zeros,
            _ if !self.is_compressed => Place::File(offset),
            _ => {
                let marker = window::read(self.file, offset, MARKER)?.ok_or_else(cut_off)?;
                let len = u64::from(le32(&marker, 8));
                // Data that does not become smaller becomes a little larger.
                if len > 2 * self.grain + MARKER {
                    return Err(damaged());
                }
                Place::Packed { offset: offset + MARKER, len }
            }
        })
    }
}

fn header(file: &dyn ReadAt, offset: u64) -> io::Result<Vec<u8>> {
    // A descriptor alone may be shorter.
    let header = read_packed(file, offset, SECTOR)?;
    if header.starts_with(b"# Disk DescriptorFile") {
        return Err(Unreadable::DataFile.into());
    }
    // An extent of ESX.
    if header.starts_with(b"COWD") {
        return Err(Unreadable::Variant.into());
    }
    if !header.starts_with(MAGIC) || header.len() as u64 != SECTOR {
        return Err(Unreadable::Header.into());
    }
    let version = le32(&header, 4);
    if VERSIONS.contains(&version) { Ok(header) } else { Err(Unreadable::Version(version).into()) }
}

/// Checks the text that says of which files the disk consists: of this one only.
fn check_descriptor(file: &dyn ReadAt, header: &[u8]) -> io::Result<()> {
    let (sector, sectors) = (le64(header, 28), le64(header, 36));
    let offset = sector.checked_mul(SECTOR).ok_or(Unreadable::Header)?;
    let len = sectors.checked_mul(SECTOR).ok_or(Unreadable::Header)?.min(DESCRIPTOR);
    if len == 0 {
        // One extent of several.
        return Err(Unreadable::DataFile.into());
    }
    let text = window::read(file, offset, len)?.ok_or_else(cut_off)?;
    let text = String::from_utf8_lossy(&text);
    let lines = || text.split(['\n', '\0']).map(str::trim);
    let mut entries = lines().filter_map(|line| line.split_once('='));
    let parent = entries.find(|(key, _)| key.trim().eq_ignore_ascii_case("parentCID"));
    if parent.is_some_and(|(_, parent)| !parent.trim().eq_ignore_ascii_case(NO_PARENT)) {
        return Err(Unreadable::Parent.into());
    }
    let is_extent = |line: &&str| {
        let mut words = line.split_whitespace();
        let access = words.next().unwrap_or_default();
        let has_size = words.next().is_some_and(|size| size.parse::<u64>().is_ok());
        matches!(access, "RW" | "RDONLY" | "NOACCESS") && has_size
    };
    if lines().filter(is_extent).count() == 1 { Ok(()) } else { Err(Unreadable::DataFile.into()) }
}

impl VirtualDisk for Vmdk<'_> {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn runs(&self, each: TakeRun<'_>) -> io::Result<()> {
        let mut at = 0;
        for entry in self.directory.chunks_exact(4) {
            let end = self.bytes.min(at + self.grain * GRAINS);
            let sector = u64::from(le32(entry, 0));
            if sector == 0 {
                each(Run { len: end - at, place: Place::Zeros })?;
                at = end;
                continue;
            }
            let table = window::read(self.file, sector * SECTOR, GRAINS * 4)?;
            for entry in table.ok_or_else(cut_off)?.chunks_exact(4) {
                let len = self.grain.min(end - at);
                if len == 0 {
                    break;
                }
                each(Run { len, place: self.place(le32(entry, 0))? })?;
                at += len;
            }
        }
        if at == self.bytes { Ok(()) } else { Err(damaged()) }
    }

    fn unpack(&self, offset: u64, packed: u64, len: usize) -> io::Result<Vec<u8>> {
        let packed = read_packed(self.file, offset, packed)?;
        // The last grain may be shorter than what it is packed from.
        let grain = usize::try_from(self.grain).unwrap_or(0);
        match inflate(&packed, grain, true) {
            Ok(mut bytes) => {
                bytes.truncate(len);
                Ok(bytes)
            }
            Err(_) => inflate(&packed, len, true),
        }
    }
}
