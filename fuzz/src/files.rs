//! The files of a disk that begins with the input, followed by zeros: partitions, directories, extents. Checks that each
//! call ends, that extents are bytes of the disk and follow each other, and that nothing panics.

use std::io;

use filesystem::{Cursor, EntryKind, Extent, FileEntry, ReadAt, Volume, partitions, recognize};

/// Size of the disk in bytes.
const BYTES: u64 = 64 << 20;

/// Calls, and directories that are listed, at most.
const MAX_CALLS: u32 = 20_000;
const MAX_DIRECTORIES: usize = 50;

struct Disk<'a>(&'a [u8]);

impl ReadAt for Disk<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(BYTES.saturating_sub(offset)).unwrap_or(0);
        let len = buffer.len().min(rest);
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let there = self.0.get(at..).unwrap_or_default();
        let known = there.len().min(len);
        buffer[..known].copy_from_slice(&there[..known]);
        buffer[known..len].fill(0);
        Ok(len)
    }
}

/// Reads what can be read of the disk `data`. Returns how many entries its directories have.
pub fn run(data: &[u8]) -> u32 {
    let (disk, mut calls, mut count) = (Disk(data), 0, 0);
    let parts = partitions(&disk, BYTES).expect("the disk can be read");
    for (_, place) in parts {
        recognize(&disk, &place).expect("the disk can be read");
        if let Ok(volume) = Volume::open(&disk, &place) {
            count += walk(&disk, &volume, &mut calls);
        }
    }
    count
}

/// Lists the directories of a volume, and locates its files.
fn walk(disk: &Disk<'_>, volume: &Volume, calls: &mut u32) -> u32 {
    let (mut todo, mut count) = (vec![volume.root()], 0);
    for _ in 0..MAX_DIRECTORIES {
        let Some(directory) = todo.pop() else { break };
        let mut from = Some(Cursor::default());
        while let Some(at) = from.filter(|_| *calls < MAX_CALLS) {
            *calls += 1;
            let Ok((entries, next)) = volume.entries(disk, &directory, &at) else { break };
            from = next;
            for entry in entries {
                count += 1;
                assert!(!matches!(&entry.name[..], b"" | b"." | b".."));
                volume.details(disk, &entry);
                match volume.check(disk, &entry) {
                    Ok(entry) if entry.kind == EntryKind::Directory => todo.push(entry),
                    Ok(entry) => locate(disk, volume, &entry, calls),
                    Err(_) => {}
                }
            }
        }
    }
    count
}

/// Locates a file.
fn locate(disk: &Disk<'_>, volume: &Volume, file: &FileEntry, calls: &mut u32) {
    let mut at = Cursor::default();
    while at.offset() < file.bytes && *calls < MAX_CALLS {
        *calls += 1;
        let Ok((extents, next)) = volume.extents(disk, file, &at) else { return };
        let len: u64 = extents.iter().map(Extent::bytes).sum();
        assert_eq!(at.offset() + len, next.offset());
        for extent in extents {
            assert!(extent.bytes() > 0);
            if let Extent::Disk(range) = extent {
                assert!(range.end <= BYTES, "{range:?}");
            }
        }
        at = next;
    }
}
