//! How the bytes of a disk are stored in what was opened.

use std::os::fd::OwnedFd;

use export::{Base, Identity};
use failure::Failure;
use filesystem::Container;
use linux::disk::Opened;
use linux::tree::Tree;

use super::request::LendRequest;
use super::rescue::RescueFiles;
use super::virtual_disk::IndexedDisk;

/// How the bytes of a disk are stored.
#[derive(Debug)]
pub(super) enum Format {
    /// Each byte has the same offset.
    Raw,
    /// In an image of a virtual machine.
    Virtual(IndexedDisk),
    /// On a failing disk, and in an image of it.
    Rescued(RescueFiles),
}

impl Format {
    /// Returns the format of an opened disk, of which this name is the same on every machine.
    ///
    /// # Errors
    /// Fails with a message for the user if it is lent by a map that does not fit.
    pub(super) fn of(
        indexed: Option<IndexedDisk>,
        request: &LendRequest,
        (opened, name): (&Opened, &str),
        tree: &Tree,
    ) -> Result<Self, Failure> {
        match (indexed, &request.rescue) {
            (Some(indexed), _) => Ok(Self::Virtual(indexed)),
            (None, Some(rescue)) => {
                RescueFiles::open(rescue, opened, name, tree).map(Self::Rescued)
            }
            (None, None) => Ok(Self::Raw),
        }
    }

    pub(super) fn identity(&self, opened: Identity) -> Identity {
        match self {
            Self::Virtual(disk) => disk.identity(opened),
            Self::Raw | Self::Rescued(_) => opened,
        }
    }

    pub(super) fn container(&self) -> Option<Container> {
        match self {
            Self::Virtual(disk) => Some(disk.container()),
            Self::Raw | Self::Rescued(_) => None,
        }
    }

    pub(super) fn note(&self, path: &str, overlaid: bool) -> Option<String> {
        match self {
            Self::Raw => None,
            Self::Virtual(disk) => Some(disk.note(path, overlaid)),
            Self::Rescued(files) => Some(files.note()),
        }
    }

    /// Returns the backing without an overlay.
    pub(super) fn base(self, opened: OwnedFd) -> Result<Base, Failure> {
        match self {
            Self::Raw => Ok(Base::Raw(opened)),
            Self::Virtual(disk) => disk.base(opened),
            Self::Rescued(files) => files.base(opened),
        }
    }
}
