//! Sticks and CDs on machines with each kind of firmware: a matrix.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Lab;
use super::client::same;
use super::disks::Disks;
use super::lines::code;
use super::machine::{Bus, Flash, Machine, Start, emulator};
use super::pieces::Pieces;
use super::trial::{BOOT, SOON, Trial, untouched};
use super::ways::{OPEN, QUIET};
use crate::architecture::Architecture;
use crate::cross;
use crate::vm::apt::succeed;
use crate::vm::case::Results;
use crate::vm::image;

/// Firmware, in Debian's packages for PCs and for ARM64.
const PC_FIRMWARE: &[&str] = &["ovmf", "ovmf-ia32"];
const ARM_FIRMWARE: &[&str] = &["qemu-efi-aarch64"];

/// The address that qemu forwards a port of this machine to.
const ADDRESS: &str = "ip=10.0.2.15::10.0.2.2:255.255.255.0::eth0:none";

/// A kind of firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Firmware {
    /// With Microsoft's keys.
    SecureBoot,
    Uefi,
    Uefi32,
    Bios,
    /// UEFI of ARM64 with Microsoft's keys.
    ArmSecureBoot,
    Arm,
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
    /// The same, of a machine that demands keys.
    Keyed,
    /// A CD with all loaders.
    Iso,
}

/// The result that a row requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// The machine lends its two disks, and not the medium.
    Lends,
    /// The same, and this machine reads both disks over the network.
    IsCopied,
    /// The same, after pairing by the code on the screen: over TLS.
    IsPaired,
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
    Row {
        wanted: Wanted::IsCopied,
        ..row("arm64-secure-boot-usb-512", Firmware::ArmSecureBoot, Medium::Stick, Bus::Usb(512))
    },
    row("arm64-secure-boot-usb-cd", Firmware::ArmSecureBoot, Medium::Iso, Bus::UsbCd),
    row("arm64-uefi-usb-512", Firmware::Arm, Medium::Stick, Bus::Usb(512)),
    Row {
        wanted: Wanted::IsCopied,
        ..row("arm64-uefi-unsigned", Firmware::Arm, Medium::Unsigned, Bus::Virtio)
    },
    Row {
        wanted: Wanted::IsPaired,
        ..row("arm64-uefi-keyed", Firmware::Arm, Medium::Keyed, Bus::Virtio)
    },
];

/// Rows that are not booted, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("amd64 BIOS, USB, 4096-byte blocks", "no BIOS starts from such a disk"),
    ("amd64 32-bit UEFI with Secure Boot", "Debian has no signed loader for it"),
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
        "arm64-secure-boot-usb-512",
        "arm64-secure-boot-usb-cd",
        "arm64-uefi-usb-512",
        "arm64-uefi-unsigned",
        "arm64-uefi-keyed",
    ],
    run,
}];

impl Firmware {
    fn architecture(self) -> Architecture {
        match self {
            Self::SecureBoot | Self::Uefi | Self::Uefi32 | Self::Bios => Architecture::X86_64,
            Self::ArmSecureBoot | Self::Arm => Architecture::Aarch64,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::SecureBoot | Self::ArmSecureBoot => "UEFI, Secure Boot",
            Self::Uefi | Self::Arm => "UEFI",
            Self::Uefi32 => "UEFI, 32 bits",
            Self::Bios => "BIOS",
        }
    }

    /// Returns EDK2, from this folder of packages; `None` for the BIOS that qemu has.
    fn flash(self, packages: &Path) -> Option<Flash> {
        let (code, variables) = match self {
            Self::SecureBoot => ("OVMF/OVMF_CODE_4M.secboot.fd", "OVMF/OVMF_VARS_4M.ms.fd"),
            Self::Uefi => ("OVMF/OVMF_CODE_4M.fd", "OVMF/OVMF_VARS_4M.fd"),
            Self::Uefi32 => ("OVMF/OVMF32_CODE_4M.fd", "OVMF/OVMF32_VARS_4M.fd"),
            Self::ArmSecureBoot => ("AAVMF/AAVMF_CODE.secboot.fd", "AAVMF/AAVMF_VARS.ms.fd"),
            Self::Arm => ("AAVMF/AAVMF_CODE.no-secboot.fd", "AAVMF/AAVMF_VARS.fd"),
            Self::Bios => return None,
        };
        let file = |name: &str| packages.join("usr/share").join(name);
        let is_protected = self == Self::SecureBoot;
        Some(Flash { code: file(code), variables: file(variables), is_protected })
    }
}

/// Boots every selected row, and prints the matrix.
fn run(lab: &mut Lab<'_>, folder: &Path, results: &mut Results<'_>) -> Result<()> {
    let selected = results.names();
    let selected: Vec<&str> = selected.split(' ').collect();
    let mut media = Media { lab, folder, made: BTreeMap::new() };
    let mut matrix = Vec::new();
    for row in ROWS.iter().filter(|row| selected.contains(&row.name)) {
        let architecture = row.firmware.architecture();
        let title = format!("{} {}", architecture.debian(), row.title());
        if let Some(reason) = media.missing(architecture) {
            matrix.push((title, reason.clone()));
            results.skip(row.name, &reason);
            continue;
        }
        let outcome = media.boot(row);
        let cell = match &outcome {
            Ok(time) => format!("passed, {:.1} s", time.as_secs_f64()),
            Err(error) => format!("FAILED: {error:#}"),
        };
        matrix.push((title, cell));
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
            (Medium::Keyed, _) => ", unsigned, with keys",
            (Medium::Unsigned, Wanted::Lends | Wanted::IsCopied | Wanted::IsPaired) => ", unsigned",
            (Medium::Unsigned, Wanted::Refused(_)) => ", unsigned: refused",
            (Medium::Iso, _) => ", ISO",
        };
        format!("{}, {bus}{medium}", self.firmware.name())
    }
}

/// The media, each made when it is first needed.
struct Media<'a, 'b> {
    lab: &'a Lab<'b>,
    folder: &'a Path,
    made: BTreeMap<(&'static str, Medium), PathBuf>,
}

impl Media<'_, '_> {
    /// Returns why machines of an architecture cannot be booted here, if so.
    fn missing(&self, architecture: Architecture) -> Option<String> {
        let emulator = emulator(architecture);
        if !programs::is_installed(&emulator) {
            return Some(format!("{}{emulator}", programs::NOT_INSTALLED));
        }
        let is_named = architecture == Architecture::X86_64 || self.lab.arm_program.is_some();
        if is_named { None } else { cross::missing(architecture) }
    }

    /// Boots a machine from a medium; returns the time until a line to attach is on its screen.
    fn boot(&mut self, row: &Row) -> Result<Duration> {
        let architecture = row.firmware.architecture();
        let medium = self.get(architecture, row.medium)?.to_owned();
        let disks = Disks::make(self.folder)?;
        let port = free_port()?;
        let mut devices = disks.devices();
        let forward =
            format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:4420");
        devices.extend(["-netdev", &forward].map(str::to_owned));
        devices.extend(["-device", "virtio-net-pci,netdev=net,romfile="].map(str::to_owned));
        let flash = row.firmware.flash(&self.firmware(architecture)?);
        let start = Start::Firmware { architecture, flash, medium, bus: row.bus };
        let mut machine = Machine::power_on(&start, &devices, self.folder, row.name)?;
        if let Wanted::Refused(text) = row.wanted {
            return machine.screen.shows(text, 0, BOOT);
        }
        let shown = machine.screen.shows("nvme connect-all -t tcp -a ", 0, BOOT)?;
        machine.screen.shows("this machine lends 2 disks", 0, SOON)?;
        if matches!(row.bus, Bus::Usb(_)) {
            machine.screen.shows("a stick that boots into target mode", 0, SOON)?;
        }
        let more = machine.screen.shows("this machine lends 3 disks", 0, Duration::from_secs(2));
        ensure!(more.is_err(), "the boot medium is lent, too");
        if row.wanted != Wanted::Lends {
            is_complete(&mut machine)?;
        }
        match row.wanted {
            Wanted::IsPaired => {
                let (_, code) = machine.screen.find("a code", 0, SOON, code)?;
                self.pair(port, &code)?;
                self.copy(row.bus, port, &disks)?;
            }
            Wanted::IsCopied => self.copy(row.bus, port, &disks)?,
            Wanted::Lends | Wanted::Refused(_) => {}
        }
        untouched(&machine, &disks)?;
        Ok(shown)
    }

    /// Pairs with a machine by the code on its screen.
    fn pair(&self, port: u16, code: &str) -> Result<()> {
        let file = self.folder.join("code");
        fs::write(&file, code)?;
        let mut program = self.program();
        program.args(["pair", &format!("127.0.0.1:{port}"), "--name", "tests", "--code-file"]);
        succeed(program.arg(file)).context("storagetm pair").map(drop)
    }

    /// Returns a command for storagetm on this machine, with its keys in the folder of the test.
    fn program(&self) -> Command {
        let mut program = Command::new(&self.lab.maker.bench.program);
        program.env("STATE_DIRECTORY", self.folder.join("state"));
        program
    }

    /// Reads both disks by storagetm, and compares them.
    fn copy(&self, bus: Bus, port: u16, disks: &Disks) -> Result<()> {
        let mut sums = Vec::new();
        // The boot medium may come before the disks.
        let first = if bus == Bus::Virtio { "vdb" } else { "vda" };
        for name in [first, "nvme0n1"] {
            let to = self.folder.join(format!("{name}.copy"));
            let mut program = self.program();
            program.args(["copy", "--force"]).arg(format!("nvme://127.0.0.1:{port}/{name}"));
            succeed(program.arg(&to)).with_context(|| format!("storagetm copy of {name}"))?;
            sums.push(image::sha256(&to)?);
        }
        sums.sort();
        same(disks.sums(), &sums)
    }

    fn firmware(&self, architecture: Architecture) -> Result<PathBuf> {
        let packages = match architecture {
            Architecture::X86_64 => PC_FIRMWARE,
            Architecture::Aarch64 => ARM_FIRMWARE,
        };
        self.lab.maker.bench.cache.pieces("firmware", architecture, packages)
    }

    fn get(&mut self, architecture: Architecture, medium: Medium) -> Result<&Path> {
        let key = (architecture.debian(), medium);
        if !self.made.contains_key(&key) {
            let path = self.make(architecture, medium)?;
            self.made.insert(key, path);
        }
        self.made.get(&key).map(PathBuf::as_path).context("a medium was not made")
    }

    fn make(&self, architecture: Architecture, medium: Medium) -> Result<PathBuf> {
        let (form, name, loader) = match medium {
            Medium::Stick => ("--disk", "stick.img", "shim"),
            Medium::Iso => ("--iso", "stick.iso", "shim"),
            Medium::Unsigned => ("--disk", "unsigned.img", "stub"),
            Medium::Keyed => ("--disk", "keyed.img", "stub"),
            Medium::Stick4096 => ("--disk", "stick-4096.img", "shim"),
        };
        let path = self.folder.join(format!("{}-{name}", architecture.debian()));
        let (bench, open) = (self.lab.maker.bench, if medium == Medium::Keyed { "" } else { OPEN });
        let pieces = Pieces::in_cache(&bench.cache, architecture)?;
        let inside = match architecture {
            Architecture::X86_64 => bench.program.clone(),
            Architecture::Aarch64 => self.arm_program()?,
        };
        let mut program = Command::new(&bench.program);
        program.args(pieces.image(&inside)).args(pieces.loaders()).args(pieces.stub());
        program.args(["--loader", loader, "--command-line"]);
        program.arg(self.command_line(architecture, open)).arg(form);
        if medium == Medium::Stick4096 {
            File::create(&path)?.set_len(512 << 20)?;
            let device = Loop::attach(&path)?;
            succeed(program.arg(&device.0))
        } else {
            succeed(program.arg(&path))
        }
        .with_context(|| format!("storagetm image {form}"))?;
        Ok(path)
    }

    fn command_line(&self, architecture: Architecture, more: &str) -> String {
        match architecture {
            Architecture::X86_64 => self.lab.maker.command_line(more),
            Architecture::Aarch64 => format!("console=ttyAMA0 {QUIET} {ADDRESS} {more}"),
        }
    }

    fn arm_program(&self) -> Result<PathBuf> {
        match &self.lab.arm_program {
            Some(program) => Ok(program.clone()),
            None => cross::build(Architecture::Aarch64),
        }
    }
}

/// Checks that the screen names no part of the sandbox as missing, and no slower driver than io_uring.
fn is_complete(machine: &mut Machine) -> Result<()> {
    for text in ["less confined than it could be", "this is slower"] {
        let found = machine.screen.shows(text, 0, Duration::ZERO);
        ensure!(found.is_err(), "the screen shows: {text}");
    }
    Ok(())
}

/// Returns a port on which nothing listens now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
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
