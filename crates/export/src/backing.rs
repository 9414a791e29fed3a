//! The open files behind an export.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::slice;

use serde::{Deserialize, Serialize};

use crate::{Overlay, OverlayLayout, VirtualDisk};

/// The open files that hold the data of an export, and how its bytes are laid out in them. Only
/// data: the driver interprets it.
#[derive(Debug)]
pub enum Backing {
    /// A block device or a file in which every byte of the export has the same offset.
    Raw(OwnedFd),
    /// A disk that is only read, and files with what was written to the export.
    Overlay(Overlay),
    /// An image file in a format of virtual machines. Only read.
    Virtual(VirtualDisk),
}

/// The layout of a [`Backing`], without the files. A process sends both to another separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    /// That of [`Backing::Raw`].
    Raw,
    /// That of [`Backing::Overlay`].
    Overlay(OverlayLayout),
    /// That of [`Backing::Virtual`].
    Virtual,
}

impl Backing {
    /// Returns the backing of this layout on `descriptors`, which are in the order of
    /// [`Backing::descriptors`]. Returns `None` if the layout has another number of them.
    pub fn new(layout: Layout, descriptors: Vec<OwnedFd>) -> Option<Self> {
        match layout {
            Layout::Raw => {
                let [disk] = descriptors.try_into().ok()?;
                Some(Self::Raw(disk))
            }
            Layout::Overlay(layout) => Overlay::new(descriptors, layout).map(Self::Overlay),
            Layout::Virtual => VirtualDisk::new(descriptors).map(Self::Virtual),
        }
    }

    /// Returns the layout.
    pub fn layout(&self) -> Layout {
        match self {
            Self::Raw(_) => Layout::Raw,
            Self::Overlay(overlay) => Layout::Overlay(overlay.layout()),
            Self::Virtual(_) => Layout::Virtual,
        }
    }

    /// Returns all open files.
    pub fn descriptors(&self) -> &[OwnedFd] {
        match self {
            Self::Raw(disk) => slice::from_ref(disk),
            Self::Overlay(overlay) => overlay.files(),
            Self::Virtual(disk) => disk.files(),
        }
    }

    /// Returns a file that writes to the export go to: of an overlay, that of its first state. The
    /// others are of the same kind. Of a virtual disk, to which none go, the image.
    pub fn written(&self) -> BorrowedFd<'_> {
        match self {
            Self::Raw(disk) => disk.as_fd(),
            Self::Overlay(overlay) => overlay.first_data().as_fd(),
            Self::Virtual(disk) => disk.image().as_fd(),
        }
    }

    /// Returns the files that are never written, whatever the access of the export.
    pub fn only_read(&self) -> &[OwnedFd] {
        match self {
            Self::Raw(_) => &[],
            Self::Overlay(overlay) => slice::from_ref(overlay.base()),
            Self::Virtual(disk) => disk.files(),
        }
    }
}

impl From<OwnedFd> for Backing {
    fn from(disk: OwnedFd) -> Self {
        Self::Raw(disk)
    }
}

impl From<File> for Backing {
    fn from(disk: File) -> Self {
        Self::Raw(disk.into())
    }
}
