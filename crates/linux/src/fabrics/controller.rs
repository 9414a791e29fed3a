//! The NVMe/TCP controllers of the kernel, as `/sys/class/nvme` shows them.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;

use super::FabricsError;
use crate::host_port::HostPort;
use crate::tree::Tree;

const CLASS: &str = "sys/class/nvme";

/// A controller that the kernel is connected to, or reconnects to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// The name: `nvme1`.
    pub name: String,
    pub subsystem: String,
    /// The target's address; `None` if the kernel's text was not understood.
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
    /// The interface that the connection is bound to.
    pub interface: Option<String>,
    /// `live`, `connecting`, …
    pub state: String,
    /// Its disks: `nvme1n1`.
    pub disks: Vec<String>,
}

/// Returns the controllers with the transport TCP, in the order of their numbers. Discovery
/// controllers are left out.
pub fn controllers(tree: &Tree) -> Vec<Controller> {
    tree.names(CLASS).into_iter().filter_map(|name| read(tree, name)).collect()
}

fn read(tree: &Tree, name: String) -> Option<Controller> {
    let place = Path::new(CLASS).join(&name);
    let word = |attribute: &str| tree.attribute(place.join(attribute));
    if word("transport")? != "tcp" || word("cntrltype").is_some_and(|kind| kind == "discovery") {
        return None;
    }
    let address = word("address").unwrap_or_default();
    let part = |key: &str| {
        address
            .split(',')
            .find_map(|part| part.strip_prefix(key)?.strip_prefix('='))
            .map(str::to_owned)
    };
    let traddr = part("traddr").unwrap_or_default();
    let address = HostPort::parse(&traddr).ok();
    let zone = address.as_ref().and_then(|address| address.zone.clone());
    Some(Controller {
        subsystem: word("subsysnqn")?,
        address: address.and_then(|address| address.host.parse().ok()),
        port: part("trsvcid").and_then(|port| port.parse().ok()),
        interface: part("host_iface").or(zone),
        state: word("state").unwrap_or_default(),
        disks: disks_of(tree, &name),
        name,
    })
}

/// Returns the disks of the controller `nvmeN` as programs see them: with multipath, the device
/// above the paths.
pub fn disks_of(tree: &Tree, controller: &str) -> Vec<String> {
    let inside = tree.names(Path::new(CLASS).join(controller));
    let mut disks: Vec<String> = inside.iter().filter_map(|name| disk(name)).collect();
    disks.dedup();
    disks
}

/// Returns the disk `nvme1n1`, or the one above the path `nvme1c2n1`.
fn disk(name: &str) -> Option<String> {
    let (subsystem, rest) = number(name.strip_prefix("nvme")?)?;
    let rest = match rest.strip_prefix('c') {
        Some(path) => number(path)?.1,
        None => rest,
    };
    let (namespace, rest) = number(rest.strip_prefix('n')?)?;
    rest.is_empty().then(|| format!("nvme{subsystem}n{namespace}"))
}

/// Splits off the number at the start of the text.
fn number(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

impl Controller {
    /// Has the kernel try to reconnect for ever from now on (`ctrl_loss_tmo`): a request to a disk of this controller waits
    /// instead of failing.
    ///
    /// # Errors
    /// Fails if the controller has gone, or the kernel refuses.
    pub fn never_give_up(&self, tree: &Tree) -> io::Result<()> {
        let path = tree.path(Path::new(CLASS).join(&self.name).join("ctrl_loss_tmo"));
        OpenOptions::new().write(true).open(path)?.write_all(b"-1")
    }

    /// Disconnects; a disk disappears with its last path. Blocks until it is done.
    ///
    /// # Errors
    /// Fails if the caller is not root or the kernel refuses.
    pub fn delete(&self, tree: &Tree) -> Result<(), FabricsError> {
        let path = tree.path(Path::new(CLASS).join(&self.name).join("delete_controller"));
        let written =
            OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(b"1"));
        match written {
            // Already gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(FabricsError::Denied)
            }
            Err(error) => Err(FabricsError::Other(error)),
            Ok(()) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    fn controller(fake: &Fake, name: &str, address: &str, nqn: &str) {
        let file = |attribute: &str, text: &str| {
            fake.file(&format!("sys/class/nvme/{name}/{attribute}"), format!("{text}\n"));
        };
        file("transport", "tcp");
        file("address", address);
        file("subsysnqn", nqn);
        file("state", "live");
    }

    #[test]
    fn tcp_controllers_are_listed() {
        let fake = Fake::new();
        let far = "traddr=fe80::1,trsvcid=4420,host_iface=eth0,src_addr=fe80::2";
        controller(&fake, "nvme10", far, "nqn.a");
        controller(&fake, "nvme2", "traddr=10.0.0.1,trsvcid=4421", "nqn.b");
        controller(&fake, "nvme3", "traddr=fe80::7%eth1,trsvcid=1", "nqn.c");
        controller(
            &fake,
            "nvme4",
            "traddr=10.0.0.1,trsvcid=8009",
            "nqn.2014-08.org.nvmexpress.discovery",
        );
        fake.file("sys/class/nvme/nvme4/cntrltype", "discovery\n");
        fake.file("sys/class/nvme/nvme0/transport", "pcie\n");
        fake.file("sys/class/nvme/nvme10/nvme1c10n1/size", "0\n");
        fake.file("sys/class/nvme/nvme2/nvme2n3/size", "0\n");
        fake.file("sys/class/nvme/nvme2/power/control", "auto\n");
        let found = controllers(&fake.tree());
        let names: Vec<&str> = found.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["nvme2", "nvme3", "nvme10"]);
        assert_eq!(found[0].disks, ["nvme2n3"]);
        assert_eq!((found[0].address, found[0].port), (Some([10, 0, 0, 1].into()), Some(4421)));
        assert_eq!(found[1].interface.as_deref(), Some("eth1"));
        let last = &found[2];
        assert_eq!(last.disks, ["nvme1n1"], "the disk above the path");
        assert_eq!((last.address, last.port), (Some("fe80::1".parse().unwrap()), Some(4420)));
        assert_eq!((last.subsystem.as_str(), last.interface.as_deref()), ("nqn.a", Some("eth0")));
    }

    #[test]
    fn only_namespaces_are_disks() {
        assert_eq!(disk("nvme1n2").as_deref(), Some("nvme1n2"));
        assert_eq!(disk("nvme1c0n2").as_deref(), Some("nvme1n2"));
        for wrong in ["nvme1", "nvme1n", "nvmen1", "nvme1n1p1", "ng1n1", "hwmon3", "nvme1c1"] {
            assert_eq!(disk(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn connection_is_kept_for_ever_by_sysfs() {
        let fake = Fake::new();
        controller(&fake, "nvme2", "traddr=10.0.0.1,trsvcid=4421", "nqn.b");
        fake.file("sys/class/nvme/nvme2/ctrl_loss_tmo", "20");
        let found = controllers(&fake.tree());
        found[0].never_give_up(&fake.tree()).unwrap();
        assert_eq!(fake.tree().text("sys/class/nvme/nvme2/ctrl_loss_tmo").unwrap(), "-1");
        std::fs::remove_file(fake.root.join("sys/class/nvme/nvme2/ctrl_loss_tmo")).unwrap();
        assert!(found[0].never_give_up(&fake.tree()).is_err(), "it has gone");
    }

    #[test]
    fn delete_writes_to_sysfs() {
        let fake = Fake::new();
        controller(&fake, "nvme2", "traddr=10.0.0.1,trsvcid=4421", "nqn.b");
        fake.file("sys/class/nvme/nvme2/delete_controller", "");
        let found = controllers(&fake.tree());
        found[0].delete(&fake.tree()).unwrap();
        assert_eq!(fake.tree().text("sys/class/nvme/nvme2/delete_controller").unwrap(), "1");
        std::fs::remove_file(fake.root.join("sys/class/nvme/nvme2/delete_controller")).unwrap();
        found[0].delete(&fake.tree()).unwrap();
    }
}
