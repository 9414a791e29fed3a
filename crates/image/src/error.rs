//! Why an image cannot be made, as sentences for people. Knows no option of the program.

use std::io;
use std::path::PathBuf;

/// Why an image cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program is no 64-bit ELF program.
    #[error("the program is no 64-bit ELF program, so it cannot be put into an image")]
    NoProgram,
    /// The program needs a loader and libraries.
    #[error(
        "this program was built to need the system's libraries, and an image holds nothing but the program; use the \
         static build"
    )]
    Dynamic,
    /// The kernel image is of an unknown form.
    #[error(
        "the kernel is no x86 kernel image (bzImage) that EFI firmware can start; give one with --kernel, usually \
         /boot/vmlinuz-VERSION"
    )]
    NoKernel,
    /// The stub is no EFI program.
    #[error("the stub is no 64-bit EFI program; it should be linuxx64.efi.stub of systemd")]
    NoStub,
    /// The stub has no room for what is to be added.
    #[error(
        "the stub's header has no room for {0} more sections; use linuxx64.efi.stub of systemd 250 or later"
    )]
    FullStub(usize),
    /// What is to be joined is too large for the format.
    #[error("the image would be larger than 4 GiB; choose fewer drivers with --for this-machine")]
    TooLarge,
    /// The medium is too small.
    #[error("the disk has {has} bytes and {needs} are needed; use a larger one")]
    TooSmall {
        /// The disk's size in bytes.
        has: u64,
        /// What is needed, in bytes.
        needs: u64,
    },
    /// Blocks of a size that no disk has.
    #[error("the disk has blocks of {0} bytes, and only 512 and 4096 are known")]
    Block(u32),
    /// A file of the modules folder could not be read or unpacked.
    #[error("{} cannot be read: {error}; is the kernel's package installed completely?", path.display())]
    Module {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: io::Error,
    },
    /// Packing or formatting in memory failed.
    #[error("the image cannot be made: {0}")]
    Making(#[from] io::Error),
}
