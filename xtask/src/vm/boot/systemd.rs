//! A systemd initrd built from a distribution's packages: with the storage target mode of systemd,
//! or with this project's units.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use image::cpio::Archive;

use crate::vm::Bench;
use crate::vm::apt::{program, succeed};
use crate::vm::cache::{Cache, Kernel};
use crate::vm::modules;
use crate::vm::tree;

/// The minimal contents of a systemd initrd: each megabyte would slow upstream down.
pub(super) const PACKAGES: &[&str] = &[
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "kmod",
    "liblzma5",
    "sed",
    "systemd",
    "systemd-sysv",
    "udev",
    "util-linux",
];

pub(in crate::vm) const LEFT_OUT: &[&str] = &[
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/bash-completion",
    "usr/share/zsh",
    "usr/share/i18n",
    "usr/share/debconf",
    "usr/lib/debug",
    "usr/share/perl5",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "usr/include",
    "var/cache",
    "var/lib/dpkg",
    "var/lib/apt",
    "boot",
];

/// Drivers that either side needs in a virtual machine, and those of systemd's own target.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "nvme",
    "button",
    "raid1",
    "evdev",
    "nvmet",
    "nvmet_tcp",
    "configfs",
    "crc32c_generic",
    "crc32c_intel",
    "crct10dif_generic",
    "crc64_rocksoft_generic",
];

/// Writes the initrd; the contents of the directory `more` are added.
pub(super) fn write(
    bench: &Bench,
    kernel: &Kernel,
    more: Option<&Path>,
    work: &Path,
    to: &Path,
) -> Result<()> {
    let packages = packages(&bench.cache)?;
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "run", "tmp", "root", "var/tmp"] {
        archive.directory(folder);
    }
    let wanted =
        |path: &str| !LEFT_OUT.contains(&path) && path != "etc/passwd" && path != "etc/group";
    tree::add(&mut archive, &packages, &wanted)?;
    tree::add(&mut archive, &accounts(&packages, work)?, &|_| true)?;
    tree::add(&mut archive, &drivers(bench, kernel, MODULES, work)?, &|_| true)?;
    if let Some(more) = more {
        tree::add(&mut archive, more, &|_| true)?;
    }
    archive.link("init", "usr/lib/systemd/systemd");
    archive.link("etc/initrd-release", "../usr/lib/os-release");
    fs::write(to, archive.finish())?;
    Ok(())
}

/// The accounts that installation of the packages would create.
pub(in crate::vm) fn accounts(packages: &Path, work: &Path) -> Result<PathBuf> {
    let folder = work.join("accounts");
    let etc = folder.join("etc");
    fs::create_dir_all(&etc)?;
    for name in ["passwd", "group"] {
        let from = packages.join("usr/share/base-passwd").join(format!("{name}.master"));
        fs::copy(&from, etc.join(name)).with_context(|| from.display().to_string())?;
    }
    let mut sysusers = program(packages, "usr/bin/systemd-sysusers");
    let configuration = fs::read_dir(packages.join("usr/lib/sysusers.d"))?;
    let mut files = configuration.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    sysusers.arg(format!("--root={}", folder.display())).args(files);
    succeed(&mut sysusers)?;
    Ok(folder)
}

/// The drivers with their index for udev.
pub(in crate::vm) fn drivers(
    bench: &Bench,
    kernel: &Kernel,
    wanted: &[&str],
    work: &Path,
) -> Result<PathBuf> {
    let (version, source) = modules::folder(&bench.cache.kernel(kernel))?;
    let folder = work.join("drivers");
    let to = folder.join("usr/lib/modules").join(&version);
    fs::create_dir_all(to.join("kernel"))?;
    for module in modules::collect(&bench.cache.kernel(kernel), wanted)? {
        fs::write(to.join("kernel").join(format!("{}.ko", module.name)), module.image)?;
    }
    for name in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        fs::copy(source.join(name), to.join(name)).with_context(|| name.to_owned())?;
    }
    index(&bench.cache, &folder.join("usr"), &version)?;
    Ok(folder)
}

/// Returns the unpacked packages.
fn packages(cache: &Cache) -> Result<PathBuf> {
    cache.packages("systemd", PACKAGES)
}

/// Builds the index of the modules in `lib/modules/VERSION` of a directory.
pub(super) fn index(cache: &Cache, base: &Path, version: &str) -> Result<()> {
    let mut depmod = program(&packages(cache)?, "usr/sbin/depmod");
    succeed(depmod.arg("-b").arg(base).arg(version)).map(drop)
}
