//! The questions to a block device that only an ioctl answers, and the only unsafe code of the crate.
//!
//! Does not know what the answers are for.
#![allow(unsafe_code)] // An ioctl is unsafe to call; each is wrapped here with its reason.

use rustix::io::Result;
use rustix::ioctl::{Getter, Opcode, ioctl, opcode};
use std::os::fd::AsFd;

/// `_IO(0x12, 94)` of `linux/fs.h`.
const BLKROGET: Opcode = opcode::none(0x12, 94);
/// `_IOR(0x12, 114, size_t)` of `linux/fs.h`; the kernel writes 64 bits on every machine.
const BLKGETSIZE64: Opcode = opcode::read::<usize>(0x12, 114);

/// The size of a block device, in bytes.
pub(crate) fn size(device: impl AsFd) -> Result<u64> {
    // SAFETY: BLKGETSIZE64 writes a u64.
    unsafe { ioctl(device, Getter::<BLKGETSIZE64, u64>::new()) }
}

/// Whether a block device is set read-only, by its medium or by hand.
pub(crate) fn is_read_only(device: impl AsFd) -> Result<bool> {
    // SAFETY: BLKROGET writes an int.
    unsafe { ioctl(device, Getter::<BLKROGET, i32>::new()) }.map(|flag| flag != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_no_disk_is_an_error() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(size(&null).is_err());
        assert!(is_read_only(&null).is_err());
    }
}
