//! The options of `storagetm image`. They know no file.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

const EXAMPLES: &str = "\
Examples:
  A USB stick that turns any PC into a disk (boot from it, type on another machine what it shows):
    storagetm image --disk /dev/sdX
  The same as a file, to be written onto a stick later, or onto many:
    storagetm image --disk storagetm.img
  An entry in the boot menu of this machine (systemd-boot finds it by itself):
    storagetm image --for this-machine --uki /boot/efi/EFI/Linux/storagetm.efi
  An initramfs for the kernel of this machine, for any boot loader:
    storagetm image --initramfs /boot/storagetm.img
  With another kernel than the running one:
    storagetm image --kernel /boot/vmlinuz-6.12 --modules /lib/modules/6.12 --uki storagetm.efi

The image holds a kernel, its drivers and this program, and nothing else. The same files give the same \
bytes; SOURCE_DATE_EPOCH sets the time that files in it have. Nothing is signed: with Secure Boot, sign \
the EFI program with your own key (sbsign --key KEY --cert CERT storagetm.efi).

Exit status: 0 if the image was made, 1 if not, 2 if the options are wrong.";

/// The options of `storagetm image`.
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("product").required(true),
    override_usage = "storagetm image [OPTIONS] (--initramfs FILE | --uki FILE | --disk FILE|DEVICE)",
    after_help = EXAMPLES
)]
pub struct Image {
    /// Write an initramfs, to be booted with the kernel by any boot loader
    #[arg(long, value_name = "FILE", group = "product")]
    pub initramfs: Option<PathBuf>,

    /// Write an EFI program (a unified kernel image), which firmware and boot loaders start by itself
    #[arg(long, value_name = "FILE", group = "product")]
    pub uki: Option<PathBuf>,

    /// Write a disk that EFI firmware boots from: an image file, or straight onto a USB stick
    ///
    /// A stick is overwritten as a whole, after its name was typed (or with --force), and never if it is in use.
    #[arg(long, value_name = "FILE|DEVICE", group = "product")]
    pub disk: Option<PathBuf>,

    /// With drivers for any PC, or only for the hardware of this one
    #[arg(long = "for", value_name = "MACHINE", value_enum, default_value_t = For::Generic)]
    pub machine: For,

    /// The kernel; the running one's if not given
    #[arg(long, value_name = "VMLINUZ")]
    pub kernel: Option<PathBuf>,

    /// The folder of the kernel's modules; /lib/modules/VERSION if not given
    #[arg(long, value_name = "DIR")]
    pub modules: Option<PathBuf>,

    /// The kernel command line, with what storagetm boot reads from it
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "quiet",
        allow_hyphen_values = true,
        conflicts_with = "initramfs"
    )]
    pub command_line: String,

    /// The start of the EFI program: linuxx64.efi.stub of systemd, found by itself where systemd-boot is installed
    #[arg(long, value_name = "FILE", conflicts_with = "initramfs")]
    pub stub: Option<PathBuf>,

    /// Where the drivers' firmware is
    ///
    /// For any PC only files of 256 KiB at most are taken, which network cards of home and office need.
    #[arg(long, value_name = "DIR", default_value = "/lib/firmware")]
    pub firmware: PathBuf,

    /// Leave the drivers' firmware out
    #[arg(long, conflicts_with = "firmware")]
    pub no_firmware: bool,

    /// Overwrite the file or disk, if it is there, without asking
    #[arg(long, visible_alias = "overwrite")]
    pub force: bool,

    /// Write what was made as one JSON line
    #[arg(long)]
    pub json: bool,
}

/// Which machine an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum For {
    /// Only this one: smaller, and starts sooner
    ThisMachine,
    /// Any PC
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
        for line in [
            "",
            "--uki a --disk b",
            "--initramfs a --command-line x",
            "--initramfs a --no-firmware --firmware x",
            "--uki a --for me",
        ] {
            assert_eq!(image(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
