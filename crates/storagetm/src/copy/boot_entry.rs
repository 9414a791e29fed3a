//! What the firmware of another machine needs to start a system that was copied: a boot entry, where the disk has no
//! loader that is started without one.

use ::copy::Endpoint;
use filesystem::Loaders;
use protocol::commands::quoted;

use super::sync_disk::SyncDisk;
use crate::inspect;
use ::remote::uri::Locator;
use std::os::unix::fs::FileTypeExt;

/// Returns the lines that make boot entries, if the disk needs one; `None` for a file, and if what is on the disk cannot be read.
pub(super) fn advice(place: &dyn Endpoint, destination: &Locator) -> Option<String> {
    if let Locator::Path(path) = destination {
        path.metadata().ok().filter(|found| found.file_type().is_block_device())?;
    }
    let sync_disk = SyncDisk::open(place).ok()?;
    let loaders = inspect::loaders(&sync_disk, sync_disk.disk().bytes).ok()??;
    text(&loaders)
}

fn text(loaders: &Loaders) -> Option<String> {
    if loaders.has_fallback || loaders.paths.is_empty() {
        return None;
    }
    let number = loaders.partition;
    let line = |path: &String| {
        let vendor = path.split('\\').nth(2).unwrap_or_default();
        let (label, path) = (quoted(vendor), quoted(path));
        format!("efibootmgr --create --disk DISK --part {number} --label {label} --loader {path}")
    };
    let lines: Vec<String> = loaders.paths.iter().map(line).collect();
    Some(format!(
        "partition {number} has no \\EFI\\BOOT\\BOOT*.EFI, so that the UEFI firmware of another machine does not start the system \
         without a boot entry; there, started from another medium, with the name that the disk has there: {}",
        lines.join("; ")
    ))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn boot_entry_is_advised_only_where_it_is_needed() {
        let path = r"\EFI\it's\shimx64.efi".to_owned();
        let mut loaders = Loaders { partition: 2, has_fallback: false, paths: vec![path] };
        let said = text(&loaders).unwrap();
        let line = r"efibootmgr --create --disk DISK --part 2 --label 'it'\''s' --loader '\EFI\it'\''s\shimx64.efi'";
        assert!(said.ends_with(line), "{said}");
        loaders.has_fallback = true;
        assert_eq!(text(&loaders), None);
        assert_eq!(text(&Loaders { has_fallback: false, paths: Vec::new(), ..loaders }), None);
    }
}
