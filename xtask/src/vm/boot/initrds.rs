//! Boots the initrds that `cargo xtask initrds` has built with the tools of distributions.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Lab;
use super::disks::Disks;
use super::lines::{Family, attach_line};
use super::machine::{Machine, Start, network_card};
use super::trial::{BOOT, Trial, compare, untouched};
use super::ways::{OPEN, TARGET};
use crate::vm::case::Results;

const TESTS: &[&str] = &["ipv4", "untouched"];

/// One trial each.
pub(super) const TRIALS: &[Trial] = &[
    Trial {
        name: "dracut",
        tests: TESTS,
        run: |lab, folder, results| boot(lab, "dracut", folder, results),
    },
    Trial {
        name: "initramfs-tools",
        tests: TESTS,
        run: |lab, folder, results| boot(lab, "initramfs-tools", folder, results),
    },
    Trial {
        name: "mkosi",
        tests: TESTS,
        run: |lab, folder, results| boot(lab, "mkosi", folder, results),
    },
];

/// Attaches and compares the disks of a machine booted from it.
fn boot(lab: &mut Lab<'_>, name: &str, folder: &Path, results: &mut Results<'_>) -> Result<()> {
    let from = lab.initrds.clone().context("no folder of initrds was named")?;
    let initramfs = from.join(format!("{name}.img"));
    let start = Start::Direct {
        kernel: kernel(&from)?,
        initramfs,
        line: lab.maker.command_line(&format!("{TARGET} {OPEN}")),
    };
    lab.client()?;
    let disks = Disks::make(folder)?;
    let mut devices = disks.devices();
    devices.extend(network_card(lab.maker.folder));
    let mut machine = Machine::power_on(&start, &devices, folder, name)?;
    let line = |text: &str| Family::V4.filter(attach_line(text));
    let (_, line) = machine.screen.find("a line to attach", 0, BOOT, line)?;
    let attached = lab.client()?.attach(&line, 2);
    results.decide("ipv4", attached.and_then(|_| compare(lab, &disks)));
    results.decide("untouched", untouched(&machine, &disks));
    Ok(())
}

/// Returns the kernel for which they were built.
fn kernel(initrds: &Path) -> Result<PathBuf> {
    let boot = initrds.parent().context("a folder of initrds alone")?.join("boot");
    let entries = boot.read_dir().with_context(|| boot.display().to_string())?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_kernel = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
    };
    paths.find(is_kernel).with_context(|| format!("{} holds no kernel", boot.display()))
}
