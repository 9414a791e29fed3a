//! Scenario: the home directory of a user of systemd-homed is lent by one machine, and the user logs in on another one.
//! Both run a stock systemd with a root file system of Debian's packages.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use image::cpio::Archive;

use super::Bench;
use super::boot::systemd;
use super::cache::Kernel;
use super::case::{Results, Scenario};
use super::guest::{self, Guest, link, virtio_disk};
use super::image::{MIB, empty};
use super::initramfs::{self, Job};
use super::tree;

/// A run takes about two minutes on two cores; limits a guest that hangs.
const PATIENCE: Duration = Duration::from_secs(900);
/// The timeout for the emulator's end of the link.
const BOOT: Duration = Duration::from_secs(60);

/// The packages of both machines, with all that they depend on.
const PACKAGES: &[&str] = &[
    "base-files",
    "base-passwd",
    "bash",
    "busybox-static",
    "coreutils",
    "cryptsetup-bin",
    "dbus",
    "e2fsprogs",
    "grep",
    "keyutils",
    "kmod",
    "ktls-utils",
    "libnss-systemd",
    "openssl",
    "sed",
    "systemd",
    "systemd-homed",
    "systemd-sysv",
    "udev",
    "util-linux",
];

/// What is not needed of them, besides what a systemd initrd leaves out.
const LEFT_OUT: &[&str] = &[
    "etc/passwd",
    "etc/group",
    "usr/lib/udev/hwdb.d",
    "usr/share/zoneinfo",
    "usr/share/perl",
    "usr/lib/x86_64-linux-gnu/perl",
    "usr/share/pixmaps",
    "usr/share/bug",
];

/// Drivers: udev and systemd load them.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "ext4",
    "crc32c_generic",
    "crc32c_intel",
    "loop",
    "dm_mod",
    "dm_crypt",
    "xts",
    "algif_skcipher",
    "aesni_intel",
    "nvme_tcp",
    "tls",
    "gcm",
    "ccm",
    "ghash_generic",
    "seqiv",
];

/// Units that take time and that no test needs. The first asks questions on the console.
const MASKED: &[&str] = &[
    "systemd-homed-firstboot.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service",
    "systemd-logind.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-pcrphase.service",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-update-done.service",
    "ldconfig.service",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "console-getty.service",
    "tlshd.service",
];

/// Starts the script of the machine.
const UNIT: &str = "\
[Unit]
After=systemd-homed.service dbus.service
[Service]
Environment=PATH=/usr/sbin:/usr/bin:/busybox
ExecStart=/usr/bin/bash /tests/cases/boot.sh
StandardOutput=tty
TTYPath=/dev/console
";

/// The directory of links that start a unit.
const WANTS: &str = "etc/systemd/system/multi-user.target.wants";

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
    let initramfs = folder.join(format!("{role}.cpio"));
    write(bench, kernel, &job, &folder.join(role), &initramfs)?;
    let path = |path: &Path| path.display().to_string();
    let line = format!("{} net.ifnames=0 systemd.show_status=0", guest::COMMAND_LINE);
    let image = path(&bench.cache.boot_image(kernel)?);
    let own = ["-m", "1536", "-kernel", &image, "-initrd", &path(&initramfs), "-append", &line];
    let mut arguments: Vec<String> =
        guest::machine().into_iter().chain(own).map(str::to_owned).collect();
    arguments.extend_from_slice(devices);
    Guest::power_on(folder, role, &arguments)
}

/// Writes the root file system of a machine.
fn write(bench: &Bench, kernel: &Kernel, job: &Job<'_>, work: &Path, to: &Path) -> Result<()> {
    let packages = bench.cache.packages("homes", PACKAGES)?;
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "run", "tmp", "root", "home", "mnt", "var/tmp"] {
        archive.directory(folder);
    }
    let wanted = |path: &str| !systemd::LEFT_OUT.contains(&path) && !LEFT_OUT.contains(&path);
    tree::add(&mut archive, &packages, &wanted)?;
    fs::create_dir_all(work)?;
    tree::add(&mut archive, &systemd::accounts(&packages, work)?, &|_| true)?;
    tree::add(&mut archive, &systemd::drivers(bench, kernel, MODULES, work)?, &|_| true)?;
    initramfs::add_busybox(&mut archive, &packages)?;
    initramfs::add_job(&mut archive, job)?;
    configure(&mut archive, job.role);
    fs::write(to, archive.finish())?;
    Ok(())
}

/// Adds what the installation of the packages would configure, and what the test needs.
fn configure(archive: &mut Archive, role: &str) {
    archive.link("init", "usr/lib/systemd/systemd");
    let system = "/usr/lib/systemd/system";
    for (from, to) in [
        (format!("{WANTS}/systemd-homed.service"), "systemd-homed.service"),
        (
            "etc/systemd/system/dbus-org.freedesktop.home1.service".to_owned(),
            "systemd-homed.service",
        ),
        ("etc/systemd/system/default.target".to_owned(), "multi-user.target"),
    ] {
        archive.link(&from, &format!("{system}/{to}"));
    }
    for unit in MASKED {
        archive.link(&format!("etc/systemd/system/{unit}"), "/dev/null");
    }
    archive.file("etc/systemd/system/vmtest.service", UNIT.as_bytes());
    archive.link(&format!("{WANTS}/vmtest.service"), "/etc/systemd/system/vmtest.service");
    archive.file("etc/nsswitch.conf", b"passwd: files systemd\ngroup: files systemd\n");
    archive.file("etc/hostname", format!("{role}\n").as_bytes());
    archive.file("etc/tlshd.conf", initramfs::TLSHD.as_bytes());
    // Each machine has an identity of its own.
    let digit = if role == "lender" { "1" } else { "2" };
    archive.file("etc/machine-id", format!("{}\n", digit.repeat(32)).as_bytes());
}
