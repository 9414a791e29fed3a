//! The kernel and the boot loaders of the distribution, of which images are made.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::ways::modules;
use crate::architecture::Architecture;
use crate::vm::cache::Cache;

/// Boot loaders, in Debian's packages for PCs.
const PC_LOADERS: &[&str] = &[
    "grub-efi-amd64-signed",
    "grub-efi-ia32-unsigned",
    "grub-pc-bin",
    "shim-helpers-amd64-signed",
    "shim-signed",
    "systemd-boot-efi",
];
/// The same for ARM64.
const ARM_LOADERS: &[&str] =
    &["grub-efi-arm64-signed", "shim-helpers-arm64-signed", "shim-signed", "systemd-boot-efi"];

/// Unpacked packages of the newest stable Debian release.
#[derive(Debug)]
pub(crate) struct Pieces {
    architecture: Architecture,
    kernel: PathBuf,
    modules: PathBuf,
    loaders: PathBuf,
    /// The names of the packages' files; may be empty unless fetched for a release.
    pub(crate) packages: Vec<String>,
}

impl Pieces {
    /// Fetches them once, with the names of the packages.
    pub(crate) fn fetch(architecture: Architecture) -> Result<Self> {
        Self::in_cache(&Cache::open()?.with_names(), architecture)
    }

    pub(super) fn in_cache(cache: &Cache, architecture: Architecture) -> Result<Self> {
        let names = match architecture {
            Architecture::X86_64 => PC_LOADERS,
            Architecture::Aarch64 => ARM_LOADERS,
        };
        let folder = cache.whole_kernel(architecture)?;
        let loaders = cache.pieces("loaders", architecture, names)?;
        let mut packages = cache.files(&folder)?;
        packages.extend(cache.files(&loaders)?);
        let (kernel, modules) = (Cache::boot_image_in(&folder)?, modules(cache, &folder)?);
        Ok(Self { architecture, kernel, modules, loaders, packages })
    }

    /// Returns the arguments of `storagetm image` for them. There are no firmware files in an image: none is in
    /// Debian's main archive.
    pub(crate) fn image(&self, with: &Path) -> Vec<OsString> {
        let mut words: Vec<OsString> = ["image", "--no-firmware", "--force"].map(Into::into).into();
        let options = [
            ("--kernel", self.kernel.as_path()),
            ("--modules", &self.modules),
            ("--program", with),
        ];
        for (option, path) in options {
            words.extend([option.into(), path.into()]);
        }
        words
    }

    /// Returns the arguments that name the boot loaders, for all but an initramfs.
    pub(crate) fn loaders(&self) -> [OsString; 2] {
        ["--loader-files".into(), self.loaders.clone().into()]
    }

    /// Returns the arguments that name systemd's stub.
    pub(crate) fn stub(&self) -> [OsString; 2] {
        let suffix = match self.architecture {
            Architecture::X86_64 => "x64",
            Architecture::Aarch64 => "aa64",
        };
        let path = format!("usr/lib/systemd/boot/efi/linux{suffix}.efi.stub");
        ["--stub".into(), self.loaders.join(path).into()]
    }
}
