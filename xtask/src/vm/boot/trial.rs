//! A boot of a machine and the tests that depend on it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::Lab;
use super::client::same;
use super::disks::Disks;
use super::ending;
use super::figures::Times;
use super::hotplug;
use super::lines::{Family, attach_line, line_from};
use super::machine::{Machine, network_card};
use super::overlay;
use super::pairing;
use super::settings;
use super::usb;
use super::ways::{OPEN, Way};
use crate::vm::case::Results;

/// The timeout for a boot: machines are emulated, and the computer may be busy.
pub(super) const BOOT: Duration = Duration::from_secs(300);
/// The timeout for anything else.
pub(super) const SOON: Duration = Duration::from_secs(90);

/// A boot and its tests.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) name: &'static str,
    pub(super) tests: &'static [&'static str],
    pub(super) run: fn(&mut Lab<'_>, &Path, &mut Results<'_>) -> Result<()>,
}

/// All trials, the timed ones first.
pub(super) const TRIALS: &[Trial] = &[
    Trial {
        name: "upstream",
        tests: &["line", "ipv4", "ipv6", "untouched"],
        run: |lab, folder, results| attach(lab, Way::Upstream, folder, results).map(drop),
    },
    Trial {
        name: "units",
        tests: &["line", "shown-attached", "ipv4", "ipv6", "untouched"],
        run: |lab, folder, results| attach(lab, Way::Units, folder, results).map(drop),
    },
    Trial {
        name: "init",
        tests: &[
            "line",
            "shown-attached",
            "ipv4",
            "ipv6",
            "untouched",
            "write-counter",
            "hot-plug",
            "power-button",
        ],
        run: |lab, folder, results| {
            let Some(mut machine) = attach(lab, Way::Init, folder, results)? else { return Ok(()) };
            results.decide("write-counter", write_counter(&mut machine));
            results.decide("hot-plug", hotplug::plug(lab, &mut machine, folder));
            results.decide("power-button", ending::power_button(&mut machine));
            Ok(())
        },
    },
    Trial {
        name: "uki",
        tests: &[
            "line",
            "shown-attached",
            "ipv4",
            "ipv6",
            "untouched",
            "stick-left-out",
            "write-counter",
            "power-button",
        ],
        run: |lab, folder, results| {
            let Some(mut machine) = attach(lab, Way::Uki, folder, results)? else { return Ok(()) };
            let said = machine.screen.shows("a stick that boots into target mode", 0, SOON);
            results.decide("stick-left-out", said.map(drop));
            results.decide("write-counter", write_counter(&mut machine));
            results.decide("power-button", ending::power_button(&mut machine));
            Ok(())
        },
    },
    Trial {
        name: "keyed",
        tests: &[
            "code",
            "strangers",
            "wrong-code",
            "pair",
            "compare",
            "write-refused",
            "write-allowed",
            "written",
        ],
        run: pairing::trial,
    },
    Trial {
        name: "usb",
        tests: &["key-serves", "disk-appears", "shown-attached", "key-ends", "read-only"],
        run: usb::trial,
    },
    Trial { name: "ending", tests: &["ctrl-alt-del"], run: ending::ctrl_alt_del },
    Trial { name: "failure", tests: &["shown", "waits", "key"], run: ending::failure },
    Trial { name: "no-network", tests: &["shown", "usb", "waits"], run: ending::no_network },
    Trial { name: "settings", tests: &["command-line"], run: settings::command_line },
    Trial { name: "settings", tests: &["firmware"], run: settings::firmware },
    Trial { name: "settings", tests: &["vlan-on-bond"], run: settings::vlan_on_bond },
    Trial { name: "overlay", tests: &["parameter"], run: overlay::parameter },
    Trial { name: "overlay", tests: &["key"], run: overlay::key },
];

/// Boots a machine into target mode; attaches and compares its disks over each address family,
/// unless only its times are wanted.
fn attach(
    lab: &mut Lab<'_>,
    way: Way,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<Option<Machine>> {
    let disks = Disks::make(folder)?;
    let mut machine = power_on(lab, way, &disks, folder)?;
    let (shown, first) = machine.screen.find("a line to attach", 0, BOOT, attach_line)?;
    results.decide("line", Ok(()));
    let family = Family::of(&first);
    let attached = attached_at(lab, &mut machine, way, family);
    if let Ok(attached) = attached {
        lab.figures.add(way, Times { shown, attached });
    }
    if lab.only_times {
        lab.client()?.detach()?;
        return attached.map(|_| None);
    }
    if way.is_ours() {
        let shows = machine.screen.find("a host", 0, SOON, attached_by);
        results.decide("shown-attached", shows.map(drop));
    }
    lab.picture(&machine, way.name())?;
    let compared = attached.and_then(|_| compare(lab, &disks));
    results.decide(family.name(), compared);
    let other = family.other();
    let compared = attached_at(lab, &mut machine, way, other);
    results.decide(other.name(), compared.and_then(|_| compare(lab, &disks)));
    results.decide("untouched", untouched(&machine, &disks));
    Ok(Some(machine))
}

fn power_on(lab: &mut Lab<'_>, way: Way, disks: &Disks, folder: &Path) -> Result<Machine> {
    let start = lab.maker.start(way, OPEN)?;
    // The second machine must not slow down the first.
    lab.client()?;
    let mut devices = disks.devices();
    devices.extend(network_card(lab.maker.folder));
    devices.extend(lab.graphics_card());
    Machine::power_on(&start, &devices, folder, way.name())
}

/// Attaches all disks to the second machine, and returns the time from power on to then.
fn attached_at(
    lab: &mut Lab<'_>,
    machine: &mut Machine,
    way: Way,
    family: Family,
) -> Result<Duration> {
    let line = typed(machine, way, family)?;
    let attached = lab.client()?.attach(&line, 2)?;
    Ok(machine.since_power_on(attached))
}

/// Returns whether a line of the screen shows a disk as attached by a host that it names.
fn attached_by(text: &str) -> Option<()> {
    text.contains("read-only  host ").then_some(())
}

/// The maximum number of addresses that the screen cycles through.
const ADDRESSES: usize = 8;

/// The commands to run: the one for all disks, or, if that address is not reachable, the one of
/// each disk.
fn typed(machine: &mut Machine, way: Way, family: Family) -> Result<String> {
    let wanted = |text: &str| family.filter(attach_line(text));
    machine.screen.find("a line to attach", 0, BOOT, attach_line)?;
    if way.is_ours() {
        turn_to(machine, wanted)?;
    }
    let screen = &mut machine.screen;
    let (_, all) = screen.find(family.name(), 0, BOOT, wanted)?;
    // The kernel's target reports addresses without a scope for a link-local IPv6 discovery.
    if way.is_ours() || family == Family::V4 {
        return Ok(all);
    }
    let one = |text: &str, disk: &str| {
        let line = line_from(text, "nvme connect ").filter(|line| line.contains(disk));
        family.filter(line)
    };
    let (_, vda) = screen.find("the line of one disk", 0, BOOT, |text| one(text, "vda"))?;
    let (_, nvme) = screen.find("the line of one disk", 0, BOOT, |text| one(text, "nvme0n1"))?;
    Ok(format!("{vda}; {nvme}"))
}

/// Presses the key for the next address until a wanted line was shown.
fn turn_to(machine: &mut Machine, wanted: impl Fn(&str) -> Option<String>) -> Result<()> {
    for _ in 0..ADDRESSES {
        if machine.screen.find("", 0, Duration::from_secs(1), &wanted).is_ok() {
            return Ok(());
        }
        machine.type_key("\t")?;
    }
    Ok(())
}

/// Compares every byte of every disk, and detaches them.
pub(super) fn compare(lab: &mut Lab<'_>, disks: &Disks) -> Result<()> {
    let sums = lab.client()?.sums()?;
    lab.client()?.detach()?;
    same(disks.sums(), &sums)
}

/// Checks that the machine has written to no disk since power on, and that the images are
/// unchanged.
pub(super) fn untouched(machine: &Machine, disks: &Disks) -> Result<()> {
    let changes = machine.control()?.changes()?;
    ensure!(changes == 0, "the machine has written to its disks {changes} times");
    disks.unchanged()
}

/// Checks that the screen has shown a disk as not written, and none as written.
fn write_counter(machine: &mut Machine) -> Result<()> {
    machine.screen.shows("0 writes since power-on", 0, SOON)?;
    let other = |text: &str| text.contains("Writes since power-on:");
    let found =
        machine.screen.find("", 0, Duration::ZERO, |text| other(text).then(|| text.to_owned()));
    match found {
        Ok((_, text)) => anyhow::bail!("the screen says: {text}"),
        Err(_) => Ok(()),
    }
}
