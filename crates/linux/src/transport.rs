//! How a disk is connected, derived from its name and its path in `/sys/devices`.

use crate::tree::Tree;
use std::path::Path;

/// The transport between the machine and the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// NVMe on the PCI bus, or built in.
    Nvme,
    /// NVMe from another machine: TCP, RDMA, Fibre Channel, or the kernel's own loop target.
    NvmeFabrics,
    /// ATA.
    Sata,
    /// Serial attached SCSI.
    Sas,
    /// SCSI over Fibre Channel.
    FibreChannel,
    /// SCSI from another machine.
    Iscsi,
    /// USB, by either of its storage protocols.
    Usb,
    /// IEEE 1394.
    FireWire,
    /// Other SCSI: controllers for RAID, paravirtual ones.
    Scsi,
    /// The paravirtual disk of QEMU and others.
    Virtio,
    /// The paravirtual disk of Xen.
    Xen,
    /// SD cards and eMMC.
    Mmc,
    /// IBM mainframe disks.
    Dasd,
    /// Persistent memory.
    Pmem,
    /// Raw flash behind a block layer.
    Mtd,
    /// A network block device of another machine.
    Nbd,
    /// A Ceph image.
    Rbd,
    /// A disk mirrored over the network.
    Drbd,
    /// ATA over Ethernet.
    Aoe,
    /// A file as a disk.
    Loop,
    /// Compressed memory.
    Zram,
    /// Memory.
    Ram,
    /// Stacked by the device mapper: LVM, LUKS, multipath.
    DeviceMapper,
    /// Stacked by the kernel's RAID.
    Md,
    /// Stacked by the kernel's cache.
    Bcache,
    /// A volume of a ZFS pool.
    Zvol,
    /// A disk made by a program.
    Ublk,
    /// CD, DVD, Blu-ray.
    Optical,
    /// A diskette.
    Floppy,
    /// The kernel's test device that keeps nothing.
    Null,
    /// Unknown.
    Unknown,
}

impl Transport {
    /// Returns a stable word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Nvme => "nvme",
            Self::NvmeFabrics => "nvme-fabrics",
            Self::Sata => "sata",
            Self::Sas => "sas",
            Self::FibreChannel => "fc",
            Self::Iscsi => "iscsi",
            Self::Usb => "usb",
            Self::FireWire => "firewire",
            Self::Scsi => "scsi",
            Self::Virtio => "virtio",
            Self::Xen => "xen",
            Self::Mmc => "mmc",
            Self::Dasd => "dasd",
            Self::Pmem => "pmem",
            Self::Mtd => "mtd",
            Self::Nbd => "nbd",
            Self::Rbd => "rbd",
            Self::Drbd => "drbd",
            Self::Aoe => "aoe",
            Self::Loop => "loop",
            Self::Zram => "zram",
            Self::Ram => "ram",
            Self::DeviceMapper => "dm",
            Self::Md => "md",
            Self::Bcache => "bcache",
            Self::Zvol => "zvol",
            Self::Ublk => "ublk",
            Self::Optical => "optical",
            Self::Floppy => "floppy",
            Self::Null => "null",
            Self::Unknown => "unknown",
        }
    }

    /// Returns whether the data are on another machine.
    pub fn is_network(self) -> bool {
        matches!(
            self,
            Self::NvmeFabrics | Self::Iscsi | Self::Nbd | Self::Rbd | Self::Drbd | Self::Aoe
        )
    }

    /// Returns the transport of the disk `name`, whose directory is `place` (with links resolved).
    pub(crate) fn of(tree: &Tree, name: &str, place: &Path) -> Self {
        let by_name = NAMES.iter().find(|(prefix, _)| has_prefix(name, prefix));
        match by_name {
            Some((_, transport)) => *transport,
            None if has_prefix(name, "nvme") => nvme(tree, place),
            None => by_place(&place.to_string_lossy()),
        }
    }
}

/// Prefixes of kernel names, each followed by a number or a letter.
const NAMES: [(&str, Transport); 24] = [
    ("loop", Transport::Loop),
    ("zram", Transport::Zram),
    ("ram", Transport::Ram),
    ("dm-", Transport::DeviceMapper),
    ("md", Transport::Md),
    ("md_d", Transport::Md),
    ("bcache", Transport::Bcache),
    ("zd", Transport::Zvol),
    ("ublkb", Transport::Ublk),
    ("sr", Transport::Optical),
    ("fd", Transport::Floppy),
    ("nullb", Transport::Null),
    ("mmcblk", Transport::Mmc),
    ("mtdblock", Transport::Mtd),
    ("ubiblock", Transport::Mtd),
    ("nbd", Transport::Nbd),
    ("rnbd", Transport::Nbd),
    ("rbd", Transport::Rbd),
    ("drbd", Transport::Drbd),
    ("etherd!e", Transport::Aoe),
    ("pmem", Transport::Pmem),
    ("dasd", Transport::Dasd),
    ("vd", Transport::Virtio),
    ("xvd", Transport::Xen),
];

/// Returns whether the name is the prefix and a number, or for the lettered kinds a letter.
fn has_prefix(name: &str, prefix: &str) -> bool {
    let lettered = matches!(prefix, "vd" | "xvd" | "dasd");
    let rest = name.strip_prefix(prefix).and_then(|rest| rest.chars().next());
    // Arrays may have names, too: md_home.
    let named_array = prefix == "md" && rest == Some('_');
    rest.is_some_and(|c| if lettered { c.is_ascii_lowercase() } else { c.is_ascii_digit() })
        || named_array
}

/// Components of the path of a SCSI disk; the first match counts.
const PLACES: [(&str, Transport); 7] = [
    ("/usb", Transport::Usb),
    ("/session", Transport::Iscsi),
    ("/rport-", Transport::FibreChannel),
    ("/end_device-", Transport::Sas),
    ("/ata", Transport::Sata),
    ("/fw", Transport::FireWire),
    ("/target", Transport::Scsi),
];

fn by_place(place: &str) -> Transport {
    let found = PLACES.iter().find(|(part, _)| {
        place.match_indices(part).any(|(at, _)| {
            place
                .get(at + part.len()..)
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
    });
    found.map_or(Transport::Unknown, |(_, transport)| *transport)
}

/// A namespace is below a controller, or, with multipath, below a subsystem that lists its
/// controllers.
fn nvme(tree: &Tree, place: &Path) -> Transport {
    let device = place.join("device");
    let controllers = tree.names(&device).into_iter().filter(|name| name.starts_with("nvme"));
    let words: Vec<String> = std::iter::once(device.join("transport"))
        .chain(controllers.map(|name| device.join(name).join("transport")))
        .filter_map(|path| tree.attribute(path))
        .collect();
    let local = |word: &String| matches!(word.as_str(), "pcie" | "apple-nvme");
    match words.as_slice() {
        // An unknown transport counts as a network: in doubt the disk is not exported again.
        [] => Transport::NvmeFabrics,
        words if words.iter().all(local) => Transport::Nvme,
        _ => Transport::NvmeFabrics,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    fn of(name: &str, place: &str) -> Transport {
        Transport::of(&Fake::new().tree(), name, Path::new(place))
    }

    #[test]
    fn transport_is_derived_from_the_name() {
        let wanted = [
            ("loop0", "loop"),
            ("zram0", "zram"),
            ("ram3", "ram"),
            ("dm-0", "dm"),
            ("md127", "md"),
            ("md_home", "md"),
            ("md_d0", "md"),
            ("nbd0", "nbd"),
            ("rbd1", "rbd"),
            ("drbd1", "drbd"),
            ("sr0", "optical"),
            ("fd0", "floppy"),
            ("vda", "virtio"),
            ("xvda", "xen"),
            ("mmcblk0", "mmc"),
            ("mmcblk0boot0", "mmc"),
            ("mtdblock2", "mtd"),
            ("pmem0", "pmem"),
            ("bcache0", "bcache"),
            ("zd16", "zvol"),
            ("dasda", "dasd"),
            ("nullb0", "null"),
            ("etherd!e1.1", "aoe"),
            ("ublkb0", "ublk"),
            ("thing", "unknown"),
            ("vdX", "unknown"),
        ];
        for (name, word) in wanted {
            assert_eq!(of(name, "/sys/devices/virtual/block/x").word(), word, "{name}");
        }
    }

    #[test]
    fn transport_of_scsi_is_derived_from_the_path() {
        let wanted = [
            ("pci0/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0/block/sdb", "usb"),
            ("pci0/ata1/host0/target0:0:0/0:0:0:0/block/sda", "sata"),
            ("platform/host2/session1/target2:0:0/2:0:0:1/block/sdc", "iscsi"),
            ("pci0/host1/rport-1:0-2/target1:0:2/1:0:2:0/block/sdd", "fc"),
            ("pci0/host1/port-1:0/end_device-1:0/target1:0:0/1:0:0:0/block/sde", "sas"),
            ("pci0/virtio3/host2/target2:0:0/2:0:0:0/block/sdf", "scsi"),
            ("platform/fw1/fw1.0/host3/target3:0:0/3:0:0:0/block/sdg", "firewire"),
        ];
        for (place, word) in wanted {
            assert_eq!(of("sdx", &format!("/sys/devices/{place}")).word(), word, "{place}");
        }
    }

    #[test]
    fn nvme_is_local_only_if_every_controller_is() {
        let place = "/sys/devices/nvme-subsys0/nvme0n1";
        let with = |paths: &[(&str, &str)]| {
            let fake = Fake::new();
            for (path, word) in paths {
                fake.file(&format!("{}/device/{path}", &place[1..]), *word);
            }
            Transport::of(&fake.tree(), "nvme0n1", Path::new(place))
        };
        assert_eq!(with(&[("transport", "pcie\n")]), Transport::Nvme);
        assert_eq!(with(&[("transport", "tcp\n")]), Transport::NvmeFabrics);
        assert_eq!(
            with(&[("nvme0/transport", "pcie"), ("nvme1/transport", "pcie")]),
            Transport::Nvme
        );
        let mixed = [("nvme0/transport", "pcie"), ("nvme1/transport", "rdma")];
        assert_eq!(with(&mixed), Transport::NvmeFabrics);
        assert_eq!(with(&[]), Transport::NvmeFabrics);
    }
}
