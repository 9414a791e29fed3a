//! The options of `storagetm image`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

const EXAMPLES: &str = "\
Examples:
  A USB stick that boots a machine into target mode; the command names the firmware that starts it:
    storagetm image --disk /dev/sdX
  The same as a file, to be written to sticks later:
    storagetm image --disk storagetm.img
  The same as a CD image, for the virtual drive of a server; it can be written to sticks, too:
    storagetm image --iso storagetm.iso
  An entry in the boot menu of this machine (systemd-boot detects it):
    storagetm image --for this-machine --uki /boot/efi/EFI/Linux/storagetm.efi
  An entry in the boot menu of this machine, by its own GRUB or systemd-boot, with Secure Boot or without:
    storagetm image --for this-machine --entry
  An initramfs for the kernel of this machine, for any boot loader:
    storagetm image --initramfs /boot/storagetm.img
  A stick that starts the system on a disk which another machine lends:
    storagetm image --boot --disk /dev/sdX
  With a kernel other than the running one:
    storagetm image --kernel /boot/vmlinuz-6.12 --modules /lib/modules/6.12 --uki storagetm.efi
  For another architecture, from its packages unpacked in a directory (dpkg-deb -x) and its build of storagetm:
    storagetm image --kernel arm/boot/vmlinuz-6.12-arm64 --modules arm/usr/lib/modules/6.12-arm64 \
      --loader-files arm --program storagetm-arm64 --no-firmware --disk stick.img

The image holds a kernel, its drivers, this program and a boot loader, and nothing else. It is reproducible; \
SOURCE_DATE_EPOCH sets the time stamp of its files. The output names the firmware that starts a stick \
or CD, and what is missing for the others. With Secure Boot, a stick needs the distribution's signed \
loader and kernel; sign a UKI with your own key (sbsign --key KEY --cert CERT storagetm.efi).

Exit status: 0 if the image was built, 1 if not, 2 if the options are wrong.";

/// The directory of firmware files of distributions.
const FIRMWARE: &str = "/lib/firmware";

/// The options of `storagetm image`.
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("product").required(true),
    override_usage = "storagetm image [OPTIONS] (--initramfs FILE | --uki FILE | --disk FILE|DEVICE | --iso FILE | --entry)",
    after_help = EXAMPLES
)]
pub struct Image {
    /// Write an initramfs, for any boot loader
    #[arg(long, value_name = "FILE", group = "product")]
    pub initramfs: Option<PathBuf>,

    /// Write an EFI program (a unified kernel image), which firmware and boot loaders start directly
    #[arg(long, value_name = "FILE", group = "product")]
    pub uki: Option<PathBuf>,

    /// Write a bootable disk: an image file, or directly to a USB stick
    ///
    /// All of the stick is overwritten, after confirmation (or with --force), and never if it is in use.
    #[arg(long, value_name = "FILE|DEVICE", group = "product")]
    pub disk: Option<PathBuf>,

    /// Write a bootable CD image (ISO 9660), which also boots when it is written to a USB stick
    #[arg(long, value_name = "FILE", group = "product")]
    pub iso: Option<PathBuf>,

    /// Add an entry for target mode to this machine's boot loader, GRUB or systemd-boot
    ///
    /// The entry is started when it is chosen, in the menu or for the next start by the command that is shown, and is
    /// never the default. With Secure Boot it needs a signed kernel only. Asks for consent (or --force).
    #[arg(long, group = "product")]
    pub entry: bool,

    /// Start a system from a disk that another machine lends, instead of lending the disks
    ///
    /// The image looks for machines nearby, asks for one and for the code of its screen, attaches the disk by NVMe/TCP, and
    /// starts the Linux system on it with the kernel of the image. Nothing is written to the disk: changes are kept in
    /// memory. An initramfs needs the kernel parameter storagetm.boot.
    #[arg(long, conflicts_with = "entry")]
    pub boot: bool,

    /// What UEFI firmware starts on a stick or CD
    #[arg(
        long,
        value_name = "LOADER",
        value_enum,
        default_value_t = LoaderChoice::Auto,
        conflicts_with_all = ["initramfs", "uki", "entry"]
    )]
    pub loader: LoaderChoice,

    /// Directory of boot loaders: unpacked packages, or the files themselves; default: what is installed
    ///
    /// For Secure Boot shimx64.efi, grubx64.efi and mmx64.efi (ARM64: shimaa64.efi ...); for UEFI of 32 bits gcdia32.efi; for BIOS GRUB's i386-pc.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["initramfs", "uki", "entry"])]
    pub loader_files: Option<PathBuf>,

    /// Include drivers for any machine, or only for the hardware of this one
    #[arg(long = "for", value_name = "MACHINE", value_enum, default_value_t = For::Generic)]
    pub machine: For,

    /// The kernel, for x86-64 or ARM64; default: the running one
    #[arg(long, value_name = "VMLINUZ")]
    pub kernel: Option<PathBuf>,

    /// Directory of the kernel's modules; default: /lib/modules/VERSION
    #[arg(long, value_name = "DIR")]
    pub modules: Option<PathBuf>,

    /// The program in the image: the static build of storagetm for the kernel's architecture; default: this one
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,

    /// The kernel command line, with the parameters of storagetm boot
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "quiet",
        allow_hyphen_values = true,
        conflicts_with = "initramfs"
    )]
    pub command_line: String,

    /// The EFI stub: linuxx64.efi.stub of systemd (ARM64: linuxaa64.efi.stub); default: that of the installed systemd-boot
    #[arg(long, value_name = "FILE", conflicts_with = "initramfs")]
    pub stub: Option<PathBuf>,

    /// Directory of firmware files
    ///
    /// For any machine only files of at most 768 KiB are included: enough for most network cards. Larger
    /// ones are named when the image is made.
    #[arg(long, value_name = "DIR", default_value = FIRMWARE)]
    pub firmware: PathBuf,

    /// Include firmware files of any size
    #[arg(long)]
    pub all_firmware: bool,

    /// Include no firmware files
    #[arg(long, conflicts_with_all = ["firmware", "all_firmware"])]
    pub no_firmware: bool,

    /// Overwrite an existing file or disk, or add an entry, without asking
    #[arg(long, visible_alias = "overwrite")]
    pub force: bool,

    /// Write the result as one line of JSON
    #[arg(long)]
    pub json: bool,
}

impl Image {
    /// Returns the kernel command line, with the parameter that makes the image start a lent system.
    pub(crate) fn kernel_line(&self) -> String {
        if self.boot {
            format!("storagetm.boot {}", self.command_line)
        } else {
            self.command_line.clone()
        }
    }

    /// Returns the options for an image of the running kernel and the hardware of this machine.
    pub(crate) fn for_this_machine() -> Self {
        Self {
            initramfs: None,
            uki: None,
            disk: None,
            iso: None,
            entry: false,
            boot: false,
            loader: LoaderChoice::Auto,
            loader_files: None,
            machine: For::ThisMachine,
            kernel: None,
            modules: None,
            program: None,
            command_line: String::new(),
            stub: None,
            firmware: PathBuf::from(FIRMWARE),
            all_firmware: false,
            no_firmware: false,
            force: false,
            json: false,
        }
    }
}

/// What UEFI firmware starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LoaderChoice {
    /// The distribution's loader if it and the kernel are signed, else the stub
    Auto,
    /// The distribution's signed shim and GRUB: works with Secure Boot
    Shim,
    /// The kernel by systemd's stub, not signed
    Stub,
}

/// Which machine an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum For {
    /// This machine only: smaller, and boots faster
    ThisMachine,
    /// Any machine of its architecture
    Generic,
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::options::Task;
    use crate::options::parse;

    fn image(line: &str) -> Result<Image, clap::Error> {
        let words = format!("storagetm image {line}");
        match parse(words.split_whitespace())?.task {
            Task::Image(image) => Ok(image),
            _ => unreachable!("the line says image"),
        }
    }

    #[test]
    fn one_product_is_made_at_a_time() {
        let options = image("--uki a --for this-machine --command-line ip=dhcp").unwrap();
        assert_eq!((options.machine, options.command_line.as_str()), (For::ThisMachine, "ip=dhcp"));
        assert_eq!(image("--disk a --overwrite").unwrap().machine, For::Generic);
        assert_eq!(options.kernel_line(), "ip=dhcp");
        assert_eq!(image("--boot --iso a").unwrap().kernel_line(), "storagetm.boot quiet");
        for line in [
            "",
            "--uki a --disk b",
            "--initramfs a --command-line x",
            "--initramfs a --no-firmware --firmware x",
            "--initramfs a --no-firmware --all-firmware",
            "--iso a --disk b",
            "--uki a --loader shim",
            "--entry --disk b",
            "--entry --boot",
            "--uki a --for me",
        ] {
            assert_eq!(image(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
