//! A FAT32 file system with files at given paths (Microsoft's FAT specification 1.03). A cluster is
//! one block; names are short ones (8.3); all dates are the earliest possible, 1 January 1980.
//! Each file is in one piece.

use crate::error::Error;
use crate::files::{Files, parent};
use std::collections::BTreeMap;

/// Reserved blocks before the file allocation tables, and more as needed for the alignment.
const RESERVED: u32 = 32;
/// Block of the backup boot record.
const BACKUP: usize = 6;
/// Minimum number of clusters of FAT32 (§3.5), and a margin as the specification advises.
const MIN_CLUSTERS: u32 = 65_525 + 16;
/// The first cluster, which is that of the root directory.
const ROOT: u32 = 2;
/// Alignment in bytes of the clusters and of each file.
const ALIGNMENT: u32 = 4096;

const START_OF_TABLE: [u32; 2] = [0x0fff_fff8, END_OF_CHAIN];
const END_OF_CHAIN: u32 = 0x0fff_ffff;
const LABEL: &[u8; 11] = b"STORAGETM  ";
const FOLDER: u8 = 0x10;
const VOLUME: u8 = 0x08;
const ARCHIVE: u8 = 0x20;
const FIRST_DATE: u16 = 0x0021;
const ENTRY: u32 = 32;

/// A file or directory.
#[derive(Debug)]
struct Node<'a> {
    /// The content of a file.
    content: Option<&'a [u8]>,
    /// Number of entries of a directory.
    entries: u32,
    first: u32,
    clusters: u32,
}

/// A file system that is laid out.
#[derive(Debug)]
pub(crate) struct Volume<'a> {
    /// Block size in bytes.
    block: u32,
    reserved: u32,
    table_blocks: u32,
    clusters: u32,
    /// The first cluster behind all files.
    next: u32,
    /// By path; the root has an empty one.
    nodes: BTreeMap<&'a str, Node<'a>>,
}

impl<'a> Volume<'a> {
    /// Lays out the files in blocks of `block` bytes.
    ///
    /// # Errors
    /// Fails if a path has a name that is not a short one, or if the files are too large.
    pub(crate) fn new(files: &'a Files, block: u32) -> Result<Self, Error> {
        let mut nodes = BTreeMap::new();
        for (path, content) in files.iter() {
            add(&mut nodes, path, Some(content))?;
        }
        let mut next = ROOT;
        // Directories first, the root before all others.
        for wants_files in [false, true] {
            let wanted = |node: &&mut Node<'_>| node.content.is_some() == wants_files;
            for node in nodes.values_mut().filter(wanted) {
                next = node.place(next, block)?;
            }
        }
        let clusters = next.saturating_sub(ROOT).max(MIN_CLUSTERS);
        let entries = clusters.checked_add(ROOT).and_then(|entries| entries.checked_mul(4));
        let table_blocks = entries.ok_or(Error::TooLarge)?.div_ceil(block);
        let head = table_blocks.saturating_mul(2).saturating_add(RESERVED);
        let reserved = RESERVED + head.next_multiple_of(ALIGNMENT / block).saturating_sub(head);
        Ok(Self { block, reserved, table_blocks, clusters, next, nodes })
    }

    /// Number of blocks.
    pub(crate) fn blocks(&self) -> u32 {
        self.head().saturating_add(self.clusters)
    }

    /// Offset of a file in bytes.
    pub(crate) fn offset(&self, path: &str) -> Option<u64> {
        let first = self.nodes.get(path)?.first.checked_sub(ROOT)?;
        Some(u64::from(self.head().saturating_add(first)).saturating_mul(self.block.into()))
    }

    /// The file system up to the end of the last file; the rest is zeros. `before` is the number of
    /// blocks of the disk before it, and `number` its serial number.
    pub(crate) fn bytes(&self, before: u32, number: u32) -> Vec<u8> {
        let mut bytes = self.reserved(before, number);
        let table = self.table();
        bytes.extend_from_slice(&table);
        bytes.extend(table);
        let mut nodes: Vec<_> = self.nodes.iter().filter(|(_, node)| node.first > 0).collect();
        nodes.sort_by_key(|(_, node)| node.first);
        for (path, node) in nodes {
            let start = self.head().saturating_add(node.first.saturating_sub(ROOT));
            bytes.resize(size(start, self.block), 0);
            match node.content {
                Some(content) => bytes.extend_from_slice(content),
                None => bytes.extend(self.folder(path)),
            }
        }
        bytes
    }

    /// Number of blocks before the first cluster.
    fn head(&self) -> u32 {
        self.table_blocks.saturating_mul(2).saturating_add(self.reserved)
    }

    fn padded(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.resize(bytes.len().next_multiple_of(size(1, self.block)), 0);
        bytes
    }

    /// The reserved blocks: boot record and FSInfo, twice.
    fn reserved(&self, before: u32, number: u32) -> Vec<u8> {
        let block = size(1, self.block);
        let mut both = self.padded(self.boot_record(before, number));
        both.extend(self.padded(self.free()));
        let mut bytes = both.clone();
        bytes.resize(BACKUP.saturating_mul(block), 0);
        bytes.extend(both);
        bytes.resize(size(self.reserved, self.block), 0);
        bytes
    }

    /// Boot record (§3.1, §3.3).
    fn boot_record(&self, before: u32, number: u32) -> Vec<u8> {
        let mut record = b"\xeb\x58\x90STORAGTM".to_vec();
        let half = |word: u32| u16::try_from(word).unwrap_or_default().to_le_bytes();
        record.extend(half(self.block));
        // One block per cluster, the reserved blocks, two tables, and zero in the fields of FAT12
        // and FAT16.
        record.push(1);
        record.extend(half(self.reserved));
        record.extend([2, 0, 0, 0, 0, 0xf8, 0, 0]);
        // 63 sectors per track and 255 heads.
        record.extend([63, 0, 255, 0]);
        for word in [before, self.blocks(), self.table_blocks, 0, ROOT] {
            record.extend(word.to_le_bytes());
        }
        // The blocks of FSInfo and of the backup.
        record.extend([1, 0, 6, 0]);
        record.extend([0; 12]);
        record.extend([0x80, 0, 0x29]);
        record.extend(number.to_le_bytes());
        record.extend(LABEL);
        record.extend(b"FAT32   ");
        record.resize(510, 0);
        record.extend([0x55, 0xaa]);
        record
    }

    /// FSInfo (§5): the number of free clusters, and the first of them.
    fn free(&self) -> Vec<u8> {
        let used = self.nodes.values().map(|node| node.clusters).fold(0, u32::saturating_add);
        let mut bytes = b"RRaA".to_vec();
        bytes.resize(484, 0);
        bytes.extend(b"rrAa");
        bytes.extend(self.clusters.saturating_sub(used).to_le_bytes());
        bytes.extend(self.next.to_le_bytes());
        bytes.resize(510, 0);
        bytes.extend([0x55, 0xaa]);
        bytes
    }

    /// The file allocation table (§4).
    fn table(&self) -> Vec<u8> {
        let mut entries = START_OF_TABLE.to_vec();
        entries.resize(size(self.table_blocks, self.block) / 4, 0);
        for node in self.nodes.values() {
            let clusters = node.first..node.first.saturating_add(node.clusters);
            let following = clusters.clone().skip(1).chain([END_OF_CHAIN]);
            for (cluster, next) in clusters.zip(following) {
                if let Some(entry) = entries.get_mut(size(cluster, 1)) {
                    *entry = next;
                }
            }
        }
        entries.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    /// The entries of a directory.
    fn folder(&self, path: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let first = |path: &str| self.nodes.get(path).map_or(0, |node| node.first);
        if path.is_empty() {
            bytes.extend(entry(LABEL, VOLUME, 0, 0));
        } else {
            // The cluster of the parent is 0 if that is the root (§6.5).
            let above = Some(first(parent(path))).filter(|&above| above != ROOT).unwrap_or(0);
            bytes.extend(entry(b".          ", FOLDER, first(path), 0));
            bytes.extend(entry(b"..         ", FOLDER, above, 0));
        }
        let is_inside = |inner: &str| !inner.is_empty() && parent(inner) == path;
        for (inner, node) in self.nodes.iter().filter(|(inner, _)| is_inside(inner)) {
            let name = short_name(inner).unwrap_or(*LABEL);
            bytes.extend(match node.content {
                Some(content) => {
                    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
                    entry(&name, ARCHIVE, node.first, length)
                }
                None => entry(&name, FOLDER, node.first, 0),
            });
        }
        bytes
    }
}

impl Node<'_> {
    /// Places it at cluster `next` or behind; returns the cluster after it.
    fn place(&mut self, next: u32, block: u32) -> Result<u32, Error> {
        let (start, length) = match self.content {
            Some([]) => return Ok(next),
            Some(content) => {
                let start = next.saturating_sub(ROOT).next_multiple_of(ALIGNMENT / block);
                (start.saturating_add(ROOT), u32::try_from(content.len()))
            }
            // A label or two links come first.
            None => (next, Ok(self.entries.saturating_add(2).saturating_mul(ENTRY))),
        };
        self.first = start;
        self.clusters = length.map_err(|_| Error::TooLarge)?.div_ceil(block);
        start.checked_add(self.clusters).ok_or(Error::TooLarge)
    }
}

/// Adds a file or directory and its parents.
fn add<'a>(
    nodes: &mut BTreeMap<&'a str, Node<'a>>,
    path: &'a str,
    content: Option<&'a [u8]>,
) -> Result<(), Error> {
    if nodes.contains_key(path) {
        return Ok(());
    }
    if !path.is_empty() {
        short_name(path).ok_or_else(|| Error::Name(path.to_owned()))?;
        add(nodes, parent(path), None)?;
        if let Some(above) = nodes.get_mut(parent(path)) {
            above.entries = above.entries.saturating_add(1);
        }
    }
    nodes.insert(path, Node { content, entries: 0, first: 0, clusters: 0 });
    Ok(())
}

/// The last name of a path in its on-disk form (§6.1); `None` if it is not a short name.
fn short_name(path: &str) -> Option<[u8; 11]> {
    let name = path.rsplit('/').next()?;
    let (base, ending) = name.split_once('.').unwrap_or((name, ""));
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"-_".contains(&c);
    let fits = (1..=8).contains(&base.len()) && ending.len() <= 3;
    if !fits || !base.bytes().chain(ending.bytes()).all(allowed) {
        return None;
    }
    format!("{base:8}{ending:3}").to_ascii_uppercase().into_bytes().try_into().ok()
}

/// Bytes of a number of blocks.
fn size(blocks: u32, block: u32) -> usize {
    usize::try_from(u64::from(blocks).saturating_mul(block.into())).unwrap_or(usize::MAX)
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
    //! Reads files back in tests, by following the file system's structures.

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
        while (2..0x0fff_fff8).contains(&cluster) {
            let at = tables + (2 * table + cluster - 2) * block;
            content.extend(volume[at..].iter().take(block));
            cluster = word(volume, tables + 4 * cluster);
        }
        content
    }

    /// The file at this path.
    pub(crate) fn file(volume: &[u8], path: &str) -> Option<Vec<u8>> {
        let mut content = chain(volume, word(volume, 44));
        for part in path.split('/') {
            let name = super::short_name(part).unwrap();
            let entry = content.chunks(32).find(|entry| entry.starts_with(&name))?;
            let (size, attributes) = (word(entry, 28), entry[11]);
            content = chain(volume, half(entry, 20) << 16 | half(entry, 26));
            content.truncate(if attributes == super::FOLDER { content.len() } else { size });
        }
        Some(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(length: u32) -> Files {
        let mut files = Files::default();
        files.add("EFI/BOOT/BOOTX64.EFI", (0..length).map(|n| n.to_le_bytes()[0]).collect());
        files.add("EFI/BOOT/empty", Vec::new());
        files.add("EFI/debian/grub.cfg", b"linux".to_vec());
        files.add("boot/initrd", vec![7; 100_000]);
        for number in 0..40 {
            files.add(&format!("many/{number}"), vec![number; 700]);
        }
        files
    }

    fn volume(files: &Files, block: u32) -> Vec<u8> {
        let volume = Volume::new(files, block).unwrap();
        let whole = size(volume.blocks(), block);
        let mut bytes = volume.bytes(2048, 7);
        assert!(bytes.len() <= whole, "it fits");
        bytes.resize(whole, 0);
        bytes
    }

    #[test]
    fn files_are_found_by_their_paths() {
        for (length, block) in [(0, 512), (512, 512), (40_000_000, 512), (5_000_001, 4096)] {
            let files = files(length);
            let bytes = volume(&files, block);
            for (path, content) in files.iter() {
                assert!(read::file(&bytes, path).unwrap() == content, "{path} {length} {block}");
            }
            assert_eq!(read::file(&bytes, "boot/vmlinuz"), None);
        }
    }

    #[test]
    fn each_file_is_in_one_aligned_piece() {
        for block in [512, 4096] {
            let files = files(3000);
            let bytes = volume(&files, block);
            let volume = Volume::new(&files, block).unwrap();
            for (path, content) in files.iter().filter(|(_, content)| !content.is_empty()) {
                let at = usize::try_from(volume.offset(path).unwrap()).unwrap();
                assert_eq!(at % 4096, 0, "{path}");
                assert!(bytes[at..].starts_with(content), "{path}");
            }
        }
    }

    #[test]
    fn long_name_is_refused() {
        for path in ["EFI/almalinux/grub.cfg", "a.text", "a b", "a.b.c"] {
            let mut files = Files::default();
            files.add(path, vec![1]);
            assert!(matches!(Volume::new(&files, 512), Err(Error::Name(_))), "{path}");
        }
    }

    #[test]
    fn fsck_finds_no_errors() {
        if programs::lacks("fsck.fat of an EFI volume", &["fsck.fat"]) {
            return;
        }
        let path = std::env::temp_dir().join(format!("storagetm-fat-{}", std::process::id()));
        for (length, block) in [(1_000_000, 512), (40_000_000, 512), (1_000_000, 4096)] {
            std::fs::write(&path, volume(&files(length), block)).unwrap();
            let run = programs::command("fsck.fat").arg("-n").arg(&path).output().unwrap();
            let said = String::from_utf8_lossy(&run.stdout);
            assert!(run.status.success(), "{length} {block}: {said}");
            assert_eq!(said.lines().count(), 2, "it found something: {said}");
        }
        let _ = std::fs::remove_file(&path);
    }
}
