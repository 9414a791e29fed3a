//! The root directory of another system: reading and writing below it without leaving it, mounting it without a change
//! to its disk, and starting its init.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, Gid, Mode, OFlags, ResolveFlags, Uid, mkdirat, openat, openat2};
use rustix::mount::{
    MountFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_move, unmount,
};
use rustix::process::{Resource, Rlimit, chdir, chroot, fchdir, setrlimit};

use crate::syscall::set_read_only;

/// The maximum size of a file that is read, in bytes.
const LONGEST: u64 = 1 << 20;
/// The maximum size of an extended attribute, and of all their names, in bytes (xattr(7)).
const LONGEST_ATTRIBUTE: usize = 1 << 16;
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

    /// Opens a regular file. Whatever else has that path is not opened: a device could start something.
    fn file(&self, path: &str, flags: OFlags) -> io::Result<File> {
        let found = self.at(path, OFlags::PATH, Mode::empty())?;
        if !rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode).is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        Ok(openat(CWD, reopened(&found), flags | OFlags::CLOEXEC, Mode::empty())?.into())
    }

    /// Reads a text file, at most 1 MiB; invalid UTF-8 is replaced.
    ///
    /// # Errors
    /// Fails if it is not a regular file, or cannot be read.
    pub fn text(&self, path: &str) -> io::Result<String> {
        let file = self.file(path, OFlags::RDONLY)?;
        let mut bytes = Vec::new();
        file.take(LONGEST).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Writes a file, with the directories that it needs.
    ///
    /// # Errors
    /// Fails if it cannot be written, or something else than a regular file has its path.
    pub fn write(&self, path: &str, text: &str) -> io::Result<()> {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        self.make_directories(parent)?;
        let mut file = match self.file(path, OFlags::WRONLY | OFlags::TRUNC) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                File::from(self.at(path, flags, Mode::from_raw_mode(0o644))?)
            }
            file => file?,
        };
        file.write_all(text.as_bytes())
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
        Ok(mount_bind(source, reopened(&self.directory(path)?))?)
    }

    /// Mounts a directory of this system, and what is mounted below it, at a directory of the other one.
    fn bind_all(&self, source: &Path, path: &str) -> io::Result<()> {
        Ok(mount_bind_recursive(source, reopened(&self.directory(path)?))?)
    }

    /// Mounts a file system in memory at a directory of the other system, which is made if it does not exist: of at most
    /// `size`, as tmpfs(5) has it, without programs of other users and without devices.
    ///
    /// # Errors
    /// Fails if it cannot be made, or the kernel refuses.
    pub fn mount_memory(&self, path: &str, size: &str) -> io::Result<()> {
        self.make_directories(path)?;
        memory(&reopened(&self.directory(path)?), size, MountFlags::NOSUID | MountFlags::NODEV)
    }

    fn directory(&self, path: &str) -> io::Result<OwnedFd> {
        self.at(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
    }
}

/// Returns the path of an open file, which follows no links any more.
fn reopened(file: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn memory(at: &Path, size: &str, flags: MountFlags) -> io::Result<()> {
    let options = std::ffi::CString::new(format!("mode=0755,size={size}"))?;
    Ok(mount("tmpfs", at, "tmpfs", flags, Some(options.as_c_str()))?)
}

/// Has the kernel refuse every write to a block device.
///
/// # Errors
/// Fails if it cannot be opened, or this user is not root.
pub fn forbid_writes(device: &Path) -> io::Result<()> {
    Ok(set_read_only(File::open(device)?, true)?)
}

/// Takes [`forbid_writes`] back.
///
/// # Errors
/// Fails if it cannot be opened, or this user is not root.
pub fn allow_writes(device: &Path) -> io::Result<()> {
    Ok(set_read_only(File::open(device)?, false)?)
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

/// Mounts the file system of a block device to be looked at: read-only, without its devices and programs. `options` are
/// those of its driver.
///
/// # Errors
/// Fails if the kernel refuses.
pub fn mount_to_look(device: &Path, at: &Path, kind: &str, options: &str) -> io::Result<()> {
    std::fs::create_dir_all(at)?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
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

/// Mounts a file system in memory of at most `size`, as tmpfs(5) has it.
///
/// # Errors
/// Fails if the kernel refuses.
pub fn mount_memory(at: &Path, size: &str) -> io::Result<()> {
    std::fs::create_dir_all(at)?;
    memory(at, size, MountFlags::empty())
}

/// What a mount forbids (mount(8)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// `nosuid`
    pub no_suid: bool,
    /// `nodev`
    pub no_devices: bool,
    /// `noexec`
    pub no_programs: bool,
}

impl Limits {
    fn flags(self) -> MountFlags {
        let mut flags = MountFlags::empty();
        flags.set(MountFlags::NOSUID, self.no_suid);
        flags.set(MountFlags::NODEV, self.no_devices);
        flags.set(MountFlags::NOEXEC, self.no_programs);
        flags
    }
}

/// Mounts at `at` what is below `lower`; all changes go to `memory`, an empty directory (overlayfs).
///
/// # Errors
/// Fails if the kernel refuses.
pub fn mount_overlay(lower: &Path, memory: &Path, at: &Path, limits: Limits) -> io::Result<()> {
    let (upper, work) = (memory.join("upper"), memory.join("work"));
    for folder in [&upper, &work, &at.to_owned()] {
        std::fs::create_dir_all(folder)?;
    }
    copy_attributes(lower, &upper)?;
    let [lower, upper, work] = [lower, &upper, &work].map(|path| path.display().to_string());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let options = std::ffi::CString::new(options)?;
    Ok(mount("overlay", at, "overlay", limits.flags(), Some(options.as_c_str()))?)
}

/// Copies UID, GID, mode and extended attributes of a directory: overlayfs shows those of the upper one where both
/// exist. Extended attributes that the file system of `to` does not take are left out.
fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (open_directory(from)?, open_directory(to)?);
    let found = rustix::fs::fstat(&from)?;
    let (owner, group) = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
    rustix::fs::fchown(&to, Some(owner), Some(group))?;
    // After fchown, which clears the set-group-ID bit (chown(2)).
    rustix::fs::fchmod(&to, Mode::from_raw_mode(found.st_mode))?;
    let mut names = vec![0_u8; LONGEST_ATTRIBUTE];
    let used = rustix::fs::flistxattr(&from, names.as_mut_slice()).unwrap_or(0);
    let mut value = vec![0_u8; LONGEST_ATTRIBUTE];
    let names = names.get(..used).unwrap_or_default();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // What a stacked overlay of the other system has noted for itself is not for this one.
        if name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let got = rustix::fs::fgetxattr(&from, name, value.as_mut_slice());
        let Some(value) = got.ok().and_then(|got| value.get(..got)) else { continue };
        let _ = rustix::fs::fsetxattr(&to, name, value, rustix::fs::XattrFlags::empty());
    }
    Ok(())
}

fn open_directory(at: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, at, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// As PID 1: makes `root`, a mount point, the root of this process, and starts its init there with these arguments.
/// Returns only on failure; this process is then where it was, and `root` is not mounted any more. Other processes keep
/// their root.
pub fn switch(root: &Path, init: &str, arguments: &[OsString]) -> io::Error {
    match enter(root) {
        Err(error) => error,
        Ok(before) => {
            // What protects the memory of this program is not for the system: the kernel's own limits for its first process.
            let limit = Rlimit { current: Some(0), maximum: None };
            let _ = setrlimit(Resource::Core, limit);
            let error = Command::new(init).args(arguments).env_clear().env("TERM", "linux").exec();
            let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
            // All succeed: it is mounted over the root, the directory is open, and this process is root.
            let _ = unmount("/", UnmountFlags::DETACH);
            let _ = fchdir(&before).and_then(|()| chroot("."));
            io::Error::new(error.kind(), format!("{init} does not start: {error}"))
        }
    }
}

fn enter(root: &Path) -> io::Result<File> {
    let before = File::open("/")?;
    let system = Root::open(root)?;
    for name in SHARED {
        match system.bind_all(&Path::new("/").join(name), name) {
            // A system without that directory does not need it.
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    drop(system);
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

    #[test]
    fn layer_has_owner_and_mode_of_the_file_system_below() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let fake = Fake::new();
        let (lower, upper) = (fake.root.join("lower"), fake.root.join("upper"));
        for folder in [&lower, &upper] {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::set_permissions(&lower, PermissionsExt::from_mode(0o3770)).unwrap();
        // Only root may give a directory away; the mode is copied in either case.
        let _ = std::os::unix::fs::chown(&lower, Some(1234), Some(567));
        std::fs::set_permissions(&lower, PermissionsExt::from_mode(0o3770)).unwrap();
        let named = rustix::fs::XattrFlags::empty();
        let takes = rustix::fs::setxattr(&lower, "user.test", b"value", named).is_ok();
        copy_attributes(&lower, &upper).unwrap();
        let of = |at: &Path| {
            let found = std::fs::metadata(at).unwrap();
            (found.uid(), found.gid(), found.mode())
        };
        assert_eq!(of(&upper), of(&lower));
        assert_eq!(of(&upper).2 & 0o7777, 0o3770);
        let mut value = [0; 16];
        let got = rustix::fs::getxattr(&upper, "user.test", value.as_mut_slice());
        assert_eq!(got.is_ok_and(|got| value.starts_with(b"value") && got == 5), takes);
    }

    #[test]
    fn devices_and_pipes_are_not_opened() {
        let fake = Fake::new();
        fake.file("etc/hosts", "x");
        let pipe = fake.root.join("etc/fstab");
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        std::os::unix::fs::symlink("/none", fake.root.join("etc/crypttab")).unwrap();
        let root = Root::open(&fake.root).unwrap();
        for outcome in [root.text("etc/fstab").map(drop), root.write("etc/fstab", "x")] {
            assert!(outcome.unwrap_err().to_string().contains("not a regular file"));
        }
        assert!(root.write("etc/crypttab", "x").is_err(), "a link to nothing");
        assert!(root.text("etc").is_err());
        root.write("etc/hosts", "longer").unwrap();
        root.write("etc/hosts", "y").unwrap();
        assert_eq!(root.text("etc/hosts").unwrap(), "y");
    }

    /// The test runs itself in a mount namespace of its own.
    #[test]
    fn init_that_does_not_start_leaves_nothing_mounted() {
        const INSIDE: &str = "STORAGETM_TEST_NAMESPACE";
        const NAME: &str = "root::tests::init_that_does_not_start_leaves_nothing_mounted";
        if std::env::var_os(INSIDE).is_some() {
            return fail_to_start();
        }
        let apart = || {
            let mut command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private"]);
            command
        };
        if programs::lacks(NAME, &["unshare"]) || !apart().arg("true").status().unwrap().success() {
            println!("skip {NAME}: no mount namespaces can be made here");
            return;
        }
        let own = std::env::current_exe().unwrap();
        let ended = apart().arg(own).args(["--exact", NAME]).env(INSIDE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && text.contains("1 passed"), "{text}");
    }

    fn fail_to_start() {
        let fake = Fake::new();
        let place = fake.root.join("sysroot");
        mount_memory(&place, "1m").unwrap();
        let root = Root::open(&place).unwrap();
        root.mount_memory("run", "1m").unwrap();
        // Links that lead out of a root that they are not confined to.
        std::os::unix::fs::symlink("/proc", place.join("dev")).unwrap();
        root.make_directories("proc").unwrap();
        let mounted = || std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
        let before = mounted();
        drop(root);
        let error = switch(&place, "/sbin/none", &[]);
        assert!(error.to_string().starts_with("/sbin/none does not start"), "{error}");
        assert!(place.exists(), "the root is that of before");
        // Those of the root and of its /run have gone, none was added.
        assert_eq!(mounted(), before - 2);
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
    }
}
