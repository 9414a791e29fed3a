//! VHD (Virtual Hard Disk Image Format Specification 1.0): fixed and dynamic images. Differencing ones are
//! refused.

use std::io;

use linux::medium::ReadAt;

use super::{Place, Run, TakeRun, Unreadable, VirtualDisk, be32, be64, cut_off, damaged, table};
use crate::window;

const SECTOR: u64 = 512;
/// Bytes of the footer, and of the copy at the start of a dynamic image.
const FOOTER: u64 = 512;
/// Bytes of the header of a dynamic image.
const DYNAMIC: u64 = 1024;
const FIXED_KIND: u32 = 2;
const DYNAMIC_KIND: u32 = 3;
const DIFFERENCING_KIND: u32 = 4;
/// A block without data.
const UNALLOCATED: u32 = u32::MAX;
/// Limits of the size of a block: those of what writes these images.
const BLOCK: std::ops::RangeInclusive<u64> = 1 << 12..=1 << 28;
/// The geometry of disks that are larger than it can express: cylinders, heads, sectors.
const LARGEST_GEOMETRY: u64 = 65535 * 16 * 255;

/// A VHD image.
pub(super) struct Vhd {
    file_bytes: u64,
    bytes: u64,
    /// `None` for a fixed image.
    blocks: Option<Blocks>,
}

struct Blocks {
    /// Bytes of a block.
    bytes: u64,
    /// The sector at which each begins, or [`UNALLOCATED`].
    table: Vec<u8>,
}

impl Vhd {
    pub(super) fn open(file: &dyn ReadAt, file_bytes: u64) -> io::Result<Self> {
        let at_end = file_bytes.checked_sub(FOOTER).ok_or(Unreadable::Header)?;
        let footer = match footer(file, at_end)? {
            Some(footer) => footer,
            // The copy of a dynamic image whose end is lost.
            None => footer(file, 0)?.ok_or(Unreadable::Header)?,
        };
        let bytes = disk_bytes(&footer);
        let blocks = match be32(&footer, 60) {
            FIXED_KIND if bytes <= at_end => None,
            FIXED_KIND => return Err(cut_off()),
            DYNAMIC_KIND => Some(blocks(file, be64(&footer, 16), bytes)?),
            DIFFERENCING_KIND => return Err(Unreadable::Parent.into()),
            _ => return Err(Unreadable::Header.into()),
        };
        Ok(Self { file_bytes, bytes, blocks })
    }
}

/// Returns the footer at `offset`, if there is one with the right checksum.
fn footer(file: &dyn ReadAt, offset: u64) -> io::Result<Option<Vec<u8>>> {
    let found = window::read(file, offset, FOOTER)?;
    let is_valid = |footer: &Vec<u8>| {
        footer.starts_with(b"conectix") && be32(footer, 64) == checksum(footer, 64)
    };
    Ok(found.filter(is_valid))
}

/// The one's complement of the sum of all bytes except the checksum itself.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let others = bytes.iter().enumerate().filter(|(number, _)| !(at..at + 4).contains(number));
    !others.fold(0_u32, |sum, (_, byte)| sum.wrapping_add((*byte).into()))
}

/// Returns the size of the disk. Virtual PC and old versions of QEMU mean the geometry, whatever size they
/// state beside it.
fn disk_bytes(footer: &[u8]) -> u64 {
    let creator = footer.get(28..32).unwrap_or_default();
    let [high, low, heads, sectors] = super::array(footer, 56).map(u64::from);
    let geometry = (high << 8 | low) * heads * sectors;
    let means_geometry = creator == b"vpc " || creator == b"qemu";
    match means_geometry && geometry > 0 && geometry < LARGEST_GEOMETRY {
        true => geometry * SECTOR,
        false => be64(footer, 48),
    }
}

fn blocks(file: &dyn ReadAt, header: u64, bytes: u64) -> io::Result<Blocks> {
    let header = window::read(file, header, DYNAMIC)?.ok_or_else(cut_off)?;
    if !header.starts_with(b"cxsparse") || be32(&header, 36) != checksum(&header, 36) {
        return Err(Unreadable::Header.into());
    }
    let size = u64::from(be32(&header, 32));
    if !size.is_power_of_two() || !BLOCK.contains(&size) {
        return Err(Unreadable::Header.into());
    }
    let count = bytes.div_ceil(size);
    if u64::from(be32(&header, 28)) < count {
        return Err(Unreadable::Header.into());
    }
    Ok(Blocks { bytes: size, table: table(file, be64(&header, 16), count * 4)? })
}

impl VirtualDisk for Vhd {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn runs(&self, each: TakeRun<'_>) -> io::Result<()> {
        let Some(blocks) = &self.blocks else {
            return each(Run { len: self.bytes, place: Place::File(0) });
        };
        // A bitmap of its sectors precedes each block.
        let bitmap = (blocks.bytes / SECTOR / 8).next_multiple_of(SECTOR);
        let mut at = 0;
        for entry in blocks.table.chunks_exact(4) {
            let len = blocks.bytes.min(self.bytes - at);
            let place = match be32(entry, 0) {
                UNALLOCATED => Place::Zeros,
                sector => {
                    let offset = u64::from(sector) * SECTOR + bitmap;
                    if offset.saturating_add(len) > self.file_bytes {
                        return Err(cut_off());
                    }
                    Place::File(offset)
                }
            };
            each(Run { len, place })?;
            at += len;
        }
        if at == self.bytes { Ok(()) } else { Err(damaged()) }
    }
}
