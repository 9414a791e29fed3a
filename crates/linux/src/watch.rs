//! Watches directories for changes (inotify). Reports only that something changed.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;

/// The size of the read buffer, in bytes; the longest event has a name of 255.
const ROOM: usize = 4096;

#[derive(Debug)]
pub struct Watch {
    queue: OwnedFd,
    folders: Vec<PathBuf>,
}

impl Watch {
    /// Watches these directories, without subdirectories. Read their contents after this, so that
    /// no change is missed.
    ///
    /// A directory that does not exist is watched as soon as it is created, if its parent is
    /// watched.
    ///
    /// # Errors
    /// Fails if none of them can be watched, or the limit of watches is reached.
    pub fn open(folders: impl IntoIterator<Item = PathBuf>) -> io::Result<Self> {
        let queue = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let watch = Self { queue, folders: folders.into_iter().collect() };
        let (watched, error) = watch.renew();
        match error {
            Some(error) if watched == 0 => Err(error.into()),
            _ => Ok(watch),
        }
    }

    /// Returns whether something changed since the last call: a file was written, created, deleted,
    /// or its permissions changed. Does not block.
    ///
    /// # Errors
    /// Fails if the kernel does.
    pub fn receive(&mut self) -> io::Result<bool> {
        let changed = self.drain()?;
        if changed {
            // A directory may have been replaced. Adding a watch twice has no effect.
            self.renew();
        }
        Ok(changed)
    }

    fn drain(&self) -> io::Result<bool> {
        let mut room = [MaybeUninit::uninit(); ROOM];
        let mut events = Reader::new(&self.queue, &mut room);
        let mut changed = false;
        loop {
            match events.next() {
                Ok(_) => changed = true,
                Err(Errno::WOULDBLOCK) => return Ok(changed),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Watches each existing directory. Returns their number, and the last error.
    fn renew(&self) -> (usize, Option<Errno>) {
        let kinds = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR;
        let tried =
            self.folders.iter().map(|folder| add_watch(&self.queue, folder.as_path(), kinds));
        let (done, failed): (Vec<_>, Vec<_>) = tried.partition(Result::is_ok);
        (done.len(), failed.into_iter().find_map(Result::err))
    }
}

impl AsFd for Watch {
    /// Becomes readable when [`Watch::receive`] has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn each_change_is_reported_once() {
        let fake = Fake::new();
        fake.file("state/keys/a", "1");
        let folder = fake.root.join("state/keys");
        let mut watch = Watch::open([fake.root.join("state"), folder.clone()]).unwrap();
        assert!(!watch.receive().unwrap());
        fs::read(folder.join("a")).unwrap();
        assert!(!watch.receive().unwrap(), "reading changes nothing");
        fs::write(folder.join("b"), "2").unwrap();
        assert!(watch.receive().unwrap());
        assert!(!watch.receive().unwrap());
        fs::rename(folder.join("b"), folder.join("a")).unwrap();
        assert!(watch.receive().unwrap());
        fs::set_permissions(folder.join("a"), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(watch.receive().unwrap());
        fs::remove_file(folder.join("a")).unwrap();
        assert!(watch.receive().unwrap());
        assert!(!watch.receive().unwrap());
    }

    #[test]
    fn replaced_directory_is_still_watched() {
        let fake = Fake::new();
        fake.file("state/keys/a", "1");
        let (state, keys) = (fake.root.join("state"), fake.root.join("state/keys"));
        let mut watch = Watch::open([state, keys.clone()]).unwrap();
        fs::remove_dir_all(&keys).unwrap();
        assert!(watch.receive().unwrap());
        fs::create_dir(&keys).unwrap();
        assert!(watch.receive().unwrap());
        fs::write(keys.join("b"), "2").unwrap();
        assert!(watch.receive().unwrap());
    }

    #[test]
    fn queue_overflow_is_a_change() {
        let fake = Fake::new();
        fake.file("a", "");
        let mut watch = Watch::open([fake.root.clone()]).unwrap();
        for number in 0..200 {
            fs::write(fake.root.join(format!("file-{number}")), "x").unwrap();
        }
        assert!(watch.receive().unwrap());
        assert!(!watch.receive().unwrap());
    }

    #[test]
    fn watching_no_directory_is_an_error() {
        let error = Watch::open([PathBuf::from("/nonexistent/storagetm")]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
