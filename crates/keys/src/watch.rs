//! Watches the key store for changes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use crate::private::{HOSTS, KEYS};

/// A watch on the directories of a store.
#[derive(Debug)]
pub struct Watch(linux::watch::Watch);

impl Watch {
    /// Watches the directory and those of keys and hosts.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let folders = ["", KEYS, HOSTS].map(|inner| folder.join(inner));
        linux::watch::Watch::open(folders).map(Self)
    }

    /// Returns whether something changed since the last call. Does not block.
    ///
    /// # Errors
    /// Fails if inotify fails.
    pub fn receive(&mut self) -> io::Result<bool> {
        self.0.receive()
    }
}

impl AsFd for Watch {
    /// Readable when there are changes.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
