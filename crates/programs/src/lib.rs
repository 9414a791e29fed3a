//! External programs that the tests run. One table names the Debian package of each and what is not
//! tested without it: `cargo xtask test --install` installs them, and tests are skipped if they are
//! missing. Imported by tests and by xtask only.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program that tests run.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// The file name; or a Python with `:MODULE`, a module of that Python.
    pub name: &'static str,
    /// The Debian package that contains it; or, with [`PIPX`] before it, one of PyPI.
    pub package: &'static str,
    /// What is not tested without it.
    pub tests: &'static str,
}

/// Prefix of a package that pipx installs, for what Debian does not have.
pub const PIPX: &str = "pipx:";

const fn row(name: &'static str, package: &'static str, tests: &'static str) -> Program {
    Program { name, package, tests }
}

const EXT: &str = "ext2, ext3 and ext4: free blocks, names of files, files, recognition";
const FAT: &str = "FAT: free clusters, files, and the file systems that storagetm writes";
const EXFAT: &str = "exFAT: free clusters, files";
const BTRFS: &str = "btrfs: recognition, free space";
const XFS: &str = "XFS: free blocks";
const NTFS: &str = "NTFS: free clusters, names of files, files";
const NBD: &str = "other NBD clients at our server";
const HTTP: &str = "HTTP clients at our server";
const ISCSI: &str = "iSCSI initiators at our target, and their conformance suite";
const TGT: &str = "copies from and to the iSCSI target tgt";
const COPY: &str = "copies from and to other NBD servers, with their faults";
const RESCUE: &str = "maps of GNU ddrescue";
const NETWORK: &str = "keys, revocation and addresses in a network namespace";
const BLOCK: &str = "block devices (loop)";
const TLS: &str = "TLS with certificates";
const WEB: &str = "images of web servers and registries";
const BUCKET: &str = "objects of a server with the interface of S3";
const SIGNED: &str = "signatures of lists of hashes";
const PACKED: &str = "images that are packed by their own programs";
const BIOS: &str = "sticks that start with BIOS";
const MACHINES: &str = "test machines (cargo xtask vm)";

/// Every program that a test or `cargo xtask test` runs, except those of essential Debian packages.
pub const PROGRAMS: &[Program] = &[
    row("addpart", "util-linux", BLOCK),
    row("apt-get", "apt", MACHINES),
    row("blkdiscard", "util-linux", "block devices over NBD (FUSE)"),
    row("blkid", "util-linux", "disks of the test machines, with libblkid"),
    row("/usr/lib/x86_64-linux-gnu/qemu/block-curl.so", "qemu-block-extra", HTTP),
    row("/usr/lib/grub/i386-pc/boot_hybrid.img", "grub-pc-bin", BIOS),
    row("btrfs", "btrfs-progs", BTRFS),
    row("busybox", "busybox-static", "DHCP"),
    row("cmp", "diffutils", NBD),
    row("curl", "curl", HTTP),
    row("ddrescue", "gddrescue", RESCUE),
    row("ddrescuelog", "gddrescue", RESCUE),
    row("debugfs", "e2fsprogs", EXT),
    row("docker-registry", "docker-registry", WEB),
    row("dpkg-deb", "dpkg", MACHINES),
    row("e2fsck", "e2fsprogs", EXT),
    row("fio", "fio", "a workload over NBD whose data is verified"),
    row("fsck.exfat", "exfatprogs", EXFAT),
    row("fsck.fat", "dosfstools", FAT),
    row("fsck.vfat", "dosfstools", FAT),
    row("fusermount3", "fuse3", "block devices over NBD (FUSE)"),
    row("gnutls-cli", "gnutls-bin", TLS),
    row("gnutls-serv", "gnutls-bin", TLS),
    row("gpg", "gpg", SIGNED),
    row("gpgv", "gpgv", SIGNED),
    row("grub-mkimage", "grub-common", BIOS),
    row("ip", "iproute2", NETWORK),
    row("iscsi-inq", "libiscsi-bin", ISCSI),
    row("iscsi-ls", "libiscsi-bin", ISCSI),
    row("iscsi-test-cu", "libiscsi-bin", ISCSI),
    row("losetup", "mount", BLOCK),
    row("mcopy", "mtools", FAT),
    row("mdel", "mtools", FAT),
    row("minisign", "minisign", SIGNED),
    row("mke2fs", "e2fsprogs", EXT),
    row("mkfs.btrfs", "btrfs-progs", BTRFS),
    row("mkfs.exfat", "exfatprogs", EXFAT),
    row("mkfs.ext2", "e2fsprogs", EXT),
    row("mkfs.ext3", "e2fsprogs", EXT),
    row("mkfs.ext4", "e2fsprogs", EXT),
    row("mkfs.f2fs", "f2fs-tools", "recognition of F2FS"),
    row("mkfs.vfat", "dosfstools", "recognition of FAT"),
    row("mkfs.xfs", "xfsprogs", XFS),
    row("mkntfs", "ntfs-3g", NTFS),
    row("mkswap", "util-linux", "recognition of swap"),
    row("mmd", "mtools", FAT),
    row("moto_server", "pipx:moto[server]", BUCKET),
    row("mount", "mount", "file systems over NBD"),
    row("mount.exfat-fuse", "exfat-fuse", EXFAT),
    row("mtype", "mtools", FAT),
    row("nbd-client", "nbd-client", NBD),
    row("nbd-server", "nbd-server", COPY),
    row("nbdcopy", "libnbd-bin", NBD),
    row("nbdfuse", "libnbd-bin", "block devices over NBD (FUSE)"),
    row("nbdinfo", "libnbd-bin", NBD),
    row("nbdkit", "nbdkit", COPY),
    row("nginx", "nginx-light", WEB),
    row("nsenter", "util-linux", NETWORK),
    row("ntfs-3g", "ntfs-3g", NTFS),
    row("ntfscat", "ntfs-3g", NTFS),
    row("ntfscluster", "ntfs-3g", NTFS),
    row("ntfscp", "ntfs-3g", NTFS),
    row("openssl", "openssl", TLS),
    row("pipx", "pipx", BUCKET),
    row("plymouth", "plymouth", "the boot splash"),
    row("plymouthd", "plymouth", "the boot splash"),
    row("promtool", "prometheus", "metrics in the format of Prometheus"),
    row("python3", "python3", "locks of other programs"),
    row("/usr/bin/python3:nbd", "python3-libnbd", "what NBD clients can ask for (libnbd)"),
    row("qemu-img", "qemu-utils", "NBD with QEMU, qcow2 images"),
    row("qemu-io", "qemu-utils", NBD),
    row("qemu-nbd", "qemu-utils", COPY),
    row("qemu-system-x86_64", "qemu-system-x86", MACHINES),
    row("script", "bsdutils", "the boot splash"),
    row("setpriv", "util-linux", "processes without capabilities"),
    row("setsid", "util-linux", "the screen in a terminal"),
    row("sfdisk", "fdisk", "partition tables"),
    row("sgdisk", "gdisk", "partition tables"),
    row("shellcheck", "shellcheck", "the shell scripts of initrds"),
    row("skopeo", "skopeo", WEB),
    row("strace", "strace", "system calls of a copy"),
    row("systemd-analyze", "systemd", "systemd units"),
    row("taskset", "util-linux", "figures (cargo xtask bench)"),
    row("tgtadm", "tgt", TGT),
    row("tgtd", "tgt", TGT),
    row("unshare", "util-linux", NETWORK),
    row("valgrind", "valgrind", "instruction counts of the data path"),
    row("xfs_repair", "xfsprogs", XFS),
    row("xorriso", "xorriso", "the ISO 9660 media that storagetm writes"),
    row("xz", "xz-utils", PACKED),
    row("zstd", "zstd", PACKED),
];

/// Directories for administrators, which are not in every user's PATH.
const ADMINISTRATION: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Returns the programs of the table that are not on this machine.
pub fn missing() -> Vec<&'static Program> {
    PROGRAMS.iter().filter(|program| !is_installed(program.name)).collect()
}

/// Returns whether a program of the table is installed.
pub fn is_installed(name: &str) -> bool {
    match name.split_once(':') {
        Some((python, module)) => has_module(python, module),
        None => find(name).is_some(),
    }
}

fn has_module(python: &str, module: &str) -> bool {
    let mut command = Command::new(python);
    command.args(["-c", &format!("import {module}")]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Returns the path of a program in PATH, in the directories for administrators, or where pipx installs it.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/bin"));
    let folders = std::env::split_paths(&path).chain(ADMINISTRATION.map(PathBuf::from)).chain(own);
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Returns a command that runs a program, wherever [`find`] finds it.
pub fn command(name: &str) -> Command {
    Command::new(find(name).unwrap_or_else(|| Path::new(name).to_owned()))
}

/// Returns whether a program that a test requires is missing. Then prints the line that `cargo
/// xtask test` counts: `skip TEST: not installed: NAMES`.
///
/// # Panics
///
/// Panics if a name is not in [`PROGRAMS`]: then nothing would install it.
pub fn lacks(test: &str, names: &[&str]) -> bool {
    for name in names {
        assert!(PROGRAMS.iter().any(|row| row.name == *name), "{name} is not in PROGRAMS");
    }
    let missing: Vec<&str> = names.iter().copied().filter(|name| !is_installed(name)).collect();
    if !missing.is_empty() {
        println!("skip {test}: {NOT_INSTALLED}{}", missing.join(", "));
    }
    !missing.is_empty()
}

/// Prefix of the reason of a test that lacks programs.
pub const NOT_INSTALLED: &str = "not installed: ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_sorted_and_has_no_duplicates() {
        let names: Vec<&str> = PROGRAMS.iter().map(|row| file_name(row.name)).collect();
        assert!(names.is_sorted_by(|one, next| one < next), "{names:?}");
    }

    fn file_name(name: &str) -> &str {
        name.rsplit('/').next().unwrap_or(name)
    }

    #[test]
    fn installed_programs_are_found() {
        assert!(is_installed("sh"));
        assert!(!is_installed("no-such-program"));
        assert!(!is_installed("/usr/bin/no-such-python:nbd"));
    }

    #[test]
    #[should_panic(expected = "is not in PROGRAMS")]
    fn program_that_is_not_in_the_table_panics() {
        lacks("a test", &["no-such-program"]);
    }
}
