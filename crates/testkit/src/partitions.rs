//! Partition tables, made for tests.

/// Sectors from one logical partition to the next.
const APART: u32 = 64;

/// Returns a disk of sectors of 512 bytes with an MBR: a primary partition in its sectors 1 to 63, and so many logical
/// ones, each of 56 sectors, behind a sector of its own in each 64.
pub fn logical_partitions(count: u32) -> Vec<u8> {
    let mut disk = vec![0; (count + 1) as usize * APART as usize * 512];
    let mut row = |sector: u32, slot: usize, kind: u8, first: u32, sectors: u32| {
        let at = sector as usize * 512 + 446 + 16 * slot;
        disk[at + 4] = kind;
        disk[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
        let end = sector as usize * 512 + 510;
        disk[end..end + 2].copy_from_slice(&[0x55, 0xaa]);
    };
    row(0, 0, 7, 1, APART - 1);
    row(0, 1, 5, APART, count * APART);
    for link in 1..=count {
        row(link * APART, 0, 0x83, 8, APART - 8);
        if link < count {
            row(link * APART, 1, 5, link * APART, APART);
        }
    }
    disk
}
