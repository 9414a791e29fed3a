//! A machine without a disk starts a Debian from a disk that another one in target mode lends: chosen on its console, paired
//! with by the code on the screen of the other one, over TLS, with all changes in memory. The system has
//! no kernel of its own, manages the network, and mounts partitions of its disk.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use image::files::Files;

use super::Lab;
use super::lines::{code, pair_line};
use super::machine::{Machine, Start};
use super::server::disk::userland;
use super::trial::{BOOT, SOON, Trial};
use super::ways::{OPEN, Way};
use crate::vm::Bench;
use crate::vm::case::{Results, script_folder};
use crate::vm::guest::{link, virtio_disk};
use crate::vm::image::{MIB, bootable, ext4, sha256};

const UUID: &str = "6c1d3f6e-41d5-4b7f-9e38-6c9f1b0a5e23";
const ROOT: u64 = 320 * MIB;
const SERIAL: &str = "SYSTEM1";
/// The system takes minutes on an emulated machine.
const SYSTEM: Duration = Duration::from_secs(600);
/// What the system mounts: its root, and partitions that must not be mounted, or do not exist here.
const FSTAB: &str = "UUID=6c1d3f6e-41d5-4b7f-9e38-6c9f1b0a5e23 / ext4 errors=remount-ro 0 1\n\
    PARTLABEL=EFI /boot/efi vfat umask=0077 0 1\nUUID=11111111-2222-3333-4444-555555555555 none swap sw 0 0\n";
/// The system's own network service would remove the addresses of the card.
const NETWORK: &str = "[Match]\nName=e*\n[Network]\nDHCP=ipv4\n";
const TESTS: &[&str] = &[
    "system",
    "failed-units",
    "encrypted",
    "written",
    "modules",
    "reconnects",
    "waits",
    "refused",
    "unchanged",
];

pub(super) const TRIALS: &[Trial] = &[
    Trial {
        name: "lent-console",
        tests: &[
            "found",
            "wrong-code",
            "system",
            "failed-units",
            "encrypted",
            "written",
            "modules",
            "reconnects",
            "waits",
            "refused",
            "unchanged",
        ],
        run: console,
    },
    Trial { name: "lent-parameters", tests: TESTS, run: parameters },
    Trial {
        name: "lent-open",
        tests: &["marked", "asked", "system", "not-encrypted", "refused", "unchanged"],
        run: open,
    },
    Trial {
        name: "lent-write",
        tests: &["asked", "system", "no-swap", "written", "image-written"],
        run: write,
    },
];

/// Chosen on the console.
fn console(lab: &mut Lab<'_>, folder: &Path, results: &mut Results<'_>) -> Result<()> {
    let disk = system(lab.maker.bench, lab, folder, FSTAB)?;
    let before = sha256(&disk)?;
    let start = lab.maker.lent("storagetm.boot cryptomgr.notests")?;
    let lender = lab.maker.start(Way::Init, "")?;
    let mut stick = Machine::power_on(&start, &link(&folder.join("link"), 1), folder, "stick")?;
    let mut lender = lend(&lender, &disk, folder, 2)?;
    let row = |text: &str| text.trim_start().starts_with("1  ").then_some(());
    let found = stick.screen.find("a machine in the list", 0, BOOT, row);
    let failed = found.is_err();
    results.decide("found", found.map(drop));
    ensure!(!failed, "no machine was found");
    let (_, right) = lender.screen.find("a code", 0, BOOT, code)?;
    let wrong = if right.starts_with('0') { "1234 5678" } else { "0000 0000" };
    let (since, since_wrong) = (lender.screen.now(), stick.screen.now());
    answer(&mut stick, wrong)?;
    let other = |text: &str| code(text).filter(|code| *code != right);
    let (_, right) = lender.screen.find("another code", since, SOON, other)?;
    // Back in the list, with the reason.
    let told = stick.screen.shows("wrong code", since_wrong, SOON);
    results.decide("wrong-code", told.map(drop));
    answer(&mut stick, &right)?;
    follow(&mut stick, results)?;
    results.decide("unchanged", unchanged(&lender, &disk, &before));
    Ok(())
}

/// Named by kernel parameters; nobody types.
fn parameters(lab: &mut Lab<'_>, folder: &Path, results: &mut Results<'_>) -> Result<()> {
    let disk = system(lab.maker.bench, lab, folder, FSTAB)?;
    let before = sha256(&disk)?;
    let mut lender = lend(&lab.maker.start(Way::Init, "")?, &disk, folder, 1)?;
    let mut stick = started_by(lab, &mut lender, folder, "")?;
    follow(&mut stick, results)?;
    results.decide("unchanged", unchanged(&lender, &disk, &before));
    Ok(())
}

/// From a machine that lends without a key, and writable: no code is asked for, and the disk is not written to.
fn open(lab: &mut Lab<'_>, folder: &Path, results: &mut Results<'_>) -> Result<()> {
    let disk = system(lab.maker.bench, lab, folder, FSTAB)?;
    let start = lab.maker.lent("storagetm.boot cryptomgr.notests")?;
    let before = sha256(&disk)?;
    let lender = lab.maker.start(Way::Init, &format!("{OPEN} storagetm.writable={SERIAL}"))?;
    let mut stick = Machine::power_on(&start, &link(&folder.join("link"), 1), folder, "stick")?;
    let lender = lend(&lender, &disk, folder, 2)?;
    let marked = |text: &str| {
        let is_row = text.trim_start().starts_with("1  ");
        (is_row && text.ends_with("NOT ENCRYPTED")).then_some(())
    };
    let found = stick.screen.find("a marked machine", 0, BOOT, marked);
    results.decide("marked", found.map(drop));
    let since = stick.screen.now();
    stick.type_key("1\r")?;
    let asked = stick.screen.shows("NOT ENCRYPTED:", since, SOON);
    results.decide("asked", asked.map(drop));
    stick.type_key("y")?;
    let root = value(&mut stick, "root", SYSTEM)?;
    results.decide("system", expect(&root, root == "overlay debian-to-lend"));
    stick.screen.shows("lent end", 0, SYSTEM)?;
    let key = value(&mut stick, "tls", Duration::ZERO).unwrap_or_default();
    let is_none = u32::from_str_radix(&key, 16).is_ok_and(|key| key == 0) || key.is_empty();
    results.decide("not-encrypted", expect(&key, is_none));
    results.decide("refused", stick.screen.shows("lent refused", 0, Duration::ZERO).map(drop));
    stick.until_off(SYSTEM)?;
    results.decide("unchanged", unchanged(&lender, &disk, &before));
    Ok(())
}

/// With `storagetm.boot.write`, after a person at the other machine has agreed.
fn write(lab: &mut Lab<'_>, folder: &Path, results: &mut Results<'_>) -> Result<()> {
    let fstab = format!(
        "UUID={UUID} / ext4 errors=remount-ro 0 1\nUUID=11111111-2222-3333-4444-555555555555 none swap sw 0 0\n"
    );
    let disk = system(lab.maker.bench, lab, folder, &fstab)?;
    let start = lab.maker.start(Way::Init, &format!("storagetm.writable={SERIAL}"))?;
    let mut lender = lend(&start, &disk, folder, 1)?;
    let mut stick = started_by(lab, &mut lender, folder, "storagetm.boot.write")?;
    let asked = lender.screen.shows("wants to CHANGE", 0, BOOT);
    results.decide("asked", asked.map(drop));
    lender.type_key("y")?;
    let root = value(&mut stick, "root", SYSTEM)?;
    results.decide("system", expect(&root, root == "ext4 debian-to-lend"));
    stick.screen.shows("lent end", 0, SYSTEM)?;
    let swap = value(&mut stick, "swap", Duration::ZERO)?;
    results.decide("no-swap", expect(&swap, swap == "masked"));
    let written = value(&mut stick, "written", Duration::ZERO)?;
    results.decide("written", expect(&written, written == "changed"));
    stick.until_off(SYSTEM)?;
    let changes = lender.control()?.changes()?;
    let is_written = || {
        ensure!(changes > 0, "the machine has written nothing to its disk");
        Ok(())
    };
    results.decide("image-written", is_written());
    Ok(())
}

/// Powers on a machine that starts the system of the other one, named by kernel parameters.
fn started_by(lab: &Lab<'_>, lender: &mut Machine, folder: &Path, more: &str) -> Result<Machine> {
    // An IPv6 address is shown with a word in the place of the interface.
    let line = |text: &str| pair_line(text).filter(|line| line.contains(" 169.254."));
    let (_, line) = lender.screen.find("a line to pair", 0, BOOT, line)?;
    let (_, code) = lender.screen.find("a code", 0, BOOT, code)?;
    let at = line.rsplit(' ').next().context("a line without an address")?;
    let code = code.replace(' ', "");
    let start = lab.maker.lent(&format!(
        "storagetm.boot=nvme://{at}/ storagetm.code={code} storagetm.root=2 cryptomgr.notests {more}"
    ))?;
    Machine::power_on(&start, &link(&folder.join("link"), 2), folder, "stick")
}

/// Powers on the machine that lends the disk, at this end of the link.
fn lend(start: &Start, disk: &Path, folder: &Path, end: u8) -> Result<Machine> {
    let socket = folder.join("link");
    let deadline = Instant::now() + SOON;
    while end == 2 && !socket.exists() {
        ensure!(Instant::now() < deadline, "qemu made no link");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut devices = virtio_disk(disk, SERIAL, false).to_vec();
    devices.extend(link(&socket, end));
    Machine::power_on(start, &devices, folder, "lender")
}

/// Chooses the first machine, and types the code.
fn answer(stick: &mut Machine, code: &str) -> Result<()> {
    let since = stick.screen.now();
    stick.type_key("1\r")?;
    stick.screen.shows("The code on the screen of", since, SOON)?;
    stick.type_key(&format!("{code}\r"))
}

/// Waits until the system has reported, and decides by that.
fn follow(stick: &mut Machine, results: &mut Results<'_>) -> Result<()> {
    let root = value(stick, "root", SYSTEM)?;
    results.decide("system", expect(&root, root == "overlay debian-to-lend"));
    stick.screen.shows("lent end", 0, SYSTEM)?;
    let mut check = |test: &str, name: &str, is_right: fn(&str) -> bool| {
        let checked =
            value(stick, name, Duration::ZERO).and_then(|found| expect(&found, is_right(&found)));
        results.decide(test, checked);
    };
    check("failed-units", "failed", |text| text.starts_with("0"));
    check("encrypted", "tls", |text| u32::from_str_radix(text, 16).is_ok_and(|key| key != 0));
    check("written", "written", |text| text == "changed");
    check("modules", "modules", |text| text.starts_with("6."));
    check("reconnects", "reconnected", |text| text == "live");
    // How the kernel shows a connection that it never gives up.
    check("waits", "patience", |text| text == "off");
    results.decide("refused", stick.screen.shows("lent refused", 0, Duration::ZERO).map(drop));
    stick.until_off(SYSTEM)
}

/// Waits for what the system reports by this name.
fn value(stick: &mut Machine, name: &str, patience: Duration) -> Result<String> {
    let start = format!("lent {name} ");
    let found = stick
        .screen
        .find(name, 0, patience, |text| Some(text.split_once(start.as_str())?.1.trim().to_owned()));
    found.map(|(_, value)| value)
}

fn expect(found: &str, holds: bool) -> Result<()> {
    ensure!(holds, "the system reports: {found}");
    Ok(())
}

/// Checks that neither the machine nor its image has written blocks.
fn unchanged(lender: &Machine, disk: &Path, before: &str) -> Result<()> {
    let changes = lender.control()?.changes()?;
    ensure!(changes == 0, "the machine has written to its disk {changes} times");
    let after = sha256(disk)?;
    ensure!(before == after, "the image had SHA-256 {before}, has {after}");
    Ok(())
}

/// Makes the disk with the system.
fn system(bench: &Bench, lab: &Lab<'_>, folder: &Path, fstab: &str) -> Result<PathBuf> {
    let (work, disk) = (folder.join("work"), folder.join("system.img"));
    let root = work.join("root");
    userland(bench, &root, &work)?;
    let put = |path: &str, content: &[u8]| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&root))?;
        fs::write(&path, content).with_context(|| path.display().to_string())
    };
    let script = |name: &str| fs::read(script_folder().join("lent").join(name));
    put("etc/fstab", fstab.as_bytes())?;
    put("etc/hostname", b"debian-to-lend\n")?;
    put("etc/machine-id", b"0123456789abcdef0123456789abcdee\n")?;
    put("etc/systemd/network/all.network", NETWORK.as_bytes())?;
    put("usr/local/sbin/report", &script("report")?)?;
    put("etc/systemd/system/report.service", &script("report.service")?)?;
    for service in
        ["/etc/systemd/system/report.service", "/usr/lib/systemd/system/systemd-networkd.service"]
    {
        let wants = root.join("etc/systemd/system/multi-user.target.wants");
        fs::create_dir_all(&wants)?;
        symlink(service, wants.join(Path::new(service).file_name().unwrap_or_default()))?;
    }
    // Its program is in none of the packages.
    symlink("/dev/null", root.join("etc/systemd/system/ldconfig.service"))?;
    let volume = work.join("root.img");
    ext4(&bench.cache.tools(lab.maker.kernel), &root, (ROOT, UUID), &volume)?;
    bootable(Files::default(), &volume, &disk)?;
    fs::remove_dir_all(work)?;
    Ok(disk)
}
