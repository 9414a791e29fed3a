//! Small exFAT volumes, made for tests. Sections are those of Microsoft's specification (August 2019).

/// Sector and cluster size in bytes.
pub const CLUSTER: usize = 512;

/// The position of the first cluster, which has the number 2, of a volume with this many clusters.
fn heap(clusters: usize) -> usize {
    // The boot sector, and the table.
    CLUSTER + ((clusters + 2) * 4).next_multiple_of(CLUSTER)
}

/// A volume on an unpartitioned disk.
#[derive(Debug)]
pub struct Exfat {
    /// The disk.
    pub disk: Vec<u8>,
    clusters: usize,
    next: u32,
}

impl Exfat {
    /// Creates a volume of so many clusters, whose root directory begins with cluster 2 and is empty.
    pub fn new(clusters: usize) -> Self {
        let heap = heap(clusters);
        let mut disk = vec![0; heap + clusters * CLUSTER];
        disk[..11].copy_from_slice(b"\xeb\x76\x90EXFAT   ");
        let number = |at: usize, value: usize, disk: &mut [u8]| {
            disk[at..at + 4].copy_from_slice(&u32::try_from(value).unwrap().to_le_bytes());
        };
        number(80, 1, &mut disk);
        number(84, heap / CLUSTER - 1, &mut disk);
        number(88, heap / CLUSTER, &mut disk);
        number(92, clusters, &mut disk);
        number(96, 2, &mut disk);
        // Sectors of 512 bytes, one in each cluster, one table.
        disk[108..111].copy_from_slice(&[9, 0, 1]);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        Self { disk, clusters, next: 2 }
    }

    /// Sets the entry of a cluster in the table (§4.1).
    pub fn link(&mut self, cluster: u32, next: u32) {
        let at = CLUSTER + cluster as usize * 4;
        self.disk[at..at + 4].copy_from_slice(&next.to_le_bytes());
    }

    /// Writes contents to the next clusters, and chains them. Returns the first.
    ///
    /// # Panics
    /// Panics if the volume is too small.
    pub fn store(&mut self, contents: &[u8]) -> u32 {
        let first = self.next;
        for part in contents.chunks(CLUSTER) {
            let at = heap(self.clusters) + (self.next as usize - 2) * CLUSTER;
            self.disk[at..at + part.len()].copy_from_slice(part);
            self.link(self.next, self.next + 1);
            self.next += 1;
        }
        self.link(self.next - 1, u32::MAX);
        first
    }
}

/// Returns the entries of a file (§7.4, §7.6, §7.7) of so many bytes, whose contents begin in this cluster.
///
/// # Panics
/// Panics if the name has more than 15 characters.
pub fn file(name: &str, first: u32, bytes: u64) -> Vec<u8> {
    let mut set = vec![0; 96];
    (set[0], set[1], set[32], set[64]) = (0x85, 2, 0xc0, 0xc1);
    // In a chain.
    (set[33], set[35]) = (1, u8::try_from(name.len()).unwrap());
    set[40..48].copy_from_slice(&bytes.to_le_bytes());
    set[52..56].copy_from_slice(&first.to_le_bytes());
    set[56..64].copy_from_slice(&bytes.to_le_bytes());
    assert!(name.len() <= 15);
    for (at, unit) in name.encode_utf16().enumerate() {
        set[66 + at * 2..68 + at * 2].copy_from_slice(&unit.to_le_bytes());
    }
    set
}

/// Returns a disk with `count` files, `file 0` to `file {count - 1}`, of which each has its own name as its contents, in
/// the root directory.
pub fn large_folder(count: u32) -> Vec<u8> {
    let (entries, files) = (count as usize * 96 / CLUSTER + 2, count as usize);
    let mut volume = Exfat::new(entries + files);
    let root = u32::try_from(entries).unwrap();
    let set = |at: u32| {
        let name = format!("file {at}");
        file(&name, 2 + root + at, name.len() as u64)
    };
    let mut folder: Vec<u8> = (0..count).flat_map(set).collect();
    folder.resize(entries * CLUSTER, 0);
    volume.store(&folder);
    (0..count).for_each(|at| {
        volume.store(format!("file {at}").as_bytes());
    });
    volume.disk
}
