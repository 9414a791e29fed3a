//! Makes bootable images of storagetm: an initramfs, a unified kernel image of it, and a disk image
//! of that.
//!
//! Pure functions from files to bytes, without network, clock and output. Results are reproducible.
//!
//! | module | contents |
//! |---|---|
//! | [`drivers`] | selection of the drivers from all modules of a kernel |
//! | [`initramfs`] | the program and the drivers as an initramfs |
//! | [`cpio`] | the archive format of an initramfs |
//! | [`efi`] | a kernel and an initramfs as a unified kernel image |
//! | [`disk`] | an EFI program as a bootable disk |
//! | [`kernel`], [`program`] | preparation of the kernel image and of the program |

#![forbid(unsafe_code)]

pub mod cpio;
pub mod disk;
pub mod drivers;
pub mod efi;
mod error;
mod fat32;
pub mod initramfs;
pub mod kernel;
pub mod program;

pub use disk::PARTITION_NAME;
pub use error::Error;
