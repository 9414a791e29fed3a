//! A FAT32 file system with one file, `\EFI\BOOT\BOOTX64.EFI` (Microsoft's FAT specification 1.03).
//! A cluster is one block; all dates are the earliest possible, 1 January 1980.

/// Reserved blocks before the file allocation tables.
const RESERVED: u32 = 32;
/// Block of the backup boot record.
const BACKUP: usize = 6;
/// Minimum number of clusters of FAT32 (§3.5), and a margin as the specification advises.
const MIN_CLUSTERS: u32 = 65_525 + 16;
/// Clusters of the directories, and the first cluster of the file.
const ROOT: u32 = 2;
const EFI: u32 = 3;
const BOOT: u32 = 4;
const FILE: u32 = 5;

const END_OF_CHAIN: u32 = 0x0fff_ffff;
const LABEL: &[u8; 11] = b"STORAGETM  ";
const FOLDER: u8 = 0x10;
const VOLUME: u8 = 0x08;
const ARCHIVE: u8 = 0x20;
const FIRST_DATE: u16 = 0x0021;

/// Layout of a file system.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Volume {
    /// Block size in bytes.
    pub(crate) block: u32,
    /// Number of blocks.
    pub(crate) blocks: u32,
    /// Number of blocks of the disk before it.
    pub(crate) before: u32,
    /// Serial number.
    pub(crate) number: u32,
}

/// Number of blocks for a file of `file` bytes.
pub(crate) fn blocks_for(file: u64, block: u32) -> u64 {
    let clusters =
        file.div_ceil(u64::from(block)).saturating_add(u64::from(FILE)).max(MIN_CLUSTERS.into());
    let table = clusters.saturating_mul(4).div_ceil(u64::from(block)).saturating_add(1);
    clusters.saturating_add(table.saturating_mul(2)).saturating_add(RESERVED.into())
}

impl Volume {
    /// The file system with the file, up to the end of the file; the rest is zeros.
    pub(crate) fn with(&self, file: &[u8]) -> Vec<u8> {
        let length = u32::try_from(file.len()).unwrap_or(u32::MAX);
        let mut bytes = self.reserved(length);
        let table = self.table(length);
        bytes.extend_from_slice(&table);
        bytes.extend(table);
        for folder in folders(length) {
            bytes.extend(self.padded(folder));
        }
        bytes.extend_from_slice(file);
        bytes
    }

    /// Blocks of one file allocation table (§3.5).
    fn table_blocks(&self) -> u32 {
        self.blocks
            .saturating_sub(RESERVED)
            .saturating_add(2)
            .saturating_mul(4)
            .div_ceil(self.block.saturating_add(8))
    }

    fn clusters(&self) -> u32 {
        self.blocks.saturating_sub(RESERVED).saturating_sub(self.table_blocks().saturating_mul(2))
    }

    fn used(&self, file: u32) -> u32 {
        file.div_ceil(self.block)
    }

    fn padded(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let block = usize::try_from(self.block).unwrap_or(512);
        bytes.resize(bytes.len().next_multiple_of(block), 0);
        bytes
    }

    /// The reserved blocks: boot record and FSInfo, twice.
    fn reserved(&self, file: u32) -> Vec<u8> {
        let block = usize::try_from(self.block).unwrap_or(512);
        let mut both = self.padded(self.boot_record());
        both.extend(self.padded(self.free(file)));
        let mut bytes = both.clone();
        bytes.resize(BACKUP.saturating_mul(block), 0);
        bytes.extend(both);
        bytes.resize(usize::try_from(RESERVED).unwrap_or_default().saturating_mul(block), 0);
        bytes
    }

    /// Boot record (§3.1, §3.3).
    fn boot_record(&self) -> Vec<u8> {
        let mut record = b"\xeb\x58\x90STORAGTM".to_vec();
        let block = u16::try_from(self.block).unwrap_or_default();
        record.extend(block.to_le_bytes());
        // One block per cluster, the reserved blocks, two tables, and zero in the fields of FAT12
        // and FAT16.
        record.extend([1, 32, 0, 2, 0, 0, 0, 0, 0xf8, 0, 0]);
        // 63 sectors per track and 255 heads.
        record.extend([63, 0, 255, 0]);
        for word in [self.before, self.blocks, self.table_blocks(), 0, ROOT] {
            record.extend(word.to_le_bytes());
        }
        // The blocks of FSInfo and of the backup.
        record.extend([1, 0, 6, 0]);
        record.extend([0; 12]);
        record.extend([0x80, 0, 0x29]);
        record.extend(self.number.to_le_bytes());
        record.extend(LABEL);
        record.extend(b"FAT32   ");
        record.resize(510, 0);
        record.extend([0x55, 0xaa]);
        record
    }

    /// FSInfo (§5): the number of free clusters, and the first of them.
    fn free(&self, file: u32) -> Vec<u8> {
        let next = FILE.saturating_add(self.used(file));
        let free = self.clusters().saturating_sub(next.saturating_sub(ROOT));
        let mut bytes = b"RRaA".to_vec();
        bytes.resize(484, 0);
        bytes.extend(b"rrAa");
        bytes.extend(free.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        bytes.resize(510, 0);
        bytes.extend([0x55, 0xaa]);
        bytes
    }

    /// The file allocation table (§4).
    fn table(&self, file: u32) -> Vec<u8> {
        let last = FILE.saturating_add(self.used(file));
        let chain = FILE.saturating_add(1)..last;
        let folders = [0x0fff_fff8, END_OF_CHAIN, END_OF_CHAIN, END_OF_CHAIN, END_OF_CHAIN];
        let end = (file > 0).then_some(END_OF_CHAIN);
        let entries = folders.into_iter().chain(chain).chain(end);
        let mut bytes: Vec<u8> = entries.flat_map(u32::to_le_bytes).collect();
        let length = u64::from(self.table_blocks()).saturating_mul(u64::from(self.block));
        bytes.resize(usize::try_from(length).unwrap_or_default(), 0);
        bytes
    }
}

/// The directories `\`, `\EFI` and `\EFI\BOOT`.
fn folders(file: u32) -> [Vec<u8>; 3] {
    // The cluster of the parent is 0 if that is the root (§6.5).
    let inside = |here, above| {
        [entry(b".          ", FOLDER, here, 0), entry(b"..         ", FOLDER, above, 0)].concat()
    };
    [
        [entry(LABEL, VOLUME, 0, 0), entry(b"EFI        ", FOLDER, EFI, 0)].concat(),
        [inside(EFI, 0), entry(b"BOOT       ", FOLDER, BOOT, 0)].concat(),
        [inside(BOOT, EFI), entry(b"BOOTX64 EFI", ARCHIVE, if file > 0 { FILE } else { 0 }, file)]
            .concat(),
    ]
}

/// Directory entry (§6).
fn entry(name: &[u8; 11], attributes: u8, cluster: u32, size: u32) -> Vec<u8> {
    let [low, lower, high, higher] = cluster.to_le_bytes();
    let [day, month] = FIRST_DATE.to_le_bytes();
    let mut entry = name.to_vec();
    // Attributes; times of creation and access; high half of the cluster; time of writing; low
    // half.
    entry.extend([
        attributes, 0, 0, 0, 0, day, month, day, month, high, higher, 0, 0, day, month, low, lower,
    ]);
    entry.extend(size.to_le_bytes());
    entry
}

#[cfg(test)]
pub(crate) mod read {
    //! Reads the file back in tests, by following the file system's structures.

    fn word(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    fn half(bytes: &[u8], at: usize) -> usize {
        usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
    }

    fn chain(volume: &[u8], mut cluster: usize) -> Vec<u8> {
        let (block, table) = (half(volume, 11), word(volume, 36));
        let tables = half(volume, 14) * block;
        let mut content = Vec::new();
        while cluster < 0x0fff_fff8 {
            let at = tables + (2 * table + cluster - 2) * block;
            content.extend(volume[at..].iter().take(block));
            cluster = word(volume, tables + 4 * cluster);
        }
        content
    }

    /// The file at this path, with names in their on-disk form.
    pub(crate) fn file(volume: &[u8], path: &[&[u8; 11]]) -> Vec<u8> {
        let mut content = chain(volume, word(volume, 44));
        for name in path {
            let entry = content.chunks(32).find(|entry| entry.starts_with(*name)).unwrap();
            let (size, attributes) = (word(entry, 28), entry[11]);
            content = chain(volume, half(entry, 20) << 16 | half(entry, 26));
            content.truncate(if attributes == super::FOLDER { content.len() } else { size });
        }
        content
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(file: &[u8], block: u32) -> Vec<u8> {
        let blocks = u32::try_from(blocks_for(file.len() as u64, block)).unwrap();
        let mut bytes = Volume { block, blocks, before: 2048, number: 7 }.with(file);
        assert!(bytes.len() <= blocks as usize * block as usize, "it fits");
        bytes.resize(blocks as usize * block as usize, 0);
        bytes
    }

    #[test]
    fn file_is_found_by_its_path() {
        for (length, block) in
            [(0, 512), (1, 512), (512, 512), (40_000_000, 512), (5_000_001, 4096)]
        {
            let file: Vec<u8> = (0_u32..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let volume = volume(&file, block);
            let path = [b"EFI        ", b"BOOT       ", b"BOOTX64 EFI"];
            if length > 0 {
                assert!(read::file(&volume, &path) == file, "{length} {block}");
            }
        }
    }

    #[test]
    fn fsck_finds_no_errors() {
        if programs::lacks("fsck.fat of an EFI volume", &["fsck.fat"]) {
            return;
        }
        let path = std::env::temp_dir().join(format!("storagetm-fat-{}", std::process::id()));
        for (length, block) in [(1_000_000, 512), (40_000_000, 512), (1_000_000, 4096)] {
            std::fs::write(&path, volume(&vec![1; length], block)).unwrap();
            let run = programs::command("fsck.fat").arg("-n").arg(&path).output().unwrap();
            let said = String::from_utf8_lossy(&run.stdout);
            assert!(run.status.success(), "{length} {block}: {said}");
            assert_eq!(said.lines().count(), 2, "it found something: {said}");
        }
        let _ = std::fs::remove_file(&path);
    }
}
