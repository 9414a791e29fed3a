//! An entry for target mode in the boot loader that this machine has: GRUB or systemd-boot. It starts
//! when it is chosen, in the menu or for the next start, and is never the default.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use linux::tree::Tree;

use super::stick::{configured_words, title};
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
        let loader = text_of_variable(&variable(LOADER).unwrap_or_default());
        if loader.contains("systemd-boot") {
            let default = variable(DEFAULT).ok().map(|value| text_of_variable(&value));
            return Self::systemd(tree, default);
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

    fn systemd(tree: &Tree, default: Option<String>) -> Result<Self, Failure> {
        let folders = LOADER_PARTITIONS.map(|folder| tree.path(folder));
        let folder = folders.into_iter().find(|folder| folder.join("loader/entries").is_dir());
        let folder = folder.ok_or_else(|| {
            Failure::new("loader/entries is not below /boot, /efi or /boot/efi; mount the boot partition first")
        })?;
        let entries = LOADER_PARTITIONS.map(|folder| tree.path(folder).join("loader/entries"));
        let conf = fs::read_to_string(folder.join("loader/loader.conf")).unwrap_or_default();
        let configured =
            conf.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
        let mut configured = configured.filter(|(key, _)| *key == "default");
        // The variable takes precedence. A default that is saved may become the chosen entry, and one
        // that is not there does not count.
        let default =
            default.or_else(|| configured.next_back().map(|(_, name)| name.trim().to_owned()));
        let is_saved = default.as_deref() == Some("@saved");
        let is_other = default.is_some_and(|name| is_another(&entries, &name));
        // Entries without a sort key come last.
        if !is_saved && (is_other || all_sorted(&entries)) {
            return Ok(Self::Systemd { folder });
        }
        Err(Failure::new(format!(
            "target mode could become the default entry; name another one in {} by a line \"default FILE\", with the \
             name of its file in loader/entries",
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

    /// Returns whether the loader forgets the choice for the next start when it has started it. GRUB
    /// cannot write its environment on LVM, RAID and btrfs, and would start the entry for ever.
    pub(super) fn forgets_choice(&self) -> bool {
        let Self::Grub { folder, once } = self else { return true };
        let program = if *once == "grub2-reboot" { "grub2-probe" } else { "grub-probe" };
        let ask = |target: &str| {
            let output = Command::new(program).arg(target).arg(folder).output().ok()?;
            let answer = String::from_utf8(output.stdout).ok()?;
            output.status.success().then(|| answer.trim().to_owned())
        };
        let is_plain = ask("--target=abstraction").is_some_and(|layers| layers.is_empty());
        let has_blocks = ask("--target=fs").is_some_and(|fs| !["btrfs", "zfs"].contains(&&*fs));
        is_plain && has_blocks
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
        // A symbolic link stays one.
        let entry = entry.canonicalize().unwrap_or(entry);
        let text = self.text(command_line, &existing(&entry)?)?;
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
        let title = title(command_line);
        Ok(match self {
            Self::Grub { .. } => {
                let words = configured_words(command_line)?;
                let (first, rest) = without_block(before).ok_or_else(|| {
                    Failure::new(format!(
                        "{} has the line \"{}\" but not \"{}\": remove what an earlier run has written there",
                        self.entry().display(),
                        BEGIN.trim_end(),
                        END.trim_end()
                    ))
                })?;
                let newline = if first.is_empty() || first.ends_with('\n') { "" } else { "\n" };
                format!(
                    "{first}{newline}{BEGIN}menuentry '{title}' --id {NAME} {{\n  linux $prefix/{NAME}/vmlinuz {words}\n  \
                     initrd $prefix/{NAME}/initrd\n}}\n{END}{rest}"
                )
            }
            Self::Systemd { .. } => {
                configured_words(command_line)?;
                format!(
                    "title {title}\nlinux /{NAME}/vmlinuz\ninitrd /{NAME}/initrd\noptions {command_line}\n"
                )
            }
        })
    }
}

/// Returns the text of a variable of the firmware: UTF-16, behind four bytes of attributes.
fn text_of_variable(value: &[u8]) -> String {
    let units = value.get(4..).unwrap_or_default().chunks_exact(2);
    let units =
        units.map(|unit| u16::from_le_bytes([unit[0], unit[1]])).take_while(|&unit| unit != 0);
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// Returns the other entries of systemd-boot.
fn others(entries: &[PathBuf]) -> impl Iterator<Item = PathBuf> {
    let files = entries.iter().flat_map(fs::read_dir).flatten().flatten().map(|entry| entry.path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
        .filter(|path| path.file_stem().is_some_and(|stem| stem != NAME))
}

/// Returns whether another entry has this name, with or without `.conf`.
fn is_another(entries: &[PathBuf], name: &str) -> bool {
    others(entries).any(|path| [path.file_name(), path.file_stem()].contains(&Some(name.as_ref())))
}

/// Returns whether there are other entries, and each has a sort key.
fn all_sorted(entries: &[PathBuf]) -> bool {
    let is_sorted = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().any(|line| line.starts_with("sort-key"))
    };
    others(entries).next().is_some() && others(entries).all(|path| is_sorted(&path))
}

/// Returns the text of the file; nothing if it is not there.
///
/// # Errors
/// Fails if the file cannot be read or is not UTF-8: it would be replaced by less.
fn existing(path: &Path) -> Result<String, Failure> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(|error| {
            let path = path.display();
            Failure::new(format!(
                "{path} cannot be read as text, so nothing is added to it: {error}"
            ))
        }),
    }
}

/// Returns the text before and after the block that an earlier run has written; `None` if the end of
/// the block is missing.
fn without_block(text: &str) -> Option<(&str, &str)> {
    match text.split_once(BEGIN) {
        None => Some((text, "")),
        Some((first, rest)) => Some((first, rest.split_once(END)?.1)),
    }
}

#[cfg(test)]
mod test {
    use std::os::unix::fs::PermissionsExt as _;

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
    fn nothing_of_the_users_configuration_is_lost() {
        let machine = Machine::new("custom");
        machine.file("boot/grub/grub.cfg", b"next_entry custom.cfg");
        let loader = machine.loader().unwrap();
        let write = || loader.write(b"kernel", b"initramfs", "quiet").map_err(|e| e.to_string());
        let cut = [b"source /x.cfg\n", BEGIN.as_bytes(), b"menuentry mine {}\n"].concat();
        for (before, reason) in [(&b"Syst\xe8me"[..], "cannot be read as text"), (&cut, "remove")] {
            machine.file("boot/grub/custom.cfg", before);
            assert!(write().unwrap_err().contains(reason));
            assert_eq!(fs::read(machine.0.join("boot/grub/custom.cfg")).unwrap(), before);
        }
        machine.file("boot/grub/real.cfg", b"source /x.cfg");
        let (real, link) =
            (machine.0.join("boot/grub/real.cfg"), machine.0.join("boot/grub/custom.cfg"));
        fs::set_permissions(&real, fs::Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("real.cfg", &link).unwrap();
        write().unwrap();
        assert!(machine.read("boot/grub/real.cfg").starts_with("source /x.cfg\n# Begin"));
        assert!(link.is_symlink());
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o600);
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
        for (default, is_safe) in [
            ("@saved", false),
            ("gone.conf", false),
            ("storagetm", false),
            ("linux.conf", true),
            ("linux", true),
        ] {
            machine.file("efi/loader/entries/linux.conf", b"title Linux\n");
            machine.file(
                "efi/loader/loader.conf",
                format!("timeout 3\ndefault {default}\n").as_bytes(),
            );
            assert_eq!(machine.loader().is_ok(), is_safe, "{default}");
        }
        fs::remove_file(machine.0.join("efi/loader/entries/linux.conf")).unwrap();
        machine.file("efi/loader/loader.conf", b"");
        assert!(machine.loader().is_err(), "no other entry");
    }

    #[test]
    fn grub_of_fedora_is_found() {
        let machine = Machine::new("fedora");
        machine.file("boot/grub2/grub.cfg", b"next_entry custom.cfg");
        let loader = machine.loader().unwrap();
        assert_eq!(loader.once(), "grub2-reboot storagetm");
    }
}
