//! The root directory of another system: reading and writing below it without leaving it, mounting it without a change
//! to its disk, and starting its init.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_move, unmount,
};
use rustix::process::{chdir, chroot, fchdir};

use crate::syscall::set_read_only;

/// The maximum size of a file that is read, in bytes.
const LONGEST: u64 = 1 << 20;
/// The kernel's file systems, which the other system finds mounted.
const SHARED: [&str; 3] = ["dev", "proc", "sys"];

/// A directory that is the root of all paths, of links, too (openat2(2), RESOLVE_IN_ROOT).
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// # Errors
    /// Fails if it is not a directory.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        Ok(Self(openat(CWD, directory, flags, Mode::empty())?))
    }

    fn at(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let path = path.trim_start_matches('/');
        let path = if path.is_empty() { "." } else { path };
        Ok(openat2(&self.0, path, flags | OFlags::CLOEXEC, mode, ResolveFlags::IN_ROOT)?)
    }

    /// Returns whether a path exists.
    pub fn has(&self, path: &str) -> bool {
        self.at(path, OFlags::PATH, Mode::empty()).is_ok()
    }

    /// Returns whether a path is a regular file that may be executed.
    pub fn has_program(&self, path: &str) -> bool {
        let found = self.at(path, OFlags::PATH, Mode::empty());
        found.and_then(|it| Ok(rustix::fs::fstat(&it)?)).is_ok_and(|it| {
            let is_file = rustix::fs::FileType::from_raw_mode(it.st_mode).is_file();
            is_file && it.st_mode & 0o111 != 0
        })
    }

    /// Reads a text file, at most 1 MiB; invalid UTF-8 is replaced.
    ///
    /// # Errors
    /// Fails if it cannot be opened or read.
    pub fn text(&self, path: &str) -> io::Result<String> {
        let file = File::from(self.at(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?);
        let mut bytes = Vec::new();
        file.take(LONGEST).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Writes a file, with the directories that it needs.
    ///
    /// # Errors
    /// Fails if it cannot be written.
    pub fn write(&self, path: &str, text: &str) -> io::Result<()> {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        self.make_directories(parent)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NONBLOCK;
        File::from(self.at(path, flags, Mode::from_raw_mode(0o644))?).write_all(text.as_bytes())
    }

    /// Makes a directory and those above it, unless they exist.
    ///
    /// # Errors
    /// Fails if one cannot be made.
    pub fn make_directories(&self, path: &str) -> io::Result<()> {
        let mut above = String::new();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let parent = self.at(&above, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
            above = format!("{above}/{name}");
            if self.has(&above) {
                continue;
            }
            mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
        }
        Ok(())
    }

    /// Mounts a directory of this system at a directory of the other one.
    ///
    /// # Errors
    /// Fails if one of them does not exist, or the kernel refuses.
    pub fn bind(&self, source: &Path, path: &str) -> io::Result<()> {
        let at = self.at(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        Ok(mount_bind(source, format!("/proc/self/fd/{}", at.as_raw_fd()))?)
    }
}

/// Has the kernel refuse every write to a block device.
///
/// # Errors
/// Fails if it cannot be opened, or this user is not root.
pub fn forbid_writes(device: &Path) -> io::Result<()> {
    Ok(set_read_only(File::open(device)?)?)
}

/// Mounts the file system of a block device, read-only unless `writable`. `options` are those of its driver.
///
/// # Errors
/// Fails if the kernel refuses.
pub fn mount_disk(
    device: &Path,
    at: &Path,
    kind: &str,
    writable: bool,
    options: &str,
) -> io::Result<()> {
    std::fs::create_dir_all(at)?;
    let flags = if writable { MountFlags::empty() } else { MountFlags::RDONLY };
    let options = std::ffi::CString::new(options)?;
    Ok(mount(device, at, kind, flags, Some(options.as_c_str()))?)
}

/// Unmounts a file system, even if it is still in use.
///
/// # Errors
/// Fails if nothing is mounted there.
pub fn detach(at: &Path) -> io::Result<()> {
    Ok(unmount(at, UnmountFlags::DETACH)?)
}

/// Mounts a file system in memory of at most `size`, as tmpfs(5) has it; without programs of other users and without
/// devices unless `whole`.
///
/// # Errors
/// Fails if the kernel refuses.
pub fn mount_memory(at: &Path, size: &str, whole: bool) -> io::Result<()> {
    std::fs::create_dir_all(at)?;
    let flags = if whole { MountFlags::empty() } else { MountFlags::NOSUID | MountFlags::NODEV };
    let options = std::ffi::CString::new(format!("mode=0755,size={size}"))?;
    Ok(mount("tmpfs", at, "tmpfs", flags, Some(options.as_c_str()))?)
}

/// Mounts at `at` what is below `lower`; all changes go to `memory`, an empty directory (overlayfs).
///
/// # Errors
/// Fails if the kernel refuses.
pub fn mount_overlay(lower: &Path, memory: &Path, at: &Path) -> io::Result<()> {
    let (upper, work) = (memory.join("upper"), memory.join("work"));
    for folder in [&upper, &work, &at.to_owned()] {
        std::fs::create_dir_all(folder)?;
    }
    let [lower, upper, work] = [lower, &upper, &work].map(|path| path.display().to_string());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let options = std::ffi::CString::new(options)?;
    Ok(mount("overlay", at, "overlay", MountFlags::empty(), Some(options.as_c_str()))?)
}

/// As PID 1: makes `root`, a mount point, the root of this process, and starts its init there. Returns only on failure;
/// this process is then where it was. Other processes keep their root.
pub fn switch(root: &Path, init: &str) -> io::Error {
    match enter(root) {
        Err(error) => error,
        Ok(before) => {
            let error = Command::new(init).env_clear().env("TERM", "linux").exec();
            // Both succeed: the directory is open, and this process is root.
            let _ = fchdir(&before).and_then(|()| chroot("."));
            io::Error::new(error.kind(), format!("{init} does not start: {error}"))
        }
    }
}

fn enter(root: &Path) -> io::Result<File> {
    let before = File::open("/")?;
    for name in SHARED {
        let at: PathBuf = root.join(name);
        match mount_bind_recursive(Path::new("/").join(name), &at) {
            // A system without that directory does not need it.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    chdir(root)?;
    let moved = mount_move(".", "/").and_then(|()| chroot(".")).and_then(|()| chdir("/"));
    if moved.is_err() {
        let _ = chdir("/");
    }
    moved?;
    Ok(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    #[test]
    fn links_do_not_leave_the_root() {
        let fake = Fake::new();
        fake.file("usr/lib/os-release", "PRETTY_NAME=x\n").file("usr/lib/systemd/systemd", "#!");
        let link = |to: &str, at: &str| {
            std::fs::create_dir_all(fake.root.join(at).parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(to, fake.root.join(at)).unwrap();
        };
        link("../usr/lib/os-release", "etc/os-release");
        link("/usr/lib/systemd/systemd", "usr/sbin/init");
        link("/etc/passwd", "etc/outside");
        let root = Root::open(&fake.root).unwrap();
        assert_eq!(root.text("/etc/os-release").unwrap(), "PRETTY_NAME=x\n");
        assert!(root.has("usr/sbin/init") && !root.has("etc/outside"));
        assert!(!root.has_program("usr/sbin/init"), "not executable");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(fake.root.join("usr/lib/systemd/systemd"), mode).unwrap();
        assert!(root.has_program("/usr/sbin/init") && !root.has_program("usr"));
    }

    #[test]
    fn file_is_written_with_its_directories_below_the_root() {
        let fake = Fake::new();
        fake.file("usr/lib/x", "");
        std::os::unix::fs::symlink("/usr/lib", fake.root.join("lib")).unwrap();
        let root = Root::open(&fake.root).unwrap();
        root.write("lib/modules/6.12/modules.dep", "text").unwrap();
        let written = std::fs::read_to_string(fake.root.join("usr/lib/modules/6.12/modules.dep"));
        assert_eq!(written.unwrap(), "text");
        root.write("/top", "1").unwrap();
        assert_eq!(root.text("top").unwrap(), "1");
    }
}
