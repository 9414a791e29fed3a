//! Makes what boots into storagetm: an initramfs, an EFI program of it and a kernel, and a disk image of that.
//!
//! Files in, bytes out: it opens no socket, asks no clock and writes no file. The same files give the same bytes.
//!
//! | module | is |
//! |---|---|
//! | [`choice`] | which drivers, out of all that the kernel comes with |
//! | [`initramfs`] | the program and the drivers as an archive that the kernel unpacks |
//! | [`cpio`] | that archive's format |
//! | [`efi`] | a kernel and an initramfs as one EFI program (a unified kernel image) |
//! | [`disk`] | an EFI program as a disk from which firmware starts it |
//! | [`kernel`], [`program`] | what is to be known of a kernel image, and of the program |
#![forbid(unsafe_code)]

pub mod choice;
pub mod cpio;
pub mod disk;
pub mod efi;
mod error;
mod file_system;
pub mod initramfs;
pub mod kernel;
pub mod program;

pub use disk::PARTITION_NAME;
pub use error::Error;
