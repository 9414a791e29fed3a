//! The cache of kernels and guest tools, fetched once.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apt::Apt;
use super::mirror;
use super::modules;
use crate::architecture::Architecture;
use crate::cargo;

/// A kernel to boot.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The version.
    pub(super) name: &'static str,
    /// Its Debian release.
    suite: &'static str,
    /// The release of the guest's programs.
    tools: &'static str,
}

/// The kernels of the two newest stable Debian releases, each with the programs of its release, as its
/// users have them: nvme-cli 2.3 and 2.13.
pub(super) const KERNELS: &[Kernel] = &[
    Kernel { name: "6.1", suite: "bookworm", tools: "bookworm" },
    Kernel { name: "6.12", suite: "trixie", tools: TOOLS_SUITE },
];

/// The kernel of the next release. It changes weekly, so it is used only if selected by name.
pub(super) const NEXT: Kernel = Kernel { name: "next", suite: "forky", tools: "forky" };

/// The kernel of the newest stable release with the drivers of real machines, such as those of USB
/// ([`Cache::whole_kernel`]).
pub(super) const WHOLE: Kernel = Kernel { name: "amd64", suite: TOOLS_SUITE, tools: TOOLS_SUITE };

/// The newest kernel with programs of the next release, for what only these do.
pub(super) const NEXT_TOOLS: Kernel = Kernel { name: "6.12", suite: TOOLS_SUITE, tools: "forky" };

/// The newest stable release.
const TOOLS_SUITE: &str = "trixie";
/// The suffix of the names of kernel packages.
const FLAVOUR: &str = "cloud-amd64";
const TOOLS: &[&str] =
    &["bash", "busybox-static", "e2fsprogs", "fdisk", "fio", "nvme-cli", "parted", "util-linux"];

/// Required programs of the host.
const HOST_TOOLS: &[&str] = &["qemu-system-x86_64", "apt-get", "apt-cache", "dpkg-deb", "xz"];

/// Returns why this machine cannot run the tests, if it cannot.
pub(super) fn missing_tools() -> Option<String> {
    let missing = |name: &&&str| !programs::is_installed(name);
    let names: Vec<&str> = HOST_TOOLS.iter().filter(missing).copied().collect();
    (!names.is_empty()).then(|| format!("{}{}", programs::NOT_INSTALLED, names.join(", ")))
}

/// The cache directory.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    /// Whether the names of the packages are needed, which older versions did not write.
    needs_names: bool,
}

impl Cache {
    /// `STORAGETM_VM_CACHE`, or `vm-cache` beside the builds. Delete it to fetch newer packages.
    pub(super) fn open() -> Result<Self> {
        let folder = match std::env::var_os("STORAGETM_VM_CACHE") {
            Some(folder) => PathBuf::from(folder),
            None => cargo::target_directory()?.join("vm-cache"),
        };
        fs::create_dir_all(&folder)
            .with_context(|| format!("{} cannot be made", folder.display()))?;
        Ok(Self { folder: folder.canonicalize()?, needs_names: false })
    }

    /// Fetches directories again whose packages are not known.
    pub(super) fn with_names(self) -> Self {
        Self { needs_names: true, ..self }
    }

    /// Fetches what is missing for a kernel.
    pub(super) fn fetch(&self, kernel: &Kernel) -> Result<()> {
        let tools = self.tools(kernel);
        self.once(&tools, || self.apt(kernel.tools)?.unpack(TOOLS, true, &tools))?;
        self.once(&self.kernel(kernel), || {
            let apt = self.apt(kernel.suite)?;
            let parts = apt.parts_of(&format!("linux-image-{FLAVOUR}"), FLAVOUR)?;
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            apt.unpack(&parts, false, &self.kernel(kernel))
        })
    }

    /// The kernel of the newest of the releases that has the drivers of real machines, such as those
    /// of USB.
    pub(super) fn whole_kernel(&self, architecture: Architecture) -> Result<PathBuf> {
        let debian = architecture.debian();
        let folder = self.folder.join(format!("kernel-{debian}"));
        self.once(&folder, || {
            let apt = self.apt_for(TOOLS_SUITE, architecture)?;
            let parts = apt.parts_of(&format!("linux-image-{debian}"), &format!("-{debian}"))?;
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            apt.unpack(&parts, false, &folder)
        })?;
        Ok(folder)
    }

    /// Packages of the newest of the releases alone, unpacked in a folder of this name and architecture.
    pub(super) fn pieces(
        &self,
        name: &str,
        architecture: Architecture,
        packages: &[&str],
    ) -> Result<PathBuf> {
        let folder = self.folder.join(format!("{name}-{}", architecture.debian()));
        self.once(&folder, || {
            self.apt_for(TOOLS_SUITE, architecture)?.unpack(packages, false, &folder)
        })?;
        Ok(folder)
    }

    /// Packages of the newest of the releases with all that they depend on, unpacked in a folder of this
    /// name.
    pub(super) fn packages(&self, name: &str, packages: &[&str]) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        self.once(&folder, || self.apt(TOOLS_SUITE)?.unpack(packages, true, &folder))?;
        Ok(folder)
    }

    /// The unpacked programs of a guest with this kernel.
    pub(super) fn tools(&self, kernel: &Kernel) -> PathBuf {
        self.of_release("tools", kernel)
    }

    /// Further programs for a guest with this kernel, fetched if need be.
    pub(super) fn more_tools(
        &self,
        kernel: &Kernel,
        name: &str,
        packages: &[&str],
    ) -> Result<PathBuf> {
        let folder = self.of_release(name, kernel);
        self.once(&folder, || self.apt(kernel.tools)?.unpack(packages, true, &folder))?;
        Ok(folder)
    }

    fn of_release(&self, name: &str, kernel: &Kernel) -> PathBuf {
        match kernel.tools {
            TOOLS_SUITE => self.folder.join(name),
            other => self.folder.join(format!("{name}-{other}")),
        }
    }

    /// The unpacked package of a kernel.
    pub(super) fn kernel(&self, kernel: &Kernel) -> PathBuf {
        self.folder.join(format!("kernel-{}", kernel.name))
    }

    /// The bootable image of a kernel.
    pub(super) fn boot_image(&self, kernel: &Kernel) -> Result<PathBuf> {
        Self::boot_image_in(&self.kernel(kernel))
    }

    /// The configuration of a kernel: its path in a system, and here.
    pub(super) fn configuration(&self, kernel: &Kernel) -> Result<(String, PathBuf)> {
        let folder = self.kernel(kernel);
        let path = format!("boot/config-{}", modules::folder(&folder)?.0);
        Ok((path.clone(), folder.join(path)))
    }

    /// The bootable image of an unpacked kernel.
    pub(super) fn boot_image_in(folder: &Path) -> Result<PathBuf> {
        let is_kernel = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name == "vmlinuz" || name.starts_with("vmlinuz-")
        };
        // Newer packages have it next to the modules.
        for place in [folder.join("boot"), modules::folder(folder)?.1] {
            let entries = place.read_dir().into_iter().flatten();
            let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
            if let Some(path) = paths.find(is_kernel) {
                return Ok(path);
            }
        }
        anyhow::bail!("{} holds no kernel: delete it to fetch it again", folder.display())
    }

    /// Returns an empty directory for the images and logs of a run.
    pub(super) fn run_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join("runs").join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    fn apt(&self, suite: &str) -> Result<Apt> {
        self.apt_for(suite, Architecture::X86_64)
    }

    fn apt_for(&self, suite: &str, architecture: Architecture) -> Result<Apt> {
        let mirror = mirror::of_this_machine()?;
        let folder = self.folder.join(format!("apt-{suite}-{}", architecture.debian()));
        Apt::open(&folder, &mirror, suite, architecture)
    }

    /// Returns the names of the files of the packages that a directory was filled with.
    pub(super) fn files(&self, folder: &Path) -> Result<Vec<String>> {
        let names = fs::read_to_string(marker(folder))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Fills a directory with packages, unless an earlier run has done so completely.
    fn once(&self, folder: &Path, fill: impl FnOnce() -> Result<Vec<String>>) -> Result<()> {
        let marker = marker(folder);
        if let Ok(names) = fs::read_to_string(&marker) {
            if !(self.needs_names && names.is_empty()) {
                return Ok(());
            }
            fs::remove_file(&marker)?;
        }
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        let names = fill().with_context(|| format!("{} cannot be fetched", folder.display()))?;
        Ok(fs::write(marker, names.join("\n"))?)
    }
}

/// Returns the file that is written when a directory is complete.
fn marker(folder: &Path) -> PathBuf {
    let mut marker = folder.as_os_str().to_owned();
    marker.push(".complete");
    PathBuf::from(marker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_of_unknown_packages_is_fetched_for_a_release() {
        let folder = std::env::temp_dir().join(format!("xtask-cache-{}", std::process::id()));
        let kernel = folder.join("kernel");
        fs::create_dir_all(&kernel).unwrap();
        fs::write(marker(&kernel), "").unwrap();
        let cache = Cache { folder: folder.clone(), needs_names: false };
        cache.once(&kernel, || anyhow::bail!("fetched")).unwrap();
        let cache = cache.with_names();
        cache.once(&kernel, || anyhow::bail!("no network")).unwrap_err();
        cache.once(&kernel, || Ok(vec!["a.deb".to_owned()])).unwrap();
        cache.once(&kernel, || anyhow::bail!("fetched")).unwrap();
        assert_eq!(cache.files(&kernel).unwrap(), ["a.deb"]);
        fs::remove_dir_all(&folder).unwrap();
    }
}
