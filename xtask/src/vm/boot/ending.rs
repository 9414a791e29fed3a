//! Tests of how a machine in target mode ends: by buttons and keys, and not by itself after a
//! failure.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::Lab;
use super::disks::Disks;
use super::machine::{Machine, network_card};
use super::trial::{BOOT, SOON};
use super::ways::Way;
use crate::vm::case::Results;

/// The time for which a machine must stay on after a failure.
const A_WHILE: Duration = Duration::from_secs(5);

/// The power button shuts it down cleanly.
pub(super) fn power_button(machine: &mut Machine) -> Result<()> {
    let mut control = machine.control()?;
    control.press_power()?;
    ends(machine, control.ending(SOON)?.as_str(), "guest-shutdown")
}

/// Ctrl-Alt-Del restarts it.
pub(super) fn ctrl_alt_del(
    lab: &mut Lab<'_>,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<()> {
    let mut machine = boot(lab, folder, "", &network_card(lab.maker.folder))?;
    machine.screen.shows("r restart", 0, BOOT)?;
    let mut control = machine.control()?;
    control.press(&["ctrl", "alt", "delete"])?;
    let ended = control.ending(SOON).and_then(|how| ends(&mut machine, &how, "guest-reset"));
    results.decide("ctrl-alt-del", ended);
    Ok(())
}

/// A machine that cannot serve shows why, and waits for a key.
pub(super) fn failure(lab: &mut Lab<'_>, folder: &Path, results: &mut Results<'_>) -> Result<()> {
    let address = "203.0.113.9";
    let card = network_card(lab.maker.folder);
    let mut machine = boot(lab, folder, &format!("storagetm.listen={address}:4420"), &card)?;
    results.decide("shown", machine.screen.shows(address, 0, BOOT).map(drop));
    results.decide("waits", machine.stays_on(A_WHILE));
    let mut control = machine.control()?;
    machine.type_key("p")?;
    let ended = control.ending(SOON).and_then(|how| ends(&mut machine, &how, "guest-shutdown"));
    results.decide("key", ended);
    Ok(())
}

/// A machine without a network and with a missing disk shows both and waits. It has no USB port
/// either, which it shows when asked.
pub(super) fn no_network(
    lab: &mut Lab<'_>,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<()> {
    let mut machine = boot(lab, folder, "storagetm.disk=/dev/nosuch", &[])?;
    let screen = &mut machine.screen;
    let shown = screen.shows("/dev/nosuch", 0, BOOT);
    let shown = shown.and_then(|_| screen.shows("No network address", 0, SOON));
    results.decide("shown", shown.map(drop));
    machine.type_key("u")?;
    let shown = machine.screen.shows("no USB port that can act as a device", 0, SOON);
    results.decide("usb", shown.map(drop));
    results.decide("waits", machine.stays_on(A_WHILE));
    Ok(())
}

fn boot(lab: &Lab<'_>, folder: &Path, line: &str, more: &[String]) -> Result<Machine> {
    let start = lab.maker.start(Way::Init, line)?;
    let mut devices = Disks::make(folder)?.devices();
    devices.extend_from_slice(more);
    devices.extend(lab.graphics_card());
    Machine::power_on(&start, &devices, folder, "machine")
}

fn ends(machine: &mut Machine, how: &str, wanted: &str) -> Result<()> {
    ensure!(how == wanted, "the machine ended by {how}");
    machine.until_off(SOON)
}
