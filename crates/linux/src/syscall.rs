//! System calls without a safe wrapper in the crates that we use: ioctls of block devices,
//! byte-range locks, packet addresses, keyrings, inherited descriptors, kexec. The only unsafe code of the
//! crate.
#![allow(unsafe_code)] // An ioctl is unsafe to call, an address to define; each is wrapped here with its reason.

use rustix::io::{Errno, Result};
use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// `_IO(0x12, 94)` of `linux/fs.h`.
const BLKROGET: Opcode = opcode::none(0x12, 94);
/// `_IOR(0x12, 114, size_t)` of `linux/fs.h`; the kernel writes 64 bits on every machine.
const BLKGETSIZE64: Opcode = opcode::read::<usize>(0x12, 114);

/// Returns the size of a block device, in bytes.
pub(crate) fn size(device: impl AsFd) -> Result<u64> {
    // SAFETY: BLKGETSIZE64 writes a u64.
    unsafe { ioctl(device, Getter::<BLKGETSIZE64, u64>::new()) }
}

/// Returns whether a block device is read-only, by its medium or by `blockdev --setro`.
pub(crate) fn is_read_only(device: impl AsFd) -> Result<bool> {
    // SAFETY: BLKROGET writes an int.
    unsafe { ioctl(device, Getter::<BLKROGET, i32>::new()) }.map(|flag| flag != 0)
}

/// `_IO(0x12, 93)` of `linux/fs.h`.
const BLKROSET: Opcode = opcode::none(0x12, 93);

/// Makes a block device read-only, so that the kernel fails every write to it, or writable again.
pub(crate) fn set_read_only(device: impl AsFd, read_only: bool) -> Result<()> {
    let flag = libc::c_int::from(read_only);
    // SAFETY: BLKROSET reads an int, which outlives the call.
    unsafe { ioctl(device, Setter::<BLKROSET, libc::c_int>::new(flag)) }
}

/// Keeps the memory of this process from being swapped out, also what it will use later (mlockall(2)).
pub(crate) fn lock_memory() -> Result<()> {
    // SAFETY: the call takes flags only.
    match unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::NOMEM)),
    }
}

/// Sets an option of a socket whose value is these bytes.
pub(crate) fn set_socket_option(
    socket: BorrowedFd<'_>,
    (level, name): (libc::c_int, libc::c_int),
    value: &[u8],
) -> Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the descriptor is open during the call, which reads `length` bytes of `value`.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Takes ownership of a descriptor that the kernel has opened for this process and named in its reply to a request
/// (`HANDSHAKE_CMD_ACCEPT`). Fails if it is not open.
pub(crate) fn take_opened(number: RawFd) -> Result<OwnedFd> {
    if number < 3 {
        return Err(Errno::BADF);
    }
    take_one(number).ok_or(Errno::BADF)
}

/// The type of a byte-range lock (fcntl(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RangeLock {
    /// F_RDLCK.
    Read,
    /// F_WRLCK.
    Write,
    /// F_UNLCK.
    Unlocked,
}

/// A conflicting lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// The first byte.
    pub(crate) start: i64,
    /// The length; 0 is to the end of the file.
    pub(crate) len: i64,
    /// The process that holds it; not positive if unknown, as for open file description locks.
    pub(crate) process: i32,
}

fn range(kind: RangeLock, start: i64, len: i64) -> libc::flock {
    let l_type = match kind {
        RangeLock::Read => libc::F_RDLCK,
        RangeLock::Write => libc::F_WRLCK,
        RangeLock::Unlocked => libc::F_UNLCK,
    };
    // The process identifier must be 0, and the constants are small numbers.
    #[allow(clippy::cast_possible_truncation)]
    let (l_type, l_whence) = (l_type as libc::c_short, libc::SEEK_SET as libc::c_short);
    libc::flock { l_type, l_whence, l_start: start, l_len: len, l_pid: 0 }
}

/// Locks `len` bytes from `start` for the open file description, without blocking (F_OFD_SETLK); a
/// length of 0 is to the end.
pub(crate) fn lock_range(
    file: BorrowedFd<'_>,
    kind: RangeLock,
    start: i64,
    len: i64,
) -> Result<()> {
    let lock = range(kind, start, len);
    // SAFETY: the descriptor is open during the call, which only reads the `flock` that the pointer is of.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Returns the first conflicting lock of another open file description or process (F_OFD_GETLK).
pub(crate) fn conflict(
    file: BorrowedFd<'_>,
    kind: RangeLock,
    start: i64,
    len: i64,
) -> Result<Option<Conflict>> {
    let mut lock = range(kind, start, len);
    // SAFETY: the descriptor is open during the call, which reads and writes the `flock` that the pointer is of.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if result != 0 {
        return Err(last_error());
    }
    let found = Conflict { start: lock.l_start, len: lock.l_len, process: lock.l_pid };
    Ok((i32::from(lock.l_type) != libc::F_UNLCK).then_some(found))
}

/// Returns the process at the other end of a Unix socket (SO_PEERCRED). Its number is 0 in another PID namespace,
/// which the type of rustix cannot hold.
pub(crate) fn peer(socket: BorrowedFd<'_>) -> Result<libc::ucred> {
    let mut peer = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: libc::gid_t::MAX };
    // A dozen bytes.
    #[allow(clippy::cast_possible_truncation)]
    let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    // SAFETY: the descriptor is open during the call, which writes at most `bytes` bytes to the `ucred`.
    let result = unsafe {
        let (value, length) = ((&raw mut peer).cast(), &raw mut bytes);
        libc::getsockopt(socket.as_raw_fd(), level, name, value, length)
    };
    if result == 0 { Ok(peer) } else { Err(last_error()) }
}

/// Returns the process group of this process. It is 0 if its leader is in another PID namespace, which the
/// type of rustix cannot hold.
pub(crate) fn process_group() -> libc::pid_t {
    // SAFETY: it accesses no memory, and always succeeds.
    unsafe { libc::getpgrp() }
}

/// Sets close-on-exec on all descriptors from `first`.
pub(crate) fn close_on_exec(first: u32) -> Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: close_range with this flag closes nothing and accesses no memory, and owners of
    // descriptors do not depend on the flag that it changes.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Takes ownership of the inherited descriptors from `first`, at most `count`, up to the first that
/// is not open. Sets close-on-exec. Returns none on the second call.
pub(crate) fn take_inherited(first: RawFd, count: usize) -> Vec<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    (first..).take(count).map_while(take_one).collect()
}

fn take_one(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: the borrow ends with this function; if the descriptor is not open, fcntl fails with
    // EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC).ok()?;
    // SAFETY: it is open, and nothing in this program owns it: it was inherited from before the start of this
    // program, and `TAKEN` ensures that this is the only conversion to an owned descriptor, or the kernel has just
    // opened it and named it in one reply.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// `struct sockaddr_ll` of `linux/if_packet.h`: an interface and a MAC address.
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
    /// The address `mac` on the interface number `index`; packets have the EtherType `protocol`.
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

/// The serial number of a key or a keyring.
pub(crate) type Serial = i32;

/// `KEYCTL_LINK` of `linux/keyctl.h`.
const KEYCTL_LINK: libc::c_long = 8;
/// `KEYCTL_UNLINK` of `linux/keyctl.h`.
const KEYCTL_UNLINK: libc::c_long = 9;
/// `KEY_SPEC_PROCESS_KEYRING` of `linux/keyctl.h`: released with the process.
const OF_THIS_PROCESS: libc::c_long = -2;

/// Adds a key to `keyring`, or replaces it (add_key(2)).
pub(crate) fn add_key(kind: &CStr, name: &CStr, key: &[u8], keyring: Serial) -> Result<Serial> {
    let ring = libc::c_long::from(keyring);
    let (from, len) = (key.as_ptr(), key.len());
    // SAFETY: both names end with a zero byte, `from` has `len` bytes, all outlive the call, and it writes to none.
    let serial =
        unsafe { libc::syscall(libc::SYS_add_key, kind.as_ptr(), name.as_ptr(), from, len, ring) };
    answer(serial)
}

/// Links `keyring` to the keyring of this process, which grants it possessor rights
/// (keyctl_link(3)).
pub(crate) fn hold_keyring(keyring: Serial) -> Result<()> {
    let ring = libc::c_long::from(keyring);
    // SAFETY: the arguments of this operation are three numbers.
    let done = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_LINK, ring, OF_THIS_PROCESS) };
    answer(done).map(|_| ())
}

/// Removes a key from `keyring` (keyctl_unlink(3)).
pub(crate) fn remove_key(key: Serial, keyring: Serial) -> Result<()> {
    let (key, ring) = (libc::c_long::from(key), libc::c_long::from(keyring));
    // SAFETY: the arguments of this operation are three numbers.
    let done = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_UNLINK, key, ring) };
    answer(done).map(|_| ())
}

fn answer(returned: libc::c_long) -> Result<Serial> {
    match Serial::try_from(returned) {
        Ok(-1) => Err(last_error()),
        Ok(serial) => Ok(serial),
        Err(_) => Err(Errno::RANGE),
    }
}

/// `KEXEC_FILE_UNLOAD` of `linux/kexec.h`.
const KEXEC_FILE_UNLOAD: libc::c_ulong = 1;

/// Loads a kernel, its initramfs and its command line, to be started by a reboot
/// (kexec_file_load(2)).
pub(crate) fn load_kernel(
    kernel: BorrowedFd<'_>,
    initramfs: BorrowedFd<'_>,
    line: &CStr,
) -> Result<()> {
    let [kernel, initramfs] = [kernel, initramfs].map(|fd| libc::c_long::from(fd.as_raw_fd()));
    let (text, len, flags) = (line.as_ptr(), line.to_bytes_with_nul().len(), 0 as libc::c_ulong);
    // SAFETY: both descriptors are open during the call, and `text` has `len` bytes, which it only reads.
    let done =
        unsafe { libc::syscall(libc::SYS_kexec_file_load, kernel, initramfs, len, text, flags) };
    answer(done).map(|_| ())
}

/// Unloads the kernel that [`load_kernel`] has loaded.
pub(crate) fn unload_kernel() -> Result<()> {
    let none: libc::c_long = -1;
    let text = std::ptr::null::<libc::c_char>();
    // SAFETY: with this flag the other arguments are not read.
    let done = unsafe {
        libc::syscall(libc::SYS_kexec_file_load, none, none, 0usize, text, KEXEC_FILE_UNLOAD)
    };
    answer(done).map(|_| ())
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ioctl_on_another_device_is_an_error() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(size(&null).is_err());
        assert!(is_read_only(&null).is_err());
    }

    #[test]
    fn file_that_is_no_kernel_is_not_loaded() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(load_kernel(null.as_fd(), null.as_fd(), c"quiet").is_err());
    }

    #[test]
    fn missing_keyring_is_an_error() {
        // Serial number 1 is never assigned, and a sandbox may deny the call.
        assert!(hold_keyring(1).is_err());
        assert!(add_key(c"user", c"storagetm test", b"x", 1).is_err());
        assert!(remove_key(1, 1).is_err());
    }

    #[test]
    fn key_is_added_and_removed() {
        const OURS: Serial = -2;
        let Ok(key) = add_key(c"user", c"storagetm test", b"x", OURS) else {
            println!("skip keys of the kernel: no keys can be made here");
            return;
        };
        assert_eq!(add_key(c"user", c"storagetm test", b"y", OURS), Ok(key), "in its place");
        assert_eq!(remove_key(key, OURS), Ok(()));
        assert!(remove_key(key, OURS).is_err());
    }
}
