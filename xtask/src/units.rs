//! Checks the systemd units: that systemd accepts them, and that reachable services are sandboxed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo::{self, workspace};
use crate::install::UNITS;
use crate::tally::Tally;

/// The maximum exposure of a reachable unit, in tenths (`systemd-analyze security`).
const EXPOSURE: &str = "20";
/// The units that hosts can connect to.
const REACHED: [&str; 2] = ["storagetm.service", "storagetm@.service"];
/// The units to load; a template as one of its instances.
const LOADED: [&str; 8] = [
    "storage-target-mode.target",
    "storagetm.service",
    "storagetm@dev-sdb.service",
    "storagetm-console.service",
    "storagetm-failure.service",
    "storagetm-hands-off.service",
    "storagetm-provider.socket",
    "storagetm-provider@1.service",
];
/// The directories of systemd's own units.
const SYSTEMD: [&str; 2] = ["/usr/lib/systemd/system", "/lib/systemd/system"];

/// Checks the units with systemd, and the scripts with shellcheck.
pub(crate) fn run() -> Result<Tally> {
    let mut tally = Tally::default();
    if programs::is_installed("systemd-analyze") {
        tally.check("units: systemd-analyze verify", verify());
        tally.check("units: systemd-tmpfiles", hands_off());
        for unit in REACHED {
            tally.check(&format!("units: exposure of {unit}"), x48_exposure(unit));
        }
    } else {
        tally.skip("units", "not installed: systemd-analyze");
    }
    if programs::is_installed("shellcheck") {
        tally.check("initrd: shellcheck", scripts());
    } else {
        tally.skip("initrd: shellcheck", "not installed: shellcheck");
    }
    Ok(tally)
}

/// Verifies in a separate root, with systemd's units, to which ours refer.
fn verify() -> Result<()> {
    let root = cargo::target_directory()?.join("units");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    let units = root.join("usr").join(UNITS);
    let systemd = SYSTEMD.iter().map(Path::new).find(|folder| folder.is_dir());
    copy(systemd.context("systemd has no units here")?, &units)?;
    copy(&workspace().join("units"), &units)?;
    stand_in(&root.join("usr/bin/storagetm"))?;
    stand_in(&root.join("usr/bin/systemd-tmpfiles"))?;
    let mut analyze = Command::new("systemd-analyze");
    analyze.args(["verify", "--man=no"]).arg(format!("--root={}", root.display())).args(LOADED);
    silent(&mut analyze)
}

/// Checks the effect of hands-off.conf with systemd-tmpfiles: it masks rules, and keeps kernel
/// messages off the console.
fn hands_off() -> Result<()> {
    let root = cargo::target_directory()?.join("units");
    let level = root.join("proc/sys/kernel/printk");
    fs::create_dir_all(level.parent().context("no folder")?)?;
    fs::write(&level, "4\t4\t1\t7\n")?;
    let mut tmpfiles = Command::new("systemd-tmpfiles");
    tmpfiles.arg(format!("--root={}", root.display())).arg("--create");
    silent(tmpfiles.arg(workspace().join("units/hands-off.conf")))?;
    let rule = root.join("run/udev/rules.d/64-md-raid-assembly.rules");
    ensure!(fs::read_link(&rule)? == Path::new("/dev/null"), "{} is not masked", rule.display());
    let found = fs::read_to_string(&level)?;
    // The kernel takes a single number for the first of four.
    ensure!(found.starts_with("1\t"), "the console's log level is {found}");
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let mut copy = Command::new("cp");
    silent(copy.args(["-r", "--no-dereference", "-T"]).arg(from).arg(to))
}

/// Writes an empty program; systemd requires that it exists.
fn stand_in(path: &Path) -> Result<()> {
    fs::create_dir_all(path.parent().context("no folder")?)?;
    fs::write(path, "#!/bin/sh\n")?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

fn x48_exposure(unit: &str) -> Result<()> {
    let mut analyze = Command::new("systemd-analyze");
    analyze.args(["security", "--no-pager", "--offline=true", "--threshold", EXPOSURE]);
    let output = analyze.arg(workspace().join("units").join(unit)).output()?;
    let report = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}", report.lines().last().unwrap_or_default());
    Ok(())
}

fn scripts() -> Result<()> {
    for script in files(&workspace().join("initrd"))? {
        if let Some(shell) = shell(&script) {
            silent(Command::new("shellcheck").args(["--shell", shell]).arg(script))?;
        }
    }
    Ok(())
}

/// Returns the shell of a script; `None` if it is not a script.
fn shell(script: &Path) -> Option<&'static str> {
    let place = script.to_string_lossy();
    if place.ends_with(".conf") {
        None
    } else if place.contains("/dracut/") || place.contains("/mkinitcpio/install/") {
        Some("bash")
    } else {
        // busybox's shell, in the initramfs of mkinitcpio, is compatible.
        Some("dash")
    }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in folder.read_dir().with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    found.sort();
    Ok(found)
}

/// Keys that systemd before 254 does not support and ignores.
const NEWER: [&str; 2] =
    ["Unknown key 'ImportCredential' in section", "Unknown key 'RestartMode' in section"];

/// Runs a check that must succeed without output.
fn silent(command: &mut Command) -> Result<()> {
    let output = command.env("LC_ALL", "C").output()?;
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    let is_news = |line: &&str| !NEWER.iter().any(|newer| line.contains(newer));
    let told: Vec<&str> = told.lines().filter(is_news).collect();
    let is_silent = output.status.success() && told.is_empty();
    ensure!(is_silent, "{command:?}\n{}", told.join("\n"));
    Ok(())
}
