//! Settings at boot: on the kernel command line and in the firmware's OEM strings.

use std::path::Path;

use anyhow::{Result, ensure};

use super::Lab;
use super::disks::Disks;
use super::lines::attach_line;
use super::machine::{Machine, network_card};
use super::trial::{BOOT, compare};
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

/// A VLAN on a bond of two cards, of which one is connected to the second machine: the disks are
/// attached at the address of the VLAN.
pub(super) fn vlan_on_bond(
    lab: &mut Lab<'_>,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<()> {
    let line = "bond=bond0:eth0,eth1:mode=active-backup,primary=eth0 vlan=bond0.5:bond0 \
                ip=192.168.55.1/24:::::bond0.5:none";
    let start = lab.maker.start(Way::Init, &format!("{OPEN} {line}"))?;
    lab.client()?.join_vlan()?;
    let disks = Disks::make(folder)?;
    let mut devices = disks.devices();
    devices.extend(network_card(lab.maker.folder));
    let spare = ["-netdev", "user,id=spare,restrict=on", "-device", "virtio-net-pci,netdev=spare"];
    devices.extend(spare.map(str::to_owned));
    let mut machine = Machine::power_on(&start, &devices, folder, "vlan")?;
    let wanted = |text: &str| {
        let line = text.get(text.find("nvme connect-all -t tcp -a 192.168.55.1 ")?..)?;
        Some(line.trim_end().to_owned())
    };
    let (_, line) = machine.screen.find("a line to attach at the VLAN", 0, BOOT, wanted)?;
    lab.client()?.attach(&line, 2)?;
    results.decide("vlan-on-bond", compare(lab, &disks));
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
