//! Changes of a partition table that its disk does not need: a larger last partition, new identifiers.

use super::{BOOT_CODE, CODE, Gpt, MBR_SECTOR, Shape, usize_of};
use crate::partition::{self, guid_text, swap_guid};

/// Bytes of which the end of an expanded partition is a multiple.
const ALIGNMENT: u64 = 1 << 20;
/// Types of partitions that are not expanded (GPT): those that hold no file system that would grow.
const FIXED: [&str; 12] = [
    // EFI system partition, extended boot loader partition, BIOS boot, PReP boot
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b",
    "bc13c2ff-59e6-4262-a352-b275fd6f7172",
    "21686148-6449-6e6f-744e-656564454649",
    "9e1a2d38-c612-4316-aa26-8b49521e5a8b",
    // Linux swap space; hashes of dm-verity for the root and usr partitions of x86-64 systems
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f",
    "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5",
    "77ff5f63-e7b6-4633-acf4-1565b864c0e6",
    // Microsoft: reserved, recovery environment, dynamic disks
    "e3c9e316-0b5c-4db8-817d-f92df00215ae",
    "de94bba4-06d1-4d40-a16a-bfd50179d6ac",
    "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3",
    "af9b60a0-1431-4f62-bc68-3311714a69ad",
    // Solaris reserved, at the end of ZFS disks
    "6a945a3b-1dd2-11b2-99a6-080020736631",
];
/// The same of an MBR: recovery and hibernation partitions, PReP boot, dynamic disks, swap space, an EFI
/// system partition.
const FIXED_MBR: [u8; 7] = [0x12, 0x27, 0x41, 0x42, 0x82, 0x84, 0xef];

/// Changes of a partition table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Edit {
    /// Expand the last partition to the end of the disk.
    pub expand: bool,
    /// Replace the identifiers of the disk and of its partitions by new ones, which are made from
    /// these random bytes.
    pub ids: Option<[u8; 16]>,
}

/// A partition that was expanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expanded {
    /// The number, from 1.
    pub number: u32,
    /// Its size before, in bytes.
    pub from: u64,
    /// Its size, in bytes.
    pub to: u64,
}

impl Edit {
    /// Applies the changes to a GPT. Returns the partition that was expanded; `None` if there is no
    /// space behind the last one, or if its type is one of [`FIXED`].
    pub(super) fn apply(&self, gpt: &mut Gpt) -> Option<Expanded> {
        if let Some(random) = self.ids {
            gpt.guid = guid(random, 0);
            let size = usize_of(gpt.entry_size);
            for (number, entry) in (1..).zip(gpt.entries.chunks_exact_mut(size)) {
                if partition::extent(entry).is_some()
                    && let Some(field) = entry.get_mut(16..32)
                {
                    field.copy_from_slice(&guid(random, number));
                }
            }
        }
        self.expand.then(|| expand(gpt)).flatten()
    }

    /// Applies the changes to the first sector of a disk with an MBR. Returns the primary partition
    /// that was expanded; `None` also if the last one is an extended partition.
    pub(super) fn apply_to_mbr(&self, sector: &mut [u8], disk: Shape) -> Option<Expanded> {
        if let Some([a, b, c, d, ..]) = self.ids
            && let Some(signature) = sector.get_mut(CODE..CODE + 4)
        {
            // Zero means that there is none.
            signature.copy_from_slice(&[a | 1, b, c, d]);
        }
        self.expand.then(|| expand_in_mbr(sector, disk)).flatten()
    }
}

fn expand(gpt: &mut Gpt) -> Option<Expanded> {
    let (block, size) = (u64::from(gpt.block), usize_of(gpt.entry_size));
    let behind = align(gpt.last_usable().saturating_add(1), block);
    let entries = (1..).zip(gpt.entries.chunks_exact_mut(size));
    let used =
        entries.filter_map(|(number, entry)| Some((number, partition::extent(entry)?, entry)));
    let (number, (first, last), entry) = used.max_by_key(|&(_, (_, last), _)| last)?;
    let old = last.checked_add(1)?;
    if FIXED.contains(&&guid_text(&swap_guid(*entry.first_chunk()?))[..]) || behind <= old {
        return None;
    }
    entry.get_mut(40..48)?.copy_from_slice(&behind.checked_sub(1)?.to_le_bytes());
    let bytes = |behind: u64| behind.saturating_sub(first).saturating_mul(block);
    Some(Expanded { number, from: bytes(old), to: bytes(behind) })
}

fn expand_in_mbr(sector: &mut [u8], disk: Shape) -> Option<Expanded> {
    let block = u64::from(disk.block);
    let behind = align((disk.bytes / block.max(1)).min(u32::MAX.into()), block);
    let rows = sector.get_mut(BOOT_CODE..MBR_SECTOR - 2)?.chunks_exact_mut(16);
    let used = (1..).zip(rows).filter_map(|(number, row)| {
        let kind = partition::kind(row)?;
        let word = |at: usize| Some(u64::from(u32::from_le_bytes(*row.get(at..)?.first_chunk()?)));
        let (first, length) = (word(8)?, word(12)?);
        Some((number, kind, first, first.checked_add(length)?, row))
    });
    let (number, kind, first, old, row) = used.max_by_key(|&(_, _, _, behind, _)| behind)?;
    if partition::is_extended(kind) || FIXED_MBR.contains(&kind) || behind <= old {
        return None;
    }
    let length = u32::try_from(behind.checked_sub(first)?).ok()?;
    row.get_mut(12..16)?.copy_from_slice(&length.to_le_bytes());
    // The address of the last sector in cylinders, heads and sectors: beyond what fits.
    row.get_mut(5..8)?.copy_from_slice(&[0xfe, 0xff, 0xff]);
    let bytes = |behind: u64| behind.saturating_sub(first).saturating_mul(block);
    Some(Expanded { number, from: bytes(old), to: bytes(behind) })
}

/// Returns the largest multiple of [`ALIGNMENT`] that is not beyond a block, as a block.
fn align(block: u64, size: u64) -> u64 {
    let unit = (ALIGNMENT / size.max(1)).max(1);
    block - block % unit
}

/// Returns a random GUID (RFC 9562 §5.4) in the on-disk order, another one for each number.
fn guid(random: [u8; 16], number: u32) -> [u8; 16] {
    let mut guid = random;
    for (byte, number) in guid.iter_mut().zip(number.to_le_bytes()) {
        *byte ^= number;
    }
    let [_, _, _, _, _, _, _, version, variant, ..] = &mut guid;
    *version = *version & 0x0f | 0x40;
    *variant = *variant & 0x3f | 0x80;
    guid
}

#[cfg(test)]
mod test {
    use super::super::{Fitted, Partition, Unfit, fitted};
    use super::*;
    use crate::partition::{made, read};

    const MIB: u64 = 1 << 20;
    const LINUX: [u8; 16] = *b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4";

    /// A disk with partitions of these types, one MiB each; in the table the last one comes first.
    fn disk(block: u32, bytes: u64, kinds: &[[u8; 16]]) -> Vec<u8> {
        let in_blocks = |mib: u64| mib * MIB / u64::from(block);
        let numbered = (1..).zip(kinds);
        let mut partitions: Vec<Partition<'_>> = numbered
            .map(|(number, &kind)| Partition {
                kind,
                guid: [u8::try_from(number).unwrap(); 16],
                first: in_blocks(number),
                last: in_blocks(number + 1) - 1,
                name: "data",
            })
            .collect();
        partitions.reverse();
        let gpt = Gpt::new(block, bytes / u64::from(block), [1; 16], &partitions);
        let mut disk = vec![0; usize::try_from(bytes).unwrap()];
        let (start, end) = (gpt.start(), gpt.end());
        disk[..start.len()].copy_from_slice(&start);
        let at = disk.len() - end.len();
        disk[at..].copy_from_slice(&end);
        disk
    }

    fn edited(disk: &[u8], edit: Edit) -> (Vec<u8>, Option<Expanded>) {
        let shape = Shape { block: 512, bytes: disk.len() as u64 };
        let block = partition::block_size(disk).unwrap().unwrap_or(512);
        let fitted = fitted(disk, shape, Shape { block, ..shape }, &edit).unwrap().unwrap();
        let mut changed = disk.to_vec();
        for patch in fitted.patches {
            let at = usize::try_from(patch.offset).unwrap();
            changed[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
        }
        (changed, fitted.expanded)
    }

    const EXPAND: Edit = Edit { expand: true, ids: None };

    #[test]
    fn last_partition_is_expanded_to_the_end_in_whole_mib() {
        for block in [512, 4096] {
            let (changed, expanded) = edited(&disk(block, 9 * MIB + 8192, &[LINUX; 2]), EXPAND);
            // The backup table takes less than a MiB.
            assert_eq!(expanded, Some(Expanded { number: 1, from: MIB, to: 6 * MIB }), "{block}");
            let table = read(&changed[..]).unwrap().unwrap();
            let places = table.entries.iter().map(|it| (it.start / MIB, it.bytes / MIB));
            assert_eq!(places.collect::<Vec<_>>(), [(2, 6), (1, 1)]);
            let (again, expanded) = edited(&changed, EXPAND);
            assert!(again == changed && expanded.is_none());
        }
    }

    #[test]
    fn swap_boot_and_recovery_partitions_are_not_expanded() {
        for text in FIXED {
            let digits = text.replace('-', "");
            let byte = |at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap();
            let kind = swap_guid(std::array::from_fn(byte));
            let before = disk(512, 9 * MIB, &[LINUX, kind]);
            let (changed, expanded) = edited(&before, EXPAND);
            assert!(changed == before && expanded.is_none(), "{text}");
        }
    }

    #[test]
    fn new_identifiers_differ_and_the_rest_of_the_table_stays() {
        let before = disk(512, 9 * MIB, &[LINUX; 2]);
        let (changed, _) = edited(&before, Edit { ids: Some([7; 16]), ..Edit::default() });
        let (old, new) = [&before, &changed].map(|disk| read(&disk[..]).unwrap().unwrap()).into();
        let ids = [new.guid, new.entries[0].guid, new.entries[1].guid].map(Option::unwrap);
        assert!(ids.iter().all(|id| id[6] >> 4 == 4 && id[8] >> 6 == 2), "{ids:x?}");
        assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
        assert!(!ids.contains(&old.guid.unwrap()) && !ids.contains(&old.entries[0].guid.unwrap()));
        let rest = |table: &partition::Table| {
            let entries = table.entries.iter();
            entries.map(|it| (it.number, it.kind.clone(), it.start, it.bytes)).collect::<Vec<_>>()
        };
        assert_eq!(rest(&old), rest(&new));
    }

    #[test]
    fn mbr_of_a_damaged_gpt_is_not_changed() {
        let mut disk = disk(512, 9 * MIB, &[LINUX]);
        disk[512..516].fill(0);
        let at = disk.len() - 512;
        disk[at..at + 4].fill(0);
        let shape = Shape { block: 512, bytes: disk.len() as u64 };
        let ids = Edit { ids: Some([7; 16]), ..Edit::default() };
        for edit in [EXPAND, ids] {
            assert_eq!(fitted(&disk[..], shape, shape, &edit).unwrap(), Err(Unfit::Damaged));
        }
        let unchanged = fitted(&disk[..], shape, shape, &Edit::default()).unwrap();
        assert_eq!(unchanged, Ok(Fitted::default()));
    }

    #[test]
    fn mbr_is_expanded_and_gets_a_new_signature() {
        let mut before = vec![0; 8 << 20];
        made::row(&mut before, 0, 0x83, 4096, 2048);
        made::row(&mut before, 1, 0x0c, 2048, 2048);
        let (changed, expanded) = edited(&before, Edit { ids: Some([0; 16]), ..EXPAND });
        assert_eq!(expanded, Some(Expanded { number: 1, from: MIB, to: 6 * MIB }));
        assert_eq!(changed[440..444], [1, 0, 0, 0]);
        let table = read(&changed[..]).unwrap().unwrap();
        assert_eq!((table.entries[0].start, table.entries[0].bytes), (2 * MIB, 6 * MIB));
        assert_eq!((table.entries[1].start, table.entries[1].bytes), (MIB, MIB));
        for kind in [0x05, 0x0f, 0x82] {
            made::row(&mut before, 0, kind, 4096, 2048);
            assert_eq!(edited(&before, EXPAND), (before.clone(), None), "{kind:x}");
        }
    }
}
