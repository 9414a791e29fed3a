//! Atomic replacement of a file.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::path::{Path, PathBuf};

use failure::Failure;

/// The device directory, and the directory below it that holds files.
const DEVICES: [&str; 2] = ["/dev", "/dev/shm"];

/// Rejects a path that is not a regular file, a missing directory, and a missing device node.
pub(super) fn check(path: &Path) -> Result<(), Failure> {
    if path.metadata().is_ok_and(|there| !there.is_file()) {
        return Err(Failure::new(format!(
            "{} is not a regular file, and would be replaced; name a file (a disk is written by --disk only)",
            path.display()
        )));
    }
    if path.is_symlink() && !path.exists() {
        return Err(Failure::new(format!(
            "{} is a link to what is not there (a disk that was pulled out?); name the file itself",
            path.display()
        )));
    }
    let folder = folder(path);
    if is_among_devices(&folder) {
        return Err(Failure::new(format!(
            "{}: there is no such device, and a file there would be lost; \"storagetm list\" shows the disks of this \
             machine",
            path.display()
        )));
    }
    if folder.is_dir() {
        return Ok(());
    }
    Err(Failure::new(format!("{} is not an existing directory; create it first", folder.display())))
}

/// Writes a temporary file next to `path` and renames it, with the permissions of the file that it
/// replaces. Removes it on failure.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    check(path)?;
    let beside = beside(path);
    let permissions = fs::metadata(path).ok().map(|metadata| metadata.permissions());
    let written = write_new(&beside, bytes, permissions).and_then(|()| fs::rename(&beside, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&beside);
        Failure::new(format!("{} cannot be written: {error}", path.display()))
    })?;
    // Best effort: the data are already synced.
    let _ = File::open(folder(path)).and_then(|folder| folder.sync_all());
    Ok(())
}

/// Returns whether the directory is in `/dev` (except `/dev/shm`).
pub(crate) fn is_among_devices(folder: &Path) -> bool {
    let [devices, files] = DEVICES;
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    folder.starts_with(devices) && !folder.starts_with(files)
}

fn write_new(path: &Path, bytes: &[u8], permissions: Option<Permissions>) -> std::io::Result<()> {
    let mut file = File::create_new(path)?;
    permissions.map_or(Ok(()), |permissions| file.set_permissions(permissions))?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn folder(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// Returns a unique temporary name in the same directory.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    folder(path).join(format!(".{name}.{}.new", std::process::id()))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn missing_device_name_does_not_become_a_file() {
        for path in ["/dev/sdx-absent", "/dev/../dev/absent", "/dev/disk/by-id/absent"] {
            let error = write(Path::new(path), b"x").unwrap_err().to_string();
            assert!(error.contains("no such device"), "{path}: {error}");
        }
    }

    #[test]
    fn file_is_replaced_atomically() {
        let folder = std::env::temp_dir().join(format!("storagetm-target-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("image");
        for content in [&b"first"[..], b"second"] {
            write(&path, content).unwrap();
            assert_eq!(fs::read(&path).unwrap(), content);
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert!(write(&folder, b"x").unwrap_err().to_string().contains("not a regular file"));
        std::os::unix::fs::symlink("/dev/sdx-absent", folder.join("stick")).unwrap();
        let error = write(&folder.join("stick"), b"x").unwrap_err().to_string();
        assert!(error.contains("a link to what is not there"), "{error}");
        assert!(write(&folder.join("no/file"), b"x").is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
