//! Volumes that no program makes, or only one that is not here: byte for byte made by the tests.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on ends, and numbers are small"
)]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use filesystem::{
    Cursor, EntryKind, FileEntry, FileError, ReadAt, Refusal, Volume, partitions, recognize,
};
use testkit::exfat::{self, Exfat};
use testkit::ntfs::{self, DIRECTORY, FILE, FIRST, I30, Ntfs, ROOT, kind, resident, runs};

fn open(disk: &[u8]) -> Volume {
    Volume::open(disk, &(0..disk.len() as u64)).unwrap()
}

fn list(disk: &[u8], volume: &Volume) -> Result<Vec<FileEntry>, FileError> {
    let (mut all, mut from) = (Vec::new(), Some(Cursor::default()));
    while let Some(at) = from {
        let (entries, next) = volume.entries(disk, &volume.root(), &at)?;
        all.extend(entries);
        from = next;
    }
    Ok(all)
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, FileError>, wanted: Refusal) {
    match result {
        Err(FileError::Refused(refusal)) => assert_eq!(refusal, wanted),
        other => panic!("{other:?}, not {wanted:?}"),
    }
}

/// A volume with one file, whose record has these attributes.
fn with_file(attributes: &[Vec<u8>]) -> Ntfs {
    let mut volume = Ntfs::new(1000);
    volume.root(&[ntfs::index_entry(FIRST, "file", 5, 0)]);
    volume.record(FIRST, FILE, 0, attributes);
    volume
}

/// The index has the length and the time that the file had when it was last changed by that name.
#[test]
fn file_with_several_names_has_the_length_of_its_record() {
    // 2000-01-01 00:00 in units since 1601.
    let time: u64 = (11_644_473_600 + 946_684_800) * 10_000_000;
    let mut times = vec![0; 48];
    times[8..16].copy_from_slice(&time.to_le_bytes());
    let disk = with_file(&[
        resident(kind::STANDARD_INFORMATION, "", &times),
        resident(kind::DATA, "", b"longer than before"),
    ])
    .disk;
    let volume = open(&disk);
    let entries = list(&disk, &volume).unwrap();
    assert_eq!((entries.len(), entries[0].bytes), (1, 5));
    let details = volume.details(&disk[..], &entries[0]);
    assert_eq!((details.kind, details.bytes), (EntryKind::File, 18));
    assert_eq!(details.modified.map(|it| (it.seconds, it.is_utc)), Some((946_684_800, true)));
    let file = volume.find(&disk[..], &[b"file"]).unwrap();
    assert_eq!(volume.read(&disk[..], &file, 100).unwrap(), b"longer than before");
}

#[test]
fn file_whose_record_is_another_one_is_damaged() {
    let mut made = with_file(&[resident(kind::DATA, "", b"x")]);
    made.record(FIRST, FILE, 3, &[resident(kind::DATA, "", b"x")]);
    let volume = open(&made.disk);
    let entries = list(&made.disk, &volume).unwrap();
    let details = volume.details(&made.disk[..], &entries[0]);
    assert_eq!(details.kind, EntryKind::Damaged);
}

#[test]
fn reparse_point_in_another_record_is_refused() {
    let list = [ntfs::list_entry(kind::DATA, "", 0, FIRST), {
        ntfs::list_entry(kind::REPARSE, "", 0, FIRST + 1)
    }];
    let data = resident(kind::DATA, "", b"what is left of it");
    let mut made = with_file(&[resident(kind::ATTRIBUTE_LIST, "", &list.concat()), data]);
    // Deduplicated by Windows.
    let tag = 0x8000_0013_u32.to_le_bytes();
    made.record(FIRST + 1, FILE, FIRST, &[resident(kind::REPARSE, "", &tag)]);
    assert_refused(open(&made.disk).find(&made.disk[..], &[b"file"]), Refusal::Elsewhere);
}

#[test]
fn runs_beyond_the_volume_are_damaged() {
    // The disk goes on behind the volume.
    let made = |first: u32| {
        let data = ntfs::non_resident(kind::DATA, "", 0, 1024, &runs(&[(2, Some(first))]));
        let mut disk = with_file(&[data]).disk;
        disk.resize(2 << 20, 7);
        disk
    };
    for (first, is_inside) in [(998, true), (999, false), (1500, false), (u32::MAX, false)] {
        let disk = made(first);
        let volume = open(&disk);
        let file = volume.find(&disk[..], &[b"file"]).unwrap();
        match is_inside {
            true => assert_eq!(volume.read(&disk[..], &file, 2000).unwrap().len(), 1024),
            false => assert_refused(volume.read(&disk[..], &file, 2000), Refusal::Damaged),
        }
    }
    // Index blocks of a directory, too.
    let mut made = Ntfs::new(1000);
    made.record(
        ROOT,
        DIRECTORY,
        0,
        &[
            resident(kind::INDEX_ROOT, I30, &ntfs::index_root(&[])),
            ntfs::non_resident(kind::INDEX_ALLOCATION, I30, 0, 4096, &runs(&[(8, Some(1100))])),
            resident(kind::BITMAP, I30, &[1; 8]),
        ],
    );
    made.disk.resize(2 << 20, 0);
    let block = ntfs::index_block(&[ntfs::index_entry(FIRST, "outside", 1, 0)]);
    made.write(1100, &block);
    assert_refused(list(&made.disk, &open(&made.disk)), Refusal::Damaged);
}

/// The records that have the parts are in the parts before them.
#[test]
fn mft_in_many_parts_is_read() {
    const FIRST_PART: u32 = 64;
    const PART: u32 = 16;
    let numbers: Vec<u64> = (6..24).collect();
    let clusters = FIRST_PART + PART * numbers.len() as u32;
    let len = u64::from(clusters) * ntfs::CLUSTER as u64;
    let part = |vcn: u32, count: u32| {
        let runs = runs(&[(count, Some(ntfs::MFT + vcn))]);
        let mut part = ntfs::non_resident(kind::DATA, "", vcn.into(), len, &runs);
        part[24..32].copy_from_slice(&u64::from(vcn + count - 1).to_le_bytes());
        part
    };
    let (mut made, mut list) = (Ntfs::new(1000), ntfs::list_entry(kind::DATA, "", 0, 0));
    for (number, vcn) in numbers.iter().zip((FIRST_PART..).step_by(PART as usize)) {
        list.extend(ntfs::list_entry(kind::DATA, "", vcn.into(), *number));
        // The reference of the record of the MFT.
        made.record(*number, FILE, 1 << 48, &[part(vcn, PART)]);
    }
    let list = resident(kind::ATTRIBUTE_LIST, "", &list);
    made.record(0, FILE, 0, &[list, part(0, FIRST_PART)]);
    // The last record.
    let number = u64::from(clusters / 2 - 1);
    made.root(&[ntfs::index_entry(number, "file", 1, 0)]);
    made.record(number, FILE, 0, &[resident(kind::DATA, "", b"in the last part")]);
    let volume = open(&made.disk);
    let file = volume.find(&made.disk[..], &[b"file"]).unwrap();
    assert_eq!(volume.read(&made.disk[..], &file, 100).unwrap(), b"in the last part");
}

#[test]
fn exfat_lengths_beyond_the_volume_are_damaged() {
    let mut volume = Exfat::new(100);
    let capacity = 100 * exfat::CLUSTER as u64;
    let files = [
        exfat::file("fits", 50, capacity),
        exfat::file("longer", 50, capacity + 1),
        exfat::file("longest", 50, u64::MAX),
    ];
    let root = [files.concat(), vec![0; 32]].concat();
    volume.store(&root);
    let disk = volume.disk;
    let entries = list(&disk, &open(&disk)).unwrap();
    let kinds: Vec<_> = entries.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [EntryKind::File, EntryKind::Damaged, EntryKind::Damaged]);
    for name in [&b"longer"[..], b"longest"] {
        assert_refused(open(&disk).find(&disk[..], &[name]), Refusal::Damaged);
    }
}

/// Counts the pages of 4 KiB that a call reads, some of which cannot be read.
struct Counted<'a> {
    disk: &'a [u8],
    pages: RefCell<BTreeSet<u64>>,
    unreadable: Range<u64>,
}

impl ReadAt for Counted<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let end = (offset + buffer.len() as u64).min(self.disk.len() as u64);
        self.pages.borrow_mut().extend(offset / 4096..end.div_ceil(4096));
        if offset < self.unreadable.end && self.unreadable.start < end {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.disk.read_at(buffer, offset)
    }
}

impl<'a> Counted<'a> {
    fn new(disk: &'a [u8]) -> Self {
        Self { disk, pages: RefCell::default(), unreadable: 0..0 }
    }

    /// Checks what one call has read.
    #[track_caller]
    fn assert_bounded(&self) {
        let count = std::mem::take(&mut *self.pages.borrow_mut()).len();
        assert!((1..=256).contains(&count), "{count} pages");
    }
}

/// The signatures of other file systems may be there, which says nothing about this one.
#[test]
fn unreadable_ends_of_a_disk_hide_no_files() {
    let mut made = Exfat::new(4000);
    made.store(&[exfat::file("file", 3, 4), vec![0; 416]].concat());
    made.store(b"text");
    let bytes = made.disk.len() as u64;
    // Where RAID has its superblocks, and where btrfs has one.
    for unreadable in [bytes - 65536..bytes, 65536..69632] {
        let disk = Counted { unreadable, ..Counted::new(&made.disk) };
        let volume = Volume::open(&disk, &(0..bytes)).unwrap();
        let file = volume.find(&disk, &[b"file"]).unwrap();
        assert_eq!(volume.read(&disk, &file, 10).unwrap(), b"text");
    }
}

/// A FAT16 of 5000 clusters whose root directory has 65,520 entries, of which the last one is a file.
fn large_root() -> Vec<u8> {
    let (table, root) = (20, 65_520 * 32 / 512);
    let sectors = 1 + table + root + 5000;
    let mut disk = vec![0; sectors * 512];
    disk[..3].copy_from_slice(b"\xeb\x3c\x90");
    // Sectors of 512 bytes, one per cluster, one reserved, one table.
    disk[11..17].copy_from_slice(&[0, 2, 1, 1, 0, 1]);
    disk[17..19].copy_from_slice(&65_520_u16.to_le_bytes());
    disk[21] = 0xf8;
    disk[22..24].copy_from_slice(&20_u16.to_le_bytes());
    disk[32..36].copy_from_slice(&(sectors as u32).to_le_bytes());
    disk[54..62].copy_from_slice(b"FAT16   ");
    disk[510..518].copy_from_slice(&[0x55, 0xaa, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff]);
    let first = (1 + table) * 512;
    let data = first + root * 512;
    disk[first..data].chunks_exact_mut(32).for_each(|entry| entry[0] = 0xe5);
    disk[data - 32..data - 21].copy_from_slice(b"LAST    TXT");
    (disk[data - 6], disk[data - 4]) = (2, 4);
    disk[data..data + 4].copy_from_slice(b"text");
    disk
}

/// Callers keep no more for one call.
#[test]
fn each_call_reads_a_mebibyte_at_most() {
    let disks =
        [large_root(), exfat::large_folder(20_000), ext(), testkit::logical_partitions(100)];
    for bytes in disks {
        let (disk, len) = (Counted::new(&bytes), bytes.len() as u64);
        let parts = partitions(&disk, len).unwrap();
        disk.assert_bounded();
        assert!(!parts.is_empty());
        for (_, place) in parts {
            recognize(&disk, &place).unwrap();
            disk.assert_bounded();
            let Ok(kind) = Volume::identify(&disk, &place) else { continue };
            disk.assert_bounded();
            let volume = Volume::open_as(&disk, &place, kind).unwrap();
            disk.assert_bounded();
            let mut from = Some(Cursor::default());
            while let Some(at) = from {
                from = volume.entries(&disk, &volume.root(), &at).unwrap().1;
                disk.assert_bounded();
            }
        }
    }
}

#[test]
fn last_entry_of_a_large_fixed_root_directory_is_found() {
    let disk = large_root();
    let volume = open(&disk);
    let file = volume.find(&disk[..], &[b"LAST.TXT"]).unwrap();
    assert_eq!(volume.read(&disk[..], &file, 10).unwrap(), b"text");
}

/// An ext2 with nothing in it, by its own program; without that an exFAT.
fn ext() -> Vec<u8> {
    if programs::lacks("calls of parsers of ext", &["mke2fs"]) {
        return exfat::large_folder(1);
    }
    let image = std::env::temp_dir().join(format!("crafted-ext-{}", std::process::id()));
    std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    assert!(programs::command("mke2fs").args(["-q", "-F"]).arg(&image).status().unwrap().success());
    let bytes = std::fs::read(&image).unwrap();
    std::fs::remove_file(image).unwrap();
    bytes
}

#[test]
fn logical_partitions_are_found_in_many_places() {
    let disk = testkit::logical_partitions(100);
    let parts = partitions(&disk[..], disk.len() as u64).unwrap();
    assert_eq!(parts.len(), 101);
    assert_eq!(parts[100], (104, (100 * 64 + 8) * 512..101 * 64 * 512));
}
