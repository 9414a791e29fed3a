//! Generates a FAT16 file system with one file in the root directory (ECMA-107, as extended by the
//! FAT specification of 2000 for 32-bit sector counts).

use super::Partition;

/// The largest partition, in blocks: 65524 clusters of 32 KiB.
pub(super) const MAX_BLOCKS: u64 = MAX_CLUSTERS * 64;

const MAX_CLUSTERS: u64 = 65524;
const RESERVED: u64 = 4;
const ROOT_ENTRIES: u16 = 512;
const ROOT_BLOCKS: u64 = 32;
const BLOCK: usize = 512;
/// First cluster of the file, and of the data area.
const FILE: u16 = 2;
/// 2026-01-01 as a FAT date.
const DAY: u16 = (46 << 9) | (1 << 5) | 1;

/// Returns the blocks to write: block number within the partition, and content.
pub(super) fn emit(partition: Partition, serial: u32, file: &[u8]) -> [(u64, Vec<u8>); 5] {
    let layout = Layout::of(partition.blocks);
    let table = table(&layout, file.len());
    let root = RESERVED + 2 * layout.table;
    [
        (0, boot(partition, &layout, serial)),
        (RESERVED, table.clone()),
        (RESERVED + layout.table, table),
        (root, directory(file.len())),
        (root + ROOT_BLOCKS, file.to_vec()),
    ]
}

/// Sizes in blocks.
struct Layout {
    cluster: u64,
    table: u64,
}

impl Layout {
    /// Selects the smallest cluster size with which cluster numbers fit in 16 bits.
    fn of(blocks: u64) -> Self {
        let cluster = blocks.div_ceil(MAX_CLUSTERS).next_power_of_two();
        let table = ((blocks / cluster + 2) * 2).div_ceil(BLOCK as u64);
        Self { cluster, table }
    }
}

fn boot(partition: Partition, layout: &Layout, serial: u32) -> Vec<u8> {
    let mut boot = vec![0; BLOCK];
    put(&mut boot, 0, b"\xeb\x3c\x90storage ");
    put(&mut boot, 11, &512u16.to_le_bytes());
    put(&mut boot, 13, &low(layout.cluster)[..1]);
    put(&mut boot, 14, &low(RESERVED)[..2]);
    put(&mut boot, 16, &[2]);
    put(&mut boot, 17, &ROOT_ENTRIES.to_le_bytes());
    let short = if partition.blocks < 0x1_0000 { low(partition.blocks) } else { [0; 4] };
    let long = if partition.blocks < 0x1_0000 { [0; 4] } else { low(partition.blocks) };
    put(&mut boot, 19, &short[..2]);
    put(&mut boot, 21, &[0xf8]);
    put(&mut boot, 22, &low(layout.table)[..2]);
    put(&mut boot, 24, &[63, 0, 255, 0]);
    put(&mut boot, 28, &low(partition.first));
    put(&mut boot, 32, &long);
    put(&mut boot, 36, &[0x80, 0, 0x29]);
    put(&mut boot, 39, &serial.to_le_bytes());
    put(&mut boot, 43, b"STORAGETM  FAT16   ");
    // Boot code: hlt in a loop.
    put(&mut boot, 62, &[0xf4, 0xeb, 0xfd]);
    put(&mut boot, 510, &[0x55, 0xaa]);
    boot
}

/// The low 32 bits, little-endian.
fn low(number: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = number.to_le_bytes();
    [a, b, c, d]
}

/// The file allocation table: the file's clusters in sequence, all others free.
fn table(layout: &Layout, length: usize) -> Vec<u8> {
    let clusters = (length as u64).div_ceil(BLOCK as u64 * layout.cluster);
    let mut entries: Vec<u16> = vec![0xfff8, 0xffff];
    entries.extend((FILE + 1..).zip(1..clusters).map(|(next, _)| next));
    entries.push(0xffff);
    let mut table: Vec<u8> = entries.iter().flat_map(|word| word.to_le_bytes()).collect();
    table.resize(table.len().next_multiple_of(BLOCK), 0);
    table
}

fn directory(length: usize) -> Vec<u8> {
    const LABEL: u8 = 0x08;
    const ARCHIVE: u8 = 0x20;
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    [entry(b"STORAGETM  ", LABEL, 0, 0), entry(b"README  TXT", ARCHIVE, FILE, length)].concat()
}

fn entry(name: &[u8; 11], attributes: u8, cluster: u16, length: u32) -> [u8; 32] {
    let mut entry = [0; 32];
    put(&mut entry, 0, name);
    put(&mut entry, 11, &[attributes]);
    put(&mut entry, 16, &DAY.to_le_bytes());
    put(&mut entry, 18, &DAY.to_le_bytes());
    put(&mut entry, 24, &DAY.to_le_bytes());
    put(&mut entry, 26, &cluster.to_le_bytes());
    put(&mut entry, 28, &length.to_le_bytes());
    entry
}

fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn every_size_has_a_fat16_cluster_count() {
        for blocks in [6100, 8192, 65535, 65536, 131_072, 520_000, MAX_BLOCKS - 1, MAX_BLOCKS] {
            let layout = Layout::of(blocks);
            let data = blocks - RESERVED - 2 * layout.table - ROOT_BLOCKS;
            let clusters = data / layout.cluster;
            assert!((4085..65525).contains(&clusters), "{blocks}: {clusters}");
            assert!(layout.cluster <= 64 && layout.table * 256 >= clusters + 2);
        }
    }

    #[test]
    fn file_is_a_terminated_cluster_chain() {
        let layout = Layout { cluster: 1, table: 16 };
        let entries: Vec<u16> = table(&layout, 1025)
            .chunks(2)
            .map(|word| u16::from_le_bytes([word[0], word[1]]))
            .collect();
        assert_eq!(entries[..6], [0xfff8, 0xffff, 3, 4, 0xffff, 0]);
    }
}
