//! A GUID partition table with one partition (UEFI 2.10 §5.3). It knows no disk: it makes blocks.

use super::Partition;

/// Blocks that the table takes at the end of the disk: 32 of entries, and the header.
pub(super) const TAIL: u64 = 33;

const ENTRIES: usize = 128;
const ENTRY: usize = 128;
const HEADER: usize = 92;

/// Basic data partition, as it lies on disk.
const BASIC_DATA: [u8; 16] = [
    0xa2, 0xa0, 0xd0, 0xeb, 0xe5, 0xb9, 0x33, 0x44, 0x87, 0xc0, 0x68, 0xb6, 0xb7, 0x26, 0x99, 0xc7,
];

/// What to write where: a block number and bytes from there on.
pub(super) fn emit(blocks: u64, partition: Partition, uuid: [u8; 16]) -> [(u64, Vec<u8>); 5] {
    let last = blocks - 1;
    let entries = entries(partition, uuid);
    let sum = crc32(&entries);
    let header = |own, other, table| header(own, other, table, last, sum, uuid);
    [
        (0, protective(blocks)),
        (1, header(1, last, 2)),
        (2, entries.clone()),
        (last - 32, entries),
        (last, header(last, 1, last - 32)),
    ]
}

/// The master boot record that keeps older programs from taking the disk for empty (UEFI 2.10 §5.2.3).
fn protective(blocks: u64) -> Vec<u8> {
    let mut record = vec![0; 512];
    let length = u32::try_from(blocks - 1).unwrap_or(u32::MAX);
    put(&mut record, 446, &[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    put(&mut record, 454, &1u32.to_le_bytes());
    put(&mut record, 458, &length.to_le_bytes());
    put(&mut record, 510, &[0x55, 0xaa]);
    record
}

fn header(own: u64, other: u64, table: u64, last: u64, sum: u32, uuid: [u8; 16]) -> Vec<u8> {
    let mut header = vec![0; 512];
    put(&mut header, 0, b"EFI PART\0\0\x01\0\x5c\0\0\0");
    put(&mut header, 24, &own.to_le_bytes());
    put(&mut header, 32, &other.to_le_bytes());
    put(&mut header, 40, &(2 + TAIL - 1).to_le_bytes());
    put(&mut header, 48, &(last - TAIL).to_le_bytes());
    put(&mut header, 56, &mixed(uuid));
    put(&mut header, 72, &table.to_le_bytes());
    put(&mut header, 80, &128u32.to_le_bytes());
    put(&mut header, 84, &128u32.to_le_bytes());
    put(&mut header, 88, &sum.to_le_bytes());
    let own_sum = crc32(&header[..HEADER]);
    put(&mut header, 16, &own_sum.to_le_bytes());
    header
}

fn entries(partition: Partition, mut uuid: [u8; 16]) -> Vec<u8> {
    let mut entries = vec![0; ENTRIES * ENTRY];
    uuid[15] ^= 1; // The partition's own identity, beside the disk's.
    put(&mut entries, 0, &BASIC_DATA);
    put(&mut entries, 16, &mixed(uuid));
    put(&mut entries, 32, &partition.first.to_le_bytes());
    put(&mut entries, 40, &(partition.first + partition.blocks - 1).to_le_bytes());
    let name: Vec<u8> = "storagetm demo".encode_utf16().flat_map(u16::to_le_bytes).collect();
    put(&mut entries, 56, &name);
    entries
}

/// A UUID as GPT has it: its first three fields little-endian (UEFI 2.10 appendix A).
fn mixed(mut uuid: [u8; 16]) -> [u8; 16] {
    uuid[..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    uuid
}

fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

#[allow(clippy::cast_possible_truncation, reason = "this checksum has 32 bits")]
fn crc32(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, bytes) as u32
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_specification() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn both_headers_name_each_other_and_the_partition_lies_between_the_tables() {
        let partition = Partition { first: 2048, blocks: 4096 };
        let [record, first, table, copy, second] = emit(8192, partition, [7; 16]);
        assert_eq!(&record.1[510..], [0x55, 0xaa]);
        let word =
            |block: &[u8], at: usize| u64::from_le_bytes(*block[at..].first_chunk().unwrap());
        assert_eq!((first.0, second.0), (1, 8191));
        assert_eq!((word(&first.1, 24), word(&first.1, 32)), (1, 8191));
        assert_eq!((word(&second.1, 24), word(&second.1, 32)), (8191, 1));
        assert_eq!((word(&first.1, 40), word(&first.1, 48)), (34, 8158));
        assert_eq!((word(&table.1, 32), word(&table.1, 40)), (2048, 6143));
        assert_eq!((copy.0, copy.1 == table.1), (8159, true));
    }
}
