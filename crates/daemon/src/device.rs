//! Identity of a block device across hot-plug.

use linux::block::{DeviceNumber, Disk};

/// A block device. The disk sequence number tells it from a later device with the same name and
/// number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    number: DeviceNumber,
    diskseq: Option<u64>,
    /// Kernel name.
    pub name: String,
}

impl Device {
    pub fn of(disk: &Disk) -> Self {
        Self { number: disk.number, diskseq: disk.diskseq, name: disk.name.clone() }
    }

    /// Returns whether `disk` is certainly this device, and not another one in its place.
    pub fn is_still(&self, disk: &Disk) -> bool {
        self.diskseq.is_some() && *self == Self::of(disk)
    }

    /// Returns whether the device has this number.
    pub fn is(&self, number: DeviceNumber) -> bool {
        self.number == number
    }
}
