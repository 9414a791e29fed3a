//! Overlays in target mode: by a boot parameter and by a key.

use std::path::Path;

use anyhow::{Result, ensure};

use super::Lab;
use super::disks::Disks;
use super::lines::attach_line;
use super::machine::{Machine, network_card};
use super::trial::{BOOT, SOON};
use super::ways::{OPEN, Way};
use crate::vm::case::Results;

/// `storagetm.overlay=` gives that disk an overlay: it is written, and its image is not changed.
pub(super) fn parameter(lab: &mut Lab<'_>, folder: &Path, results: &mut Results<'_>) -> Result<()> {
    let setting = format!("storagetm.overlay={}", Disks::VIRTIO);
    let disks = Disks::make(folder)?;
    let mut machine = power_on(lab, folder, &disks, &setting)?;
    let wanted = [format!("{}:ro", Disks::NVME_SIZE), format!("{}:rw", Disks::VIRTIO_SIZE)];
    let outcome = written(lab, &mut machine, &disks, |found| found == wanted);
    results.decide("parameter", outcome);
    Ok(())
}

/// The key `v` gives the selected disk an overlay; without it both are read-only.
pub(super) fn key(lab: &mut Lab<'_>, folder: &Path, results: &mut Results<'_>) -> Result<()> {
    let disks = Disks::make(folder)?;
    let mut machine = power_on(lab, folder, &disks, "")?;
    let (_, line) = machine.screen.find("a line to attach", 0, BOOT, attach_line)?;
    lab.client()?.attach(&line, 2)?;
    let protection = lab.client()?.protection()?;
    lab.client()?.detach()?;
    ensure!(protection.iter().all(|disk| disk.ends_with(":ro")), "found {protection:?}");
    let since = machine.screen.now();
    machine.type_key("v")?;
    machine.screen.shows("what hosts write to", since, SOON)?;
    let is_one = |found: &[String]| found.iter().filter(|it| it.ends_with(":rw")).count() == 1;
    results.decide("key", written(lab, &mut machine, &disks, is_one));
    Ok(())
}

fn power_on(lab: &mut Lab<'_>, folder: &Path, disks: &Disks, line: &str) -> Result<Machine> {
    let start = lab.maker.start(Way::Init, &format!("{OPEN} {line}"))?;
    lab.client()?;
    let mut devices = disks.devices();
    devices.extend(network_card(lab.maker.folder));
    Machine::power_on(&start, &devices, folder, "overlay")
}

/// Attaches both disks and writes to the writable one: the screen shows what is kept, and that no disk
/// was written to; the images are unchanged.
fn written(
    lab: &mut Lab<'_>,
    machine: &mut Machine,
    disks: &Disks,
    is_protected: impl Fn(&[String]) -> bool,
) -> Result<()> {
    let (_, line) = machine.screen.find("a line to attach", 0, BOOT, attach_line)?;
    lab.client()?.attach(&line, 2)?;
    let protection = lab.client()?.protection()?;
    ensure!(is_protected(&protection), "the second machine has {protection:?}");
    let since = machine.screen.now();
    let sum = lab.client()?.write()?;
    ensure!(!disks.sums().contains(&sum), "nothing was written");
    machine.screen.shows("overlay 3.", since, SOON)?;
    machine.screen.shows("0 writes since power-on", since, SOON)?;
    lab.client()?.detach()?;
    disks.unchanged()
}
