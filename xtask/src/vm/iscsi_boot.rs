//! Scenario: a machine with UEFI firmware and no disk boots a system from a disk that storagetm lends
//! by iSCSI: iPXE starts the kernel image that is in the disk's EFI system partition, and the kernel
//! attaches the same disk by the table that iPXE leaves in memory (iBFT).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};
use image::disk::{Contents, Disk};
use image::files::Files;

use super::Bench;
use super::cache::Kernel;
use super::case::{Results, Scenario};
use super::guest::{self, Guest};
use super::image::{MIB, bootable, ext4};
use super::initramfs::{self, Job};
use super::ipxe;
use super::iscsi::iqn;
use super::target::Target;

/// A run takes about a minute on two cores; limits a guest that hangs.
const PATIENCE: Duration = Duration::from_secs(600);
/// What UEFI starts of a medium that has no boot entry.
const PROGRAM: &str = "EFI/BOOT/BOOTX64.EFI";
const ROOT_BYTES: u64 = 16 * MIB;
const ROOT_UUID: &str = "0f4bb0ce-6c5b-4d41-9f0e-8a0c52b1d7aa";
pub(super) fn scenario() -> Scenario {
    Scenario {
        name: "iscsi-boot",
        kernels: &["6.12"],
        newest: &[],
        on_host: &["ibft-names-target", "written"],
        run,
    }
}

fn run(
    bench: &Bench,
    kernel: &'static Kernel,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<()> {
    let disk = folder.join("system.img");
    system(bench, kernel, folder, &disk, results.names())?;
    let (values, wanted) = boot(bench, folder, "--writable", &disk, results)?;
    results.decide(
        "ibft-names-target",
        match values.get("ibft") {
            Some(found) if *found == wanted => Ok(()),
            found => Err(anyhow!("iBFT: expected {wanted:?}, found {found:?}")),
        },
    );
    results.decide("written", written(&disk));
    Ok(())
}

/// Lends the disk with this option, and boots a machine from it. Returns the values that the guest
/// reported, and what it must have found in the iBFT.
pub(super) fn boot(
    bench: &Bench,
    folder: &Path,
    option: &str,
    disk: &Path,
    results: &mut Results<'_>,
) -> Result<(BTreeMap<String, String>, String)> {
    let arguments = ["--protocol", "iscsi", option, &disk.display().to_string()];
    let arguments = arguments.map(str::to_owned).to_vec();
    let mut target = Target::start(&bench.program, arguments, folder.join("storagetm.log"))?;
    let (port, name) = (target.port()?, iqn(&target.events()?.lent(), disk)?);
    let mut guest = power_on(bench, folder, &ipxe::network(folder, port, &name)?)?;
    let values = results.follow(&guest.console, PATIENCE, |_, what| {
        bail!("the guest asks for {what}, an unknown request")
    })?;
    guest.wait(Duration::from_secs(90))?;
    Ok((values, format!("{name} 10.0.2.2 {port} {}", ipxe::INITIATOR)))
}

/// Writes the lent disk: a unified kernel image with the tests, and a root file system.
pub(super) fn system(
    bench: &Bench,
    kernel: &Kernel,
    folder: &Path,
    to: &Path,
    wanted: String,
) -> Result<()> {
    let interface = "10.0.2.15/24".to_owned();
    let job = Job {
        scenario: "iscsi-boot",
        role: "client",
        variables: vec![
            ("wanted", wanted),
            ("interface", interface),
            ("root_uuid", ROOT_UUID.to_owned()),
        ],
        files: Vec::new(),
        extra: Some(&initramfs::ISCSI_BOOT),
    };
    let initramfs = folder.join("initramfs.cpio");
    initramfs::write(bench, kernel, &job, &initramfs)?;
    let packages = firmware(bench)?;
    let program = image::efi::make(&image::efi::Parts {
        stub: &fs::read(packages.join("usr/lib/systemd/boot/efi/linuxx64.efi.stub"))?,
        kernel: &image::kernel::Kernel::parse(&fs::read(bench.cache.boot_image(kernel)?)?)?,
        initramfs: &fs::read(initramfs)?,
        command_line: guest::COMMAND_LINE,
        os_release: "ID=test\nPRETTY_NAME=Test\n",
    })?;
    let root = folder.join("root");
    fs::create_dir_all(&root)?;
    fs::write(root.join("greeting"), "root of the lent disk\n")?;
    let volume = folder.join("root.img");
    ext4(&bench.cache.tools(kernel), &root, (ROOT_BYTES, ROOT_UUID), &volume)?;
    let mut files = Files::default();
    files.add(PROGRAM, program);
    bootable(files, &volume, to)
}

/// Returns the unpacked packages of the firmware and of systemd's stub.
fn firmware(bench: &Bench) -> Result<PathBuf> {
    bench.cache.packages("firmware", &["ovmf", "systemd-boot-efi"])
}

/// Starts a machine with UEFI and this network whose only disk is a stick with iPXE.
fn power_on(bench: &Bench, folder: &Path, network: &[String]) -> Result<Guest> {
    let mut files = Files::default();
    files.add(PROGRAM, fs::read(ipxe::program(bench, "ipxe-amd64.efi")?)?);
    let stick = folder.join("stick.img");
    fs::write(&stick, Disk::image(&Contents { files, bios: None, iso: false })?.whole())?;
    let variables = folder.join("variables");
    let packages = firmware(bench)?.join("usr/share/OVMF");
    fs::copy(packages.join("OVMF_VARS_4M.fd"), &variables)?;
    let code = packages.join("OVMF_CODE_4M.fd");
    let mut arguments = guest::machine().map(str::to_owned).to_vec();
    for drive in [
        format!("if=pflash,format=raw,unit=0,readonly=on,file={}", code.display()),
        format!("if=pflash,format=raw,unit=1,file={}", variables.display()),
        format!("if=none,format=raw,id=stick,readonly=on,file={}", stick.display()),
    ] {
        arguments.extend(["-drive".to_owned(), drive]);
    }
    let usb = "-device qemu-xhci -device usb-storage,drive=stick,bootindex=1";
    arguments.extend(usb.split(' ').map(str::to_owned));
    arguments.extend_from_slice(network);
    Guest::power_on(folder, "client", &arguments)
}

/// Checks that the lent disk has what the system wrote to its root.
fn written(disk: &Path) -> Result<()> {
    let bytes = fs::read(disk)?;
    let text = b"written by the system that booted from it";
    ensure!(bytes.windows(text.len()).any(|window| window == text), "the disk has nothing of it");
    Ok(())
}
