//! Builds the file system that a test machine boots into: modules, tools, and the guest's scripts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use image::cpio::Archive;

use super::Bench;
use super::apt::succeed;
use super::cache::Kernel;
use super::case::script_folder;
use super::modules;

const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";

/// Programs without an equivalent in busybox; they precede busybox in the guest's PATH. The shell
/// is one of them: busybox's own prefers busybox's applets, whatever the PATH.
const PROGRAMS: &[&str] = &[
    "usr/bin/bash",
    "usr/bin/fallocate",
    "usr/bin/fio",
    "usr/sbin/blkdiscard",
    "usr/sbin/blkid",
    "usr/sbin/blockdev",
    "usr/sbin/e2fsck",
    "usr/sbin/fstrim",
    "usr/sbin/mke2fs",
    "usr/sbin/nvme",
    "usr/sbin/partprobe",
    "usr/sbin/sfdisk",
];

/// Modules of every guest; a missing crc32c module is built in.
const MODULES: &[&str] = &[
    "crc32c_generic",
    "crc32c_intel",
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "ext4",
    "nvme_tcp",
    "8021q",
];

/// What some machines need in addition.
#[derive(Debug)]
pub(super) struct Extra {
    /// The folder of the packages in the cache.
    name: &'static str,
    packages: &'static [&'static str],
    programs: &'static [&'static str],
    modules: &'static [&'static str],
    /// Configuration files: path and content.
    files: &'static [(&'static str, &'static str)],
}

impl Extra {
    /// Returns the folder of its packages, for a guest with this kernel; fetched if need be.
    pub(super) fn fetch(&self, bench: &Bench, kernel: &Kernel) -> Result<PathBuf> {
        bench.cache.more_tools(kernel, self.name, self.packages)
    }
}

/// For TLS: the program that does TLS handshakes for the kernel.
pub(super) const KEYS: Extra = Extra {
    name: "keys",
    packages: &["keyutils", "ktls-utils"],
    programs: &["usr/bin/keyctl", "usr/sbin/tlshd"],
    modules: &["tls", "gcm", "ccm", "ghash_generic", "ghash_clmulni_intel", "aesni_intel", "seqiv"],
    files: &[("etc/tlshd.conf", TLSHD)],
};

/// For the storage provider: systemd's programs for volumes. There is no tlshd: storagetm does the handshakes.
pub(super) const PROVIDER: Extra = Extra {
    name: "provider",
    packages: &["keyutils", "mount", "systemd", "systemd-container"],
    programs: &[
        "usr/bin/keyctl",
        "usr/bin/mount",
        "usr/bin/storagectl",
        "usr/bin/varlinkctl",
        "usr/sbin/mount.storage",
    ],
    modules: KEYS.modules,
    files: &[],
};

/// For iSCSI: open-iscsi, and the SCSI commands of sg3-utils.
pub(super) const ISCSI: Extra = Extra {
    name: "scsi",
    packages: &["dmsetup", "open-iscsi", "sg3-utils"],
    programs: &[
        "usr/bin/sg_compare_and_write",
        "usr/bin/sg_inq",
        "usr/bin/sg_opcodes",
        "usr/bin/sg_persist",
        "usr/bin/sg_readcap",
        "usr/bin/sg_unmap",
        "usr/bin/sg_vpd",
        "usr/sbin/dmsetup",
        "usr/sbin/iscsiadm",
        "usr/sbin/iscsid",
    ],
    modules: &["iscsi_tcp", "sg", "dm_multipath", "dm_service_time"],
    files: &[
        ("etc/iscsi/iscsid.conf", ISCSID),
        ("etc/iscsi/initiatorname.iscsi", INITIATOR),
        // iscsid of Debian 12 takes orders only from users with a name.
        ("etc/passwd", "root:x:0:0::/root:/usr/bin/bash\n"),
    ],
};

/// For a boot from a disk by iSCSI: what logs in to the target that the firmware booted from.
pub(super) const ISCSI_BOOT: Extra = Extra {
    name: ISCSI.name,
    packages: ISCSI.packages,
    programs: &["usr/sbin/iscsistart"],
    modules: &["iscsi_tcp", "iscsi_ibft"],
    files: &[],
};

/// For atomic writes: a disk of the kernel that does them, open-iscsi, and libiscsi's conformance suite.
pub(super) const ISCSI_ATOMIC: Extra = Extra {
    name: "atomic",
    packages: &["libiscsi-bin", "open-iscsi"],
    programs: &["usr/bin/iscsi-test-cu", "usr/sbin/iscsiadm", "usr/sbin/iscsid"],
    modules: &["iscsi_tcp", "scsi_debug"],
    files: ISCSI.files,
};

/// For XFS and btrfs.
pub(super) const FILE_SYSTEMS: Extra = Extra {
    name: "file-systems",
    packages: &["btrfs-progs", "xfsprogs"],
    programs: &["usr/bin/btrfs", "usr/sbin/mkfs.btrfs", "usr/sbin/mkfs.xfs", "usr/sbin/xfs_repair"],
    modules: &["xfs", "btrfs"],
    files: &[],
};

/// For blktests: the programs that its tests call, as they call them.
pub(super) const BLKTESTS: Extra = Extra {
    name: "blktests",
    packages: &[
        "bsdextrautils",
        "coreutils",
        "diffutils",
        "findutils",
        "gawk",
        "grep",
        "libc-bin",
        "procps",
        "sed",
        "udev",
        "util-linux",
        "xfsprogs",
    ],
    programs: &[
        "usr/bin/basename",
        "usr/bin/cat",
        "usr/bin/column",
        "usr/bin/cp",
        "usr/bin/cut",
        "usr/bin/date",
        "usr/bin/dd",
        "usr/bin/df",
        "usr/bin/diff",
        "usr/bin/dirname",
        "usr/bin/dmesg",
        "usr/bin/find",
        "usr/bin/findmnt",
        "usr/bin/gawk",
        "usr/bin/getconf",
        "usr/bin/grep",
        "usr/bin/lsblk",
        "usr/bin/mktemp",
        "usr/bin/mount",
        "usr/bin/nproc",
        "usr/bin/readlink",
        "usr/bin/realpath",
        "usr/bin/sed",
        "usr/bin/shuf",
        "usr/bin/stat",
        "usr/bin/tail",
        "usr/bin/timeout",
        "usr/bin/truncate",
        "usr/bin/udevadm",
        "usr/bin/umount",
        "usr/sbin/losetup",
        "usr/sbin/mkfs.xfs",
        "usr/sbin/xfs_io",
    ],
    modules: &["configfs", "nvmet_tcp", "loop", "xfs", "dh_generic"],
    files: &[],
};

/// For USB: the kernel's host, an emulated controller, and the SCSI commands of sg3-utils.
pub(super) const USB: Extra = Extra {
    name: ISCSI.name,
    packages: ISCSI.packages,
    programs: &[
        "usr/bin/sg_inq",
        "usr/bin/sg_modes",
        "usr/bin/sg_opcodes",
        "usr/bin/sg_raw",
        "usr/bin/sg_readcap",
        "usr/bin/sg_reset",
        "usr/bin/sg_start",
        "usr/bin/sg_vpd",
        "usr/sbin/dmsetup",
    ],
    modules: &[
        "dm_mod",
        "usb_storage",
        "sg",
        "libcomposite",
        "usb_f_fs",
        "usb_f_mass_storage",
        "dummy_hcd",
        "vhci_hcd",
    ],
    files: &[],
};

const ISCSID: &str = "node.startup = manual\nnode.session.timeo.replacement_timeout = 60\n";
const INITIATOR: &str = "InitiatorName=iqn.2026-01.com.example:guest\n";
/// The configuration of tlshd.
const TLSHD: &str = "[debug]\nloglevel=0\ntls=0\nnl=0\n[authenticate]\nkeyrings=.nvme\n";

/// The guest's host identity: without one, nvme-cli generates a new one on each call.
const HOST_ID: &str = "6b1c2f5e-30c4-4a6e-8d27-5b8f0a9c4d11";

/// The job of a machine.
#[derive(Debug, Default)]
pub(super) struct Job<'a> {
    /// The folder of scripts under `tests/vm`.
    pub(super) scenario: &'a str,
    /// The script of `tests/vm` that the machine runs, without `.sh`.
    pub(super) role: &'a str,
    /// Shell variables that the scripts find set.
    pub(super) variables: Vec<(&'a str, String)>,
    /// Further files: path in the guest, path here.
    pub(super) files: Vec<(&'a str, PathBuf)>,
    /// What it needs beside the tools of every machine.
    pub(super) extra: Option<&'a Extra>,
}

/// Writes the initramfs of one machine.
pub(super) fn write(bench: &Bench, kernel: &Kernel, job: &Job<'_>, to: &Path) -> Result<()> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "run", "tmp", "mnt", "root", "var/run"] {
        archive.directory(folder);
    }
    let (mut modules, mut libraries) = (MODULES.to_vec(), Libraries::new());
    add_tools(&mut archive, &bench.cache.tools(kernel), &mut libraries)?;
    if let Some(extra) = job.extra {
        let packages = extra.fetch(bench, kernel)?;
        add_programs(&mut archive, &packages, extra.programs, &mut libraries)?;
        extra.files.iter().for_each(|(path, text)| archive.file(path, text.as_bytes()));
        modules.extend_from_slice(extra.modules);
    }
    for (name, library) in &libraries {
        archive.program(&format!("{LIBRARIES}/{name}"), &read(library)?);
    }
    add_modules(&mut archive, &bench.cache.kernel(kernel), &modules)?;
    archive.program("init", &read(&script_folder().join("init"))?);
    add_scripts(&mut archive, job)?;
    fs::write(to, archive.finish())?;
    Ok(())
}

fn add_tools(archive: &mut Archive, tools: &Path, libraries: &mut Libraries) -> Result<()> {
    archive.link("bin", "usr/bin");
    archive.link("sbin", "usr/sbin");
    archive.link("lib", "usr/lib");
    archive.link("lib64", LIBRARIES);
    add_busybox(archive, tools)?;
    archive.program(LOADER, &read(&tools.join(LOADER))?);
    add_programs(archive, tools, PROGRAMS, libraries)
}

/// Collects shared libraries by name. The first of a name is kept: that of the C library must match
/// the loader.
type Libraries = BTreeMap<String, PathBuf>;

fn add_programs(
    archive: &mut Archive,
    root: &Path,
    programs: &[&str],
    libraries: &mut Libraries,
) -> Result<()> {
    for program in programs {
        archive.program(program, &read(&root.join(program))?);
        for library in libraries_of(root, program)? {
            let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
            libraries.entry(name).or_insert(library);
        }
    }
    Ok(())
}

/// Adds busybox, with a link for each applet in a directory that is searched last.
pub(super) fn add_busybox(archive: &mut Archive, tools: &Path) -> Result<()> {
    let busybox = tools.join("usr/bin/busybox");
    archive.program("busybox/busybox", &read(&busybox)?);
    let programs = succeed(Command::new(&busybox).arg("--list"))?;
    for program in programs.lines().filter(|&name| name != "busybox") {
        archive.link(&format!("busybox/{program}"), "busybox");
    }
    Ok(())
}

/// Returns the shared libraries of a program, as the guest's own loader finds them.
fn libraries_of(tools: &Path, program: &str) -> Result<Vec<PathBuf>> {
    let folder = tools.join(LIBRARIES);
    let search = format!("{0}:{0}/ceph:{0}/systemd", folder.display());
    let mut loader = Command::new(tools.join(LOADER));
    loader.args(["--library-path", &search, "--list"]).arg(tools.join(program));
    let listing = succeed(&mut loader).with_context(|| format!("the libraries of {program}"))?;
    let path = |line: &str| Some(PathBuf::from(line.split_once("=> ")?.1.split(" (").next()?));
    Ok(listing.lines().filter_map(path).collect())
}

pub(super) fn add_modules(archive: &mut Archive, kernel: &Path, wanted: &[&str]) -> Result<()> {
    let mut order = String::new();
    for module in modules::collect(kernel, wanted)? {
        let path = format!("modules/{}.ko", module.name);
        archive.program(&path, &module.image);
        order.push_str(&format!("/{path}\n"));
    }
    archive.program("modules/order", order.as_bytes());
    Ok(())
}

fn add_scripts(archive: &mut Archive, job: &Job<'_>) -> Result<()> {
    add_job(archive, job)?;
    let hostnqn = format!("nqn.2014-08.org.nvmexpress:uuid:{HOST_ID}\n");
    archive.program("etc/nvme/hostnqn", hostnqn.as_bytes());
    archive.program("etc/nvme/hostid", format!("{HOST_ID}\n").as_bytes());
    // The identity of a virtual disk depends on the machine identifier.
    archive.program("etc/machine-id", format!("{}\n", HOST_ID.replace('-', "")).as_bytes());
    Ok(())
}

/// Adds the scripts of a machine, its variables and its files.
pub(super) fn add_job(archive: &mut Archive, job: &Job<'_>) -> Result<()> {
    for name in ["lib.sh", &format!("{}.sh", job.role)] {
        archive.program(&format!("tests/{name}"), &read(&script_folder().join(name))?);
    }
    for entry in script_folder().join(job.scenario).read_dir()? {
        let script = entry?.path();
        let name = script.file_name().unwrap_or_default().to_string_lossy().into_owned();
        archive.program(&format!("tests/cases/{name}"), &read(&script)?);
    }
    archive.program("tests/job", variables(job).as_bytes());
    for (path, source) in &job.files {
        archive.program(path, &read(source)?);
    }
    Ok(())
}

/// Returns the variables as exported shell assignments.
fn variables(job: &Job<'_>) -> String {
    let mut text = format!("export role={} scenario={}\n", job.role, job.scenario);
    for (name, value) in &job.variables {
        text.push_str(&format!("export {name}='{}'\n", value.replace('\'', r"'\''")));
    }
    text
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_quoted_for_the_shell() {
        let line = "nvme connect -n 'nqn.x'".to_owned();
        let job = Job { role: "client", variables: vec![("line", line)], ..Job::default() };
        let script = format!("{}\nprintf %s \"$line$role\"", variables(&job));
        let printed = succeed(Command::new("sh").args(["-c", &script])).unwrap();
        assert_eq!(printed, "nvme connect -n 'nqn.x'client");
    }
}
