//! The block devices of this machine, disks and partitions, as sysfs describes them.

use crate::hardware::Hardware;
use crate::transport::Transport;
use crate::tree::{Tree, natural};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const CLASS: &str = "sys/class/block";
/// The unit of every size in sysfs, whatever the disk's own block is.
const SECTOR: u64 = 512;

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// The text is not a device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a device number is two numbers with a colon between them, as in 8:0")]
pub struct NoDeviceNumber;

impl FromStr for DeviceNumber {
    type Err = NoDeviceNumber;

    fn from_str(text: &str) -> Result<Self, NoDeviceNumber> {
        let (major, minor) = text.trim().split_once(':').ok_or(NoDeviceNumber)?;
        let number = |text: &str| text.parse().map_err(|_| NoDeviceNumber);
        Ok(Self { major: number(major)?, minor: number(minor)? })
    }
}

/// The position of a partition on its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The whole disk's kernel name.
    pub whole_disk: String,
    /// The number in the partition table, from 1.
    pub number: u32,
    /// Where it starts on the disk, in bytes.
    pub start: u64,
}

/// Device mapper, md and loop attributes of a device, and what it is stacked on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stacking {
    /// The device-mapper name, as in `/dev/mapper`.
    pub dm_name: Option<String>,
    /// The device-mapper UUID: `LVM-…`, `CRYPT-LUKS2-…`, `mpath-…`.
    pub dm_uuid: Option<String>,
    /// The md level: `raid1`, …
    pub md_level: Option<String>,
    /// The md array's UUID.
    pub md_uuid: Option<String>,
    /// The file behind a loop device.
    pub backing_file: Option<String>,
    /// Devices stacked on this one, by kernel name.
    pub holders: Vec<String>,
    /// Devices that this one is stacked on, by kernel name.
    pub slaves: Vec<String>,
}

/// A block device: a whole disk or a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name: `sda1`. Not stable over reboots.
    pub name: String,
    /// The device node: `/dev/sda1`.
    pub node: PathBuf,
    /// The directory below `/sys/devices`, with links resolved.
    pub sysfs_path: PathBuf,
    /// Where the whole disk is connected (PCI slot, port, address on the bus). Stable across
    /// reboots.
    pub address: String,
    pub number: DeviceNumber,
    /// The size in bytes; 0 without a medium.
    pub bytes: u64,
    /// The logical block size in bytes.
    pub logical_block: u32,
    /// The physical block size in bytes.
    pub physical_block: u32,
    /// Read-only, by its medium or by `blockdev --setro`.
    pub read_only: bool,
    /// The medium can be taken out.
    pub removable: bool,
    pub rotational: bool,
    /// Identification reported by the disk; empty for partitions.
    pub hardware: Hardware,
    /// How it is connected.
    pub transport: Transport,
    /// Its place on the disk; `None` for a whole disk.
    pub part: Option<Part>,
    pub stacking: Stacking,
    /// The disk's sequence number since boot (Linux 5.15).
    pub diskseq: Option<u64>,
    /// It has a volatile write cache: writes are on stable storage only after a flush.
    pub volatile_cache: bool,
    /// Maximum bytes of one discard; 0 if the disk does not support it.
    pub discard_max_bytes: u64,
    /// Maximum bytes of one Write Zeroes command; 0 if the kernel has to write the zeroes.
    pub write_zeroes_max_bytes: u64,
    /// `host-managed` or `host-aware` for a zoned disk.
    pub zoned: Option<String>,
}

impl Stacking {
    /// Returns `GROUP/VOLUME` of an LVM logical volume. The device-mapper name separates the two by
    /// a hyphen, and doubles the hyphens in the names themselves (lvm2, `build_dm_name`). Internal
    /// volumes, which have a suffix after the UUIDs of group and volume, return `None`.
    pub fn volume(&self) -> Option<String> {
        let identifiers = self.dm_uuid.as_deref()?.strip_prefix("LVM-")?;
        let name = self.dm_name.as_deref().filter(|_| identifiers.len() == 64)?;
        let doubled = name.replace("--", "\u{1}");
        let (group, volume) = doubled.split_once('-').filter(|(_, rest)| !rest.contains('-'))?;
        Some(format!("{group}/{volume}").replace('\u{1}', "-"))
    }
}

impl Disk {
    /// Returns the name to display: the logical volume (`GROUP/VOLUME`), the device-mapper name
    /// (`mapper/NAME`), or the kernel's name.
    pub fn display_name(&self) -> String {
        let mapper = || Some(format!("mapper/{}", self.stacking.dm_name.as_ref()?));
        self.stacking.volume().or_else(mapper).unwrap_or_else(|| self.name.clone())
    }

    /// Returns whether `name` is its kernel name, its node, or a name of the device mapper or of
    /// LVM. The last three match with or without `/dev/`.
    pub fn has_name(&self, name: &str) -> bool {
        let short = name.strip_prefix("/dev/").unwrap_or(name);
        let node = self.node.strip_prefix("/dev").is_ok_and(|node| node == Path::new(short));
        let mapper = self.stacking.dm_name.as_deref();
        let volume = self.stacking.volume();
        name == self.name
            || node
            || (mapper.is_some()
                && (short.strip_prefix("mapper/") == mapper || Some(name) == mapper))
            || (volume.is_some() && volume.as_deref() == Some(short))
    }

    /// Returns its path in `/dev/mapper` if there is one, else its node.
    pub fn path(&self, tree: &Tree) -> PathBuf {
        let mapper = self.stacking.dm_name.as_ref().map(|name| Path::new("/dev/mapper").join(name));
        mapper.filter(|path| tree.path(path).exists()).unwrap_or_else(|| self.node.clone())
    }

    /// Returns the kernel name of the whole disk.
    pub fn whole(&self) -> &str {
        self.part.as_ref().map_or(&self.name, |part| &part.whole_disk)
    }

    pub fn is_partition(&self) -> bool {
        self.part.is_some()
    }
}

/// Returns every block device that has a node, in natural order of the names. Hidden devices (the
/// paths of NVMe multipath) are left out.
///
/// # Errors
/// Fails if `/sys/class/block` cannot be read, for example if `/sys` is not mounted.
pub fn scan(tree: &Tree) -> io::Result<Vec<Disk>> {
    std::fs::read_dir(tree.path(CLASS))?;
    let mut disks: Vec<Disk> =
        tree.names(CLASS).into_iter().filter_map(|name| read(tree, &name)).collect();
    disks.sort_by(|a, b| natural(&a.name, &b.name));
    Ok(disks)
}

/// Returns a device by its kernel name, or `None` if it does not exist or is hidden.
pub fn read(tree: &Tree, name: &str) -> Option<Disk> {
    let sysfs_path = tree.resolve(Path::new(CLASS).join(name))?;
    let number: DeviceNumber = tree.attribute(sysfs_path.join("dev"))?.parse().ok()?;
    if tree.flag(sysfs_path.join("hidden")) {
        return None;
    }
    let part = part(tree, &sysfs_path);
    let whole = if part.is_some() { sysfs_path.parent()? } else { &sysfs_path };
    let whole_name = part.as_ref().map_or(name, |part| &part.whole_disk);
    let transport = Transport::of(tree, whole_name, whole);
    let hardware = match part {
        Some(_) => Hardware::default(),
        None => Hardware::read(tree, transport, &sysfs_path, &number.to_string()),
    };
    let queue = Queue { tree, sysfs_path: whole.join("queue") };
    let logical_block = queue.size("logical_block_size").unwrap_or(512);
    Some(Disk {
        name: name.to_owned(),
        node: Path::new("/dev").join(name.replace('!', "/")),
        number,
        bytes: tree.number(sysfs_path.join("size"))?.saturating_mul(SECTOR),
        logical_block,
        physical_block: queue.size("physical_block_size").unwrap_or(logical_block),
        read_only: tree.flag(sysfs_path.join("ro")),
        removable: tree.flag(whole.join("removable")),
        rotational: tree.flag(whole.join("queue/rotational")),
        hardware,
        transport,
        part,
        stacking: stacking(tree, &sysfs_path),
        address: address(tree, whole),
        diskseq: tree.number(whole.join("diskseq")),
        volatile_cache: queue.word("write_cache").is_none_or(|word| word == "write back"),
        discard_max_bytes: queue.number("discard_max_bytes"),
        write_zeroes_max_bytes: queue.number("write_zeroes_max_bytes"),
        zoned: queue.word("zoned").filter(|word| word != "none"),
        sysfs_path,
    })
}

/// Returns a device by its number, or `None` if it does not exist.
pub fn by_number(tree: &Tree, number: DeviceNumber) -> Option<Disk> {
    let sysfs_path = tree.resolve(format!("sys/dev/block/{number}"))?;
    read(tree, sysfs_path.file_name()?.to_str()?)
}

/// Returns the number of writes in flight on a device (Documentation/ABI/stable/sysfs-block), or
/// `None` if the kernel does not count them.
pub fn writes_in_flight(tree: &Tree, number: DeviceNumber) -> Option<u64> {
    let sysfs_path = PathBuf::from(format!("sys/dev/block/{number}"));
    let device = if tree.path(sysfs_path.join("queue")).exists() { "" } else { ".." };
    let counts = tree.attribute(sysfs_path.join(device).join("queue/iostats"))? == "1";
    let in_flight = tree.attribute(sysfs_path.join("inflight")).filter(|_| counts)?;
    in_flight.split_whitespace().nth(1)?.parse().ok()
}

/// The attributes of a disk's queue, which its partitions share.
struct Queue<'a> {
    tree: &'a Tree,
    sysfs_path: PathBuf,
}

impl Queue<'_> {
    fn word(&self, name: &str) -> Option<String> {
        self.tree.attribute(self.sysfs_path.join(name))
    }

    fn number(&self, name: &str) -> u64 {
        self.tree.number(self.sysfs_path.join(name)).unwrap_or(0)
    }

    fn size(&self, name: &str) -> Option<u32> {
        self.tree.number(self.sysfs_path.join(name)).and_then(|size| u32::try_from(size).ok())
    }
}

/// A partition's directory is inside its disk's directory.
fn part(tree: &Tree, sysfs_path: &Path) -> Option<Part> {
    let number = u32::try_from(tree.number(sysfs_path.join("partition"))?).ok()?;
    let whole_disk = sysfs_path.parent()?.file_name()?.to_str()?.to_owned();
    let start = tree.number(sysfs_path.join("start")).unwrap_or(0).saturating_mul(SECTOR);
    Some(Part { whole_disk, number, start })
}

/// Returns the parent of the disk's directory without the numbers that the kernel assigns to buses,
/// host adapters and controllers in the order of discovery. The rest is what `/dev/disk/by-path` is
/// made of.
fn address(tree: &Tree, sysfs_path: &Path) -> String {
    let mut path = PathBuf::new();
    let mut address = String::new();
    for part in sysfs_path.parent().unwrap_or(sysfs_path).components() {
        path.push(part);
        let name = part.as_os_str().to_string_lossy();
        let stable = if name.starts_with("ata") {
            // The port's number on its controller.
            let port = tree.number(path.join("ata_port").join(&*name).join("port_no"));
            port.map_or_else(|| name.to_string(), |port| format!("ata-{port}"))
        } else if name.starts_with("usb") {
            // A USB controller has a bus for each generation, with ports of the same numbers.
            let version = tree.attribute(path.join("version"));
            version.map_or_else(|| unnumbered(&name), |version| format!("usb-{version}"))
        } else {
            unnumbered(&name)
        };
        address.push('/');
        address.push_str(stable.trim_matches('/'));
    }
    address
}

/// `host6` as `host`, `target6:0:0` as `target:0:0`, `6:0:0:0` as `:0:0:0`, `1-1.2:1.0` as `-1.2:1.0`; others as they are.
fn unnumbered(name: &str) -> String {
    const COUNTED: [&str; 7] = ["host", "target", "session", "virtio", "nvme", "mmc", "usb"];
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).count();
    let rest = |text: &str| text.get(digits(text)..).unwrap_or_default().to_owned();
    let kind = COUNTED.iter().find(|kind| {
        name.strip_prefix(**kind).is_some_and(|rest| {
            digits(rest) > 0
                && rest
                    .get(digits(rest)..)
                    .is_some_and(|end| end.is_empty() || end.starts_with(':'))
        })
    });
    if let Some(kind) = kind {
        return format!("{kind}{}", rest(name.get(kind.len()..).unwrap_or_default()));
    }
    let is_number = |part: &str| !part.is_empty() && digits(part) == part.len();
    let scsi = name.split(':').count() == 4 && name.split(':').all(is_number);
    let usb = digits(name) > 0 && rest(name).starts_with('-');
    if scsi || usb { rest(name) } else { name.to_owned() }
}

fn stacking(tree: &Tree, sysfs_path: &Path) -> Stacking {
    let word = |name: &str| tree.attribute(sysfs_path.join(name));
    Stacking {
        dm_name: word("dm/name"),
        dm_uuid: word("dm/uuid"),
        md_level: word("md/level"),
        md_uuid: word("md/uuid"),
        backing_file: word("loop/backing_file"),
        holders: tree.names(sysfs_path.join("holders")),
        slaves: tree.names(sysfs_path.join("slaves")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    #[test]
    fn a_disk_and_its_partition_are_read() {
        let fake = Fake::new();
        fake.disk("pci0/ata1/host0/target0:0:0/0:0:0:0", "sda", "8:0", 2_000_000);
        fake.part("sda", "sda1", "8:1", 1);
        let queue = "sys/class/block/sda/queue";
        fake.file(&format!("{queue}/physical_block_size"), "4096\n");
        fake.file(&format!("{queue}/rotational"), "1\n");
        fake.file(&format!("{queue}/write_cache"), "write through\n");
        fake.file(&format!("{queue}/discard_max_bytes"), "2147450880\n");
        fake.file(&format!("{queue}/zoned"), "none\n");
        fake.file("sys/class/block/sda/diskseq", "9\n").file("sys/class/block/sda1/ro", "1\n");
        let disks = scan(&fake.tree()).unwrap();
        let [sda, sda1] = disks.as_slice() else { panic!("{disks:?}") };
        assert_eq!((sda.bytes, sda.logical_block, sda.physical_block), (1_024_000_000, 512, 4096));
        assert_eq!((sda.number.to_string().as_str(), sda.diskseq), ("8:0", Some(9)));
        assert!(sda.rotational && !sda.removable && !sda.read_only && !sda.volatile_cache);
        assert_eq!((sda.transport, sda.discard_max_bytes), (Transport::Sata, 2_147_450_880));
        assert_eq!((sda.node.to_str(), sda.zoned.as_ref()), (Some("/dev/sda"), None));
        let part = Part { whole_disk: "sda".into(), number: 1, start: 1 << 20 };
        assert_eq!(sda1.part, Some(part));
        assert!(sda1.read_only && sda1.transport == Transport::Sata && sda1.physical_block == 4096);
        assert_eq!((sda.whole(), sda1.whole()), ("sda", "sda"));
        assert_eq!(by_number(&fake.tree(), sda1.number).as_ref(), Some(sda1));
    }

    #[test]
    fn r58_address_of_a_disk_has_no_number_given_at_boot() {
        let address = |places: &[&str]| -> Vec<String> {
            let fake = Fake::new();
            for (at, sysfs_path) in places.iter().enumerate() {
                fake.disk(sysfs_path, &format!("sd{at}"), &format!("8:{at}"), 8);
            }
            let port = "sys/devices/pci0000:00/0000:00:1f.2/ata7/ata_port/ata7/port_no";
            fake.file(port, "1\n");
            let port = "sys/devices/pci0000:00/0000:00:1f.2/ata3/ata_port/ata3/port_no";
            fake.file(port, "1\n");
            scan(&fake.tree()).unwrap().into_iter().map(|disk| disk.address).collect()
        };
        let first = address(&[
            "pci0000:00/0000:00:1f.2/ata7/host6/target6:0:0/6:0:0:0",
            "pci0000:00/0000:00:14.0/usb2/2-1/2-1.4:1.0/host8/target8:0:0/8:0:0:1",
            "pci0000:00/0000:00:04.0/virtio3",
            "pci0000:00/0000:02:00.0/nvme/nvme1",
            "platform/emmc/mmc_host/mmc1/mmc1:0001",
        ]);
        let second = address(&[
            "pci0000:00/0000:00:1f.2/ata3/host2/target2:0:0/2:0:0:0",
            "pci0000:00/0000:00:14.0/usb4/4-1/4-1.4:1.0/host0/target0:0:0/0:0:0:1",
            "pci0000:00/0000:00:04.0/virtio0",
            "pci0000:00/0000:02:00.0/nvme/nvme0",
            "platform/emmc/mmc_host/mmc0/mmc0:0001",
        ]);
        assert_eq!(first, second);
        assert!(first[0].contains("/0000:00:1f.2/ata-1/host/target:0:0/:0:0:0"), "{first:?}");
        assert!(first[1].contains("/0000:00:14.0/usb/-1/-1.4:1.0/host/target:0:0/:0:0:1"));
        let differ: std::collections::HashSet<&String> = first.iter().collect();
        assert_eq!(differ.len(), first.len());
    }

    #[test]
    fn stacked_devices_say_what_they_are_made_of() {
        let fake = Fake::new();
        fake.disk("virtual", "dm-0", "253:0", 8).disk("pci0/virtio1", "vda", "254:0", 8);
        fake.hold("vda", "dm-0");
        fake.file("sys/class/block/dm-0/dm/name", "home\n");
        fake.file("sys/class/block/dm-0/dm/uuid", "CRYPT-LUKS2-abc-home\n");
        let disks = scan(&fake.tree()).unwrap();
        let [dm, vda] = disks.as_slice() else { panic!("{disks:?}") };
        assert_eq!(vda.stacking.holders, ["dm-0"]);
        assert_eq!(dm.stacking.slaves, ["vda"]);
        assert_eq!(dm.stacking.dm_name.as_deref(), Some("home"));
    }

    #[test]
    fn logical_volume_is_found_by_each_of_its_names() {
        let fake = Fake::new();
        let ids = "x".repeat(64);
        for (number, name, uuid) in [
            (0, "my--group-my--volume", format!("LVM-{ids}")),
            (1, "group-pool_tdata", format!("LVM-{ids}-tdata")),
            (2, "home", "CRYPT-LUKS2-abc-home".to_owned()),
        ] {
            let device = format!("dm-{number}");
            fake.disk("virtual", &device, &format!("253:{number}"), 8);
            fake.file(&format!("sys/class/block/{device}/dm/name"), format!("{name}\n"));
            fake.file(&format!("sys/class/block/{device}/dm/uuid"), format!("{uuid}\n"));
        }
        fake.file("dev/mapper/home", "");
        let disks = scan(&fake.tree()).unwrap();
        let called: Vec<String> = disks.iter().map(Disk::display_name).collect();
        assert_eq!(called, ["my-group/my-volume", "mapper/group-pool_tdata", "mapper/home"]);
        for name in [
            "my-group/my-volume",
            "/dev/my-group/my-volume",
            "mapper/my--group-my--volume",
            "/dev/mapper/my--group-my--volume",
            "my--group-my--volume",
            "dm-0",
            "/dev/dm-0",
        ] {
            let found: Vec<bool> = disks.iter().map(|disk| disk.has_name(name)).collect();
            assert_eq!(found, [true, false, false], "{name}");
        }
        assert!(disks.iter().all(|disk| !disk.has_name("") && !disk.has_name("mapper/")));
        let paths: Vec<PathBuf> = disks.iter().map(|disk| disk.path(&fake.tree())).collect();
        assert_eq!(paths[0], Path::new("/dev/dm-0"), "the other node does not exist");
        assert_eq!(paths[2], Path::new("/dev/mapper/home"));
    }

    #[test]
    fn hidden_and_broken_devices_are_left_out() {
        let fake = Fake::new();
        fake.disk("virtual", "nvme0c0n1", "259:1", 8).disk("pci0", "cciss!c0d0", "104:0", 8);
        fake.file("sys/class/block/nvme0c0n1/hidden", "1\n");
        fake.file("sys/class/block/broken/dev", "eight\n");
        let disks = scan(&fake.tree()).unwrap();
        assert_eq!(disks.len(), 1);
        assert_eq!(disks[0].node, Path::new("/dev/cciss/c0d0"));
    }

    #[test]
    fn scan_fails_without_sys() {
        assert!(scan(&Fake::new().tree()).is_err());
        let disks = scan(&Tree::machine()).unwrap();
        assert!(disks.iter().all(|disk| disk.logical_block >= 512));
    }
}
