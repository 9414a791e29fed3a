//! Writes a bootable EFI system partition to a disk that is not in use.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ::image::disk::{Contents, Disk as Layout};
use linux::block::{self, Disk};
use linux::disk::{OpenFor, Opened, open};
use linux::in_use::Machine;
use linux::reason::{Code, Weight};
use linux::tree::Tree;
use rustix::fd::OwnedFd;
use rustix::fs::{Advice, OFlags, fadvise, fcntl_getfl, fcntl_setfl};

use super::progress::Progress;
use crate::confirmation::OverwriteTarget;
use daemon::examine::{examine, limit_for};
use daemon::lend::block_device;
use failure::Failure;

/// Bytes per write.
const CHUNK: usize = 1 << 20;

/// Number of chunks that hold a partition table.
const TABLE_CHUNKS: usize = 2;

pub(super) fn is_device(path: &Path) -> bool {
    block_device(path).is_some()
}

/// Checks that the disk may be written, and returns its description for the confirmation.
pub(super) fn check(tree: &Tree, path: &Path) -> Result<OverwriteTarget, Failure> {
    let (machine, disk) = check_disk(tree, path)?;
    Ok(OverwriteTarget::device(path, &machine, &disk, "--force"))
}

fn check_disk(tree: &Tree, path: &Path) -> Result<(Machine, Disk), Failure> {
    let (machine, disk) = find(tree, path)?;
    let name = path.display();
    if let Some(part) = &disk.part {
        return Err(Failure::new(format!(
            "{name} is a partition; name the whole disk, {}, if all of it may be overwritten",
            part.whole_disk
        )));
    }
    let findings = examine(tree, machine.examined_for(&disk), limit_for(&disk));
    let verdict = machine.judge(&disk, &findings);
    if let Some(reason) = verdict.reasons.iter().find(|reason| forbids(reason.code)) {
        return Err(Failure::new(format!(
            "{name} is not written: {reason}; stop that first, or use another disk"
        )));
    }
    Ok((machine, disk))
}

/// Returns whether firmware cannot boot from such a disk, or the disk may be in use.
fn forbids(code: Code) -> bool {
    let odd = [
        Code::BootArea,
        Code::Flash,
        Code::Null,
        Code::Optical,
        Code::Ram,
        Code::Zoned,
        Code::Zram,
    ];
    odd.contains(&code) || code.weight() >= Weight::Unknown
}

fn find(tree: &Tree, path: &Path) -> Result<(Machine, Disk), Failure> {
    let machine = Machine::snapshot(tree).map_err(|error| {
        Failure::new(format!("whether {} is in use cannot be found out: {error}", path.display()))
    })?;
    let number = block_device(path);
    let disk = machine.disks.iter().find(|disk| Some(disk.number) == number).cloned();
    let disk = disk.ok_or_else(|| {
        Failure::new(format!(
            "{}: whether this disk is in use cannot be found out, since /sys does not show it; use another one",
            path.display()
        ))
    })?;
    Ok((machine, disk))
}

/// Writes the contents to the disk and verifies them. Returns the number of bytes written, and the
/// disk's logical block size.
pub(super) fn write(
    tree: &Tree,
    path: &Path,
    confirmed: &OverwriteTarget,
    contents: &Contents,
    progress: &Progress,
) -> Result<(usize, u32), Failure> {
    // The disk may have changed since the first check.
    let (machine, expected) = check_disk(tree, path)?;
    let opened = open(tree, path, OpenFor::Writing, false).map_err(Failure::new)?;
    check_same(path, &expected, current_disk(tree, &opened).as_ref())?;
    let wrong = |error| Failure::new(format!("{} cannot be written: {error}", path.display()));
    let file = buffered(opened.descriptor).map_err(wrong)?;
    // The disk is open exclusively; compare with what was confirmed.
    let overwrite = OverwriteTarget::device(path, &machine, &expected, "--force");
    if overwrite != *confirmed {
        return Err(Failure::new(format!("{overwrite} is not what was there before; try again")));
    }
    let layout = Layout::on(contents, opened.bytes, opened.logical_block)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    write_layout(&file, &layout, progress).map_err(wrong)?;
    Ok((layout.start.len().saturating_add(layout.end.len()), opened.logical_block))
}

/// Returns the disk that was opened, as the kernel describes it.
fn current_disk(tree: &Tree, opened: &Opened) -> Option<Disk> {
    block::by_number(tree, opened.number)
}

/// A disk that is hot-plugged meanwhile can reuse the device number, but not `diskseq`.
fn check_same(path: &Path, expected: &Disk, current: Option<&Disk>) -> Result<(), Failure> {
    let identity = |disk: &Disk| (disk.number, disk.diskseq, disk.bytes, disk.hardware.clone());
    if current.is_some_and(|current| identity(current) == identity(expected)) {
        return Ok(());
    }
    let path = path.display();
    Err(Failure::new(format!("{path} became another disk while it was being opened; try again")))
}

/// Direct I/O would require aligned buffers; speed does not matter here.
fn buffered(descriptor: OwnedFd) -> io::Result<File> {
    fcntl_setfl(&descriptor, fcntl_getfl(&descriptor)? - OFlags::DIRECT)?;
    Ok(File::from(descriptor))
}

fn write_layout(file: &File, layout: &Layout, progress: &Progress) -> io::Result<()> {
    erase_tables(file, layout)?;
    let chunks = chunks_of(layout);
    for (done, (offset, bytes)) in chunks.iter().enumerate() {
        if done.saturating_add(TABLE_CHUNKS) == chunks.len() {
            file.sync_all()?;
        }
        file.write_all_at(bytes, *offset)?;
        progress.update("writing, in MiB", done.saturating_add(1), chunks.len());
    }
    file.sync_all()?;
    // Read back from the disk, not from the page cache.
    fadvise(file, 0, None, Advice::DontNeed)?;
    for (done, (offset, bytes)) in chunks.iter().enumerate() {
        let mut there = vec![0; bytes.len()];
        file.read_exact_at(&mut there, *offset)?;
        if there != *bytes {
            return Err(io::Error::other(
                "it does not keep what is written onto it; use another disk",
            ));
        }
        progress.update("reading back, in MiB", done.saturating_add(1), chunks.len());
    }
    Ok(())
}

/// Erases both partition tables first: a partly written disk must not look bootable.
fn erase_tables(file: &File, layout: &Layout) -> io::Result<()> {
    let length = u64::try_from(layout.end.len()).unwrap_or_default();
    file.write_all_at(&vec![0; layout.start.len().min(CHUNK)], 0)?;
    file.write_all_at(&vec![0; layout.end.len()], layout.bytes.saturating_sub(length))?;
    file.sync_all()
}

/// Returns offsets and data in write order. The last [`TABLE_CHUNKS`] chunks are the partition
/// tables.
fn chunks_of(layout: &Layout) -> Vec<(u64, &[u8])> {
    let end = layout.bytes.saturating_sub(u64::try_from(layout.end.len()).unwrap_or_default());
    let start = layout.start.chunks(CHUNK).scan(0_u64, |offset, chunk| {
        let here = *offset;
        *offset = offset.saturating_add(u64::try_from(chunk.len()).unwrap_or_default());
        Some((here, chunk))
    });
    let mut chunks: Vec<(u64, &[u8])> = start.collect();
    chunks.push((end, &layout.end));
    chunks.rotate_left(1);
    chunks
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn chunks_cover_the_layout_and_the_table_is_last() {
        let layout = Layout { bytes: 10 << 20, start: vec![1; (2 << 20) + 5], end: vec![2; 100] };
        let places: Vec<(u64, usize)> =
            chunks_of(&layout).iter().map(|(offset, bytes)| (*offset, bytes.len())).collect();
        let mebi = 1 << 20;
        let wanted = [(mebi, CHUNK), (2 * mebi, 5), (10 * mebi - 100, 100), (0, CHUNK)];
        assert_eq!(places, wanted);
    }

    #[test]
    fn layout_is_written_and_old_tables_are_erased() {
        let path = std::env::temp_dir().join(format!("storagetm-medium-{}", std::process::id()));
        let layout = Layout { bytes: 6 << 20, start: vec![1; (2 << 20) + 5], end: vec![2; 100] };
        std::fs::write(&path, vec![9; 6 << 20]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        erase_tables(&file, &layout).unwrap();
        let blanked = std::fs::read(&path).unwrap();
        assert!(blanked[..CHUNK].iter().chain(&blanked[(6 << 20) - 100..]).all(|&byte| byte == 0));
        assert_eq!(blanked[CHUNK], 9);
        write_layout(&file, &layout, &Progress::open()).unwrap();
        let write_layout = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(write_layout.starts_with(&layout.start) && write_layout.ends_with(&layout.end));
        assert_eq!(write_layout.len(), 6 << 20);
    }

    #[test]
    fn unbootable_and_used_disks_are_never_written() {
        for code in
            [Code::Mounted, Code::Busy, Code::Doubt, Code::Empty, Code::BootArea, Code::Zoned]
        {
            assert!(forbids(code), "{code:?}");
        }
        for code in [Code::Loop, Code::Network, Code::Program] {
            assert!(!forbids(code), "{code:?}");
        }
    }
}
