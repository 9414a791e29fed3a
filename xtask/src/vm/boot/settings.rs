//! Settings at boot: on the kernel command line and in the firmware's OEM strings.

use std::path::Path;

use anyhow::{Result, ensure};

use super::Lab;
use super::disks::Disks;
use super::lines::attach_line;
use super::machine::{Machine, network_card};
use super::trial::BOOT;
use super::ways::{OPEN, Way};
use crate::vm::case::Results;

/// `storagetm.disk=` serves that disk alone.
pub(super) fn command_line(
    lab: &mut Lab<'_>,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<()> {
    let line = format!("storagetm.disk={}", Disks::VIRTIO);
    let wanted = [format!("{}:ro", Disks::VIRTIO_SIZE)];
    results.decide("command-line", lent(lab, folder, "line", &line, &[], &wanted));
    Ok(())
}

/// `storagetm.writable=` in an OEM string of the firmware, as a systemd credential, makes that disk
/// writable.
pub(super) fn firmware(lab: &mut Lab<'_>, folder: &Path, results: &mut Results<'_>) -> Result<()> {
    let setting = format!("io.systemd.credential:storagetm.writable={}", Disks::VIRTIO);
    let strings = ["-smbios".to_owned(), format!("type=11,value={setting}")];
    let wanted = [format!("{}:ro", Disks::NVME_SIZE), format!("{}:rw", Disks::VIRTIO_SIZE)];
    results.decide("firmware", lent(lab, folder, "firmware", "", &strings, &wanted));
    Ok(())
}

/// Checks that these disks are served with this protection, smallest first.
fn lent(
    lab: &mut Lab<'_>,
    folder: &Path,
    name: &str,
    line: &str,
    more: &[String],
    wanted: &[String],
) -> Result<()> {
    let start = lab.maker.start(Way::Init, &format!("{OPEN} {line}"))?;
    lab.client()?;
    let mut devices = Disks::make(folder)?.devices();
    devices.extend(network_card(lab.maker.folder));
    devices.extend_from_slice(more);
    let mut machine = Machine::power_on(&start, &devices, folder, name)?;
    let (_, line) = machine.screen.find("a line to attach", 0, BOOT, attach_line)?;
    lab.client()?.attach(&line, wanted.len())?;
    let found = lab.client()?.protection()?;
    lab.client()?.detach()?;
    ensure!(found == wanted, "expected {wanted:?}, the second machine has {found:?}");
    Ok(())
}
