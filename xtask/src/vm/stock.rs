//! `cargo xtask vm stock`: a machine without a disk boots Debian from a disk that is lent by NVMe/TCP with an
//! overlay, with nothing of ours: Debian's kernel, an initrd by its dracut (module nvmf), systemd. It
//! boots twice, and finds what it wrote. As root: the system is installed in a directory first.
//!
//! The discovery log names the address that a host has connected to, so the machine and storagetm are in a
//! network namespace of their own, where that is one that the machine can reach.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use image::files::Files;

use super::Bench;
use super::cache::{Cache, KERNELS};
use super::case::{Case, Results, script_folder};
use super::emulator;
use super::guest::{self, Guest};
use super::image::{MIB, bootable, ext4, sha256};
use super::target::Target;
use crate::chroot::{self, Chroot, Recipe, STABLE};
use crate::tally::Tally;

/// A boot takes 70 s on two cores; limits a machine that hangs.
const PATIENCE: Duration = Duration::from_secs(900);
const ADDRESS: &str = "192.0.2.1";
const ROOT_BYTES: u64 = 1024 * MIB;
const ROOT_UUID: &str = "4c5d5e3c-5a6b-4f0f-9d5c-2f9b7c1f0a11";
const HOST: &str = "2d1ba7d0-6c52-4a3e-8a57-0d4f4f1c9b55";
/// By name: what they show.
const CASES: [&str; 4] = ["root", "nqn", "second-boot", "image-unchanged"];

const PACKAGES: [&str; 13] = [
    "dbus",
    "dracut",
    "dracut-network",
    "e2fsprogs",
    "iproute2",
    "iputils-arping",
    "isc-dhcp-client",
    "jq",
    "linux-image-cloud-amd64",
    "nvme-cli",
    "procps",
    "systemd-sysv",
    "udev",
];

const RECIPE: Recipe<'_> =
    Recipe { name: "stock", suite: STABLE, foreign: None, packages: &PACKAGES };

/// Installs the unit `/stock` of the test, and makes `/boot/lent.img`.
const PREPARE: &str = "\
install -m 755 /stock/report /usr/local/sbin/report
install -m 644 /stock/report.service /etc/systemd/system
systemctl --quiet enable report.service
systemctl --quiet mask getty@tty1.service serial-getty@ttyS0.service
dracut --force --quiet --no-hostonly --no-early-microcode --gzip \\
    --modules 'base bash systemd systemd-initrd dracut-systemd network network-legacy nvmf rootfs-block \
udev-rules fs-lib shutdown kernel-modules kernel-network-modules' \\
    --drivers 'virtio_net nvme-tcp nvme-fabrics ext4 8021q af_packet' \\
    --kver $(ls /lib/modules) /boot/lent.img";

/// Brings up the loopback of a new network namespace with the address `$0`, and runs the command that follows.
const ENTER: &str = "ip link set lo up && ip address add \"$0/32\" dev lo && exec \"$@\"";

/// Options of `cargo xtask vm stock`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Options {
    /// This is the network namespace
    #[arg(long, hide = true)]
    inside: bool,
}

/// Runs the tests, in a network namespace to which this program is started again.
pub(super) fn run(
    options: &Options,
    bench: &Bench,
    wants: &dyn Fn(&str) -> bool,
    tally: &mut Tally,
) -> Result<()> {
    let cases: Vec<Case> = cases().filter(|case| wants(&case.title)).collect();
    if cases.is_empty() {
        return Ok(());
    }
    if let Some(reason) = chroot::missing() {
        cases.iter().for_each(|case| tally.skip(&case.title, &reason));
        return Ok(());
    }
    let kernel = KERNELS.last().context("there is no kernel")?;
    bench.cache.fetch(kernel)?;
    // The namespace has no way to the archive.
    let chroot = Chroot::open(&RECIPE)?;
    if !options.inside {
        return Err(enter(&bench.program));
    }
    let tools = bench.cache.tools(kernel);
    let folder = bench.cache.run_folder("stock")?;
    emulator::attempt(&[&folder], &cases, tally, |results| {
        let folder = bench.cache.run_folder("stock")?;
        let context = || format!("serial logs are in {}", folder.display());
        try_it(bench, &tools, &chroot, &folder, results).with_context(context)
    });
    Ok(())
}

/// Counts every test as skipped.
pub(super) fn skip(reason: &str, wants: &dyn Fn(&str) -> bool, tally: &mut Tally) {
    let cases = cases().filter(|case| wants(&case.title));
    cases.for_each(|case| tally.skip(&case.title, reason));
}

fn cases() -> impl Iterator<Item = Case> {
    CASES.iter().map(|&name| Case { title: format!("vm stock/{name}"), name: name.to_owned() })
}

/// Starts this program again in a network namespace; returns only if that fails.
fn enter(program: &Path) -> Error {
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(error) => return error.into(),
    };
    let mut command = Command::new("unshare");
    command.args(["--net", "--", "sh", "-ec", ENTER, ADDRESS]);
    command.arg(own).args(std::env::args_os().skip(1)).arg("--inside");
    if !std::env::args_os().any(|word| word == "--program") {
        command.arg("--program").arg(program);
    }
    Error::new(command.exec()).context("unshare cannot be started")
}

fn try_it(
    bench: &Bench,
    tools: &Path,
    chroot: &Chroot,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<()> {
    let system = install(chroot)?;
    let (volume, disk) = (folder.join("root.img"), folder.join("system.img"));
    ext4(tools, &system, (ROOT_BYTES, ROOT_UUID), &volume)?;
    bootable(Files::default(), &volume, &disk)?;
    fs::remove_file(&volume)?;
    let before = sha256(&disk)?;
    let arguments = ["--protocol", "nvme", "--open", "--overlay", &disk.display().to_string()];
    let arguments = arguments.map(str::to_owned).to_vec();
    let log = folder.join("storagetm.log");
    let mut target = Target::start_at(&bench.program, arguments, (ADDRESS, 0), log)?;
    let nqn = target.events()?.lent().first().context("nothing is lent")?.nqn.clone();
    let first = boot(folder, "first", &system, target.port()?, results)?;
    let root = first.get("root").context("the system told nothing of its root")?;
    results.decide("root", is_lent(root));
    let found = first.get("nqn");
    let matches = found == Some(&nqn);
    results.decide("nqn", expect(matches, || format!("expected {nqn}, found {found:?}")));
    let found = !first.contains_key("earlier");
    ensure!(found, "the first boot found what only it writes");
    let second = boot(folder, "second", &system, target.port()?, results)?;
    let found = second.contains_key("earlier");
    let lost = || "what the first boot wrote is not there".to_owned();
    results.decide("second-boot", expect(found, lost));
    let after = sha256(&disk)?;
    let changed = || format!("the image had SHA-256 {before}, has {after}");
    results.decide("image-unchanged", expect(before == after, changed));
    Ok(())
}

fn expect(holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(anyhow!(otherwise())) }
}

/// Checks the line of `findmnt`: source, type, options.
fn is_lent(root: &str) -> Result<()> {
    let mut words = root.split(' ');
    let (source, kind, options) = (words.next(), words.next(), words.next());
    let is_nvme = source.is_some_and(|source| source.starts_with("/dev/nvme"));
    let is_writable = options.is_some_and(|all| all.split(',').any(|one| one == "rw"));
    ensure!(is_nvme && kind == Some("ext4") && is_writable, "the root is {root}");
    Ok(())
}

/// Makes the initrd and installs the unit of the test; returns the directory of the system.
fn install(chroot: &Chroot) -> Result<PathBuf> {
    let files = chroot.root().join("stock");
    fs::create_dir_all(&files)?;
    for name in ["report", "report.service"] {
        fs::copy(script_folder().join("stock").join(name), files.join(name))?;
    }
    chroot.run(PREPARE)?;
    Ok(chroot.root().to_owned())
}

/// Boots a machine without a disk, by the kernel arguments that storagetm shows for dracut, until the system has reported and powered off. Returns what it
/// reported.
fn boot(
    folder: &Path,
    name: &str,
    system: &Path,
    port: u64,
    results: &mut Results<'_>,
) -> Result<BTreeMap<String, String>> {
    let line = format!(
        "console=ttyS0 quiet panic=-1 cryptomgr.notests net.ifnames=0 root=UUID={ROOT_UUID} rw \
         rd.nvmf.hostnqn=nqn.2014-08.org.nvmexpress:uuid:{HOST} rd.nvmf.hostid={HOST} \
         ip=dhcp rd.neednet=1 rd.nvmf.discover=tcp,{ADDRESS},,{port}"
    );
    let kernel = Cache::boot_image_in(system)?;
    let initrd = system.join("boot/lent.img");
    let mut arguments = guest::machine().map(str::to_owned).to_vec();
    let memory = arguments.iter_mut().find(|word| *word == "768");
    *memory.context("a machine without memory")? = "1024".to_owned();
    for (option, value) in [
        ("-kernel", kernel.display().to_string()),
        ("-initrd", initrd.display().to_string()),
        ("-append", line),
        ("-netdev", "user,id=net".to_owned()),
        ("-device", "virtio-net-pci,netdev=net,romfile=".to_owned()),
    ] {
        arguments.extend([option.to_owned(), value]);
    }
    let mut guest = Guest::power_on(folder, name, &arguments)?;
    let values = results.follow(&guest.console, PATIENCE, |_, what| {
        bail!("the machine asks for {what}, an unknown request")
    })?;
    guest.wait(Duration::from_secs(120))?;
    Ok(values)
}
