//! What differs between the disks of this machine and the exported ones.

use linux::block::Disk;

use crate::device::Device;
use crate::lend::LentDisk;

/// What the caller has to do.
#[derive(Debug)]
pub enum Change {
    /// Export the disk.
    Added(Box<LentDisk>),
    /// Withdraw the disk.
    Removed(Device),
    /// Announce the new size in bytes.
    Resized(Device, u64),
    /// Tell the user.
    Note(String),
    /// An earlier note no longer applies.
    Over(String),
}

/// Returns whether the disk is exported.
pub(super) fn is_lent(disk: &Disk, lent_disks: &[LentDisk]) -> bool {
    lent_disks.iter().any(|lent| lent.device == Some(Device::of(disk)))
}

/// Returns the exported disks that were removed or have a new size.
pub(super) fn changed(disks: &[Disk], lent_disks: &[LentDisk]) -> Vec<Change> {
    let lent = lent_disks.iter().filter_map(|lent| Some((lent, lent.device.as_ref()?)));
    lent.filter_map(|(lent, device)| {
        let now = disks.iter().find(|disk| Device::of(disk) == *device);
        let block = u64::from(lent.export.geometry.block());
        match now.map(|disk| disk.bytes) {
            None | Some(0) => Some(Change::Removed(device.clone())),
            // The size of a device is rounded down to whole blocks.
            Some(bytes) if bytes - bytes % block != lent.export.bytes() => {
                Some(Change::Resized(device.clone(), bytes - bytes % block))
            }
            Some(_) => None,
        }
    })
    .collect()
}
