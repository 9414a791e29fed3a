//! The boot loaders on the EFI system partition of a disk (UEFI 2.10 §13.3.1).

use std::io;

use linux::medium::ReadAt;
use linux::partition;

use crate::{Cursor, EntryKind, FileEntry, FileError, Volume};

/// Type of an EFI system partition in a GPT and in an MBR.
const SYSTEM_PARTITION: [&str; 2] = ["c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "ef"];
/// Calls that list one directory, at most: each returns some entries.
const MAX_CALLS: usize = 64;
/// EFI system partitions that are looked at, at most.
const MAX_PARTITIONS: usize = 16;
/// Directories that are looked at, at most.
const MAX_DIRECTORIES: usize = 32;
/// The directory of the loader that firmware starts without a boot entry.
const FALLBACK: &[u8] = b"BOOT";
/// Machines in the names of loaders (UEFI 2.10 §3.5.1.1).
const MACHINES: [&[u8]; 5] = [b"x64", b"aa64", b"ia32", b"arm", b"riscv64"];
/// How the names of loaders begin, the one to start first: shim starts what is behind it.
const NAMES: [&str; 5] = ["shim", "bootmgfw", "systemd-boot", "refind", "grub"];

/// The loaders on the EFI system partition of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaders {
    /// Number of the partition.
    pub partition: u32,
    /// Whether there is one that firmware starts without a boot entry (`\EFI\BOOT\BOOT*.EFI`, UEFI 2.10 §3.5.1.1).
    pub has_fallback: bool,
    /// The others, one for each directory of a vendor, as in a boot entry: `\EFI\debian\shimx64.efi`.
    pub paths: Vec<String>,
}

/// Returns the loaders on an EFI system partition of a disk of `bytes` bytes: one with a loader that firmware starts without a
/// boot entry, else the first one with another loader, else the first one. Those that are not understood are left out; `None` if
/// there is no other.
///
/// # Errors
/// Fails if the disk cannot be read, and no loader was found on what can be read.
pub fn loaders<R: ReadAt + ?Sized>(disk: &R, bytes: u64) -> io::Result<Option<Loaders>> {
    let entries = partition::read(disk)?.map(|table| table.entries).unwrap_or_default();
    let is_system =
        |entry: &&partition::Entry| SYSTEM_PARTITION.iter().any(|kind| entry.kind == *kind);
    let (mut best, mut failed) = (None::<Loaders>, None);
    for entry in entries.iter().filter(is_system).take(MAX_PARTITIONS) {
        match on_partition(disk, entry, bytes) {
            Ok(Some(found)) if best.as_ref().is_none_or(|best| found.rank() > best.rank()) => {
                best = Some(found);
            }
            Ok(_) | Err(FileError::Refused(_)) => {}
            Err(FileError::Io(error)) => failed = Some(error),
        }
    }
    match (best.filter(|best| failed.is_none() || best.rank() > 0), failed) {
        (None, Some(error)) => Err(error),
        (best, _) => Ok(best),
    }
}

impl Loaders {
    /// Returns how much there is: a loader that is started without a boot entry, another one, or none.
    fn rank(&self) -> u8 {
        match (self.has_fallback, self.paths.is_empty()) {
            (true, _) => 2,
            (false, false) => 1,
            (false, true) => 0,
        }
    }
}

/// Returns the loaders on a partition; `None` if it is not within the disk.
fn on_partition<R: ReadAt + ?Sized>(
    disk: &R,
    entry: &partition::Entry,
    bytes: u64,
) -> Result<Option<Loaders>, FileError> {
    let end = entry.start.checked_add(entry.bytes).filter(|end| *end <= bytes);
    let Some(end) = end else { return Ok(None) };
    let volume = Volume::open(disk, &(entry.start..end))?;
    let (mut has_fallback, mut paths) = (false, Vec::new());
    let efi = volume.find(disk, &[b"EFI"])?;
    for vendor in list(disk, &volume, &efi)?.into_iter().take(MAX_DIRECTORIES) {
        if vendor.kind != EntryKind::Directory {
            continue;
        }
        let vendor_name = String::from_utf8_lossy(&vendor.name).into_owned();
        if vendor.name.eq_ignore_ascii_case(FALLBACK) {
            has_fallback = list(disk, &volume, &vendor)?.iter().any(is_fallback);
        } else if vendor.name.eq_ignore_ascii_case(b"Microsoft") {
            let Ok(boot) = volume.find(disk, &[b"EFI", &vendor.name, b"Boot"]) else {
                continue;
            };
            let best = best(&list(disk, &volume, &boot)?);
            paths.extend(best.map(|name| format!(r"\EFI\{vendor_name}\Boot\{name}")));
        } else {
            let best = best(&list(disk, &volume, &vendor)?);
            paths.extend(best.map(|name| format!(r"\EFI\{vendor_name}\{name}")));
        }
    }
    Ok(Some(Loaders { partition: entry.number, has_fallback, paths }))
}

fn list<R: ReadAt + ?Sized>(
    disk: &R,
    volume: &Volume,
    directory: &FileEntry,
) -> Result<Vec<FileEntry>, FileError> {
    let (mut all, mut from) = (Vec::new(), Some(Cursor::default()));
    for _ in 0..MAX_CALLS {
        let Some(at) = from else { break };
        let (entries, next) = volume.entries(disk, directory, &at)?;
        all.extend(entries);
        from = next;
    }
    Ok(all)
}

fn is_fallback(entry: &FileEntry) -> bool {
    let name = entry.name.to_ascii_lowercase();
    let machine = name.strip_prefix(b"boot").and_then(|name| name.strip_suffix(b".efi"));
    entry.kind == EntryKind::File && machine.is_some_and(|it| MACHINES.contains(&it))
}

/// Returns the name of the loader to start.
fn best(entries: &[FileEntry]) -> Option<String> {
    let rank = |entry: &FileEntry| {
        let name = String::from_utf8(entry.name.to_ascii_lowercase()).ok()?;
        let is_loader = entry.kind == EntryKind::File && name.ends_with(".efi");
        let rank = NAMES.iter().position(|start| is_loader && name.starts_with(start))?;
        // Media for several machines have that of a 32-bit one, too.
        Some((rank, !(name.contains("x64") || name.contains("aa64"))))
    };
    let (_, entry) = entries
        .iter()
        .filter_map(|entry| Some((rank(entry)?, entry)))
        .min_by_key(|(rank, _)| *rank)?;
    String::from_utf8(entry.name.clone()).ok()
}
