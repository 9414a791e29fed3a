//! `cargo xtask vm boot --hardware`: one machine with every disk controller and network card that qemu has, of those
//! that real machines have drivers for. Each disk, with contents that other programs would assemble, mount or repair,
//! is read at an address of the machine; nothing writes to any.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Lab;
use super::machine::{Machine, Start};
use super::pieces::Pieces;
use super::trial::{BOOT, SOON, Trial};
use super::ways::OPEN;
use crate::architecture::Architecture;
use crate::vm::apt::succeed;
use crate::vm::cache::Cache;
use crate::vm::case::Results;
use crate::vm::image::{self, MIB};

/// Drivers load on an emulated machine for this long after the first one.
const DRIVERS: Duration = Duration::from_secs(150);

/// A disk: its test, its devices for qemu, and what is on it: bytes and where they are.
struct Disk {
    name: &'static str,
    devices: &'static [&'static str],
    contents: &'static [(u64, &'static [u8])],
}

const fn disk(
    name: &'static str,
    devices: &'static [&'static str],
    contents: &'static [(u64, &'static [u8])],
) -> Disk {
    Disk { name, devices, contents }
}

/// The size of each disk in bytes.
const SIZE: u64 = 8 * MIB;
/// In the last sector but one.
const IMSM: &[(u64, &[u8])] = &[(SIZE - 1024, b"Intel Raid ISM Cfg Sig. 1.3.00")];
/// A RAID's superblock 64 KiB before the end, in whole 64 KiB, and btrfs.
const MD_0: &[(u64, &[u8])] =
    &[(SIZE - 65536, b"\xfc\x4e\x2b\xa9\0\0\0\0\x5a\0\0\0"), (65536 + 64, b"_BHRfS_M")];
const MD_1: &[(u64, &[u8])] = &[(4096, b"\xfc\x4e\x2b\xa9\x01\0\0\0")];
const LVM: &[(u64, &[u8])] = &[(512, b"LABELONE\x01\0\0\0\0\0\0\0"), (536, b"LVM2 001")];
const LUKS_1: &[(u64, &[u8])] = &[(0, b"LUKS\xba\xbe\0\x01aes\0")];
const LUKS_2: &[(u64, &[u8])] = &[(0, b"LUKS\xba\xbe\0\x02"), (16384, b"SKUL\xba\xbe\0\x02")];
const NTFS: &[(u64, &[u8])] = &[(0, b"\xeb\x52\x90NTFS    "), (510, b"\x55\xaa")];
const BITLOCKER: &[(u64, &[u8])] = &[(0, b"\xeb\x58\x90-FVE-FS-"), (510, b"\x55\xaa")];
/// The second uberblock of the first label.
const ZFS: &[(u64, &[u8])] = &[(131_072 + 1024, b"\x0c\xb1\xba\0\0\0\0\0")];
const XFS: &[(u64, &[u8])] = &[(0, b"XFSB\0\0\x10\0")];
/// With a journal that needs recovery.
const EXT4: &[(u64, &[u8])] = &[(1080, b"\x53\xef"), (1116, b"\x04\0\0\0\x46\0\0\0")];
const SWAP: &[(u64, &[u8])] = &[(4086, b"SWAPSPACE2")];

/// There is no am53c974 and no dc390: Linux 6.12 panics when their driver starts in qemu (a null pointer in
/// `esp_reset_cleanup`). The disk of an mptsas1068 does not appear beside the others; why is not known.
const DISKS: &[Disk] = &[
    disk("virtio-blk", &["virtio-blk-pci,drive=D"], LVM),
    disk("virtio-scsi", &["virtio-scsi-pci,id=h1", "scsi-hd,bus=h1.0,drive=D"], MD_0),
    disk("ahci", &["ide-hd,bus=ide.0,drive=D"], IMSM),
    disk("nvme", &["nvme,serial=nvme,drive=D"], MD_1),
    disk("megasas", &["megasas,id=h2", "scsi-hd,bus=h2.0,drive=D"], LUKS_1),
    disk("megasas-gen2", &["megasas-gen2,id=h3", "scsi-hd,bus=h3.0,drive=D"], LUKS_2),
    disk("lsi53c895a", &["lsi53c895a,id=h5", "scsi-hd,bus=h5.0,drive=D"], NTFS),
    disk("piix3-ide", &["piix3-ide,id=h6", "ide-hd,bus=h6.0,drive=D"], BITLOCKER),
    disk("pvscsi", &["pvscsi,id=h7", "scsi-hd,bus=h7.0,drive=D"], ZFS),
    disk("usb-storage", &["usb-storage,bus=x.0,drive=D"], XFS),
    disk("usb-uas", &["usb-uas,bus=x.0,id=h8", "scsi-hd,bus=h8.0,drive=D"], EXT4),
    disk("sdhci", &["sdhci-pci", "sd-card,drive=D"], SWAP),
];

/// Network cards.
const CARDS: &[&str] = &[
    "virtio-net-pci",
    "e1000",
    "e1000e",
    "rtl8139",
    "vmxnet3",
    "pcnet",
    "ne2k_pci",
    "tulip",
    "i82559er",
    "usb-net",
];

/// The trial of all of them.
pub(super) const TRIALS: &[Trial] = &[Trial {
    name: "hardware",
    tests: &[
        "virtio-blk",
        "virtio-scsi",
        "ahci",
        "nvme",
        "megasas",
        "megasas-gen2",
        "lsi53c895a",
        "piix3-ide",
        "pvscsi",
        "usb-storage",
        "usb-uas",
        "sdhci",
        "virtio-net-pci",
        "e1000",
        "e1000e",
        "rtl8139",
        "vmxnet3",
        "pcnet",
        "ne2k_pci",
        "tulip",
        "i82559er",
        "usb-net",
        "untouched",
    ],
    run,
}];

fn run(lab: &mut Lab<'_>, folder: &Path, results: &mut Results<'_>) -> Result<()> {
    let mut devices = vec!["-device".to_owned(), "qemu-xhci,id=x".to_owned()];
    let mut sums = Vec::new();
    for disk in DISKS {
        let image = disk.make(folder)?;
        sums.push(image::sha256(&image)?);
        devices.extend(disk.arguments(&image));
    }
    let mut ports = Vec::new();
    for (number, card) in CARDS.iter().enumerate() {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        devices.extend(arguments(card, number, port));
        ports.push(port);
    }
    let start = start(lab, folder)?;
    let mut machine = Machine::power_on(&start, &devices, folder, "hardware")?;
    let text = format!("lends {} disks", DISKS.len());
    machine.screen.shows("nvme connect-all -t tcp -a ", 0, BOOT)?;
    // What is missing then is named below.
    let _ = machine.screen.shows(&text, 0, DRIVERS);
    let program = &lab.maker.bench.program;
    let lent = lent(program, folder, *ports.first().context("no card")?)?;
    for (disk, sum) in DISKS.iter().zip(&sums) {
        let is_read = if lent.contains(sum) { Ok(()) } else { missing(disk.name) };
        results.decide(disk.name, is_read);
    }
    for (card, &port) in CARDS.iter().zip(&ports) {
        let read = read(program, folder, port, "vda");
        let first = sums.first().context("no disk")?;
        results.decide(card, read.and_then(|sum| same(first, &sum)));
    }
    let changes = machine.control()?.changes()?;
    machine.control()?.press_power()?;
    machine.until_off(SOON)?;
    results.decide("untouched", untouched(changes, folder, &sums));
    Ok(())
}

fn missing(name: &str) -> Result<()> {
    bail!("no disk that is lent has the contents of the one at {name}")
}

fn same(wanted: &str, found: &str) -> Result<()> {
    ensure!(wanted == found, "the disk has SHA-256 {wanted}, {found} was read");
    Ok(())
}

/// Checks the sum of qemu's counters, and the images after the machine's end.
fn untouched(changes: u64, folder: &Path, sums: &[String]) -> Result<()> {
    ensure!(changes == 0, "the machine has written to its disks {changes} times");
    for (disk, sum) in DISKS.iter().zip(sums) {
        let now = image::sha256(&disk.image(folder))?;
        ensure!(*sum == now, "the disk at {} has been changed", disk.name);
    }
    Ok(())
}

/// Returns the checksums of all disks that the machine lends.
fn lent(program: &Path, folder: &Path, port: u16) -> Result<Vec<String>> {
    let scsi = ('a'..='k').map(|letter| format!("sd{letter}"));
    let others = ["vda", "nvme0n1", "mmcblk0"].map(str::to_owned);
    let names: Vec<String> = others.into_iter().chain(scsi).collect();
    Ok(names.iter().filter_map(|name| read(program, folder, port, name).ok()).collect())
}

/// Copies a disk by storagetm; returns its checksum.
fn read(program: &Path, folder: &Path, port: u16, name: &str) -> Result<String> {
    let to = folder.join("copy");
    let mut program = Command::new(program);
    program.env("STATE_DIRECTORY", folder.join("state")).args(["copy", "--force", "--patience"]);
    program.arg("20").arg(format!("nvme://127.0.0.1:{port}/{name}")).arg(&to);
    succeed(&mut program)?;
    image::sha256(&to)
}

impl Disk {
    fn image(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.img", self.name))
    }

    /// Makes its image, which no other disk's is equal to.
    fn make(&self, folder: &Path) -> Result<PathBuf> {
        let path = self.image(folder);
        image::empty(&path, SIZE)?;
        let file = File::options().write(true).open(&path)?;
        file.write_all_at(self.name.as_bytes(), SIZE / 2)?;
        for (at, bytes) in self.contents {
            file.write_all_at(bytes, *at)?;
        }
        Ok(path)
    }

    fn arguments(&self, image: &Path) -> Vec<String> {
        let (name, image) = (self.name, image.display());
        let drive = format!("file={image},format=raw,if=none,id={name},cache=unsafe");
        let mut words = vec!["-drive".to_owned(), drive];
        for device in self.devices {
            words.extend([
                "-device".to_owned(),
                device.replace("drive=D", &format!("drive={name}")),
            ]);
        }
        words
    }
}

/// Returns the arguments for a card, in a network of its own, in which a port of this machine leads to it.
fn arguments(card: &str, number: usize, port: u16) -> [String; 4] {
    let net = format!("10.77.{number}");
    let network = format!(
        "user,id=n{number},restrict=on,net={net}.0/24,hostfwd=tcp:127.0.0.1:{port}-{net}.15:4420"
    );
    let place = if card == "usb-net" { ",bus=x.0" } else { ",romfile=" };
    let device = format!("{card},netdev=n{number},mac=52:54:00:00:01:{number:02x}{place}");
    ["-netdev".to_owned(), network, "-device".to_owned(), device]
}

/// Returns how to start it: with the kernel of real machines, whose image has the drivers of all.
fn start(lab: &Lab<'_>, folder: &Path) -> Result<Start> {
    let (bench, architecture) = (lab.maker.bench, Architecture::X86_64);
    let initramfs = folder.join("hardware.cpio");
    let mut program = Command::new(&bench.program);
    program.args(Pieces::in_cache(&bench.cache, architecture)?.image(&bench.program));
    succeed(program.arg("--initramfs").arg(&initramfs)).context("storagetm image --initramfs")?;
    let kernel = Cache::boot_image_in(&bench.cache.whole_kernel(architecture)?)?;
    let line = lab.maker.command_line(&format!("{OPEN} ip=dhcp"));
    Ok(Start::Direct { kernel, initramfs, line })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_controller_and_card_is_a_test() {
        let devices = DISKS.iter().map(|disk| disk.name).chain(CARDS.iter().copied());
        let names: Vec<&str> = devices.chain(["untouched"]).collect();
        assert_eq!(TRIALS[0].tests, names);
    }
}
