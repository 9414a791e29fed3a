//! Scenario: the home directory of a user of systemd-homed is lent by one machine, and the user logs in on another one.
//! Both run a stock systemd with a root file system of Debian's packages.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::Bench;
use super::cache::Kernel;
use super::case::{Results, Scenario};
use super::guest::{Guest, link, virtio_disk};
use super::image::{MIB, empty};
use super::initramfs::Job;
use super::system::System;

/// A run takes about two minutes on two cores; limits a guest that hangs.
const PATIENCE: Duration = Duration::from_secs(900);
/// The timeout for the emulator's end of the link.
const BOOT: Duration = Duration::from_secs(60);

/// Both machines.
const SYSTEM: System = System {
    name: "homes",
    packages: &["cryptsetup-bin", "keyutils", "libnss-systemd", "openssl", "systemd-homed"],
    modules: &[
        "dm_crypt",
        "xts",
        "algif_skcipher",
        "aesni_intel",
        "tls",
        "gcm",
        "ccm",
        "ghash_generic",
        "seqiv",
    ],
    units: &[
        (
            "etc/systemd/system/multi-user.target.wants/systemd-homed.service",
            "systemd-homed.service",
        ),
        ("etc/systemd/system/dbus-org.freedesktop.home1.service", "systemd-homed.service"),
    ],
    files: &[("etc/nsswitch.conf", "passwd: files systemd\ngroup: files systemd\n")],
};

pub(super) fn scenario() -> Scenario {
    Scenario { name: "homes", kernels: &["6.12"], newest: &[], on_host: &[], run }
}

fn run(
    bench: &Bench,
    kernel: &'static Kernel,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<()> {
    let (disk, socket) = (folder.join("homes.img"), folder.join("link"));
    let stick = folder.join("stick.img");
    empty(&disk, 256 * MIB)?;
    empty(&stick, 72 * MIB)?;
    let mut devices = link(&socket, 1).to_vec();
    devices.extend(virtio_disk(&disk, "HOMES", false));
    devices.extend(virtio_disk(&stick, "STICK", false));
    let lender = boot(bench, kernel, folder, "lender", results, &devices)?;
    let deadline = Instant::now() + BOOT;
    while !socket.exists() {
        ensure!(Instant::now() < deadline, "qemu made no link");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut client = boot(bench, kernel, folder, "client", results, &link(&socket, 2))?;
    results.follow(&client.console, PATIENCE, |_, what| {
        bail!("the guest asks for {what}, an unknown request")
    })?;
    client.wait(Duration::from_secs(90))?;
    drop(lender);
    Ok(())
}

/// Boots one of the machines.
fn boot(
    bench: &Bench,
    kernel: &Kernel,
    folder: &Path,
    role: &'static str,
    results: &Results<'_>,
    devices: &[String],
) -> Result<Guest> {
    let end = if role == "lender" { 1 } else { 2 };
    let job = Job {
        scenario: "homes",
        role,
        variables: vec![
            ("wanted", results.names()),
            ("interface", format!("192.168.50.{end}/24")),
            ("address", "192.168.50.1".to_owned()),
        ],
        files: vec![("usr/bin/storagetm", bench.program.clone())],
        extra: None,
    };
    SYSTEM.boot(bench, kernel, folder, (&job, end), devices)
}
