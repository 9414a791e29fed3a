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
    let disk = match destination {
        Locator::Path(path) => {
            path.metadata().ok().filter(|found| found.file_type().is_block_device())?;
            quoted(&path.display().to_string())
        }
        _ => "DISK".to_owned(),
    };
    let sync_disk = SyncDisk::open(place).ok()?;
    let loaders = inspect::loaders(&sync_disk, sync_disk.disk().bytes).ok()??;
    text(&loaders, &disk)
}

fn text(loaders: &Loaders, disk: &str) -> Option<String> {
    if loaders.has_fallback || loaders.paths.is_empty() {
        return None;
    }
    let number = loaders.partition;
    let line = |path: &String| {
        let vendor = path.split('\\').nth(2).unwrap_or_default();
        let (label, path) = (quoted(vendor), quoted(path));
        format!("efibootmgr --create --disk {disk} --part {number} --label {label} --loader {path}")
    };
    let lines: Vec<String> = loaders.paths.iter().map(line).collect();
    Some(format!(
        "partition {number} has no \\EFI\\BOOT\\BOOT*.EFI, so that the UEFI firmware of another machine does not start the system \
         without a boot entry; on that machine, started from another medium: {}",
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
        let said = text(&loaders, "/dev/sdb").unwrap();
        let line = r"efibootmgr --create --disk /dev/sdb --part 2 --label 'it'\''s' --loader '\EFI\it'\''s\shimx64.efi'";
        assert!(said.ends_with(line), "{said}");
        loaders.has_fallback = true;
        assert_eq!(text(&loaders, "/dev/sdb"), None);
        assert_eq!(text(&Loaders { has_fallback: false, paths: Vec::new(), ..loaders }, ""), None);
    }
}
