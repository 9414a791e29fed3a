//! Which block device it is, across its coming and going.

use linux::block::{DeviceNumber, Disk};

/// A block device, so that another one by the same name is not taken for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    number: DeviceNumber,
    diskseq: Option<u64>,
    /// The kernel's name.
    pub name: String,
}

impl Device {
    /// That one.
    pub fn of(disk: &Disk) -> Self {
        Self { number: disk.number, diskseq: disk.diskseq, name: disk.name.clone() }
    }

    /// Whether that disk is it for certain, and not one that came to its place.
    pub fn is_still(&self, disk: &Disk) -> bool {
        self.diskseq.is_some() && *self == Self::of(disk)
    }

    /// Whether it has that number now.
    pub fn is(&self, number: DeviceNumber) -> bool {
        self.number == number
    }
}
