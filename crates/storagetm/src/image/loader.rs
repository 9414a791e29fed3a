//! The boot loaders of this machine's distribution: shim and GRUB for UEFI, GRUB for BIOS.

use std::fs;
use std::path::{Path, PathBuf};

use ::image::Architecture;
use ::image::signature::{Trust, grub_prefix, trust};

/// A processor of UEFI firmware, by its suffix in the names of files, GRUB's directory, and the
/// distributions' packages of GRUB.
#[derive(Debug, Clone, Copy)]
pub(super) struct Processor {
    pub(super) suffix: &'static str,
    grub: &'static str,
    packages: &'static str,
}

pub(super) const IA32: Processor = Processor {
    suffix: "ia32",
    grub: "i386-efi",
    packages: "Debian, Ubuntu: package grub-efi-ia32-unsigned or grub-efi-ia32-bin",
};

impl From<Architecture> for Processor {
    fn from(architecture: Architecture) -> Self {
        let suffix = architecture.efi_suffix();
        let (grub, packages) = match architecture {
            Architecture::X86_64 => (
                "x86_64-efi",
                "Debian, Ubuntu: packages shim-signed and grub-efi-amd64-signed; Fedora: shim-x64 and grub2-efi-x64",
            ),
            Architecture::Aarch64 => (
                "arm64-efi",
                "Debian, Ubuntu: packages shim-signed and grub-efi-arm64-signed; Fedora: shim-aa64 and grub2-efi-aa64",
            ),
        };
        Self { suffix, grub, packages }
    }
}

/// Directories whose subdirectories, named after distributions, hold both shim and GRUB.
const VENDORS: [&str; 4] = ["boot/efi/EFI", "efi/EFI", "boot/EFI", "usr/lib/bootupd/updates/EFI"];
/// Directories of packages in Fedora since 44, with subdirectories for each version, in which there is
/// a directory `EFI` as in [`VENDORS`].
const PACKAGES: [&str; 2] = ["usr/lib/efi/shim", "usr/lib/efi/grub2"];
/// GRUB for BIOS: its parts, of which its core image is made.
const BIOS: &str = "usr/lib/grub/i386-pc";
const BIOS_BOOT: &str = "boot_hybrid.img";

/// Characters of a short name of FAT.
const MAX_NAME: usize = 8;

/// Why the distribution's loader is not used: a clause.
pub(super) type Reason = String;

/// A loader for UEFI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Loader {
    /// What firmware starts: shim, or GRUB without one.
    pub(super) first: Vec<u8>,
    /// GRUB behind shim.
    pub(super) grub: Option<Vec<u8>>,
    /// The program that shim starts to manage keys.
    pub(super) keys: Option<Vec<u8>>,
    /// Where GRUB reads its configuration.
    pub(super) prefix: String,
}

/// Where the loaders are: this machine, or a directory that has the same layout or the files alone.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) root: PathBuf,
    /// Whether the files may be in `root` itself.
    pub(super) flat: bool,
}

impl Places {
    /// Returns shim and GRUB, if they and the kernel are signed by one vendor.
    pub(super) fn signed(
        &self,
        processor: Processor,
        kernel_path: &Path,
        kernel: &[u8],
    ) -> Result<Loader, Reason> {
        let mut reason = None;
        for (shims, grubs) in self.pairs(processor) {
            let read = |folder: &Path, name| first(folder, &signed_names(name, processor));
            let (Some((path, shim)), Some((_, grub))) =
                (read(&shims, "shim"), read(&grubs, "grub"))
            else {
                continue;
            };
            let keys = read(&shims, "mm").map(|(_, keys)| keys);
            match check(&path, &shim, &grub, kernel_path, kernel) {
                Ok(prefix) => {
                    return Ok(Loader { first: shim, grub: Some(grub), keys, prefix });
                }
                Err(found) => reason = reason.or(Some(found)),
            }
        }
        Err(reason.unwrap_or_else(|| {
            format!(
                "a signed shim and GRUB are not below {} ({})",
                self.root.display(),
                processor.packages
            )
        }))
    }

    /// Returns GRUB as a single program without a signature.
    pub(super) fn unsigned(&self, processor: Processor) -> Result<Loader, Reason> {
        let folder = self.root.join(format!("usr/lib/grub/{}/monolithic", processor.grub));
        let names = ["gcd", "grub"].map(|name| format!("{name}{}.efi", processor.suffix));
        let flat = || self.flat.then(|| first(&self.root, &names)).flatten();
        let (path, grub) = first(&folder, &names).or_else(flat).ok_or_else(|| {
            format!("GRUB for it is not below {} ({})", self.root.display(), processor.packages)
        })?;
        let prefix = grub_prefix(&grub).ok_or_else(|| no_grub(&path))?;
        Ok(Loader { first: grub, grub: None, keys: None, prefix })
    }

    /// Returns the directory of GRUB's parts for BIOS.
    pub(super) fn bios(&self) -> Result<PathBuf, Reason> {
        let flat = self.flat.then(|| self.root.clone());
        let found = [self.root.join(BIOS)].into_iter().chain(flat);
        let mut found = found.filter(|folder| folder.join(BIOS_BOOT).is_file());
        found.next().ok_or_else(|| {
            format!(
                "{} is not there (Debian, Ubuntu: package grub-pc-bin; Fedora: grub2-pc-modules)",
                self.root.join(BIOS).display()
            )
        })
    }

    /// The pairs of directories of shim and GRUB.
    fn pairs(&self, processor: Processor) -> Vec<(PathBuf, PathBuf)> {
        let debian = self.root.join(format!("usr/lib/grub/{}-signed", processor.grub));
        let mut pairs = vec![(self.root.join("usr/lib/shim"), debian)];
        for vendors in VENDORS {
            let folders = folders(&self.root.join(vendors)).into_iter();
            pairs.extend(folders.map(|folder| (folder.clone(), folder)));
        }
        let [shims, grubs] = PACKAGES.map(|package| {
            let versions = folders(&self.root.join(package)).into_iter().rev();
            versions.flat_map(|version| folders(&version.join("EFI"))).collect::<Vec<_>>()
        });
        for shim in shims {
            let of_vendor = grubs.iter().filter(|grub| grub.file_name() == shim.file_name());
            pairs.extend(of_vendor.map(|grub| (shim.clone(), grub.clone())));
        }
        pairs.extend(self.flat.then(|| (self.root.clone(), self.root.clone())));
        pairs
    }
}

/// Returns what is in a directory, sorted.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    folders.sort();
    folders
}

/// Reads the code of the first sector for BIOS.
pub(super) fn bios_boot(folder: &Path) -> Result<Vec<u8>, Reason> {
    let path = folder.join(BIOS_BOOT);
    fs::read(&path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

/// The names of a program, as Debian, Ubuntu and Fedora have it.
fn signed_names(name: &str, processor: Processor) -> Vec<String> {
    let name = format!("{name}{}.efi", processor.suffix);
    vec![format!("{name}.signed"), format!("{name}.signed.latest"), name]
}

/// The first of these files, with its path.
fn first(folder: &Path, names: &[String]) -> Option<(PathBuf, Vec<u8>)> {
    names.iter().map(|name| folder.join(name)).find_map(|path| {
        let content = fs::read(&path).ok()?;
        Some((path, content))
    })
}

/// Checks that shim starts GRUB and the kernel; returns GRUB's directory.
fn check(
    path: &Path,
    shim: &[u8],
    grub: &[u8],
    kernel_path: &Path,
    kernel: &[u8],
) -> Result<String, Reason> {
    let (shim_path, kernel_path) = (path.display(), kernel_path.display());
    let prefix = grub_prefix(grub).ok_or_else(|| no_grub(path))?;
    if prefix.split('/').any(|name| name.len() > MAX_NAME) {
        return Err(format!(
            "the GRUB beside {shim_path} needs a directory {prefix}, which the stick's file system cannot hold"
        ));
    }
    if trust(shim, shim) == Trust::Unsigned {
        return Err(format!("{shim_path} is not signed"));
    }
    if trust(shim, grub) != Trust::Signed {
        return Err(format!("the GRUB beside {shim_path} is not signed by its vendor"));
    }
    match trust(shim, kernel) {
        Trust::Signed => Ok(prefix),
        Trust::Unsigned => Err(format!("the kernel {kernel_path} is not signed")),
        Trust::Foreign => {
            Err(format!("the kernel {kernel_path} is not signed by the vendor of {shim_path}"))
        }
    }
}

fn no_grub(path: &Path) -> Reason {
    format!("the GRUB of {} has an unknown format", path.display())
}

#[cfg(test)]
mod test {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("storagetm-loader-{name}-{}", std::process::id());
            let folder = Self(std::env::temp_dir().join(name));
            fs::create_dir_all(&folder.0).unwrap();
            folder
        }

        fn file(&self, path: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "no program").unwrap();
        }

        fn places(&self, flat: bool) -> Places {
            Places { root: self.0.clone(), flat }
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn reason(places: &Places) -> String {
        places.signed(Architecture::X86_64.into(), Path::new("vmlinuz"), b"").unwrap_err()
    }

    #[test]
    fn missing_loaders_name_their_packages() {
        let folder = Folder::new("none");
        let places = folder.places(false);
        assert!(reason(&places).contains("shim-signed"), "{}", reason(&places));
        assert!(places.bios().unwrap_err().contains("grub-pc-bin"));
        assert!(places.unsigned(IA32).unwrap_err().contains("grub-efi-ia32"));
    }

    #[test]
    fn loaders_for_arm_have_their_own_names() {
        let folder = Folder::new("arm");
        let reason = |folder: &Folder| {
            let places = folder.places(false);
            places.signed(Architecture::Aarch64.into(), Path::new("vmlinuz"), b"").unwrap_err()
        };
        assert!(reason(&folder).contains("grub-efi-arm64-signed"), "{}", reason(&folder));
        folder.file("usr/lib/shim/shimaa64.efi.signed");
        folder.file("usr/lib/grub/arm64-efi-signed/grubaa64.efi.signed");
        assert!(reason(&folder).contains("unknown format"), "{}", reason(&folder));
    }

    #[test]
    fn loaders_are_found_where_distributions_have_them() {
        let debian = [
            "usr/lib/shim/shimx64.efi.signed",
            "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
        ];
        let ubuntu = [
            "usr/lib/shim/shimx64.efi.signed.latest",
            "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
        ];
        let fedora = ["boot/efi/EFI/fedora/shimx64.efi", "boot/efi/EFI/fedora/grubx64.efi"];
        let fedora_44 = [
            "usr/lib/efi/shim/16.1-5/EFI/fedora/shimx64.efi",
            "usr/lib/efi/grub2/1:2.12-64.fc44/EFI/fedora/grubx64.efi",
        ];
        let flat = ["shimx64.efi", "grubx64.efi"];
        for (number, paths) in [debian, ubuntu, fedora, fedora_44, flat].iter().enumerate() {
            let folder = Folder::new(&number.to_string());
            folder.file(paths[0]);
            assert!(reason(&folder.places(true)).contains("are not below"), "{paths:?}");
            folder.file(paths[1]);
            assert!(reason(&folder.places(true)).contains("unknown format"), "{paths:?}");
        }
        let folder = Folder::new("two-vendors");
        folder.file("usr/lib/efi/shim/1/EFI/centos/shimx64.efi");
        folder.file("usr/lib/efi/grub2/1/EFI/fedora/grubx64.efi");
        assert!(reason(&folder.places(false)).contains("are not below"), "of one vendor");
        let folder = Folder::new("bios");
        folder.file("usr/lib/grub/i386-pc/boot_hybrid.img");
        assert!(folder.places(false).bios().unwrap().ends_with("i386-pc"));
    }
}
