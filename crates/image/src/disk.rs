//! A disk from which EFI firmware starts a program: a GUID partition table, and an EFI system partition with the program
//! as `\EFI\BOOT\BOOTX64.EFI` (UEFI 2.10 §3.5).
//!
//! Does not know what the program does, nor where the disk is.

use crate::error::Error;
use crate::partition_table::Table;
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use sha2::{Digest, Sha256};
use std::io::{Cursor, Write};

/// Partitions begin and end at multiples of this.
const ALIGNMENT: u64 = 1 << 20;
/// FAT32 has at least 65525 clusters, which are of one block here (Microsoft FAT specification §3.5).
const SMALLEST: u64 = 34 << 20;
/// Beside the program: the file allocation tables and the folders, as a share of the whole.
const TABLES_SHARE: u64 = 32;
/// A cluster of a disk with blocks of 4096 bytes: there FAT16 is what fits (firmware reads both).
const LARGE_BLOCK: u32 = 4096;

/// A disk: what stands at its start, and what stands at its end. What is between is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The size of the disk, in bytes.
    pub bytes: u64,
    /// From the first byte on.
    pub start: Vec<u8>,
    /// Up to the last byte.
    pub end: Vec<u8>,
}

impl Disk {
    /// The smallest disk image that holds the program.
    ///
    /// Errors: it is too large.
    pub fn image(program: &[u8]) -> Result<Self, Error> {
        Self::on(program, needed(program)?, 512)
    }

    /// A disk of `bytes` bytes, in blocks of `block`, which is 512 or 4096.
    ///
    /// Errors: there is too little room; no such blocks.
    pub fn on(program: &[u8], bytes: u64, block: u32) -> Result<Self, Error> {
        if block != 512 && block != LARGE_BLOCK {
            return Err(Error::Block(block));
        }
        let needs = needed(program)?;
        if bytes < needs {
            return Err(Error::TooSmall { has: bytes, needs });
        }
        let digest = Sha256::digest(program);
        let length = needs.saturating_sub(2 * ALIGNMENT);
        let partition = system_partition(program, length, block, digest.as_slice())?;
        let table = table(bytes, block, length, digest.as_slice());
        let mut start = table.start();
        start.resize(usize::try_from(ALIGNMENT).map_err(|_| Error::TooLarge)?, 0);
        start.extend(partition);
        Ok(Self { bytes, start, end: end(&table) })
    }

    /// All of it, as a file holds it.
    pub fn whole(&self) -> Vec<u8> {
        let end = usize::try_from(self.bytes).unwrap_or_default().saturating_sub(self.end.len());
        let mut whole = self.start.clone();
        whole.resize(end, 0);
        whole.extend_from_slice(&self.end);
        whole
    }
}

/// How large a disk must be, in bytes.
fn needed(program: &[u8]) -> Result<u64, Error> {
    let program = u64::try_from(program.len()).map_err(|_| Error::TooLarge)?;
    let tables = (program / TABLES_SHARE).saturating_add(ALIGNMENT);
    let partition = program.saturating_add(tables).max(SMALLEST).next_multiple_of(ALIGNMENT);
    // Before and after the partition: the tables, and what was there before of other tables.
    Ok(partition.saturating_add(2 * ALIGNMENT))
}

fn table(bytes: u64, block: u32, partition: u64, digest: &[u8]) -> Table {
    let blocks = |bytes: u64| bytes / u64::from(block);
    let last = blocks(ALIGNMENT.saturating_add(partition)).saturating_sub(1);
    Table {
        block,
        blocks: blocks(bytes),
        partition: (blocks(ALIGNMENT), last),
        identities: [identity(digest, 0), identity(digest, 16)],
    }
}

/// The last mebibyte, so that nothing older is found there.
fn end(table: &Table) -> Vec<u8> {
    let backup = table.end();
    let length = usize::try_from(ALIGNMENT).unwrap_or_default().saturating_sub(backup.len());
    let mut end = vec![0; length];
    end.extend(backup);
    end
}

/// An identity made of what is on the disk (RFC 9562 §5.8), with the first fields in the order of GUIDs on disk.
fn identity(digest: &[u8], from: usize) -> [u8; 16] {
    let mut identity = [0; 16];
    for (to, from) in identity.iter_mut().zip(digest.iter().skip(from)) {
        *to = *from;
    }
    let [_, _, _, _, _, _, _, version, variant, ..] = &mut identity;
    *version = *version & 0x0f | 0x80;
    *variant = *variant & 0x3f | 0x80;
    identity
}

/// The file system of the EFI system partition, with the program in it.
fn system_partition(
    program: &[u8],
    length: u64,
    block: u32,
    digest: &[u8],
) -> Result<Vec<u8>, Error> {
    let length = usize::try_from(length).map_err(|_| Error::TooLarge)?;
    let mut volume = Cursor::new(vec![0; length]);
    let number = digest.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let kind = if block == LARGE_BLOCK { FatType::Fat16 } else { FatType::Fat32 };
    let options = FormatVolumeOptions::new()
        .bytes_per_sector(u16::try_from(block).map_err(|_| Error::Block(block))?)
        .bytes_per_cluster(block)
        .fat_type(kind)
        .volume_id(number)
        .volume_label(*b"STORAGETM  ");
    fatfs::format_volume(&mut volume, options)?;
    let files = FileSystem::new(&mut volume, FsOptions::new())?;
    let folder = files.root_dir().create_dir("EFI")?.create_dir("BOOT")?;
    let mut file = folder.create_file("BOOTX64.EFI")?;
    file.write_all(program)?;
    file.flush()?;
    drop((file, folder));
    files.unmount()?;
    Ok(volume.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn program() -> Vec<u8> {
        (0..3_000_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect()
    }

    fn read_back(disk: &Disk) -> Vec<u8> {
        let partition = disk.start[1 << 20..].to_vec();
        let files = FileSystem::new(Cursor::new(partition), FsOptions::new()).unwrap();
        let mut file = files.root_dir().open_file("EFI/BOOT/BOOTX64.EFI").unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn firmware_finds_the_program_where_it_looks() {
        let disk = Disk::image(&program()).unwrap();
        assert_eq!(disk.bytes, 36 << 20);
        assert_eq!(disk.whole().len() as u64, disk.bytes);
        assert!(read_back(&disk) == program());
        assert_eq!(&disk.start[(1 << 20) + 82..][..8], b"FAT32   ");
    }

    #[test]
    fn a_larger_disk_and_one_of_large_blocks_hold_it_too() {
        for block in [512, 4096] {
            let disk = Disk::on(&program(), 64 << 30, block).unwrap();
            assert_eq!((disk.bytes, disk.end.len()), (64 << 30, 1 << 20));
            assert!(read_back(&disk) == program());
        }
    }

    #[test]
    fn the_same_program_makes_the_same_disk() {
        assert!(Disk::image(&program()).unwrap() == Disk::image(&program()).unwrap());
        assert!(Disk::image(&program()).unwrap() != Disk::image(b"another").unwrap());
    }

    #[test]
    fn a_disk_that_is_too_small_is_refused_with_both_sizes() {
        let error = Disk::on(&program(), 1 << 20, 512).unwrap_err().to_string();
        assert!(error.contains("1048576") && error.contains("37748736"), "{error}");
        assert!(matches!(Disk::on(&program(), 1 << 30, 520), Err(Error::Block(520))));
    }
}
