//! The key `u` of a machine in target mode, by a device controller that its kernel emulates
//! (`dummy_hcd`), whose host is the same kernel: the machine's disks appear on it once more.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use image::cpio::Archive;

use super::Lab;
use super::disks::Disks;
use super::machine::{Machine, Start};
use super::trial::{BOOT, SOON};
use super::ways::{OPEN, modules};
use crate::architecture::Architecture;
use crate::vm::apt::succeed;
use crate::vm::cache::{Cache, WHOLE};
use crate::vm::case::Results;
use crate::vm::initramfs::{add_busybox, add_modules};

/// Loads the emulated controller, which no hardware announces, before the machine's first program.
const FIRST: &str = "#!/busybox/busybox sh
while read -r module; do /busybox/busybox insmod $module; done </modules/order
exec /init
";

/// Presses the key, finds a disk at the host, and presses it again.
pub(super) fn trial(lab: &mut Lab<'_>, folder: &Path, results: &mut Results<'_>) -> Result<()> {
    let start = start(lab, folder)?;
    let disks = Disks::make(folder)?;
    let mut machine = Machine::power_on(&start, &disks.devices(), folder, "usb")?;
    machine.screen.shows("u USB", 0, BOOT)?;
    let since = press(&mut machine)?;
    let used = machine.screen.shows("the other computer uses the disks", since, SOON);
    results.decide("key-serves", used.map(drop));
    let appears = machine.screen.shows("STORAGTM", since, SOON);
    results.decide("disk-appears", appears.map(drop));
    let shown = machine.screen.shows("read-only  USB", since, SOON);
    results.decide("shown-attached", shown.map(drop));
    press(&mut machine)?;
    machine.screen.shows("to unplug the USB port", since, SOON)?;
    let since = press(&mut machine)?;
    results.decide("key-ends", machine.screen.shows("u USB", since, SOON).map(drop));
    results.decide("read-only", disks.unchanged());
    Ok(())
}

/// Presses `u`. Returns the number of lines before.
fn press(machine: &mut Machine) -> Result<usize> {
    // A key that follows another one at once may be taken for a control sequence.
    std::thread::sleep(Duration::from_millis(500));
    let since = machine.screen.now();
    machine.type_key("u")?;
    Ok(since)
}

/// The kernel with the drivers of real machines, and an image with them.
fn start(lab: &Lab<'_>, folder: &Path) -> Result<Start> {
    let bench = lab.maker.bench;
    let whole = bench.cache.whole_kernel(Architecture::X86_64)?;
    let kernel = Cache::boot_image_in(&whole)?;
    let to = folder.join("usb.cpio");
    let mut program = Command::new(&bench.program);
    program.args(["image", "--no-firmware", "--force", "--for", "generic", "--kernel"]);
    program.arg(&kernel).arg("--modules").arg(modules(&bench.cache, &whole)?);
    succeed(program.arg("--initramfs").arg(&to)).context("storagetm image --initramfs")?;
    let initramfs = with_controller(lab, &whole, &to)?;
    let line = lab.maker.command_line(&format!("{OPEN} rdinit=/first"));
    Ok(Start::Direct { kernel, initramfs, line })
}

/// Adds the controller to an initramfs.
fn with_controller(lab: &Lab<'_>, kernel: &Path, initramfs: &Path) -> Result<PathBuf> {
    let mut archive = Archive::default();
    archive.directory("modules");
    archive.directory("busybox");
    add_busybox(&mut archive, &lab.maker.bench.cache.tools(&WHOLE))?;
    add_modules(&mut archive, kernel, &["dummy_hcd"])?;
    archive.program("first", FIRST.as_bytes());
    let mut bytes = fs::read(initramfs)?;
    // The kernel finds the next archive at a multiple of four.
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(archive.finish());
    fs::write(initramfs, bytes)?;
    Ok(initramfs.to_owned())
}
