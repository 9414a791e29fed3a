//! Makes bootable images of storagetm: an initramfs, a unified kernel image of it, and disk images
//! that start it by UEFI and BIOS, also as a CD.
//!
//! Pure functions from files to bytes, without network, clock and output. Results are reproducible.
//!
//! | module | contents |
//! |---|---|
//! | [`drivers`] | selection of the drivers from all modules of a kernel |
//! | [`initramfs`] | the program and the drivers as an initramfs |
//! | [`cpio`] | the archive format of an initramfs |
//! | [`efi`] | a kernel and an initramfs as a unified kernel image |
//! | [`files`] | the files of a bootable medium |
//! | [`disk`] | these files as a bootable disk |
//! | [`bios`] | GRUB for machines with BIOS |
//! | [`signature`] | signatures of EFI programs, and where GRUB reads its configuration |
//! | [`kernel`], [`program`] | preparation of the kernel image and of the program |

#![forbid(unsafe_code)]

mod architecture;
pub mod bios;
pub mod cpio;
pub mod disk;
pub mod drivers;
pub mod efi;
mod error;
mod fat32;
pub mod files;
pub mod initramfs;
mod iso9660;
pub mod kernel;
pub mod program;
pub mod signature;

pub use architecture::Architecture;
pub use disk::PARTITION_NAME;
pub use error::Error;
