//! A GUID partition table with one EFI system partition (UEFI 2.10 §5).
//!
//! Does not know what is in the partition.

use crc_fast::{CrcAlgorithm, checksum};

/// C12A7328-F81F-11D2-BA4B-00A0C93EC93B, as it stands on disk: the EFI system partition.
const SYSTEM_PARTITION: [u8; 16] = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];
const ENTRIES: u32 = 128;
const ENTRY: u32 = 128;
/// The name of the one partition, by which a stick that boots into target mode is known.
pub const PARTITION_NAME: &str = "storagetm";

/// A table, in blocks of the disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    /// The size of a block in bytes: 512 or 4096.
    pub(crate) block: u32,
    /// How many blocks the disk has.
    pub(crate) blocks: u64,
    /// The first and the last block of the partition.
    pub(crate) partition: (u64, u64),
    /// The disk's identity and the partition's.
    pub(crate) identities: [[u8; 16]; 2],
}

impl Table {
    /// How many blocks the list of partitions takes.
    pub(crate) fn list_blocks(block: u32) -> u64 {
        u64::from((ENTRIES * ENTRY).div_ceil(block))
    }

    /// What stands at the start of the disk: a record for those who know no such table, the header, the list.
    pub(crate) fn start(&self) -> Vec<u8> {
        let mut bytes = self.padded(self.protective_record());
        bytes.extend(self.padded(self.header(1, self.last(), 2)));
        bytes.extend(self.padded(self.list()));
        bytes
    }

    /// What stands in the last blocks: the list and the header again.
    pub(crate) fn end(&self) -> Vec<u8> {
        let list = self.last().saturating_sub(Self::list_blocks(self.block));
        let mut bytes = self.padded(self.list());
        bytes.extend(self.padded(self.header(self.last(), 1, list)));
        bytes
    }

    fn last(&self) -> u64 {
        self.blocks.saturating_sub(1)
    }

    fn padded(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let block = usize::try_from(self.block).unwrap_or(512);
        bytes.resize(bytes.len().next_multiple_of(block), 0);
        bytes
    }

    /// One partition of the whole disk, of a kind that nobody touches (§5.2.3).
    fn protective_record(&self) -> Vec<u8> {
        let mut record = vec![0; 446];
        record.extend([0, 0x00, 0x02, 0x00, 0xee, 0xff, 0xff, 0xff]);
        record.extend(1_u32.to_le_bytes());
        record.extend(u32::try_from(self.last()).unwrap_or(u32::MAX).to_le_bytes());
        record.resize(510, 0);
        record.extend([0x55, 0xaa]);
        record
    }

    /// §5.3.2
    fn header(&self, here: u64, other: u64, list: u64) -> Vec<u8> {
        let first_usable = Self::list_blocks(self.block).saturating_add(2);
        let last_usable =
            self.last().saturating_sub(Self::list_blocks(self.block)).saturating_sub(1);
        let mut header = b"EFI PART\0\0\x01\0".to_vec();
        header.extend(92_u32.to_le_bytes());
        header.extend([0; 8]);
        for place in [here, other, first_usable, last_usable] {
            header.extend(place.to_le_bytes());
        }
        let [disk, _] = self.identities;
        header.extend(disk);
        header.extend(list.to_le_bytes());
        for word in [ENTRIES, ENTRY, crc(&self.list())] {
            header.extend(word.to_le_bytes());
        }
        let sum = crc(&header).to_le_bytes();
        header.splice(16..20, sum);
        header
    }

    /// §5.3.3
    fn list(&self) -> Vec<u8> {
        let [_, partition] = self.identities;
        let mut list = SYSTEM_PARTITION.to_vec();
        list.extend(partition);
        list.extend(self.partition.0.to_le_bytes());
        list.extend(self.partition.1.to_le_bytes());
        list.extend([0; 8]);
        list.extend(PARTITION_NAME.encode_utf16().flat_map(u16::to_le_bytes));
        list.resize(usize::try_from(ENTRIES * ENTRY).unwrap_or_default(), 0);
        list
    }
}

fn crc(bytes: &[u8]) -> u32 {
    u32::try_from(checksum(CrcAlgorithm::Crc32IsoHdlc, bytes)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpt::disk::LogicalBlockSize;
    use gpt::{GptConfig, partition_types};
    use std::io::Cursor;

    #[test]
    fn the_table_is_one_that_others_read() {
        for (block, size) in [(512, LogicalBlockSize::Lb512), (4096, LogicalBlockSize::Lb4096)] {
            let table = Table {
                block,
                blocks: 9000,
                partition: (256, 8000),
                identities: [[1; 16], [2; 16]],
            };
            let mut disk = table.start();
            disk.resize(9000 * block as usize - table.end().len(), 0);
            disk.extend(table.end());
            let read = GptConfig::new().writable(false).logical_block_size(size);
            let read = read.open_from_device(Box::new(Cursor::new(disk))).unwrap();
            let backup = read.backup_header().unwrap();
            assert_eq!(read.primary_header().unwrap().disk_guid, backup.disk_guid);
            let partition = &read.partitions()[&1];
            assert_eq!((partition.first_lba, partition.last_lba), (256, 8000));
            assert_eq!(partition.part_type_guid, partition_types::EFI);
            assert_eq!(partition.name, "storagetm");
        }
    }
}
