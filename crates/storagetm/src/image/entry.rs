//! An entry for target mode in the boot loader that this machine has: GRUB or systemd-boot. It starts
//! when it is chosen, in the menu or for the next start, and is never the default.

use std::fs;
use std::path::{Path, PathBuf};

use linux::tree::Tree;

use super::stick::{TITLE, configured_words};
use super::target;
use crate::confirmation;
use failure::Failure;

const NAME: &str = "storagetm";
/// Directories of GRUB's configuration, and the program that chooses an entry for the next start.
const GRUB: [(&str, &str); 2] = [("boot/grub", "grub-reboot"), ("boot/grub2", "grub2-reboot")];
/// The file that GRUB's configuration reads for entries made by hand.
const CUSTOM: &str = "custom.cfg";
const BEGIN: &str = "# Begin of target mode, written by storagetm\n";
const END: &str = "# End of target mode\n";
/// Where systemd-boot looks for entries.
const LOADER_PARTITIONS: [&str; 3] = ["boot", "efi", "boot/efi"];
/// Variables of systemd's boot loader interface: the running loader, and the entry that is the default.
const LOADER: &str = "LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
const DEFAULT: &str = "LoaderEntryDefault-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// The boot loader of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Loader {
    /// GRUB: its directory, and the program for the next start.
    Grub { folder: PathBuf, once: &'static str },
    /// systemd-boot: the root of its partition.
    Systemd { folder: PathBuf },
}

impl Loader {
    /// Finds the boot loader, and checks that an entry can be added that is not the default.
    pub(super) fn find(tree: &Tree) -> Result<Self, Failure> {
        let variable = |name: &str| tree.bytes(format!("sys/firmware/efi/efivars/{name}"));
        // UTF-16, behind four bytes of attributes.
        let loader = variable(LOADER).unwrap_or_default();
        let loader: Vec<u8> = loader.into_iter().filter(|&byte| byte != 0).collect();
        if contains(&loader, b"systemd-boot") {
            return Self::systemd(tree, variable(DEFAULT).is_ok());
        }
        let found = GRUB.iter().find(|(folder, _)| tree.path(folder).join("grub.cfg").is_file());
        let (folder, once) = found.ok_or_else(|| {
            Failure::new(
                "this machine's boot loader is neither GRUB (/boot/grub/grub.cfg) nor systemd-boot; make an initramfs with \
                 --initramfs, and add an entry for it by hand",
            )
        })?;
        let folder = tree.path(folder);
        let path = folder.join("grub.cfg");
        let text = fs::read_to_string(&path)
            .map_err(|error| Failure::new(format!("{} cannot be read: {error}", path.display())))?;
        for wanted in [CUSTOM, "next_entry"] {
            if !text.contains(wanted) {
                return Err(Failure::new(format!(
                    "{} does not use {wanted}, so an entry could not be chosen; make it anew by update-grub or grub2-mkconfig",
                    path.display()
                )));
            }
        }
        Ok(Self::Grub { folder, once })
    }

    fn systemd(tree: &Tree, has_default: bool) -> Result<Self, Failure> {
        let folders = LOADER_PARTITIONS.map(|folder| tree.path(folder));
        let folder = folders.into_iter().find(|folder| folder.join("loader/entries").is_dir());
        let folder = folder.ok_or_else(|| {
            Failure::new("loader/entries is not below /boot, /efi or /boot/efi; mount the boot partition first")
        })?;
        let settings = fs::read_to_string(folder.join("loader/loader.conf")).unwrap_or_default();
        let names_default = settings.lines().any(|line| line.trim_start().starts_with("default"));
        // Entries without a sort key come last.
        if has_default || names_default || all_sorted(&folder.join("loader/entries")) {
            return Ok(Self::Systemd { folder });
        }
        Err(Failure::new(format!(
            "target mode could become the default entry, since {} names none; add a line \"default NAME\" there",
            folder.join("loader/loader.conf").display()
        )))
    }

    /// Returns the directory of the kernel and the initramfs.
    pub(super) fn files(&self) -> PathBuf {
        match self {
            Self::Grub { folder, .. } | Self::Systemd { folder } => folder.join(NAME),
        }
    }

    /// Returns the command that chooses the entry for the next start only.
    pub(super) fn once(&self) -> String {
        match self {
            Self::Grub { once, .. } => format!("{once} {NAME}"),
            Self::Systemd { .. } => format!("bootctl set-oneshot {NAME}.conf"),
        }
    }

    /// Returns the file of the entry.
    fn entry(&self) -> PathBuf {
        match self {
            Self::Grub { folder, .. } => folder.join(CUSTOM),
            Self::Systemd { folder } => folder.join(format!("loader/entries/{NAME}.conf")),
        }
    }

    /// Asks for consent, before anything slow is done.
    pub(super) fn confirm(&self, given: bool) -> Result<(), Failure> {
        let (files, entry) = (self.files(), self.entry());
        let question = format!(
            "An entry for target mode will be written to {}, and its files to {}",
            entry.display(),
            files.display()
        );
        confirmation::consent(&question, NAME, "--force", given).map_err(Failure::new)
    }

    /// Writes kernel, initramfs and entry. The entry comes last, so that it never names a file that
    /// is not there.
    pub(super) fn write(
        &self,
        kernel: &[u8],
        initramfs: &[u8],
        command_line: &str,
    ) -> Result<usize, Failure> {
        let entry = self.entry();
        let text = self.text(command_line, &fs::read_to_string(&entry).unwrap_or_default())?;
        let files = self.files();
        fs::create_dir_all(&files).map_err(|error| {
            Failure::new(format!("{} cannot be made: {error}", files.display()))
        })?;
        for (name, bytes) in [("vmlinuz", kernel), ("initrd", initramfs)] {
            target::write(&files.join(name), bytes)?;
        }
        target::write(&entry, text.as_bytes())?;
        Ok(kernel.len().saturating_add(initramfs.len()))
    }

    /// The new text of the entry's file.
    fn text(&self, command_line: &str, before: &str) -> Result<String, Failure> {
        Ok(match self {
            Self::Grub { .. } => {
                let words = configured_words(command_line)?;
                let (first, rest) = without_block(before);
                format!(
                    "{first}{BEGIN}menuentry '{TITLE}' --id {NAME} {{\n  linux $prefix/{NAME}/vmlinuz {words}\n  \
                     initrd $prefix/{NAME}/initrd\n}}\n{END}{rest}"
                )
            }
            Self::Systemd { .. } => {
                configured_words(command_line)?;
                format!(
                    "title {TITLE}\nlinux /{NAME}/vmlinuz\ninitrd /{NAME}/initrd\noptions {command_line}\n"
                )
            }
        })
    }
}

/// Whether every other entry has a sort key.
fn all_sorted(entries: &Path) -> bool {
    let entries = fs::read_dir(entries).into_iter().flatten().flatten();
    let own = format!("{NAME}.conf");
    let mut others = entries.filter(|entry| entry.file_name() != own.as_str());
    let is_sorted = |path: &Path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().any(|line| line.starts_with("sort-key"))
    };
    others.all(|entry| is_sorted(&entry.path()))
}

/// The text before and after the block that an earlier run has written.
fn without_block(text: &str) -> (&str, &str) {
    let Some((first, rest)) = text.split_once(BEGIN) else { return (text, "") };
    (first, rest.split_once(END).map_or("", |(_, rest)| rest))
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len().max(1)).any(|window| window == wanted)
}

#[cfg(test)]
mod test {
    use super::*;

    struct Machine(PathBuf);

    impl Machine {
        fn new(name: &str) -> Self {
            let name = format!("storagetm-entry-{name}-{}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }

        fn file(&self, path: &str, content: &[u8]) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.0.join(path)).unwrap()
        }

        fn loader(&self) -> Result<Loader, String> {
            Loader::find(&Tree::at(&self.0)).map_err(|error| error.to_string())
        }

        fn systemd_boot(&self) {
            let name: Vec<u8> =
                "systemd-boot 257".encode_utf16().flat_map(u16::to_le_bytes).collect();
            self.file(
                &format!("sys/firmware/efi/efivars/{LOADER}"),
                &[&[6, 0, 0, 0], &name[..]].concat(),
            );
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn grub_entry_is_added_once_and_keeps_others() {
        let machine = Machine::new("grub");
        assert!(machine.loader().unwrap_err().contains("neither GRUB"));
        machine.file("boot/grub/grub.cfg", b"set default=0");
        assert!(machine.loader().unwrap_err().contains("custom.cfg"));
        machine.file("boot/grub/grub.cfg", b"next_entry source ${config_directory}/custom.cfg");
        machine.file("boot/grub/custom.cfg", b"menuentry other {}\n");
        let loader = machine.loader().unwrap();
        assert_eq!(loader.once(), "grub-reboot storagetm");
        for line in ["quiet", "quiet a=$b"] {
            loader.write(b"kernel", b"initramfs", line).unwrap();
        }
        let text = machine.read("boot/grub/custom.cfg");
        assert!(text.starts_with("menuentry other {}\n"), "{text}");
        assert_eq!(text.matches("--id storagetm").count(), 1, "{text}");
        assert!(text.contains("linux $prefix/storagetm/vmlinuz 'quiet' 'a=$b'"), "{text}");
        assert_eq!(machine.read("boot/grub/storagetm/initrd"), "initramfs");
        assert!(!text.contains("default"), "{text}");
    }

    #[test]
    fn entry_of_systemd_boot_never_becomes_the_default() {
        let machine = Machine::new("systemd");
        machine.systemd_boot();
        assert!(machine.loader().unwrap_err().contains("mount the boot partition"));
        machine.file("efi/loader/entries/linux.conf", b"title Linux\n");
        assert!(machine.loader().unwrap_err().contains("could become the default"));
        machine.file("efi/loader/entries/linux.conf", b"title Linux\nsort-key linux\n");
        let loader = machine.loader().unwrap();
        loader.write(b"kernel", b"initramfs", "quiet").unwrap();
        assert_eq!(loader.once(), "bootctl set-oneshot storagetm.conf");
        let text = machine.read("efi/loader/entries/storagetm.conf");
        assert!(
            text.contains("linux /storagetm/vmlinuz\n") && !text.contains("sort-key"),
            "{text}"
        );
        assert_eq!(machine.loader().unwrap(), loader, "its own entry is none of the others");
    }

    #[test]
    fn grub_of_fedora_is_found() {
        let machine = Machine::new("fedora");
        machine.file("boot/grub2/grub.cfg", b"next_entry custom.cfg");
        let loader = machine.loader().unwrap();
        assert_eq!(loader.once(), "grub2-reboot storagetm");
    }
}
