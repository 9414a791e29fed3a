//! Hardware that cannot be used: controllers without a driver, disks hidden by the firmware's RAID
//! mode, missing network interfaces, missing firmware files.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;

use crate::net::cards;
use crate::tree::Tree;

const PCI: &str = "sys/bus/pci/devices";

/// The class of a PCI device, from its base class (PCI Code and ID Assignment Specification §1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// 01h: mass storage controller.
    Storage,
    /// 02h: network controller.
    Network,
}

/// A reason why a disk or a network cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shortfall {
    /// A controller in Intel's RST mode keeps NVMe disks behind its own registers (`remapped_nvme` of the driver ahci).
    RemappedNvme {
        /// The PCI address of the controller.
        address: String,
        /// The number of hidden disks.
        disks: u64,
    },
    /// No driver is bound to the device.
    NoDriver {
        /// The PCI address.
        address: String,
        class: Class,
        /// Vendor and device, as lspci(8) prints them: `8086:15f3`.
        id: String,
    },
    /// A driver requested a missing firmware file.
    NoFirmware {
        /// The PCI address of its device.
        address: String,
        /// The file, below `/lib/firmware`.
        file: String,
    },
    /// The machine has only the loopback interface.
    NoNetworkCard,
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemappedNvme { address, disks } => write!(
                f,
                "{disks} NVMe disk{} hidden by the controller {address} in Intel RST (RAID) mode: switch it to AHCI in the \
                 firmware setup.",
                if *disks == 1 { " is" } else { "s are" }
            ),
            Self::NoDriver { address, class, id } => write!(
                f,
                "No driver for the {} {address} ({id}): {} cannot be used.",
                match class {
                    Class::Storage => "storage controller",
                    Class::Network => "network card",
                },
                match class {
                    Class::Storage => "its disks",
                    Class::Network => "it",
                }
            ),
            Self::NoFirmware { address, file } => {
                write!(f, "The device {address} needs the firmware file {file}, which is missing.")
            }
            Self::NoNetworkCard => {
                f.write_str("This machine has no network card that a driver here supports.")
            }
        }
    }
}

/// Finds everything except missing firmware files, which are only in the kernel's log
/// ([`FirmwareLog`]).
pub fn survey(tree: &Tree) -> BTreeSet<Shortfall> {
    let devices = tree.names(PCI);
    let mut found: BTreeSet<_> =
        devices.iter().flat_map(|address| examine(tree, address)).collect();
    if cards(tree).is_empty() {
        found.insert(Shortfall::NoNetworkCard);
    }
    found
}

fn examine(tree: &Tree, address: &str) -> Option<Shortfall> {
    let attribute = |name: &str| tree.attribute(format!("{PCI}/{address}/{name}"));
    let address = || address.to_owned();
    let remapped = attribute("remapped_nvme").and_then(|count| count.parse().ok()).unwrap_or(0);
    if remapped > 0 {
        return Some(Shortfall::RemappedNvme { address: address(), disks: remapped });
    }
    let class = class_of(tree, &address())?;
    if tree.resolve(format!("{PCI}/{}/driver", address())).is_some() {
        return None;
    }
    let number = |name: &str| attribute(name).map(|text| text.trim_start_matches("0x").to_owned());
    let id = format!("{}:{}", number("vendor")?, number("device")?);
    Some(Shortfall::NoDriver { address: address(), class, id })
}

fn class_of(tree: &Tree, address: &str) -> Option<Class> {
    match class_code(tree, address)? >> 16 {
        0x01 => Some(Class::Storage),
        0x02 => Some(Class::Network),
        _ => None,
    }
}

/// Base class, subclass and programming interface: 24 bits.
fn class_code(tree: &Tree, address: &str) -> Option<u32> {
    let text = tree.attribute(format!("{PCI}/{address}/class"))?;
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// Finds missing firmware files of disks and Ethernet in the kernel's log.
#[derive(Debug)]
pub struct FirmwareLog {
    log: File,
    tree: Tree,
    found: BTreeSet<Shortfall>,
}

impl FirmwareLog {
    /// Opens `/dev/kmsg`, from the oldest record on.
    ///
    /// # Errors
    /// Fails if the device does not exist, or this process may not read it.
    pub fn open(tree: &Tree) -> io::Result<Self> {
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
        let log = OpenOptions::new().read(true).custom_flags(flags).open(tree.path("dev/kmsg"))?;
        Ok(Self { log, tree: tree.clone(), found: BTreeSet::new() })
    }

    /// Reads new records, and returns all that was found so far.
    pub fn look(&mut self) -> &BTreeSet<Shortfall> {
        let mut record = [0; 8192];
        loop {
            match self.log.read(&mut record) {
                Ok(0) => break,
                Ok(n) => {
                    let text = String::from_utf8_lossy(&record[..n]);
                    self.found.extend(missing_firmware(&self.tree, &text));
                }
                // Records were overwritten before they were read: the next read returns the oldest
                // that is left.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        &self.found
    }
}

/// Returns the missing firmware file that a record of `/dev/kmsg`
/// (Documentation/ABI/testing/dev-kmsg) reports, if a disk or an Ethernet device depends on it.
/// Others, such as wireless devices, request several names and use the first that exists.
fn missing_firmware(tree: &Tree, record: &str) -> Option<Shortfall> {
    let (head, dictionary) = record.split_once('\n')?;
    let (_, message) = head.split_once(';')?;
    let (_, rest) = message.split_once("Direct firmware load for ")?;
    let (file, _) = rest.split_once(" failed with error")?;
    let address =
        dictionary.lines().find_map(|line| line.trim_start().strip_prefix("DEVICE=+pci:"))?;
    let code = class_code(tree, address)?;
    // Subclass 00h of the network controllers is Ethernet.
    let matters = code >> 16 == 0x01 || code >> 8 == 0x0200;
    matters.then(|| Shortfall::NoFirmware { address: address.to_owned(), file: file.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    fn device(fake: &Fake, address: &str, class: &str, driver: bool) {
        let place = format!("{PCI}/{address}");
        fake.file(&format!("{place}/class"), format!("{class}\n"));
        fake.file(&format!("{place}/vendor"), "0x8086\n")
            .file(&format!("{place}/device"), "0x15f3\n");
        if driver {
            fake.link(&format!("{place}/driver"), "sys/bus/pci/drivers/some");
        }
    }

    fn card(fake: &Fake) {
        fake.link("sys/class/net/eth0/device", "sys/devices/pci0000:00/0000:00:03.0");
    }

    fn sentences(fake: &Fake) -> Vec<String> {
        survey(&fake.tree()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn machine_with_all_drivers_has_no_shortfall() {
        let fake = Fake::new();
        device(&fake, "0000:00:01.0", "0x010802", true);
        device(&fake, "0000:00:02.0", "0x020000", true);
        device(&fake, "0000:00:03.0", "0x030000", false);
        card(&fake);
        assert_eq!(sentences(&fake), [""; 0]);
    }

    #[test]
    fn devices_without_driver_are_named() {
        let fake = Fake::new();
        device(&fake, "0000:00:01.0", "0x010400", false);
        device(&fake, "0000:00:02.0", "0x020000", false);
        fake.file("sys/class/net/lo/address", "00:00:00:00:00:00\n");
        assert_eq!(
            sentences(&fake),
            [
                "No driver for the storage controller 0000:00:01.0 (8086:15f3): its disks cannot be used.",
                "No driver for the network card 0000:00:02.0 (8086:15f3): it cannot be used.",
                "This machine has no network card that a driver here supports.",
            ]
        );
    }

    #[test]
    fn disks_behind_intel_rst_are_named() {
        let fake = Fake::new();
        card(&fake);
        device(&fake, "0000:00:17.0", "0x010400", true);
        fake.file("sys/bus/pci/devices/0000:00:17.0/remapped_nvme", "0\n");
        assert_eq!(sentences(&fake), [""; 0]);
        fake.file("sys/bus/pci/devices/0000:00:17.0/remapped_nvme", "2\n");
        assert_eq!(
            sentences(&fake),
            [
                "2 NVMe disks are hidden by the controller 0000:00:17.0 in Intel RST (RAID) mode: switch it to \
              AHCI in the firmware setup."
            ]
        );
    }

    #[test]
    fn missing_firmware_of_disks_and_ethernet_is_found() {
        let fake = Fake::new();
        device(&fake, "0000:02:00.0", "0x020000", true);
        device(&fake, "0000:03:00.0", "0x028000", true);
        let record = |address: &str| {
            format!(
                "4,1017,5214466,-;bnx2 {address}: Direct firmware load for bnx2/bnx2-mips-09-6.2.1b.fw failed with \
                 error -2\n SUBSYSTEM=pci\n DEVICE=+pci:{address}\n"
            )
        };
        let found = missing_firmware(&fake.tree(), &record("0000:02:00.0")).unwrap();
        assert_eq!(
            found.to_string(),
            "The device 0000:02:00.0 needs the firmware file bnx2/bnx2-mips-09-6.2.1b.fw, which is missing."
        );
        assert_eq!(missing_firmware(&fake.tree(), &record("0000:03:00.0")), None, "wireless");
        for other in ["", "6,1,2,-;hello\n", "4,1,2,-;x: Direct firmware load for y\n"] {
            assert_eq!(missing_firmware(&fake.tree(), other), None, "{other}");
        }
    }
}
