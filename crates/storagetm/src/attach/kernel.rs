//! Hands a disk's connection to the kernel, and waits for the disk. It knows no machine by name.

use std::path::Path;
use std::time::{Duration, Instant};

use linux::block;
use linux::fabrics::{
    Connection, Controller, FabricsError, connect, controllers, disks_of, register,
};
use linux::tree::Tree;
use serde::Serialize;

use keys::record::Allowed;

/// How long a disk may take to come once the kernel is connected.
const DISK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A connection of the kernel, and what is reached by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Attached {
    /// NQN of the disk's subsystem.
    pub(super) nqn: String,
    /// The kernel's name of the connection: `nvme1`.
    pub(super) controller: String,
    /// The disks.
    pub(super) devices: Vec<Device>,
    /// Whether it was there before.
    pub(super) already: bool,
}

/// A disk that came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Device {
    /// Its path: `/dev/nvme1n1`.
    pub(super) path: String,
    /// Its size.
    pub(super) bytes: u64,
    /// What may be done with it.
    pub(super) access: Allowed,
}

/// Has the kernel connect, and waits until the disks are there; none if they do not come.
///
/// # Errors
/// It does not connect.
pub(super) fn attach(tree: &Tree, connection: &Connection<'_>) -> Result<Attached, FabricsError> {
    let (controller, already) = match connect(tree, connection) {
        Ok(connected) => {
            let name = format!("nvme{}", connected.instance);
            // The disk is attached, whatever becomes of its entry.
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

/// The disks of a connection that can be opened by now.
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
