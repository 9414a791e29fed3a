//! Writer of qcow2 images (QEMU, docs/interop/qcow2.txt), version 3, without compression and
//! snapshots.

use std::io::{self, ErrorKind, Seek, SeekFrom, Write};

/// The cluster size as a power of two.
const BITS: u32 = 16;

/// Entries of an L2 table, which has one cluster.
const L2_ENTRIES: u64 = Qcow2Writer::<io::Empty>::CLUSTER / 8;

/// Clusters whose reference counts of 16 bits are in one block.
const COUNTS: u64 = Qcow2Writer::<io::Empty>::CLUSTER / 2;

/// In an L1 or L2 entry: the reference count of the cluster is one.
const COPIED: u64 = 1 << 63;

/// In an L2 entry: the cluster reads as zeros.
const ZERO: u64 = 1;

/// Bytes of the header without extensions.
const HEADER: u32 = 104;

/// The header extension that names the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// The file below an image, of which it has the changed clusters.
#[derive(Debug, Clone, Copy)]
pub struct BackingFile<'a> {
    /// Its path.
    pub path: &'a str,
    /// QEMU's name of its format, of at most eight bytes: "raw" for a disk.
    pub format: &'a str,
}

/// Longest name of a backing file in bytes.
const MAX_BACKING: usize = 1023;

/// Limit of QEMU: the size of the L1 table in bytes.
const L1_MOST: u64 = 32 << 20;

/// Writes an image, cluster by cluster in ascending order. Clusters that are left out are those of the
/// backing file, or zeros without one.
///
/// The header is written by [`Self::finish`]: before that the file is no image.
#[derive(Debug)]
pub struct Qcow2Writer<W> {
    file: W,
    bytes: u64,
    /// Path and format.
    backing: Option<(String, String)>,
    l1: Vec<u64>,
    /// The index and the entries of the L2 table that is being filled.
    l2: Option<(u64, Vec<u64>)>,
    /// The first cluster that may be written next.
    next: u64,
    /// Clusters of the file that are written.
    written: u64,
}

impl<W> Qcow2Writer<W> {
    /// Bytes of a cluster.
    pub const CLUSTER: u64 = 1 << BITS;
}

impl<W: Write + Seek> Qcow2Writer<W> {
    /// Begins an image of a disk in an empty file. `bytes` is the size of the disk, which is rounded up to
    /// 512 bytes, since QEMU would round it down.
    ///
    /// # Errors
    /// Fails if the disk is too large, if the path is too long, or if the file cannot be written.
    pub fn new(mut file: W, bytes: u64, backing: Option<BackingFile<'_>>) -> io::Result<Self> {
        let bytes = bytes.checked_next_multiple_of(512).ok_or(ErrorKind::InvalidInput)?;
        let tables = bytes.div_ceil(Self::CLUSTER * L2_ENTRIES);
        let is_long =
            |file: BackingFile<'_>| file.path.len() > MAX_BACKING || file.format.len() > 8;
        if tables > L1_MOST / 8 || backing.is_some_and(is_long) {
            return Err(ErrorKind::InvalidInput.into());
        }
        // The place of the header.
        file.write_all(&vec![0; len(Self::CLUSTER)])?;
        let backing = backing.map(|file| (file.path.to_owned(), file.format.to_owned()));
        let l1 = vec![0; len(tables)];
        Ok(Self { file, bytes, backing, l1, l2: None, next: 0, written: 1 })
    }

    /// Writes the cluster with this index, filled with zeros beyond the end of `data`.
    ///
    /// # Errors
    /// Fails if the index does not exist or is not above that of the last call, if the data is longer
    /// than a cluster, or if the file cannot be written.
    pub fn data(&mut self, index: u64, data: &[u8]) -> io::Result<()> {
        let rest = len(Self::CLUSTER).checked_sub(data.len()).ok_or(ErrorKind::InvalidInput)?;
        self.begin(index)?;
        let at = self.append(data)?;
        self.file.write_all(&vec![0; rest])?;
        self.set(index, at | COPIED);
        Ok(())
    }

    /// Records that the cluster with this index reads as zeros.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub fn zeros(&mut self, index: u64) -> io::Result<()> {
        self.begin(index)?;
        self.set(index, ZERO);
        Ok(())
    }

    /// Writes the tables and the header. Returns the file, which is not flushed.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_l2()?;
        let l1 = std::mem::take(&mut self.l1);
        let l1_at = self.append_table(&l1)?;
        let (counts_at, table) = self.append_counts()?;
        let mut header = Vec::new();
        for field in [0x5146_49fb, 3] {
            header.extend(u32::to_be_bytes(field));
        }
        let (backing, format) = self.backing.take().unwrap_or_default();
        // Extensions: the format of the backing file in eight bytes, and the end.
        let name_at = if backing.is_empty() { 0 } else { u64::from(HEADER) + 24 };
        header.extend(name_at.to_be_bytes());
        header.extend(short(backing.len() as u64)?.to_be_bytes());
        header.extend(BITS.to_be_bytes());
        header.extend(self.bytes.to_be_bytes());
        header.extend(0u32.to_be_bytes());
        header.extend(short(l1.len() as u64)?.to_be_bytes());
        header.extend(l1_at.to_be_bytes());
        header.extend(counts_at.to_be_bytes());
        header.extend(short(table)?.to_be_bytes());
        // Without snapshots and features.
        header.extend([0; 4 + 8 + 3 * 8]);
        // Reference counts of 1 << 4 bits.
        header.extend(4u32.to_be_bytes());
        header.extend(HEADER.to_be_bytes());
        if !backing.is_empty() {
            header.extend(BACKING_FORMAT.to_be_bytes());
            header.extend(short(format.len() as u64)?.to_be_bytes());
            header.extend(format.bytes().chain([0; 8]).take(8));
        }
        header.extend([0; 8]);
        header.extend(backing.as_bytes());
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&header)?;
        Ok(self.file)
    }

    /// Begins the L2 table of a cluster.
    fn begin(&mut self, index: u64) -> io::Result<()> {
        if index < self.next || index >= self.bytes.div_ceil(Self::CLUSTER) {
            return Err(ErrorKind::InvalidInput.into());
        }
        self.next = index + 1;
        let table = index / L2_ENTRIES;
        if self.l2.as_ref().is_none_or(|(current, _)| *current != table) {
            self.end_l2()?;
            self.l2 = Some((table, vec![0; len(L2_ENTRIES)]));
        }
        Ok(())
    }

    fn set(&mut self, index: u64, entry: u64) {
        let place = self.l2.as_mut().and_then(|(_, l2)| l2.get_mut(len(index % L2_ENTRIES)));
        place.into_iter().for_each(|place| *place = entry);
    }

    fn end_l2(&mut self) -> io::Result<()> {
        let Some((index, l2)) = self.l2.take() else { return Ok(()) };
        let at = self.append_table(&l2)?;
        self.l1.get_mut(len(index)).into_iter().for_each(|entry| *entry = at | COPIED);
        Ok(())
    }

    /// Appends the start of a cluster. Returns its offset in the file.
    fn append(&mut self, bytes: &[u8]) -> io::Result<u64> {
        self.file.write_all(bytes)?;
        let at = self.written << BITS;
        self.written += (bytes.len() as u64).div_ceil(Self::CLUSTER).max(1);
        Ok(at)
    }

    /// Appends a table in whole clusters. Returns its offset in the file.
    fn append_table(&mut self, entries: &[u64]) -> io::Result<u64> {
        let mut bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        bytes.resize(bytes.len().next_multiple_of(len(Self::CLUSTER)).max(len(Self::CLUSTER)), 0);
        self.append(&bytes)
    }

    /// Appends the reference counts of all clusters of the file, which are one. Returns the offset of
    /// their table and its clusters.
    fn append_counts(&mut self) -> io::Result<(u64, u64)> {
        let (mut blocks, mut table) = (0, 0);
        loop {
            let all = self.written + blocks + table;
            let needed = all.div_ceil(COUNTS);
            if needed == blocks {
                break;
            }
            (blocks, table) = (needed, needed.div_ceil(Self::CLUSTER / 8));
        }
        let (at, all) = (self.written << BITS, self.written + table + blocks);
        let first = at + (table << BITS);
        let entries: Vec<u64> = (0..blocks).map(|block| first + (block << BITS)).collect();
        self.append_table(&entries)?;
        for block in 0..blocks {
            let used = len((all - block * COUNTS).min(COUNTS));
            let mut counts = [0, 1].repeat(used);
            counts.resize(len(Self::CLUSTER), 0);
            self.append(&counts)?;
        }
        Ok((at, table))
    }
}

/// Returns a length in memory. Tables and clusters are far shorter than the address space.
fn len(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn short(value: u64) -> io::Result<u32> {
    u32::try_from(value).map_err(|_| ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod test {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn clusters_are_written_in_ascending_order_once() {
        let cluster = Qcow2Writer::<Cursor<Vec<u8>>>::CLUSTER;
        let mut writer = Qcow2Writer::new(Cursor::new(Vec::new()), 3 * cluster + 1, None).unwrap();
        writer.data(1, &[1]).unwrap();
        for index in [0, 1, 4, u64::MAX] {
            assert!(writer.data(index, &[1]).is_err() && writer.zeros(index).is_err(), "{index}");
        }
        assert!(writer.data(2, &vec![0; len(cluster) + 1]).is_err());
        writer.zeros(3).unwrap();
        let file = writer.finish().unwrap().into_inner();
        // Header, data, L2, L1, table and block of reference counts.
        assert_eq!((&file[..4], file.len() as u64), (&b"QFI\xfb"[..], 6 * cluster));
    }

    #[test]
    fn disk_beyond_the_limits_of_the_format_is_refused() {
        assert!(Qcow2Writer::new(Cursor::new(Vec::new()), u64::MAX, None).is_err());
        assert!(
            Qcow2Writer::new(
                Cursor::new(Vec::new()),
                1,
                Some(BackingFile { path: &"x".repeat(2000), format: "raw" })
            )
            .is_err()
        );
    }
}
