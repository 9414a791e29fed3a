//! The open files behind an export.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::slice;

use serde::{Deserialize, Serialize};

use crate::{Access, Overlay, OverlayLayout, RescueLayout, RescuedDisk, VirtualDisk};

/// The open files that hold the data of an export, and how its bytes are laid out in them: a base, and
/// perhaps an overlay with what hosts have written to it. Only data: the driver interprets it.
#[derive(Debug)]
pub struct Backing {
    base: Base,
    overlay: Option<Overlay>,
}

/// The files of an export without an overlay, or under one.
#[derive(Debug)]
pub enum Base {
    /// A block device or a file in which every byte of the export has the same offset.
    Raw(OwnedFd),
    /// An image file in a format of virtual machines. Only read.
    Virtual(VirtualDisk),
    /// A failing disk, which is only read, and what was read of it. Hosts do not write to it.
    Rescued(RescuedDisk),
}

/// The layout of a [`Backing`], without the files. A process sends both to another separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// That of the base.
    pub base: BaseLayout,
    /// That of the overlay, if there is one.
    pub overlay: Option<OverlayLayout>,
}

/// The layout of a [`Base`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BaseLayout {
    /// That of [`Base::Raw`].
    Raw,
    /// That of [`Base::Virtual`].
    Virtual,
    /// That of [`Base::Rescued`].
    Rescued(RescueLayout),
}

impl BaseLayout {
    /// Returns the number of files.
    fn files(self) -> usize {
        match self {
            Self::Raw => 1,
            Self::Virtual => 2,
            Self::Rescued(layout) => layout.files(),
        }
    }
}

impl From<OverlayLayout> for Layout {
    /// Returns the layout of an overlay over a disk in one file.
    fn from(overlay: OverlayLayout) -> Self {
        Self { base: BaseLayout::Raw, overlay: Some(overlay) }
    }
}

impl Base {
    /// Returns the base of this layout on `files`. Returns `None` if the layout has another number of them.
    fn new(layout: BaseLayout, files: Vec<OwnedFd>) -> Option<Self> {
        match layout {
            BaseLayout::Raw => {
                let [disk] = files.try_into().ok()?;
                Some(Self::Raw(disk))
            }
            BaseLayout::Virtual => VirtualDisk::new(files).map(Self::Virtual),
            BaseLayout::Rescued(layout) => RescuedDisk::new(files, layout).map(Self::Rescued),
        }
    }

    /// Returns the layout.
    fn layout(&self) -> BaseLayout {
        match self {
            Self::Raw(_) => BaseLayout::Raw,
            Self::Virtual(_) => BaseLayout::Virtual,
            Self::Rescued(disk) => BaseLayout::Rescued(disk.layout()),
        }
    }

    /// Returns all files.
    pub fn files(&self) -> &[OwnedFd] {
        match self {
            Self::Raw(disk) => slice::from_ref(disk),
            Self::Virtual(disk) => disk.files(),
            Self::Rescued(disk) => disk.files(),
        }
    }

    /// Returns the files that are never written. `is_written`: hosts may write to the base.
    fn only_read(&self, is_written: bool) -> &[OwnedFd] {
        match self {
            Self::Raw(_) if is_written => &[],
            Self::Raw(disk) => slice::from_ref(disk),
            Self::Virtual(disk) => disk.files(),
            // What is read is kept.
            Self::Rescued(disk) => slice::from_ref(disk.disk()),
        }
    }
}

impl Backing {
    /// Returns the backing with this overlay.
    pub fn over(base: Base, overlay: Overlay) -> Self {
        Self { base, overlay: Some(overlay) }
    }

    /// Returns the backing of this layout on `descriptors`, which are in the order of
    /// [`Backing::descriptors`]. Returns `None` if the layout has another number of them.
    pub fn new(layout: Layout, mut descriptors: Vec<OwnedFd>) -> Option<Self> {
        let of_base = layout.base.files();
        let of_overlay = descriptors.split_off(of_base.min(descriptors.len()));
        let base = Base::new(layout.base, descriptors)?;
        match layout.overlay {
            Some(layout) => Some(Self::over(base, Overlay::new(of_overlay, layout)?)),
            None => of_overlay.is_empty().then_some(Self { base, overlay: None }),
        }
    }

    /// Returns the layout.
    pub fn layout(&self) -> Layout {
        let overlay = self.overlay.as_ref().map(Overlay::layout);
        Layout { base: self.base.layout(), overlay }
    }

    /// Returns the files without, or under, the overlay. They are the first of [`Backing::descriptors`].
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Returns the overlay.
    pub fn overlay(&self) -> Option<&Overlay> {
        self.overlay.as_ref()
    }

    fn of_overlay(&self) -> &[OwnedFd] {
        self.overlay.as_ref().map(Overlay::files).unwrap_or_default()
    }

    /// Returns all open files.
    pub fn descriptors(&self) -> impl Iterator<Item = &OwnedFd> {
        self.base.files().iter().chain(self.of_overlay())
    }

    /// Returns the open file with this index in [`Backing::descriptors`].
    pub fn descriptor(&self, index: usize) -> Option<&OwnedFd> {
        let of_base = self.base.files();
        of_base.get(index).or_else(|| self.of_overlay().get(index.checked_sub(of_base.len())?))
    }

    /// Returns the index in [`Backing::descriptors`] of the file with the data of a state of the overlay.
    pub fn data_index(&self, state: usize) -> usize {
        let in_overlay = self.overlay.as_ref().map_or(0, |overlay| overlay.data_index(state));
        self.base.files().len() + in_overlay
    }

    /// Returns a file that writes to the export go to: of an overlay, that of its first state. The
    /// others are of the same kind. Of a base to which none go, its first file.
    pub fn written(&self) -> BorrowedFd<'_> {
        match (&self.overlay, &self.base) {
            (Some(overlay), _) => overlay.first_data().as_fd(),
            (None, Base::Raw(disk)) => disk.as_fd(),
            (None, Base::Virtual(disk)) => disk.image().as_fd(),
            (None, Base::Rescued(disk)) => disk.disk().as_fd(),
        }
    }

    /// Returns the files that are never written if the export has that access.
    pub fn only_read(&self, access: Access) -> impl Iterator<Item = &OwnedFd> {
        let of_overlay = match access {
            Access::ReadOnly => self.of_overlay(),
            Access::Writable => &[],
        };
        let is_written = access == Access::Writable && self.overlay.is_none();
        self.base.only_read(is_written).iter().chain(of_overlay)
    }
}

impl From<Base> for Backing {
    fn from(base: Base) -> Self {
        Self { base, overlay: None }
    }
}

impl From<OwnedFd> for Backing {
    fn from(disk: OwnedFd) -> Self {
        Base::Raw(disk).into()
    }
}

impl From<File> for Backing {
    fn from(disk: File) -> Self {
        OwnedFd::from(disk).into()
    }
}
