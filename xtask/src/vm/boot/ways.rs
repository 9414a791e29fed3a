//! The ways into target mode, and what each starts with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::machine::{Bus, Flash, Start};
use super::systemd;
use crate::architecture::Architecture;
use crate::install;
use crate::vm::Bench;
use crate::vm::apt::succeed;
use crate::vm::cache::{Cache, Kernel};
use crate::vm::modules;

/// The parameters that start target mode in a systemd initrd. Without a machine identifier systemd
/// generates one on each boot.
pub(super) const TARGET: &str = "rd.systemd.unit=storage-target-mode.target ip=link-local \
     systemd.machine_id=0123456789abcdef0123456789abcdef";
/// The parameter that makes ours require no key; the others do not support keys.
pub(super) const OPEN: &str = "storagetm.open";
/// The parameters of every way.
pub(super) const QUIET: &str = "quiet loglevel=1 panic=-1";

/// A way into target mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// systemd's own storage target mode, in an initrd of systemd.
    Upstream,
    /// The same initrd with this project's units.
    Units,
    /// storagetm as the only program of an initramfs, started by the machine's loader.
    Init,
    /// The same as an EFI program, started by UEFI firmware.
    Uki,
}

impl Way {
    pub(super) const ALL: [Self; 4] = [Self::Upstream, Self::Units, Self::Init, Self::Uki];

    /// Its part in the names of tests.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Units => "units",
            Self::Init => "init",
            Self::Uki => "uki",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Upstream => "systemd-storagetm 257, initrd of systemd",
            Self::Units => "storagetm's units, the same initrd",
            Self::Init => "storagetm boot, kernel and initramfs",
            Self::Uki => "storagetm boot, UKI under OVMF",
        }
    }

    /// Returns whether it runs storagetm.
    pub(super) fn is_ours(self) -> bool {
        self != Self::Upstream
    }
}

/// Builds the boot files of the ways, each once.
#[derive(Debug)]
pub(super) struct Maker<'a> {
    pub(super) bench: &'a Bench,
    pub(super) kernel: &'static Kernel,
    pub(super) folder: &'a Path,
    /// The start of every kernel command line.
    pub(super) line: &'a str,
}

impl Maker<'_> {
    /// Returns how to start a machine this way; `more` is added to the kernel command line, unless
    /// that is part of the boot file: there it is always `OPEN`.
    pub(super) fn start(&self, way: Way, more: &str) -> Result<Start> {
        match way {
            Way::Upstream => self.direct(self.systemd(way)?, &format!("{TARGET} {more}")),
            Way::Units => self.direct(self.systemd(way)?, &format!("{TARGET} {more}")),
            Way::Init => self.direct(self.initramfs()?, more),
            Way::Uki => self.firmware(),
        }
    }

    fn direct(&self, initramfs: PathBuf, more: &str) -> Result<Start> {
        let kernel = self.bench.cache.boot_image(self.kernel)?;
        Ok(Start::Direct { kernel, initramfs, line: self.command_line(more) })
    }

    /// The kernel's command line.
    pub(super) fn command_line(&self, more: &str) -> String {
        format!("{} console=ttyS0 {QUIET} {more}", self.line).trim().to_owned()
    }

    fn systemd(&self, way: Way) -> Result<PathBuf> {
        let to = self.folder.join(format!("{}.cpio", way.name()));
        if !to.exists() {
            let more = if way == Way::Units { Some(self.installed()?) } else { None };
            let work = self.folder.join(way.name());
            systemd::write(self.bench, self.kernel, more.as_deref(), &work, &to)?;
        }
        Ok(to)
    }

    /// Adds what `cargo xtask install` installs, and a program that assembles RAID arrays as soon
    /// as their members appear: in target mode it must not run.
    fn installed(&self) -> Result<PathBuf> {
        let folder = self.folder.join("installed");
        install::lay(&install::pieces(&self.bench.program)?, &folder.join("usr"))?;
        let mdadm = self.bench.cache.packages("mdadm", &["mdadm"])?;
        for path in ["usr/sbin/mdadm", "usr/lib/udev/rules.d/64-md-raid-assembly.rules"] {
            let to = folder.join(path);
            fs::create_dir_all(to.parent().unwrap_or(&folder))?;
            fs::copy(mdadm.join(path), to).with_context(|| path.to_owned())?;
        }
        Ok(folder)
    }

    fn initramfs(&self) -> Result<PathBuf> {
        let to = self.folder.join("storagetm.cpio");
        if !to.exists() {
            self.image(&["--initramfs"], &to, "")?;
        }
        Ok(to)
    }

    /// Returns how to start a machine with an initramfs that starts a lent system.
    pub(super) fn lent(&self, more: &str) -> Result<Start> {
        let to = self.folder.join("lent.cpio");
        if !to.exists() {
            self.image(&["--boot", "--initramfs"], &to, "")?;
        }
        self.direct(to, more)
    }

    fn firmware(&self) -> Result<Start> {
        let packages = self.bench.cache.packages("firmware", &["ovmf", "systemd-boot-efi"])?;
        let disk = self.folder.join("start.img");
        if !disk.exists() {
            self.image(&["--disk"], &disk, &self.command_line(OPEN))?;
        }
        let file = |name: &str| packages.join("usr/share/OVMF").join(name);
        let flash = Flash {
            code: file("OVMF_CODE_4M.fd"),
            variables: file("OVMF_VARS_4M.fd"),
            is_protected: false,
        };
        let architecture = Architecture::X86_64;
        Ok(Start::Firmware { architecture, flash: Some(flash), medium: disk, bus: Bus::Virtio })
    }

    /// Builds an image by storagetm from the kernel of the tests.
    fn image(&self, form: &[&str], to: &Path, line: &str) -> Result<()> {
        let bench = self.bench;
        let modules = modules(&bench.cache, &bench.cache.kernel(self.kernel))?;
        let mut program = Command::new(&bench.program);
        program.args(["image", "--for", "generic", "--kernel"]);
        program.arg(bench.cache.boot_image(self.kernel)?).arg("--modules").arg(modules);
        if !form.contains(&"--initramfs") {
            let packages = bench.cache.packages("firmware", &["ovmf", "systemd-boot-efi"])?;
            let stub = packages.join("usr/lib/systemd/boot/efi/linuxx64.efi.stub");
            program.args(["--loader", "stub", "--command-line", line, "--stub"]).arg(stub);
        }
        succeed(program.args(form).arg(to))
            .with_context(|| format!("storagetm image {}", form.join(" ")))
            .map(drop)
    }
}

/// The modules of an unpacked kernel with their index, which a package manager generates on
/// installation.
pub(super) fn modules(cache: &Cache, kernel: &Path) -> Result<PathBuf> {
    let (version, folder) = modules::folder(kernel)?;
    if !folder.join("modules.dep").exists() {
        let base = folder.ancestors().nth(3).context("a folder of modules stands alone")?;
        systemd::index(cache, base, &version)?;
    }
    Ok(folder)
}
