//! Listens on Unix sockets at a path: replaces a stale socket file, and removes its own.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Attempts to lock the folder of a socket. Others hold the lock for moments only.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Listens at `path`. Waits at most two seconds for another process that begins to listen in the same folder.
///
/// # Errors
/// Fails with [`ErrorKind::AddrInUse`] if a process listens there, with
/// [`ErrorKind::AlreadyExists`] if another kind of file exists, with [`ErrorKind::WouldBlock`] if its folder stays
/// locked, or if the file cannot be made.
pub fn bind(path: &Path) -> io::Result<OwnedFd> {
    // A process between two of these steps must not have its file taken for a stale one.
    let _lock = lock_folder(path)?;
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            remove_stale(path)?;
            UnixListener::bind(path)?
        }
        result => result?,
    };
    Ok(listener.into())
}

/// Locks the folder of a file until the result is dropped. Returns `None` if it cannot be locked, as on some
/// network file systems, or in a folder that this user cannot list.
fn lock_folder(path: &Path) -> io::Result<Option<File>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let Ok(folder) = File::open(folder.unwrap_or_else(|| Path::new("."))) else { return Ok(None) };
    for _ in 0..LOCK_TRIES {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(folder)),
            Err(Errno::WOULDBLOCK | Errno::INTR) => thread::sleep(LOCK_PAUSE),
            Err(_) => return Ok(None),
        }
    }
    Err(ErrorKind::WouldBlock.into())
}

/// Removes a socket file that no process listens on.
fn remove_stale(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(ErrorKind::AlreadyExists.into());
    }
    match probe(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Err(ErrorKind::AddrInUse.into()),
    }
}

/// Tries to connect. Does not block if the listen queue is full.
fn probe(path: &Path) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(connect(&socket, &SocketAddrUnix::new(path)?)?)
}

/// A socket file of this process. Removed when dropped, unless it was replaced.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// The file of a socket that was just bound at `path`. Returns `None` if it is gone.
    pub fn of(path: &Path) -> Option<Self> {
        let identity = identity(&fs::symlink_metadata(path).ok()?);
        Some(Self { path: path.to_owned(), identity })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let now = fs::symlink_metadata(&self.path).map(|found| identity(&found));
        if now.is_ok_and(|now| now == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

#[cfg(test)]
mod test {
    use super::*;
    use testkit::Scratch;

    #[test]
    fn only_stale_socket_files_are_replaced() {
        let folder = Scratch::new();
        let path = folder.0.join("x.sock");
        drop(bind(&path).unwrap());
        assert!(path.exists());
        let listener = bind(&path).unwrap();
        assert_eq!(bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(listener);
        let file = folder.0.join("file");
        fs::write(&file, "precious").unwrap();
        assert_eq!(bind(&file).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        assert_eq!(bind(&folder.0.join("no/x")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn stale_file_is_replaced_by_one_process_at_a_time() {
        let folder = Scratch::new();
        let path = folder.0.join("x.sock");
        drop(bind(&path).unwrap());
        let other = lock_folder(&path).unwrap().unwrap();
        let binding = thread::spawn({
            let path = path.clone();
            move || bind(&path)
        });
        thread::sleep(LOCK_PAUSE * 5);
        // The other one has found the same file, and listens there first.
        assert!(!binding.is_finished());
        fs::remove_file(&path).unwrap();
        let _listener = UnixListener::bind(&path).unwrap();
        drop(other);
        let error = binding.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }

    #[test]
    fn unresponsive_listener_does_not_block() {
        let folder = Scratch::new();
        let path = folder.0.join("x.sock");
        let unresponsive =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let unresponsive = unresponsive.unwrap();
        rustix::net::bind(&unresponsive, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&unresponsive, 0).unwrap();
        // Closed connections stay in the listen queue until accepted: this fills it.
        while probe(&path).is_ok() {}
        assert_eq!(bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert!(path.exists());
    }

    #[test]
    fn socket_file_is_removed_unless_replaced() {
        let folder = Scratch::new();
        let path = folder.0.join("x.sock");
        let first = bind(&path).unwrap();
        let file = SocketFile::of(&path).unwrap();
        drop(first);
        let second = bind(&path).unwrap();
        // A file system may reuse an inode number at once.
        if SocketFile::of(&path).map(|it| std::mem::ManuallyDrop::new(it).identity)
            != Some(file.identity)
        {
            drop(file);
            assert!(path.exists());
        }
        drop(SocketFile::of(&path));
        assert!(!path.exists());
        drop(second);
    }
}
