//! Starting another kernel without the firmware (kexec).

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::syscall;
use crate::tree::Tree;

/// Maximum length of a kernel command line: that of x86, the smallest.
const MAX_LINE: usize = 2047;

/// Returns why no kernel can be loaded on this machine, if that is known before trying.
pub fn obstacle(tree: &Tree) -> Option<&'static str> {
    if !tree.path("sys/kernel/kexec_loaded").exists() {
        Some("the running kernel is built without kexec")
    } else if tree.flag("proc/sys/kernel/kexec_load_disabled") {
        Some("kexec is switched off until the next start (kernel.kexec_load_disabled)")
    } else {
        None
    }
}

/// Loads a kernel, its initramfs and its command line; a reboot of the kind "kexec" starts it. The
/// system call, not the program `kexec`, so that nothing needs to be installed; under lockdown the
/// kernel must be signed, and the initramfs need not be.
///
/// # Errors
/// Fails if the command line is too long, or if the kernel refuses.
pub fn load(kernel: &Path, initramfs: &[u8], line: &str) -> io::Result<()> {
    if line.len() > MAX_LINE {
        return Err(io::Error::other("the kernel command line is longer than 2047 bytes"));
    }
    let (kernel, line) = (File::open(kernel)?, CString::new(line)?);
    // In memory: the initramfs holds keys, which stay off the disks.
    let mut written = File::from(memfd_create(c"initramfs", MemfdFlags::CLOEXEC)?);
    written.write_all(initramfs)?;
    // The kernel refuses a file that is open for writing.
    let initramfs = File::open(format!("/proc/self/fd/{}", written.as_raw_fd()))?;
    drop(written);
    Ok(syscall::load_kernel(kernel.as_fd(), initramfs.as_fd(), &line)?)
}

/// Unloads the kernel.
///
/// # Errors
/// Fails if the running kernel refuses.
pub fn unload() -> io::Result<()> {
    Ok(syscall::unload_kernel()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    #[test]
    fn kernel_without_kexec_is_an_obstacle() {
        let fake = Fake::new();
        assert!(obstacle(&fake.tree()).unwrap().contains("without kexec"));
        fake.file("sys/kernel/kexec_loaded", "0\n");
        assert_eq!(obstacle(&fake.tree()), None);
        fake.file("proc/sys/kernel/kexec_load_disabled", "1\n");
        assert!(obstacle(&fake.tree()).unwrap().contains("kexec_load_disabled"));
    }

    #[test]
    fn overlong_command_line_is_refused() {
        let error = load(Path::new("/dev/null"), b"", &"x".repeat(2048)).unwrap_err();
        assert!(error.to_string().contains("2047"), "{error}");
    }
}
