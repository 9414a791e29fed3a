//! A bootable disk: a GUID partition table, an EFI system partition with the files (UEFI 2.10 §3.5),
//! and for BIOS a partition with GRUB's core image. It can be an ISO 9660 medium at the same time.

use crate::bios::Bios;
use crate::error::Error;
use crate::fat32::Volume;
use crate::files::Files;
use crate::iso9660;
use linux::gpt::{Gpt, Partition};

/// Alignment of partitions.
const ALIGNMENT: u64 = 1 << 20;
/// C12A7328-F81F-11D2-BA4B-00A0C93EC93B, in its on-disk form: the type of an EFI system partition.
const SYSTEM_PARTITION: [u8; 16] = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];
/// 21686148-6449-6E6F-744E-656564454649: the type of a BIOS boot partition.
const BIOS_PARTITION: [u8; 16] = *b"Hah!IdontNeedEFI";
pub use linux::boot::PARTITION_NAME;

/// The block size with which BIOS and ISO 9660 work.
const USUAL_BLOCK: u32 = 512;

/// Contents of a disk.
#[derive(Debug)]
pub struct Contents {
    /// Files of the EFI system partition.
    pub files: Files,
    /// What starts it on a machine with BIOS. Left out on disks with larger blocks, from which no
    /// BIOS starts.
    pub bios: Option<Bios>,
    /// Whether it is an ISO 9660 medium, too.
    pub iso: bool,
}

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
    /// The smallest disk image for the contents.
    ///
    /// # Errors
    /// Fails if they are too large, or for a file name that is too long.
    pub fn image(contents: &Contents) -> Result<Self, Error> {
        let plan = Plan::new(contents, USUAL_BLOCK)?;
        plan.disk(plan.needed())
    }

    /// The layout for a disk of `bytes` bytes. `block` is its logical block size, 512 or 4096.
    ///
    /// # Errors
    /// Fails if the disk is too small, for another block size, or for a file name that is too long.
    pub fn on(contents: &Contents, bytes: u64, block: u32) -> Result<Self, Error> {
        if block != USUAL_BLOCK && block != 4096 {
            return Err(Error::Block(block));
        }
        Plan::new(contents, block)?.disk(bytes)
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

/// The layout of a disk: the files of its file system and the blocks of its partitions.
struct Plan<'a> {
    contents: &'a Contents,
    bios: Option<&'a Bios>,
    digest: [u8; 32],
    block: u32,
    volume: Volume<'a>,
    /// Bytes of the partitions; the first begins at `ALIGNMENT`.
    system: u64,
    boot: u64,
}

impl<'a> Plan<'a> {
    fn new(contents: &'a Contents, block: u32) -> Result<Self, Error> {
        let volume = Volume::new(&contents.files, block)?;
        let system = u64::from(volume.blocks()).saturating_mul(block.into());
        let bios = contents.bios.as_ref().filter(|_| block == USUAL_BLOCK);
        let boot = bios.map_or(0, |bios| bios.core.len() as u64);
        Ok(Self {
            contents,
            bios,
            digest: contents.files.digest(),
            block,
            volume,
            system: system.next_multiple_of(ALIGNMENT),
            boot: boot.next_multiple_of(ALIGNMENT),
        })
    }

    /// Minimum size of a disk in bytes: space for the tables before and after the partitions, and to
    /// overwrite those of other tables.
    fn needed(&self) -> u64 {
        self.boot_at().saturating_add(self.boot).saturating_add(ALIGNMENT)
    }

    fn boot_at(&self) -> u64 {
        self.system.saturating_add(ALIGNMENT)
    }

    fn disk(&self, bytes: u64) -> Result<Disk, Error> {
        let needs = self.needed();
        if bytes < needs {
            return Err(Error::TooSmall { has: bytes, needs });
        }
        let size = |bytes: u64| usize::try_from(bytes).map_err(|_| Error::TooLarge);
        let table = self.table(bytes);
        let mut start = table.start();
        if self.contents.iso {
            let place = |path: &str| Some(self.volume.offset(path)?.saturating_add(ALIGNMENT));
            let medium = iso9660::Medium {
                files: &self.contents.files,
                place: &place,
                bytes,
                efi: ALIGNMENT,
                bios: self.bios.map(|_| self.boot_at()),
            };
            start.resize(iso9660::START, 0);
            start.extend(medium.descriptors()?);
        }
        start.resize(size(ALIGNMENT)?, 0);
        start.extend(self.volume.bytes(self.blocks(ALIGNMENT)?, self.number()));
        if let Some(bios) = self.bios {
            start.resize(size(self.boot_at())?, 0);
            start.extend(bios.core_at(self.boot_at())?);
        }
        Ok(Disk { bytes, start, end: end(&table) })
    }

    fn blocks(&self, bytes: u64) -> Result<u32, Error> {
        u32::try_from(bytes / u64::from(self.block)).map_err(|_| Error::TooLarge)
    }

    /// The serial number of the file system.
    fn number(&self) -> u32 {
        self.digest.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    fn table(&self, bytes: u64) -> Gpt {
        let blocks = |bytes: u64| bytes / u64::from(self.block);
        let partition = |kind, from, start, length| Partition {
            kind,
            guid: identity(&self.digest, from),
            first: blocks(start),
            last: blocks(start.saturating_add(length)).saturating_sub(1),
            name: PARTITION_NAME,
        };
        let mut partitions = vec![partition(SYSTEM_PARTITION, 16, ALIGNMENT, self.system)];
        if self.bios.is_some() {
            partitions.push(partition(BIOS_PARTITION, 8, self.boot_at(), self.boot));
        }
        let table = Gpt::new(self.block, blocks(bytes), identity(&self.digest, 0), &partitions);
        match self.bios {
            Some(bios) => table.bootable(bios.boot_at(self.boot_at())),
            None => table,
        }
    }
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

    const PATH: &str = "EFI/BOOT/BOOTX64.EFI";

    fn program() -> Vec<u8> {
        (0..3_000_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect()
    }

    fn contents() -> Contents {
        let mut files = Files::default();
        files.add(PATH, program());
        Contents { files, bios: None, iso: false }
    }

    fn with_bios() -> Contents {
        let bios = Bios { boot: vec![0x90; 512], core: vec![3; 60_000] };
        Contents { bios: Some(bios), ..contents() }
    }

    fn read_back(disk: &Disk) -> Vec<u8> {
        file(&disk.start[1 << 20..], PATH).unwrap()
    }

    #[test]
    fn program_is_at_the_default_boot_path() {
        let disk = Disk::image(&contents()).unwrap();
        assert_eq!(disk.bytes, 35 << 20);
        assert_eq!(disk.whole().len() as u64, disk.bytes);
        assert!(read_back(&disk) == program());
        assert_eq!(&disk.start[(1 << 20) + 82..][..8], b"FAT32   ");
    }

    #[test]
    fn larger_disks_and_4k_blocks_are_supported() {
        for block in [512, 4096] {
            let disk = Disk::on(&contents(), 64 << 30, block).unwrap();
            assert_eq!((disk.bytes, disk.end.len()), (64 << 30, 1 << 20));
            assert!(read_back(&disk) == program());
        }
    }

    #[test]
    fn table_is_readable_by_another_parser() {
        for (block, size) in [(512, LogicalBlockSize::Lb512), (4096, LogicalBlockSize::Lb4096)] {
            let contents = with_bios();
            let bytes = Plan::new(&contents, block).unwrap().needed() + ALIGNMENT;
            let disk = Disk::on(&contents, bytes, block).unwrap().whole();
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
            let boot = read.partitions().get(&2).filter(|partition| partition.is_used());
            assert_eq!(boot.is_some(), block == 512, "no BIOS starts from blocks of 4096 bytes");
            if let Some(boot) = boot {
                assert_eq!(boot.part_type_guid, partition_types::BIOS);
                assert!(boot.first_lba > partition.last_lba && boot.last_lba < last);
            }
        }
    }

    #[test]
    fn boot_code_finds_the_core_image() {
        let disk = Disk::image(&with_bios()).unwrap();
        let block = |at: usize| u64::from_le_bytes(disk.start[at..at + 8].try_into().unwrap());
        let core = usize::try_from(block(432) - 4).unwrap() * 512;
        assert_eq!(core % (1 << 20), 0);
        assert!(disk.start[..432].iter().all(|&byte| byte == 0x90));
        assert_eq!(block(core + 2548), block(432) + 1);
        assert_eq!(disk.start[core + 5000], 3);
        // Some BIOS requires an active partition: an empty one, since that of a GPT must not be.
        assert_eq!((disk.start[446], disk.start[462], disk.start[466]), (0, 0x80, 0));
    }

    #[test]
    fn disk_is_reproducible() {
        assert!(Disk::image(&with_bios()).unwrap() == Disk::image(&with_bios()).unwrap());
        let mut other = contents();
        other.files.add(PATH, b"another".to_vec());
        assert!(Disk::image(&contents()).unwrap() != Disk::image(&other).unwrap());
    }

    #[test]
    fn too_small_disk_is_refused_with_both_sizes() {
        let error = Disk::on(&contents(), 1 << 20, 512).unwrap_err().to_string();
        assert!(error.contains("1048576") && error.contains("36700160"), "{error}");
        assert!(matches!(Disk::on(&contents(), 1 << 30, 520), Err(Error::Block(520))));
    }
}
