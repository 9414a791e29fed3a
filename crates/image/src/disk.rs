//! A disk that EFI firmware boots: a GUID partition table, and an EFI system partition with the
//! program as `\EFI\BOOT\BOOTX64.EFI` (UEFI 2.10 §3.5).

use crate::error::Error;
use crate::fat32::{Volume, blocks_for};
use linux::gpt::{Gpt, Partition};
use sha2::{Digest, Sha256};

/// Alignment of partitions.
const ALIGNMENT: u64 = 1 << 20;
/// C12A7328-F81F-11D2-BA4B-00A0C93EC93B, in its on-disk form: the type of an EFI system partition.
const SYSTEM_PARTITION: [u8; 16] = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];
pub use linux::boot::PARTITION_NAME;

/// The start and the end of a disk. The bytes between them do not matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Size of the disk in bytes.
    pub bytes: u64,
    /// The first bytes.
    pub start: Vec<u8>,
    /// The last bytes.
    pub end: Vec<u8>,
}

impl Disk {
    /// The smallest disk image for the program.
    ///
    /// # Errors
    /// Fails if the program is too large.
    pub fn image(program: &[u8]) -> Result<Self, Error> {
        Self::on(program, needed(program, 512)?, 512)
    }

    /// The layout for a disk of `bytes` bytes. `block` is its logical block size, 512 or 4096.
    ///
    /// # Errors
    /// Fails if the disk is too small, or for another block size.
    pub fn on(program: &[u8], bytes: u64, block: u32) -> Result<Self, Error> {
        if block != 512 && block != 4096 {
            return Err(Error::Block(block));
        }
        let needs = needed(program, block)?;
        if bytes < needs {
            return Err(Error::TooSmall { has: bytes, needs });
        }
        let digest = Sha256::digest(program);
        let partition = needs.saturating_sub(2 * ALIGNMENT);
        let mut start = table(bytes, block, partition, digest.as_slice()).start();
        start.resize(usize::try_from(ALIGNMENT).map_err(|_| Error::TooLarge)?, 0);
        start.extend(volume(block, partition, digest.as_slice())?.with(program));
        let end = end(&table(bytes, block, partition, digest.as_slice()));
        Ok(Self { bytes, start, end })
    }

    /// The whole disk, as a file.
    pub fn whole(&self) -> Vec<u8> {
        let end = usize::try_from(self.bytes).unwrap_or_default().saturating_sub(self.end.len());
        let mut whole = self.start.clone();
        whole.resize(end, 0);
        whole.extend_from_slice(&self.end);
        whole
    }
}

/// Minimum size of a disk in bytes.
fn needed(program: &[u8], block: u32) -> Result<u64, Error> {
    let program = u32::try_from(program.len()).map_err(|_| Error::TooLarge)?;
    let volume = blocks_for(program.into(), block).saturating_mul(block.into());
    // Space for the tables before and after the partition, and to overwrite those of other tables.
    Ok(volume.next_multiple_of(ALIGNMENT).saturating_add(2 * ALIGNMENT))
}

fn volume(block: u32, partition: u64, digest: &[u8]) -> Result<Volume, Error> {
    let blocks = |bytes: u64| u32::try_from(bytes / u64::from(block)).map_err(|_| Error::TooLarge);
    let number = digest.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    Ok(Volume { block, blocks: blocks(partition)?, before: blocks(ALIGNMENT)?, number })
}

fn table(bytes: u64, block: u32, partition: u64, digest: &[u8]) -> Gpt {
    let blocks = |bytes: u64| bytes / u64::from(block);
    let system = Partition {
        kind: SYSTEM_PARTITION,
        guid: identity(digest, 16),
        first: blocks(ALIGNMENT),
        last: blocks(ALIGNMENT.saturating_add(partition)).saturating_sub(1),
        name: PARTITION_NAME,
    };
    Gpt::new(block, blocks(bytes), identity(digest, 0), &[system])
}

/// The last mebibyte, to overwrite stale tables.
fn end(table: &Gpt) -> Vec<u8> {
    let backup = table.end();
    let length = usize::try_from(ALIGNMENT).unwrap_or_default().saturating_sub(backup.len());
    let mut end = vec![0; length];
    end.extend(backup);
    end
}

/// A GUID derived from the contents of the disk (RFC 9562 §5.8), in its on-disk form.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fat32::read::file;
    use ::gpt::disk::LogicalBlockSize;
    use ::gpt::{GptConfig, partition_types};
    use std::io::Cursor;

    fn program() -> Vec<u8> {
        (0..3_000_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect()
    }

    fn read_back(disk: &Disk) -> Vec<u8> {
        file(&disk.start[1 << 20..], &[b"EFI        ", b"BOOT       ", b"BOOTX64 EFI"])
    }

    #[test]
    fn program_is_at_the_default_boot_path() {
        let disk = Disk::image(&program()).unwrap();
        assert_eq!(disk.bytes, 35 << 20);
        assert_eq!(disk.whole().len() as u64, disk.bytes);
        assert!(read_back(&disk) == program());
        assert_eq!(&disk.start[(1 << 20) + 82..][..8], b"FAT32   ");
    }

    #[test]
    fn larger_disks_and_4k_blocks_are_supported() {
        for block in [512, 4096] {
            let disk = Disk::on(&program(), 64 << 30, block).unwrap();
            assert_eq!((disk.bytes, disk.end.len()), (64 << 30, 1 << 20));
            assert!(read_back(&disk) == program());
        }
    }

    #[test]
    fn table_is_readable_by_another_parser() {
        for (block, size) in [(512, LogicalBlockSize::Lb512), (4096, LogicalBlockSize::Lb4096)] {
            let bytes = needed(&program(), block).unwrap() + ALIGNMENT;
            let disk = Disk::on(&program(), bytes, block).unwrap().whole();
            let read = GptConfig::new().writable(false).logical_block_size(size);
            let read = read.open_from_device(Box::new(Cursor::new(disk))).unwrap();
            let backup = read.backup_header().unwrap();
            assert_eq!(read.primary_header().unwrap().disk_guid, backup.disk_guid);
            let partition = &read.partitions()[&1];
            let (first, last) =
                (ALIGNMENT / u64::from(block), (bytes - ALIGNMENT) / u64::from(block));
            assert!(partition.first_lba == first && partition.last_lba < last, "{partition:?}");
            assert_eq!(partition.part_type_guid, partition_types::EFI);
            assert_eq!(partition.name, "storagetm");
        }
    }

    #[test]
    fn disk_is_reproducible() {
        assert!(Disk::image(&program()).unwrap() == Disk::image(&program()).unwrap());
        assert!(Disk::image(&program()).unwrap() != Disk::image(b"another").unwrap());
    }

    #[test]
    fn too_small_disk_is_refused_with_both_sizes() {
        let error = Disk::on(&program(), 1 << 20, 512).unwrap_err().to_string();
        assert!(error.contains("1048576") && error.contains("36700160"), "{error}");
        assert!(matches!(Disk::on(&program(), 1 << 30, 520), Err(Error::Block(520))));
    }
}
