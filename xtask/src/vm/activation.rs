//! Scenario: a machine with a stock systemd, udev, LVM and mdadm attaches disks that hold volume groups, arrays and file
//! systems: what storagetm does to them, and what the machine's own udev rules do. The machine lends the disks to
//! itself, from images, which udev does not look at.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use super::Bench;
use super::cache::Kernel;
use super::case::{Results, Scenario, script_folder};
use super::initramfs::Job;
use super::system::System;

/// A run takes about a minute on two cores; limits a guest that hangs.
const PATIENCE: Duration = Duration::from_secs(600);

const SYSTEM: System = System {
    name: "activation",
    packages: &["btrfs-progs", "cryptsetup-bin", "fdisk", "lvm2", "mdadm"],
    modules: &["btrfs", "dm_crypt", "md_mod", "raid1"],
    units: &[],
    files: &[],
};

pub(super) fn scenario() -> Scenario {
    Scenario { name: "activation", kernels: &["6.12"], newest: &[], on_host: &[], run }
}

fn run(
    bench: &Bench,
    kernel: &'static Kernel,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<()> {
    let job = Job {
        scenario: "activation",
        role: "client",
        variables: vec![("wanted", results.names())],
        files: vec![
            ("usr/bin/storagetm", bench.program.clone()),
            ("tests/find.md", script_folder().join("../../docs/find.md")),
        ],
        extra: None,
    };
    let mut guest = SYSTEM.boot(bench, kernel, folder, (&job, 1), &[])?;
    results.follow(&guest.console, PATIENCE, |_, what| {
        bail!("the guest asks for {what}, an unknown request")
    })?;
    guest.wait(Duration::from_secs(90))
}
