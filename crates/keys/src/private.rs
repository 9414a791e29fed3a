//! Private files: refused if other users can read them, and replaced atomically.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::process::geteuid;
use zeroize::Zeroizing;

use failure::Failure;

pub(crate) const KEYS: &str = "keys";
pub(crate) const HOSTS: &str = "hosts";
pub(crate) const TARGETS: &str = "targets";
/// Extension of host files.
pub(crate) const JSON: &str = ".json";
/// Prefix of credentials with a host.
pub(crate) const CREDENTIAL: &str = "storagetm.host.";

/// Permission bits of group and others.
const OTHERS: u32 = 0o077;
/// Write permission bits of group and others.
const OTHERS_WRITE: u32 = 0o022;

/// Creates a directory with mode 0700, and its parents, durably.
///
/// # Errors
/// Fails if it cannot be created, or if other users can write to it.
pub(crate) fn make_folder(path: &Path) -> Result<(), Failure> {
    let is_new = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let new: Vec<_> = path.ancestors().take_while(is_new).collect();
    let made = DirBuilder::new().mode(0o700).recursive(true).create(path);
    let made = made.and_then(|()| new.into_iter().try_for_each(sync_folder));
    let meta = made.and_then(|()| fs::metadata(path));
    let meta = meta.map_err(|error| cannot("be made", path, &error))?;
    check_owner(path, &meta)?;
    if meta.mode() & OTHERS_WRITE != 0 {
        return Err(Failure::new(format!(
            "the folder {} can be changed by others (mode {:04o}), who could let anybody in: chmod 700 it, and look at \
             what is in it",
            path.display(),
            meta.mode() & 0o7777
        )));
    }
    Ok(())
}

/// Checks that the file belongs to this user or to root.
fn check_owner(path: &Path, meta: &Metadata) -> Result<(), Failure> {
    if meta.uid() == 0 || meta.uid() == geteuid().as_raw() {
        return Ok(());
    }
    let (path, user) = (path.display(), meta.uid());
    // Root may use a directory of another user.
    if geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{path} belongs to another user (number {user}): chown it, or name another --keys folder"
    )))
}

/// Reads a private file of at most `max_len` bytes.
///
/// # Errors
/// Fails if it cannot be read, is readable by other users, or is too long.
pub(crate) fn read(path: &Path, max_len: usize) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::from_ne_bytes(flags.bits().to_ne_bytes());
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| cannot("be read", path, &error))?;
    let meta = file.metadata().map_err(|error| cannot("be read", path, &error))?;
    check_private(path, &meta)?;
    read_bounded(&file, max_len).map_err(|error| cannot("be read", path, &error))
}

fn check_private(path: &Path, meta: &Metadata) -> Result<(), Failure> {
    if !meta.is_file() {
        return Err(Failure::new(format!("{} is not a regular file", path.display())));
    }
    check_owner(path, meta)?;
    if meta.mode() & OTHERS != 0 {
        return Err(Failure::new(format!(
            "{} can be read by others (mode {:04o}), and is not used: chmod 600 it, and make another if others were \
             on this machine",
            path.display(),
            meta.mode() & 0o7777
        )));
    }
    Ok(())
}

/// Reads to the end, at most `max_len` bytes, without leaving copies in memory.
///
/// # Errors
/// Fails on I/O errors, and if there is more.
pub fn read_bounded(from: impl Read, max_len: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(max_len.saturating_add(1)));
    let limit = u64::try_from(max_len).unwrap_or(u64::MAX).saturating_add(1);
    from.take(limit).read_to_end(&mut bytes)?;
    if bytes.len() > max_len {
        return Err(io::Error::new(
            ErrorKind::FileTooLarge,
            format!("it has more than {max_len} bytes"),
        ));
    }
    Ok(bytes)
}

/// Replaces a file atomically, with mode 0600. The caller must hold the [`Lock`] of the directory.
///
/// # Errors
/// Fails if it cannot be written; the previous content is kept.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    write_all(&[(path, bytes)])
}

/// Replaces several files; none is replaced before all are written.
///
/// # Errors
/// Fails if one of them cannot be written.
pub(crate) fn write_all(files: &[(&Path, &[u8])]) -> Result<(), Failure> {
    let cannot = |path, error| cannot("be written", path, &error);
    let staged = files.iter().try_for_each(|(path, bytes)| {
        write_temporary(&temporary(path), bytes).map_err(|error| cannot(path, error))
    });
    let written = staged.and_then(|()| {
        files.iter().try_for_each(|(path, _)| {
            let renamed = fs::rename(temporary(path), path).and_then(|()| sync_folder(path));
            renamed.map_err(|error| cannot(path, error))
        })
    });
    if written.is_err() {
        files.iter().for_each(|(path, _)| drop(fs::remove_file(temporary(path))));
    }
    written
}

/// Path of the temporary file.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

fn write_temporary(temporary: &Path, bytes: &[u8]) -> io::Result<()> {
    // Left by a process that was killed.
    let _ = fs::remove_file(temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    chown_to_folder_owner(temporary, &file)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Files that root writes into a directory of another user belong to that user.
fn chown_to_folder_owner(path: &Path, file: &File) -> io::Result<()> {
    let folder = fs::metadata(folder_of(path))?;
    if geteuid().is_root() && folder.uid() != 0 {
        fchown(file, Some(folder.uid()), Some(folder.gid()))?;
    }
    Ok(())
}

/// Renames the file durably, within its directory.
///
/// # Errors
/// Fails if it cannot be renamed.
pub(crate) fn rename(old: &Path, new: &Path) -> Result<(), Failure> {
    let renamed = fs::rename(old, new).and_then(|()| sync_folder(new));
    renamed.map_err(|error| cannot("be renamed", old, &error))
}

/// Removes the file durably.
///
/// # Errors
/// Fails if it cannot be removed.
pub(crate) fn remove(path: &Path) -> Result<(), Failure> {
    let removed = fs::remove_file(path).and_then(|()| sync_folder(path));
    removed.map_err(|error| cannot("be removed", path, &error))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        None => PathBuf::from("/"),
        // A bare file name is in the working directory.
        Some(folder) if folder.as_os_str().is_empty() => PathBuf::from("."),
        Some(folder) => folder.to_owned(),
    }
}

pub(crate) fn cannot(what: &str, path: &Path, error: &io::Error) -> Failure {
    let hint = if error.kind() == ErrorKind::PermissionDenied {
        "; is this its owner, or root?"
    } else {
        ""
    };
    Failure::new(format!("{} cannot {what}: {error}{hint}", path.display())).caused_by(error)
}

/// Exclusive lock for writing to a directory.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Acquires the lock of `folder`; blocks while it is held.
    ///
    /// # Errors
    /// Fails if the lock file cannot be created or locked.
    pub(crate) fn take(folder: &Path) -> Result<Self, Failure> {
        let path = folder.join("lock");
        let opened = rustix::fs::open(
            &path,
            OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        );
        let file = opened.map_err(|error| cannot("be opened", &path, &error.into()))?;
        // The file is opened read-only: writing would trigger the watch of the directory.
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|error| cannot("be locked", &path, &error.into()))?;
        Ok(Self { _file: file.into() })
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use testkit::Scratch;

    #[test]
    fn file_is_replaced_atomically_with_mode_0600() {
        let folder = Scratch::new();
        let path = folder.0.join("a");
        write(&path, b"one").unwrap();
        fs::write(folder.0.join(".a.new"), "left by one that was killed").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(read(&path, 3).unwrap().as_slice(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
    }

    #[test]
    fn failed_write_keeps_previous_content() {
        let folder = Scratch::new();
        let path = folder.0.join("a");
        fs::create_dir(&path).unwrap();
        let failure = write(&path, b"x").unwrap_err().to_string();
        assert!(failure.contains("cannot be written"), "{failure}");
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
    }

    #[test]
    fn file_readable_by_others_is_refused() {
        let folder = Scratch::new();
        let path = folder.0.join("a");
        write(&path, b"one").unwrap();
        for mode in [0o644, 0o640, 0o604, 0o660, 0o602] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let failure = read(&path, 9).unwrap_err().to_string();
            assert!(failure.contains("chmod 600"), "{mode:o}: {failure}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(read(&path, 9).is_ok());
        // Permissions are checked on the target of a symbolic link.
        symlink(&path, folder.0.join("link")).unwrap();
        assert!(read(&folder.0.join("link"), 9).is_ok());
    }

    #[test]
    fn oversized_or_special_file_is_not_read() {
        let folder = Scratch::new();
        let path = folder.0.join("a");
        write(&path, &[b'x'; 10]).unwrap();
        assert!(read(&path, 9).unwrap_err().to_string().contains("more than 9 bytes"));
        assert!(read(&folder.0, 9).unwrap_err().to_string().contains("is not a regular file"));
        assert!(
            read(Path::new("/dev/null"), 9)
                .unwrap_err()
                .to_string()
                .contains("is not a regular file")
        );
        assert!(read(&folder.0.join("b"), 9).unwrap_err().to_string().contains("cannot be read"));
    }

    #[test]
    fn directory_writable_by_others_is_refused() {
        let folder = Scratch::new();
        let inner = folder.0.join("a/b");
        make_folder(&inner).unwrap();
        assert_eq!(fs::metadata(&inner).unwrap().mode() & 0o7777, 0o700);
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(make_folder(&inner).unwrap_err().to_string().contains("chmod 700"));
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(make_folder(&inner).is_ok());
    }

    #[test]
    fn lock_is_exclusive() {
        let folder = Scratch::new();
        let lock = Lock::take(&folder.0).unwrap();
        let path = folder.0.clone();
        let other =
            std::thread::spawn(move || Lock::take(&path).map(|_| std::time::Instant::now()));
        std::thread::sleep(std::time::Duration::from_millis(50));
        let freed = std::time::Instant::now();
        drop(lock);
        assert!(other.join().unwrap().unwrap() >= freed);
    }
}
