//! Small NTFS volumes, made for tests: file records and their attributes. All numbers are little-endian.

/// Cluster size in bytes.
pub const CLUSTER: usize = 512;
/// Size of a file record in bytes.
pub const RECORD: usize = 1024;
/// The first cluster of the MFT, and the number of its records.
pub const MFT: u32 = 8;
const RECORDS: u32 = 256;
/// Clusters of the MFT.
const MFT_CLUSTERS: u32 = RECORDS * 2;

/// Types of attributes.
#[allow(missing_docs, reason = "the names are those of NTFS")]
pub mod kind {
    pub const STANDARD_INFORMATION: u32 = 0x10;
    pub const ATTRIBUTE_LIST: u32 = 0x20;
    pub const DATA: u32 = 0x80;
    pub const INDEX_ROOT: u32 = 0x90;
    pub const INDEX_ALLOCATION: u32 = 0xa0;
    pub const BITMAP: u32 = 0xb0;
    pub const REPARSE: u32 = 0xc0;
}
/// The name of the attributes of a directory.
pub const I30: &str = "$I30";
/// Numbers of records: of the root directory, and the first one of users' files.
pub const ROOT: u64 = 5;
pub const FIRST: u64 = 24;
/// Flags of a record: in use, and a directory in use.
pub const FILE: u16 = 1;
pub const DIRECTORY: u16 = 3;

/// A volume on an unpartitioned disk.
#[derive(Debug)]
pub struct Ntfs {
    /// The disk.
    pub disk: Vec<u8>,
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

impl Ntfs {
    /// Creates a volume of so many clusters, with the record of the MFT, whose 256 records are contiguous.
    pub fn new(clusters: u64) -> Self {
        let mut disk = vec![0; usize::try_from(clusters + 1).unwrap() * CLUSTER];
        put(&mut disk, 0, b"\xeb\x52\x90NTFS    \0\x02\x01");
        put(&mut disk, 40, &clusters.to_le_bytes());
        put(&mut disk, 48, &u64::from(MFT).to_le_bytes());
        // 2 to the tenth bytes.
        disk[64] = 0xf6;
        put(&mut disk, 510, &[0x55, 0xaa]);
        let mut volume = Self { disk };
        let runs = runs(&[(MFT_CLUSTERS, Some(MFT))]);
        let len = u64::from(MFT_CLUSTERS) * CLUSTER as u64;
        volume.record(0, FILE, 0, &[non_resident(kind::DATA, "", 0, len, &runs)]);
        volume
    }

    /// Returns the cluster behind the MFT.
    pub fn free() -> u32 {
        MFT + MFT_CLUSTERS
    }

    /// Writes bytes from this cluster on.
    pub fn write(&mut self, cluster: u32, bytes: &[u8]) {
        put(&mut self.disk, cluster as usize * CLUSTER, bytes);
    }

    /// Writes a record; `base` is the reference of the base record of an extension, with or without its sequence number in
    /// the upper 16 bits; else 0.
    pub fn record(&mut self, number: u64, flags: u16, base: u64, attributes: &[Vec<u8>]) {
        let mut record = vec![0; RECORD];
        put(&mut record, 0, b"FILE\x30\0\x03\0");
        // The sequence number, and the first attribute.
        put(&mut record, 16, &1_u16.to_le_bytes());
        put(&mut record, 20, &56_u16.to_le_bytes());
        put(&mut record, 22, &flags.to_le_bytes());
        put(&mut record, 32, &base.to_le_bytes());
        let mut all = attributes.concat();
        all.extend(u32::MAX.to_le_bytes());
        put(&mut record, 56, &all);
        protect(&mut record, 48);
        let number = u32::try_from(number).unwrap();
        self.write(MFT + 2 * number, &record);
    }

    /// Writes the record of the root directory, with these files in its index root.
    pub fn root(&mut self, files: &[Vec<u8>]) {
        let root = resident(kind::INDEX_ROOT, I30, &index_root(files));
        self.record(ROOT, DIRECTORY, 0, &[root]);
    }
}

/// Writes the update sequence at `at`, with which torn writes are detected.
pub fn protect(bytes: &mut [u8], at: usize) {
    put(bytes, at, &[1, 0]);
    for stride in 1..=bytes.len() / 512 {
        let end = stride * 512 - 2;
        bytes.copy_within(end..end + 2, at + 2 * stride);
        put(bytes, end, &[1, 0]);
    }
}

fn header(kind: u32, name: &str, name_at: usize, is_resident: bool) -> Vec<u8> {
    let mut bytes = vec![0; name_at];
    put(&mut bytes, 0, &kind.to_le_bytes());
    (bytes[8], bytes[9]) = (u8::from(!is_resident), u8::try_from(name.len()).unwrap());
    put(&mut bytes, 10, &u16::try_from(name_at).unwrap().to_le_bytes());
    bytes.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn end(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let len = u32::try_from(bytes.len()).unwrap();
    put(&mut bytes, 4, &len.to_le_bytes());
    bytes
}

/// Returns a resident attribute.
pub fn resident(kind: u32, name: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = header(kind, name, 24, true);
    let at = u16::try_from(bytes.len()).unwrap();
    put(&mut bytes, 16, &u32::try_from(value.len()).unwrap().to_le_bytes());
    put(&mut bytes, 20, &at.to_le_bytes());
    bytes.extend(value);
    end(bytes)
}

/// Returns an attribute of `len` bytes, or the part of it from the cluster `vcn` on to its end, in these runs.
pub fn non_resident(kind: u32, name: &str, vcn: u64, len: u64, runs: &[u8]) -> Vec<u8> {
    let mut bytes = header(kind, name, 64, false);
    let at = u16::try_from(bytes.len()).unwrap();
    put(&mut bytes, 16, &vcn.to_le_bytes());
    // The last cluster.
    put(&mut bytes, 24, &u64::MAX.to_le_bytes());
    put(&mut bytes, 32, &at.to_le_bytes());
    for at in [40, 48, 56] {
        put(&mut bytes, at, &len.to_le_bytes());
    }
    bytes.extend(runs);
    end(bytes)
}

/// Returns a mapping: numbers of clusters, and the first one of each unless they are sparse.
pub fn runs(runs: &[(u32, Option<u32>)]) -> Vec<u8> {
    let (mut bytes, mut last) = (Vec::new(), 0_i64);
    for (count, first) in runs {
        bytes.push(if first.is_some() { 0x54 } else { 0x04 });
        bytes.extend(count.to_le_bytes());
        if let Some(first) = first.map(i64::from) {
            bytes.extend(&(first - last).to_le_bytes()[..5]);
            last = first;
        }
    }
    bytes.push(0);
    bytes
}

/// Returns the index entry of a file by the number of its record, with its length there.
pub fn index_entry(number: u64, name: &str, len: u64, flags: u32) -> Vec<u8> {
    let mut key = vec![0; 66];
    put(&mut key, 48, &len.to_le_bytes());
    put(&mut key, 56, &flags.to_le_bytes());
    // POSIX namespace.
    key[64] = u8::try_from(name.len()).unwrap();
    key.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
    let mut bytes = vec![0; 16];
    put(&mut bytes, 0, &(number | 1 << 48).to_le_bytes());
    put(&mut bytes, 10, &u16::try_from(key.len()).unwrap().to_le_bytes());
    bytes.extend(key);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let len = u16::try_from(bytes.len()).unwrap();
    put(&mut bytes, 8, &len.to_le_bytes());
    bytes
}

/// Returns the node of an index with these entries, and the last one.
fn node(entries: &[Vec<u8>], first: usize) -> Vec<u8> {
    let mut last = vec![0; 16];
    (last[8], last[12]) = (16, 2);
    let mut bytes = vec![0; first];
    bytes.extend(entries.concat());
    bytes.extend(last);
    let len = u32::try_from(bytes.len()).unwrap();
    put(&mut bytes, 0, &u32::try_from(first).unwrap().to_le_bytes());
    put(&mut bytes, 4, &len.to_le_bytes());
    bytes
}

/// Returns the value of an index root, for index blocks of 4 KiB.
pub fn index_root(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    (bytes[0], bytes[9]) = (0x30, 0x10);
    bytes.extend(node(entries, 16));
    bytes
}

/// Returns an index block of 4 KiB.
pub fn index_block(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = b"INDX\x28\0\x09\0".to_vec();
    bytes.resize(24, 0);
    // The update sequence is before the entries.
    bytes.extend(node(entries, 40));
    bytes.resize(4096, 0);
    protect(&mut bytes, 40);
    bytes
}

/// Returns an entry of an attribute list: the record `number` has the part from the cluster `vcn` on.
pub fn list_entry(kind: u32, name: &str, vcn: u64, number: u64) -> Vec<u8> {
    let mut bytes = vec![0; 26];
    put(&mut bytes, 0, &kind.to_le_bytes());
    (bytes[6], bytes[7]) = (u8::try_from(name.len()).unwrap(), 26);
    put(&mut bytes, 8, &vcn.to_le_bytes());
    put(&mut bytes, 16, &(number | 1 << 48).to_le_bytes());
    bytes.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let len = u16::try_from(bytes.len()).unwrap();
    put(&mut bytes, 4, &len.to_le_bytes());
    bytes
}
