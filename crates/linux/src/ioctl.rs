//! The questions to a block device that only an ioctl answers, the one address that no crate can write, and with
//! them the only unsafe code of the crate.
//!
//! Does not know what the answers and the address are for.
#![allow(unsafe_code)] // An ioctl is unsafe to call, an address to define; each is wrapped here with its reason.

use rustix::io::Result;
use rustix::ioctl::{Getter, Opcode, ioctl, opcode};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
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

/// `struct sockaddr_ll` of `linux/if_packet.h`: an interface, and a card at the other end of its cable.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct PacketAddress {
    family: u16,
    protocol: u16,
    index: u32,
    hardware: u16,
    kind: u8,
    length: u8,
    address: [u8; 8],
}

const _: () = assert!(size_of::<PacketAddress>() == 20);

const AF_PACKET: u16 = 17;

impl PacketAddress {
    /// The card `mac` at the cable of interface number `index`; packets are of the Ethernet type `protocol`.
    pub(crate) fn new(index: u32, protocol: u16, mac: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = mac;
        Self {
            family: AF_PACKET,
            protocol: protocol.to_be(),
            index,
            hardware: 0,
            kind: 0,
            length: 6,
            address: [a, b, c, d, e, f, 0, 0],
        }
    }
}

// SAFETY: the pointer is that of a `sockaddr_ll` with all its bytes (the assertion above: there is no padding), the
// length is its size, and it outlives the call.
unsafe impl SocketAddrArg for PacketAddress {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        f(std::ptr::from_ref(self).cast(), 20)
    }
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
