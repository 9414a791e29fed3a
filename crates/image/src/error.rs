//! Errors of making an image, as sentences for people.

use std::io;
use std::path::PathBuf;

use crate::architecture::Architecture;

/// Why an image cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program is not a 64-bit ELF program.
    #[error("the program is not a 64-bit ELF program, so it cannot be put into an image")]
    NoProgram,
    /// The program is dynamically linked.
    #[error(
        "this program was built to need the system's libraries, and an image holds nothing but the program; use the \
         static build"
    )]
    Dynamic,
    /// The kernel image has an unknown format.
    #[error(
        "the kernel is not an image for x86-64 or ARM64 that EFI firmware can start; give one with --kernel, usually \
         /boot/vmlinuz-VERSION"
    )]
    NoKernel,
    /// The stub is not an EFI program.
    #[error("the stub is not a 64-bit EFI program; it should be linuxx64.efi.stub of systemd")]
    NoStub,
    /// The stub is for another architecture than the kernel, which has this one.
    #[error(
        "the stub is not for {0} as the kernel is; it should be linux{suffix}.efi.stub of systemd",
        suffix = .0.efi_suffix()
    )]
    ForeignStub(Architecture),
    /// The program is for another architecture than the kernel or its drivers, which have this one.
    #[error(
        "the program is not for {0} as the kernel or its drivers are; give the build of storagetm for it with --program"
    )]
    ForeignProgram(Architecture),
    /// The headers of the stub have no room for more sections.
    #[error(
        "the stub's header has no room for {0} more sections; use linuxx64.efi.stub of systemd 250 or later"
    )]
    FullStub(usize),
    /// GRUB's core image has an unknown format.
    #[error("GRUB's core image for BIOS is not one; install grub-pc-bin anew")]
    NoCore,
    /// A name that a FAT file system cannot hold as a short one.
    #[error("{0}: the file system of a stick holds only names of at most 8 and 3 characters")]
    Name(String),
    /// The result is too large for the format.
    #[error("the image would be larger than 4 GiB; choose fewer drivers with --for this-machine")]
    TooLarge,
    /// The disk is too small.
    #[error("the disk has {has} bytes and {needs} are needed; use a larger one")]
    TooSmall {
        /// Its size in bytes.
        has: u64,
        /// The required size in bytes.
        needs: u64,
    },
    /// Unsupported block size.
    #[error("the disk has blocks of {0} bytes, and only 512 and 4096 are supported")]
    Block(u32),
    /// A file of a module or firmware directory cannot be read or decompressed.
    #[error("{} cannot be read: {error}; is the kernel's package installed completely?", path.display())]
    Module { path: PathBuf, error: io::Error },
    /// Compressing or formatting in memory failed.
    #[error("the image cannot be made: {0}")]
    Making(#[from] io::Error),
}
