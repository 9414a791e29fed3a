//! The files of a stick or CD, and what starts them on which firmware.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ::image::Architecture;
use ::image::bios::Bios;
use ::image::disk::Contents;
use ::image::files::Files;

use super::loader::{IA32, Loader, Places, Processor, Reason, bios_boot};
use super::report::{Firmware, Starts};
use failure::Failure;

/// The name in a menu: by what the kernel parameters start.
pub(super) fn title(command_line: &str) -> &'static str {
    let all = linux::boot::parse_command_line(command_line);
    let asked = all.into_iter().rfind(|it| it.name == "storagetm.boot");
    let is_no = |value: &str| ["0", "no", "false", "off"].contains(&value);
    if asked.is_some_and(|it| !it.value.as_deref().is_some_and(is_no)) {
        "Start a system from a lent disk (storagetm)"
    } else {
        "Lend the disks of this machine (storagetm)"
    }
}

const KERNEL: &str = "boot/vmlinuz";
const INITRAMFS: &str = "boot/initrd";
/// Where GRUB for BIOS, and a GRUB that does not find its own directory, reads its configuration.
const BESIDE: &str = "EFI/BOOT";
/// The programs that make GRUB's core image, by distribution.
const MAKERS: [&str; 2] = ["grub-mkimage", "grub2-mkimage"];
/// Modules of the core image: to read the stick, and to boot from it.
const MODULES: [&str; 14] = [
    "biosdisk",
    "part_gpt",
    "part_msdos",
    "fat",
    "iso9660",
    "search",
    "search_fs_file",
    "normal",
    "test",
    "linux",
    "ls",
    "cat",
    "echo",
    "reboot",
];

/// The program that UEFI firmware starts.
pub(super) enum Efi {
    /// The distribution's signed loader.
    Shim(Loader),
    /// An unsigned image of kernel and initramfs, and why it is not the former.
    Image(Vec<u8>, Reason),
}

/// Everything to compose a stick of.
pub(super) struct Parts<'a> {
    pub(super) architecture: Architecture,
    pub(super) kernel: &'a [u8],
    pub(super) initramfs: &'a [u8],
    pub(super) command_line: &'a str,
    pub(super) places: &'a Places,
    pub(super) iso: bool,
}

impl Parts<'_> {
    /// Returns the contents of the stick, and where it starts.
    ///
    /// # Errors
    /// Fails if GRUB's core image cannot be made although its parts are there, or if the command
    /// line has a character that GRUB cannot pass on.
    pub(super) fn compose(self, efi: Efi) -> Result<(Contents, Starts), Failure> {
        let mut starts = Starts::default();
        let mut files = Files::default();
        let mut grubs = Vec::new();
        let processor = Processor::from(self.architecture);
        match efi {
            Efi::Shim(loader) => {
                starts.on(Firmware::UefiSecureBoot);
                grubs.push((processor, loader));
            }
            Efi::Image(program, reason) => {
                starts.not_on(Firmware::UefiSecureBoot, reason);
                files.add(&program_path("BOOT", processor), program);
            }
        }
        starts.on(Firmware::Uefi);
        let bios = match self.architecture {
            Architecture::X86_64 => self.older_firmware(&mut starts, &mut grubs),
            Architecture::Aarch64 => None,
        };
        if !grubs.is_empty() || bios.is_some() {
            files.add(KERNEL, self.kernel.to_vec());
            files.add(INITRAMFS, self.initramfs.to_vec());
        }
        let marker = marker(&files);
        files.add(&marker, Vec::new());
        let configuration = configuration(&marker, self.command_line)?;
        for (processor, loader) in grubs {
            add(&mut files, processor, loader, &configuration);
        }
        let bios = bios.map(|(maker, folder)| {
            files.add(&format!("{BESIDE}/grub.cfg"), configuration.into_bytes());
            let boot = bios_boot(&folder).map_err(Failure::new)?;
            Ok(Bios { boot, core: core(&maker, &folder, &marker)? })
        });
        Ok((Contents { files, bios: bios.transpose()?, iso: self.iso }, starts))
    }

    /// Adds the loader for UEFI of 32 bits, and returns what makes that for BIOS and where it is: only
    /// PCs have these.
    fn older_firmware(
        &self,
        starts: &mut Starts,
        grubs: &mut Vec<(Processor, Loader)>,
    ) -> Option<(PathBuf, PathBuf)> {
        match self.places.unsigned(IA32) {
            Ok(loader) => {
                starts.on(Firmware::Uefi32);
                grubs.push((IA32, loader));
            }
            Err(reason) => starts.not_on(Firmware::Uefi32, reason),
        }
        match self.places.bios().and_then(|folder| Ok((maker()?, folder))) {
            Ok(found) => {
                starts.on(Firmware::Bios);
                Some(found)
            }
            Err(reason) => {
                starts.not_on(Firmware::Bios, reason);
                None
            }
        }
    }
}

/// Returns where firmware and shim look for a program.
fn program_path(name: &str, processor: Processor) -> String {
    format!("{BESIDE}/{name}{}.EFI", processor.suffix.to_uppercase())
}

/// Adds a loader under the names that firmware and shim look for, and GRUB's configuration where it
/// reads it.
fn add(files: &mut Files, processor: Processor, loader: Loader, configuration: &str) {
    let name = |name: &str| program_path(name, processor);
    files.add(&name("BOOT"), loader.first);
    if let Some(grub) = loader.grub {
        files.add(&name("GRUB"), grub);
    }
    if let Some(keys) = loader.keys {
        files.add(&name("MM"), keys);
    }
    for folder in [BESIDE, &loader.prefix] {
        files.add(&format!("{folder}/grub.cfg"), configuration.as_bytes().to_vec());
    }
}

/// A file by whose name GRUB recognizes this stick.
fn marker(files: &Files) -> String {
    let [a, b, c, d, ..] = files.digest();
    format!("boot/{:08x}.id", u32::from_be_bytes([a, b, c, d]))
}

/// A kernel command line in GRUB's language.
///
/// # Errors
/// Fails if it has control characters.
pub(super) fn configured_words(command_line: &str) -> Result<String, Failure> {
    if command_line.contains(|c: char| c.is_control()) {
        return Err(Failure::usage("--command-line has control characters; leave them out"));
    }
    let words: Vec<String> = words(command_line).iter().map(|word| quoted(word)).collect();
    Ok(words.join(" "))
}

/// GRUB's configuration.
fn configuration(marker: &str, command_line: &str) -> Result<String, Failure> {
    let words = configured_words(command_line)?;
    let title = title(command_line);
    Ok(format!(
        "set timeout=0\n\
         if [ ! -e ($root)/{marker} ]; then\n\
         \x20 search --no-floppy --file --set=root /{marker}\n\
         fi\n\
         menuentry '{title}' {{\n\
         \x20 linux ($root)/{KERNEL} {words}\n\
         \x20 initrd ($root)/{INITRAMFS}\n\
         }}\n"
    ))
}

/// The parameters of a kernel command line, without quotes.
fn words(line: &str) -> Vec<String> {
    linux::boot::words(line).map(|word| word.replace('"', "")).collect()
}

/// A word in GRUB's language.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Returns the program that makes core images.
fn maker() -> Result<PathBuf, Reason> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = env::split_paths(&path).collect();
    let paths = MAKERS.iter().flat_map(|name| folders.iter().map(move |it| it.join(name)));
    let mut paths = paths.filter(|path| path.is_file());
    paths.next().ok_or_else(|| {
        "grub-mkimage is not there (Debian, Ubuntu: package grub-common; Fedora: grub2-tools)"
            .to_owned()
    })
}

/// Makes GRUB's core image for BIOS.
fn core(maker: &Path, folder: &Path, marker: &str) -> Result<Vec<u8>, Failure> {
    let program = maker.display();
    let wrong = |what: &dyn std::fmt::Display| {
        Failure::new(format!("{program} could not make the loader for BIOS: {what}"))
    };
    let own = env::temp_dir().join(format!("storagetm-grub-{}", std::process::id()));
    fs::create_dir(&own).map_err(|error| wrong(&error))?;
    let (early, image) = (own.join("early.cfg"), own.join("core.img"));
    let run = fs::write(&early, early_configuration(marker)).and_then(|()| {
        Command::new(maker)
            .args(["-O", "i386-pc-eltorito", "-p", &format!("/{BESIDE}"), "-d"])
            .arg(folder)
            .arg("-c")
            .arg(&early)
            .arg("-o")
            .arg(&image)
            .args(MODULES)
            .stdin(Stdio::null())
            .output()
    });
    let made = fs::read(&image);
    let _ = fs::remove_dir_all(&own);
    let run = run.map_err(|error| wrong(&error))?;
    if run.status.success() {
        return made.map_err(|error| wrong(&error));
    }
    Err(wrong(&String::from_utf8_lossy(&run.stderr).trim()))
}

/// What GRUB for BIOS does first: it finds the stick.
fn early_configuration(marker: &str) -> String {
    format!("search --no-floppy --file --set=root /{marker}\nset prefix=($root)/{BESIDE}\n")
}

#[cfg(test)]
mod test {
    use super::*;

    fn loader(prefix: &str, is_signed: bool) -> Loader {
        Loader {
            first: b"first".to_vec(),
            grub: is_signed.then(|| b"grub".to_vec()),
            keys: is_signed.then(|| b"keys".to_vec()),
            prefix: prefix.to_owned(),
        }
    }

    fn compose(architecture: Architecture, efi: Efi) -> (Contents, Starts) {
        let places = Places { root: PathBuf::from("/nowhere"), flat: false };
        let parts = Parts {
            architecture,
            kernel: b"kernel",
            initramfs: b"initramfs",
            command_line: "quiet",
            places: &places,
            iso: false,
        };
        parts.compose(efi).unwrap()
    }

    fn paths(contents: &Contents) -> Vec<&str> {
        let paths = contents.files.iter().map(|(path, _)| path);
        paths.filter(|path| !path.ends_with(".id")).collect()
    }

    #[test]
    fn shim_finds_grub_and_grub_its_configuration() {
        let (contents, starts) =
            compose(Architecture::X86_64, Efi::Shim(loader("EFI/debian", true)));
        let wanted = [
            "EFI/BOOT/BOOTX64.EFI",
            "EFI/BOOT/GRUBX64.EFI",
            "EFI/BOOT/MMX64.EFI",
            "EFI/BOOT/grub.cfg",
            "EFI/debian/grub.cfg",
            "boot/initrd",
            "boot/vmlinuz",
        ];
        assert_eq!(paths(&contents), wanted);
        assert!(starts.has(Firmware::UefiSecureBoot) && !starts.has(Firmware::Bios));
    }

    #[test]
    fn unsigned_image_alone_is_one_file() {
        let image = Efi::Image(b"image".to_vec(), "no shim".to_owned());
        let (contents, starts) = compose(Architecture::X86_64, image);
        assert_eq!(paths(&contents), ["EFI/BOOT/BOOTX64.EFI"]);
        assert!(!starts.has(Firmware::UefiSecureBoot) && starts.has(Firmware::Uefi));
    }

    #[test]
    fn stick_for_arm_has_its_own_names_and_no_bios() {
        let (contents, starts) =
            compose(Architecture::Aarch64, Efi::Shim(loader("EFI/debian", true)));
        for path in ["EFI/BOOT/BOOTAA64.EFI", "EFI/BOOT/GRUBAA64.EFI", "EFI/BOOT/MMAA64.EFI"] {
            assert!(paths(&contents).contains(&path), "{path}");
        }
        assert!(starts.has(Firmware::Uefi) && contents.bios.is_none());
        let image = Efi::Image(b"image".to_vec(), "no shim".to_owned());
        let (contents, _) = compose(Architecture::Aarch64, image);
        assert_eq!(paths(&contents), ["EFI/BOOT/BOOTAA64.EFI"]);
    }

    #[test]
    fn command_line_is_quoted_for_grub() {
        let line = "quiet x=\"two words\" a=$b;c it's";
        let text = configuration("boot/1.id", line).unwrap();
        assert!(text.contains(r"vmlinuz 'quiet' 'x=two words' 'a=$b;c' 'it'\''s'"), "{text}");
        assert!(configuration("boot/1.id", "a\n}").is_err());
    }

    #[test]
    fn menu_says_what_the_image_does() {
        for (line, wanted) in [
            ("quiet storagetm.boot", "Start a system from a lent disk"),
            ("storagetm.boot=nvme://10.0.0.1/sda", "Start a system from a lent disk"),
            ("quiet", "Lend the disks of this machine"),
            ("storagetm.boot=no storagetm.boot.write", "Lend the disks of this machine"),
        ] {
            let text = configuration("boot/1.id", line).unwrap();
            assert!(text.contains(&format!("menuentry '{wanted} (storagetm)'")), "{text}");
        }
    }
}
