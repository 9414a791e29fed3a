//! Inputs of an image, and where they are on this machine.

use std::path::{Path, PathBuf};
use std::{env, fs};

use ::image::Architecture;
use linux::module::Index;
use linux::tree::Tree;

use super::loader::Places;
use crate::options::image::Image;
use failure::Failure;

/// The directory of systemd's stubs.
const STUBS: &str = "/usr/lib/systemd/boot/efi";

#[derive(Debug)]
pub(super) struct Inputs<'a> {
    pub(super) tree: Tree,
    pub(super) options: &'a Image,
}

/// The modules of a kernel.
#[derive(Debug)]
pub(super) struct Modules {
    pub(super) index: Index,
    pub(super) release: String,
}

impl Inputs<'_> {
    /// Returns the program that the image starts: this one, unless another is named.
    pub(super) fn program(&self) -> Result<Vec<u8>, Failure> {
        if let Some(path) = &self.options.program {
            return read(path);
        }
        fs::read("/proc/self/exe").map_err(|error| {
            Failure::new(format!(
                "this program cannot read itself (/proc/self/exe: {error}); is /proc mounted?"
            ))
        })
    }

    /// Returns the kernel image and its path.
    pub(super) fn kernel(&self) -> Result<(PathBuf, Vec<u8>), Failure> {
        if let Some(path) = &self.options.kernel {
            return Ok((path.clone(), read(path)?));
        }
        let release = self.running_release()?;
        let places = [
            format!("/boot/vmlinuz-{release}"),
            format!("/usr/lib/modules/{release}/vmlinuz"),
            format!("/lib/modules/{release}/vmlinuz"),
        ];
        let found = places.iter().map(|place| self.tree.path(place)).find(|path| path.is_file());
        let path = found.ok_or_else(|| {
            Failure::new(format!(
                "the kernel that runs ({release}) is neither {} nor {}; name one with --kernel",
                places[0], places[1]
            ))
        })?;
        Ok((path.clone(), read(&path)?))
    }

    /// Returns where the boot loaders are.
    pub(super) fn loaders(&self) -> Places {
        match &self.options.loader_files {
            Some(folder) => Places { root: folder.clone(), flat: true },
            None => Places { root: self.tree.path(""), flat: false },
        }
    }

    /// Returns the EFI stub of systemd.
    pub(super) fn stub(&self, architecture: Architecture) -> Result<Vec<u8>, Failure> {
        let usual = format!("{STUBS}/linux{}.efi.stub", architecture.efi_suffix());
        let path = self.options.stub.clone().unwrap_or_else(|| self.tree.path(&usual));
        if self.options.stub.is_none() && !path.exists() {
            return Err(Failure::new(format!(
                "{usual} is not there: install systemd-boot-efi (Debian, Ubuntu), systemd-boot-unsigned (Fedora) or \
                 systemd (Arch), or name the stub with --stub"
            )));
        }
        read(&path)
    }

    /// Returns the modules of a kernel release, or of the running kernel.
    pub(super) fn modules(&self, release: Option<&str>) -> Result<Modules, Failure> {
        let folder = match (&self.options.modules, release) {
            (Some(folder), _) => folder.clone(),
            (None, Some(release)) => self.tree.path(format!("/lib/modules/{release}")),
            (None, None) => self.tree.path(format!("/lib/modules/{}", self.running_release()?)),
        };
        let index = Index::read(&folder).map_err(|error| unreadable(&folder, &error))?;
        let named = release_of(&folder)?;
        match release {
            Some(release) if release != named => Err(Failure::new(format!(
                "{} holds the modules of {named}, but the kernel is {release}; name its own with --modules",
                folder.display()
            ))),
            _ => Ok(Modules { index, release: named }),
        }
    }

    fn running_release(&self) -> Result<String, Failure> {
        self.tree.attribute("proc/sys/kernel/osrelease").ok_or_else(|| {
            Failure::new(
                "which kernel runs cannot be found out; name one with --kernel and --modules",
            )
        })
    }
}

fn unreadable(folder: &Path, error: &std::io::Error) -> Failure {
    let folder = folder.display();
    Failure::new(format!(
        "{folder}/modules.dep cannot be read ({error}); name the kernel's folder with --modules, or if it is that one, \
         run depmod for it"
    ))
}

/// The module directory is named after the release; a symbolic link may have another name.
fn release_of(folder: &Path) -> Result<String, Failure> {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = folder.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| {
        Failure::new(format!(
            "{}: the last part of the path must be the kernel's version",
            folder.display()
        ))
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path)
        .map_err(|error| Failure::new(format!("{} cannot be read: {error}", path.display())))
}

/// Time stamp of files in the image: `SOURCE_DATE_EPOCH` (reproducible-builds.org), or 0.
pub(super) fn time() -> Result<u32, Failure> {
    let Some(text) = env::var_os("SOURCE_DATE_EPOCH") else { return Ok(0) };
    text.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| {
        Failure::new("SOURCE_DATE_EPOCH is not a number of seconds since 1970; correct or unset it")
    })
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::options::Task;
    use crate::options::parse;

    /// A machine with kernel 6.12 running, and its modules.
    struct Machine {
        root: PathBuf,
    }

    impl Machine {
        fn new(name: &str) -> Self {
            let root =
                env::temp_dir().join(format!("storagetm-inputs-{name}-{}", std::process::id()));
            let machine = Self { root };
            machine.file("proc/sys/kernel/osrelease", "6.12\n");
            machine.file("lib/modules/6.12/modules.dep", "kernel/a.ko:\n");
            machine
        }

        fn file(&self, path: &str, content: &str) {
            let path = self.root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        fn with<T>(&self, line: &str, look: impl FnOnce(&Inputs<'_>) -> T) -> T {
            let words = format!("storagetm image --uki x {line}");
            let Task::Image(options) = parse(words.split_whitespace()).unwrap().task else {
                unreachable!()
            };
            look(&Inputs { tree: Tree::at(&self.root), options: &options })
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.root);
        }
    }

    #[test]
    fn the_running_kernel_is_taken_wherever_it_is() {
        let machine = Machine::new("running");
        let missing = machine.with("", |inputs| inputs.kernel().unwrap_err().to_string());
        assert!(
            missing.contains("/boot/vmlinuz-6.12") && missing.contains("--kernel"),
            "{missing}"
        );
        machine.file("usr/lib/modules/6.12/vmlinuz", "second");
        assert_eq!(machine.with("", |inputs| inputs.kernel().unwrap().1), b"second");
        machine.file("boot/vmlinuz-6.12", "first");
        assert_eq!(machine.with("", |inputs| inputs.kernel().unwrap().1), b"first");
        let modules = machine.with("", |inputs| inputs.modules(None).unwrap());
        assert_eq!((modules.release.as_str(), modules.index.names()), ("6.12", vec!["a"]));
    }

    #[test]
    fn modules_of_another_kernel_are_refused() {
        let machine = Machine::new("other");
        let line = format!("--modules {}/lib/modules/6.12", machine.root.display());
        let wrong =
            machine.with(&line, |inputs| inputs.modules(Some("6.1")).unwrap_err().to_string());
        assert!(wrong.contains("the modules of 6.12, but the kernel is 6.1"), "{wrong}");
        let missing =
            machine.with("", |inputs| inputs.modules(Some("6.1")).unwrap_err().to_string());
        assert!(missing.contains("lib/modules/6.1/modules.dep cannot be read"), "{missing}");
    }

    #[test]
    fn a_missing_stub_names_the_package() {
        let machine = Machine::new("stub");
        let stub = |architecture| machine.with("", |inputs| inputs.stub(architecture));
        let missing = stub(Architecture::X86_64).unwrap_err().to_string();
        assert!(missing.contains("systemd-boot-efi"), "{missing}");
        machine.file("usr/lib/systemd/boot/efi/linuxx64.efi.stub", "stub");
        assert_eq!(stub(Architecture::X86_64).unwrap(), b"stub");
        let missing = stub(Architecture::Aarch64).unwrap_err().to_string();
        assert!(missing.contains("linuxaa64.efi.stub is not there"), "{missing}");
    }
}
