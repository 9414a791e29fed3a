//! Sticks and CDs on machines with each kind of firmware: a matrix.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Lab;
use super::disks::Disks;
use super::lines::attach_line;
use super::machine::{Bus, Flash, Machine, Start};
use super::trial::{BOOT, SOON, Trial, untouched};
use super::ways::{OPEN, modules};
use crate::vm::Bench;
use crate::vm::apt::succeed;
use crate::vm::cache::Cache;
use crate::vm::case::Results;

/// Boot loaders and firmware, in Debian's packages.
const PACKAGES: &[&str] = &[
    "grub-efi-amd64-signed",
    "grub-efi-ia32-unsigned",
    "grub-pc-bin",
    "ovmf",
    "ovmf-ia32",
    "shim-helpers-amd64-signed",
    "shim-signed",
    "systemd-boot-efi",
];

/// A kind of firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Firmware {
    /// With Microsoft's keys.
    SecureBoot,
    Uefi,
    Uefi32,
    Bios,
}

/// The medium that a machine boots from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Medium {
    /// A stick with all loaders.
    Stick,
    /// The same for blocks of 4096 bytes.
    Stick4096,
    /// A stick whose program for UEFI is not signed.
    Unsigned,
    /// A CD with all loaders.
    Iso,
}

/// The result that a row requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// The machine lends its two disks, and not the medium.
    Lends,
    /// The firmware shows this, and starts nothing.
    Refused(&'static str),
}

#[derive(Debug)]
struct Row {
    name: &'static str,
    firmware: Firmware,
    medium: Medium,
    bus: Bus,
    wanted: Wanted,
}

const fn row(name: &'static str, firmware: Firmware, medium: Medium, bus: Bus) -> Row {
    Row { name, firmware, medium, bus, wanted: Wanted::Lends }
}

const ROWS: &[Row] = &[
    row("secure-boot-usb-512", Firmware::SecureBoot, Medium::Stick, Bus::Usb(512)),
    row("secure-boot-usb-4096", Firmware::SecureBoot, Medium::Stick4096, Bus::Usb(4096)),
    row("secure-boot-usb-cd", Firmware::SecureBoot, Medium::Iso, Bus::UsbCd),
    row("secure-boot-sata-cd", Firmware::SecureBoot, Medium::Iso, Bus::SataCd),
    row("secure-boot-iso-on-usb", Firmware::SecureBoot, Medium::Iso, Bus::Usb(512)),
    Row {
        wanted: Wanted::Refused("Access Denied"),
        ..row("secure-boot-unsigned", Firmware::SecureBoot, Medium::Unsigned, Bus::Usb(512))
    },
    row("uefi-usb-512", Firmware::Uefi, Medium::Stick, Bus::Usb(512)),
    row("uefi-usb-4096", Firmware::Uefi, Medium::Stick4096, Bus::Usb(4096)),
    row("uefi-usb-cd", Firmware::Uefi, Medium::Iso, Bus::UsbCd),
    row("uefi-unsigned", Firmware::Uefi, Medium::Unsigned, Bus::Usb(512)),
    row("uefi32-usb-512", Firmware::Uefi32, Medium::Stick, Bus::Usb(512)),
    row("uefi32-sata-cd", Firmware::Uefi32, Medium::Iso, Bus::SataCd),
    row("bios-usb-512", Firmware::Bios, Medium::Stick, Bus::Usb(512)),
    row("bios-usb-cd", Firmware::Bios, Medium::Iso, Bus::UsbCd),
    row("bios-sata-cd", Firmware::Bios, Medium::Iso, Bus::SataCd),
    row("bios-iso-on-usb", Firmware::Bios, Medium::Iso, Bus::Usb(512)),
    row("bios-unsigned", Firmware::Bios, Medium::Unsigned, Bus::Usb(512)),
];

/// Rows that are not booted, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("amd64 BIOS, USB, 4096-byte blocks", "no BIOS starts from such a disk"),
    ("amd64 32-bit UEFI with Secure Boot", "Debian has no signed loader for it"),
    ("arm64", "storagetm image makes images for 64-bit PCs only"),
];

/// The trial of all rows.
pub(super) const TRIALS: &[Trial] = &[Trial {
    name: "machines",
    tests: &[
        "secure-boot-usb-512",
        "secure-boot-usb-4096",
        "secure-boot-usb-cd",
        "secure-boot-sata-cd",
        "secure-boot-iso-on-usb",
        "secure-boot-unsigned",
        "uefi-usb-512",
        "uefi-usb-4096",
        "uefi-usb-cd",
        "uefi-unsigned",
        "uefi32-usb-512",
        "uefi32-sata-cd",
        "bios-usb-512",
        "bios-usb-cd",
        "bios-sata-cd",
        "bios-iso-on-usb",
        "bios-unsigned",
    ],
    run,
}];

impl Firmware {
    fn name(self) -> &'static str {
        match self {
            Self::SecureBoot => "UEFI, Secure Boot",
            Self::Uefi => "UEFI",
            Self::Uefi32 => "UEFI, 32 bits",
            Self::Bios => "BIOS",
        }
    }

    /// Returns OVMF, from this folder of packages; `None` for the BIOS that qemu has.
    fn flash(self, packages: &Path) -> Option<Flash> {
        let (code, variables) = match self {
            Self::SecureBoot => ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"),
            Self::Uefi => ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
            Self::Uefi32 => ("OVMF32_CODE_4M.fd", "OVMF32_VARS_4M.fd"),
            Self::Bios => return None,
        };
        let file = |name: &str| packages.join("usr/share/OVMF").join(name);
        let is_protected = self == Self::SecureBoot;
        Some(Flash { code: file(code), variables: file(variables), is_protected })
    }
}

/// Boots every selected row, and prints the matrix.
fn run(lab: &mut Lab<'_>, folder: &Path, results: &mut Results<'_>) -> Result<()> {
    let packages = lab.maker.bench.cache.pieces("machines", PACKAGES)?;
    let selected = results.names();
    let selected: Vec<&str> = selected.split(' ').collect();
    let mut media = Media { lab, packages: &packages, folder, made: BTreeMap::new() };
    let mut matrix = Vec::new();
    for row in ROWS.iter().filter(|row| selected.contains(&row.name)) {
        let outcome = media.get(row.medium).and_then(|medium| boot(row, medium, &packages, folder));
        let cell = match &outcome {
            Ok(time) => format!("passed, {:.1} s", time.as_secs_f64()),
            Err(error) => format!("FAILED: {error:#}"),
        };
        matrix.push((format!("amd64 {}", row.title()), cell));
        results.decide(row.name, outcome.map(drop));
    }
    let reasons = LEFT_OUT.iter().map(|(row, reason)| ((*row).to_owned(), (*reason).to_owned()));
    for (row, cell) in matrix.into_iter().chain(reasons) {
        println!("# {row:58} {cell}");
    }
    Ok(())
}

impl Row {
    fn title(&self) -> String {
        let bus = match self.bus {
            Bus::Virtio => "virtio".to_owned(),
            Bus::Usb(block) => format!("USB, {block}-byte blocks"),
            Bus::UsbCd => "USB CD drive".to_owned(),
            Bus::SataCd => "SATA CD drive".to_owned(),
        };
        let medium = match (self.medium, self.wanted) {
            (Medium::Stick | Medium::Stick4096, _) => "",
            (Medium::Unsigned, Wanted::Lends) => ", unsigned",
            (Medium::Unsigned, Wanted::Refused(_)) => ", unsigned: refused",
            (Medium::Iso, _) => ", ISO",
        };
        format!("{}, {bus}{medium}", self.firmware.name())
    }
}

/// Boots a machine from a medium; returns the time until a line to attach is on its screen.
fn boot(row: &Row, medium: &Path, packages: &Path, folder: &Path) -> Result<Duration> {
    let disks = Disks::make(folder)?;
    let mut devices = disks.devices();
    devices.extend(["-netdev", "user,id=net,restrict=on"].map(str::to_owned));
    devices.extend(["-device", "virtio-net-pci,netdev=net,romfile="].map(str::to_owned));
    let flash = row.firmware.flash(packages);
    let start = Start::Firmware { flash, medium: medium.to_owned(), bus: row.bus };
    let mut machine = Machine::power_on(&start, &devices, folder, row.name)?;
    if let Wanted::Refused(text) = row.wanted {
        return machine.screen.shows(text, 0, BOOT);
    }
    let (shown, _) = machine.screen.find("a line to attach", 0, BOOT, attach_line)?;
    machine.screen.shows("this machine lends 2 disks", 0, SOON)?;
    if matches!(row.bus, Bus::Usb(_)) {
        machine.screen.shows("a stick that boots into target mode", 0, SOON)?;
    }
    let more = machine.screen.shows("this machine lends 3 disks", 0, Duration::from_secs(2));
    ensure!(more.is_err(), "the boot medium is lent, too");
    untouched(&machine, &disks)?;
    Ok(shown)
}

/// The media, each made when it is first needed.
struct Media<'a, 'b> {
    lab: &'a Lab<'b>,
    packages: &'a Path,
    folder: &'a Path,
    made: BTreeMap<Medium, PathBuf>,
}

impl Media<'_, '_> {
    fn get(&mut self, medium: Medium) -> Result<&Path> {
        if !self.made.contains_key(&medium) {
            let path = self.make(medium)?;
            self.made.insert(medium, path);
        }
        self.made.get(&medium).map(PathBuf::as_path).context("a medium was not made")
    }

    fn make(&self, medium: Medium) -> Result<PathBuf> {
        let bench = self.lab.maker.bench;
        let to = |name: &str| self.folder.join(name);
        match medium {
            Medium::Stick => self.image(bench, "--disk", &to("stick.img"), &[]),
            Medium::Iso => self.image(bench, "--iso", &to("stick.iso"), &[]),
            Medium::Unsigned => {
                self.image(bench, "--disk", &to("unsigned.img"), &["--loader", "stub"])
            }
            Medium::Stick4096 => {
                let path = to("stick-4096.img");
                File::create(&path)?.set_len(512 << 20)?;
                let device = Loop::attach(&path)?;
                self.image(bench, "--disk", &device.0, &["--force"])?;
                Ok(path)
            }
        }
    }

    /// Builds an image by storagetm.
    fn image(&self, bench: &Bench, form: &str, to: &Path, more: &[&str]) -> Result<PathBuf> {
        let kernel = bench.cache.whole_kernel()?;
        let mut program = Command::new(&bench.program);
        program.args(["image", "--kernel"]).arg(Cache::boot_image_in(&kernel)?);
        program.arg("--modules").arg(modules(bench, &kernel)?);
        program.arg("--loader-files").arg(self.packages);
        let stub = self.packages.join("usr/lib/systemd/boot/efi/linuxx64.efi.stub");
        program.arg("--stub").arg(stub).args(["--no-firmware", "--command-line"]);
        program.arg(self.lab.maker.command_line(OPEN)).args(more);
        succeed(program.arg(form).arg(to)).with_context(|| format!("storagetm image {form}"))?;
        Ok(to.to_owned())
    }
}

/// A loop device with blocks of 4096 bytes; detached on drop.
struct Loop(PathBuf);

impl Loop {
    fn attach(file: &Path) -> Result<Self> {
        let mut losetup = programs::command("losetup");
        losetup.args(["--find", "--show", "--sector-size", "4096"]).arg(file);
        let device = succeed(&mut losetup).context("a disk with blocks of 4096 bytes")?;
        Ok(Self(PathBuf::from(device.trim())))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = programs::command("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_matrix_is_a_test() {
        let rows: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        assert_eq!(TRIALS[0].tests, rows);
    }
}
