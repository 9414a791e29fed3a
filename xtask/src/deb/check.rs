//! Tests the package in a minimal Debian of its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::architecture::Architecture;
use crate::chroot::{self, Chroot, Recipe, STABLE};
use crate::tally::Tally;

const PACKAGES: [&str; 5] = ["bash-completion", "man-db", "mandoc", "systemd", "udev"];

/// Commands that must work after installation.
const PROMISES: [(&str, &str); 8] = [
    ("the program runs", "storagetm --version | grep -q '^storagetm '"),
    ("its files are whole", "test -z \"$(dpkg --verify storagetm)\""),
    (
        "systemd-analyze verify",
        "test -z \"$(systemd-analyze verify storage-target-mode.target storagetm.service \
         storagetm@dev-sdb.service storagetm-console.service storagetm-failure.service storagetm-hands-off.service \
         storagetm-provider.socket storagetm-provider@1.service 2>&1)\"",
    ),
    (
        "systemd's target starts storagetm",
        "test -e /usr/lib/systemd/system/storage-target-mode.target && ! dpkg --search \
         /usr/lib/systemd/system/storage-target-mode.target | grep -q '^storagetm:' && grep -q \
         'Wants=storagetm.service' /usr/lib/systemd/system/storage-target-mode.target.d/*.conf",
    ),
    (
        "an initramfs is left alone unless its owner wants the program in it",
        "test -z \"$(grep -rs STORAGETM /etc/initramfs-tools)\"",
    ),
    (
        "man finds its pages",
        "man -w storagetm storagetm-serve storagetm-list storage-target-mode.target",
    ),
    (
        "its pages are well-formed",
        "for page in $(dpkg -L storagetm | grep '/man/man.*gz'); do mandoc -T lint -W error \
         $page || exit 1; done; mandoc -T lint -W warning \
         /usr/share/man/man7/storage-target-mode.target.7.gz",
    ),
    (
        "bash completes it",
        "bash -ec 'source /usr/share/bash-completion/completions/storagetm; complete -p storagetm'",
    ),
];

/// Installs the package, checks its contents, removes it, and checks what is left.
pub(super) fn run(package: &Path, architecture: Architecture, tally: &mut Tally) -> Result<()> {
    lintian(package, tally);
    if let Some(reason) = missing(architecture) {
        tally.skip("deb: install and remove", &reason);
        return Ok(());
    }
    let recipe = Recipe { name: "deb", suite: STABLE, foreign: None, packages: &PACKAGES };
    let chroot = Chroot::open(&recipe)?;
    let before = files(chroot.root())?;
    fs::copy(package, chroot.root().join("tmp/storagetm.deb"))?;
    let installed = chroot.run("dpkg --install /tmp/storagetm.deb && rm /tmp/storagetm.deb");
    tally.check("deb: it installs", installed.map(drop));
    for (promise, line) in PROMISES {
        tally.check(&format!("deb: {promise}"), chroot.run(line).map(drop));
    }
    tally.check("deb: it leaves nothing behind", remove(&chroot, &before));
    Ok(())
}

/// Returns why this machine cannot install a package for an architecture, if it cannot.
fn missing(architecture: Architecture) -> Option<String> {
    match Architecture::of_this_machine() {
        Ok(own) if own == architecture => chroot::missing(),
        _ => Some(format!("this is no {} machine", architecture.name())),
    }
}

fn lintian(package: &Path, tally: &mut Tally) {
    let mut lintian = Command::new("lintian");
    lintian.args(["--fail-on", "error,warning", "--allow-root"]).arg(package);
    match lintian.output() {
        Err(error) => tally.skip("deb: lintian", &format!("lintian cannot be started: {error}")),
        Ok(output) if output.status.success() => tally.pass("deb: lintian"),
        Ok(output) => tally.fail("deb: lintian", &String::from_utf8_lossy(&output.stdout)),
    }
}

fn remove(chroot: &Chroot, before: &BTreeSet<String>) -> Result<()> {
    chroot.run("dpkg --purge storagetm")?;
    let after = files(chroot.root())?;
    let left: Vec<&str> = after.difference(before).map(String::as_str).collect();
    let lost: Vec<&str> = before.difference(&after).map(String::as_str).collect();
    ensure!(left.is_empty() && lost.is_empty(), "left: {left:?}, lost: {lost:?}");
    Ok(())
}

/// Lists every path except those that dpkg and man-db write.
fn files(root: &Path) -> Result<BTreeSet<String>> {
    let own = ["/var/lib/dpkg/", "/var/cache/man/", "/var/log/", "/var/cache/debconf/"];
    let output = Command::new("find").arg(root).args(["-xdev", "-printf", "/%P\n"]).output()?;
    ensure!(output.status.success(), "find failed in {}", root.display());
    let paths = String::from_utf8_lossy(&output.stdout).into_owned();
    let is_foreign = |path: &&str| !own.iter().any(|own| path.starts_with(own));
    Ok(paths.lines().filter(is_foreign).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_for_another_architecture_is_not_installed() {
        let own = Architecture::of_this_machine().unwrap();
        let other = Architecture::ALL.into_iter().find(|it| *it != own).unwrap();
        assert_eq!(missing(other), Some(format!("this is no {} machine", other.name())));
        assert_eq!(missing(own), chroot::missing());
    }
}
