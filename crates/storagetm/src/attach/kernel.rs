//! Has the kernel connect to a subsystem, and waits for the block devices.

use std::path::Path;
use std::time::{Duration, Instant};

use linux::block;
use linux::fabrics::{
    Connection, Controller, FabricsError, connect, controllers, disks_of, register,
};
use linux::tree::Tree;
use serde::Serialize;

use keys::record::Allowed;

/// Time for the block devices to appear once the kernel is connected.
const DISK_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of the checks for them.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A connection of the kernel, and its disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Attached {
    /// NQN of the disk's subsystem.
    pub(crate) nqn: String,
    /// The kernel's name of the controller: `nvme1`.
    pub(super) controller: String,
    pub(crate) devices: Vec<Device>,
    /// Whether the connection existed before.
    pub(super) already: bool,
}

/// An attached disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Device {
    /// Device path: `/dev/nvme1n1`.
    pub(crate) path: String,
    pub(super) bytes: u64,
    pub(crate) access: Allowed,
}

/// Connects, and waits until the disks are there. The list is empty if none appears in time.
///
/// # Errors
/// Fails if the kernel cannot connect.
pub(super) fn attach(tree: &Tree, connection: &Connection<'_>) -> Result<Attached, FabricsError> {
    let (controller, already) = match connect(tree, connection) {
        Ok(connected) => {
            let name = format!("nvme{}", connected.instance);
            // The disk is attached even if it cannot be registered.
            let _ = register(tree, &name);
            (name, false)
        }
        Err(FabricsError::Already) => {
            let is_it = |known: &Controller| {
                known.subsystem == connection.subsystem && known.address == Some(connection.address)
            };
            let known = controllers(tree).into_iter().find(is_it).ok_or(FabricsError::Already)?;
            (known.name, true)
        }
        Err(error) => return Err(error),
    };
    let devices = wait(tree, &controller, Instant::now() + DISK_TIMEOUT);
    Ok(Attached { nqn: connection.subsystem.to_owned(), controller, devices, already })
}

fn wait(tree: &Tree, controller: &str, end: Instant) -> Vec<Device> {
    loop {
        let devices = devices(tree, controller);
        if !devices.is_empty() || Instant::now() >= end {
            return devices;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Returns the disks of a controller whose device nodes exist.
pub(super) fn devices(tree: &Tree, controller: &str) -> Vec<Device> {
    disks_of(tree, controller).iter().filter_map(|name| device(tree, name)).collect()
}

fn device(tree: &Tree, name: &str) -> Option<Device> {
    let disk = block::read(tree, name).filter(|disk| disk.bytes > 0)?;
    let node = tree.path(Path::new(&disk.node));
    let access = if disk.read_only { Allowed::ReadOnly } else { Allowed::Writable };
    let path = disk.node.display().to_string();
    node.exists().then_some(Device { path, bytes: disk.bytes, access })
}
