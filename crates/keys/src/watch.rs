//! Tells that something changed among the keys and hosts. It knows not what.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use crate::private::{HOSTS, KEYS};

/// The folders of a store, watched.
#[derive(Debug)]
pub struct Watch(linux::watch::Watch);

impl Watch {
    /// Watches the store's folder, that of its keys and that of its hosts.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let folders = ["", KEYS, HOSTS].map(|inner| folder.join(inner));
        linux::watch::Watch::open(folders).map(Self)
    }

    /// Whether something changed since the last time. Never waits.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn receive(&mut self) -> io::Result<bool> {
        self.0.receive()
    }
}

impl AsFd for Watch {
    /// Readable when [`Watch::receive`] has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
