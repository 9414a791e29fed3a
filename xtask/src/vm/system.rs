//! A machine that boots a stock systemd with its udev: the root file system is made of Debian's packages.

use std::fs;
use std::path::Path;

use anyhow::Result;
use image::cpio::Archive;

use super::Bench;
use super::boot::systemd;
use super::cache::Kernel;
use super::case::script_folder;
use super::guest::{self, Guest};
use super::initramfs::{self, Job};
use super::tree;

/// The packages of every such machine, with all that they depend on.
const PACKAGES: &[&str] = &[
    "base-files",
    "base-passwd",
    "bash",
    "busybox-static",
    "coreutils",
    "dbus",
    "e2fsprogs",
    "grep",
    "kmod",
    "sed",
    "systemd",
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
/// Drivers of every such machine: udev and systemd load them.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "ext4",
    "crc32c_generic",
    "crc32c_intel",
    "loop",
    "dm_mod",
    "nvme_tcp",
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
];
/// Starts the script of the machine.
const UNIT: &str = "\
[Unit]
After=systemd-homed.service dbus.service
[Service]
Environment=PATH=/usr/sbin:/usr/bin:/busybox
ExecStart=/usr/bin/bash /tests/system.sh
StandardOutput=tty
TTYPath=/dev/console
";
/// The directory of links that start a unit.
const WANTS: &str = "etc/systemd/system/multi-user.target.wants";

/// What a machine has besides systemd.
#[derive(Debug)]
pub(super) struct System {
    /// The directory of its packages in the cache.
    pub(super) name: &'static str,
    pub(super) packages: &'static [&'static str],
    pub(super) modules: &'static [&'static str],
    /// Links that enable units: path, and unit.
    pub(super) units: &'static [(&'static str, &'static str)],
    /// Configuration files: path and content.
    pub(super) files: &'static [(&'static str, &'static str)],
}

impl System {
    /// Boots it with a job. The digit makes its machine identifier; `devices` are further arguments of qemu.
    pub(super) fn boot(
        &self,
        bench: &Bench,
        kernel: &Kernel,
        folder: &Path,
        (job, digit): (&Job<'_>, u8),
        devices: &[String],
    ) -> Result<Guest> {
        let role = job.role;
        let initramfs = folder.join(format!("{role}.cpio"));
        let archive = self.archive(bench, kernel, (job, digit), &folder.join(role))?;
        fs::write(&initramfs, archive.finish())?;
        let path = |path: &Path| path.display().to_string();
        let line = format!("{} net.ifnames=0 systemd.show_status=0", guest::COMMAND_LINE);
        let image = path(&bench.cache.boot_image(kernel)?);
        let own = ["-m", "1536", "-kernel", &image, "-initrd", &path(&initramfs), "-append", &line];
        let mut arguments: Vec<String> =
            guest::machine().into_iter().chain(own).map(str::to_owned).collect();
        arguments.extend_from_slice(devices);
        Guest::power_on(folder, role, &arguments)
    }

    /// Returns the root file system.
    fn archive(
        &self,
        bench: &Bench,
        kernel: &Kernel,
        (job, digit): (&Job<'_>, u8),
        work: &Path,
    ) -> Result<Archive> {
        let packages = bench.cache.packages(self.name, &[PACKAGES, self.packages].concat())?;
        let modules = [MODULES, self.modules].concat();
        let mut archive = Archive::default();
        for folder in ["dev", "proc", "sys", "run", "tmp", "root", "home", "mnt", "var/tmp"] {
            archive.directory(folder);
        }
        let wanted = |path: &str| !systemd::LEFT_OUT.contains(&path) && !LEFT_OUT.contains(&path);
        tree::add(&mut archive, &packages, &wanted)?;
        fs::create_dir_all(work)?;
        tree::add(&mut archive, &systemd::accounts(&packages, work)?, &|_| true)?;
        tree::add(&mut archive, &systemd::drivers(bench, kernel, &modules, work)?, &|_| true)?;
        initramfs::add_busybox(&mut archive, &packages)?;
        initramfs::add_job(&mut archive, job)?;
        let script = fs::read(script_folder().join("system.sh"))?;
        archive.program("tests/system.sh", &script);
        self.configure(&mut archive, job.role, digit);
        Ok(archive)
    }

    /// Adds what the installation of the packages would configure, and what the tests need.
    fn configure(&self, archive: &mut Archive, role: &str, digit: u8) {
        archive.link("init", "usr/lib/systemd/systemd");
        let system = "/usr/lib/systemd/system";
        let default = ("etc/systemd/system/default.target", "multi-user.target");
        for (from, to) in self.units.iter().chain([&default]) {
            archive.link(from, &format!("{system}/{to}"));
        }
        for unit in MASKED {
            archive.link(&format!("etc/systemd/system/{unit}"), "/dev/null");
        }
        archive.file("etc/systemd/system/vmtest.service", UNIT.as_bytes());
        archive.link(&format!("{WANTS}/vmtest.service"), "/etc/systemd/system/vmtest.service");
        self.files.iter().for_each(|(path, text)| archive.file(path, text.as_bytes()));
        archive.file("etc/hostname", format!("{role}\n").as_bytes());
        archive.file("etc/machine-id", format!("{}\n", digit.to_string().repeat(32)).as_bytes());
    }
}
