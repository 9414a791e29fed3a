//! A server that boots from its own disk by its own boot loader, and lends that disk: restarted into
//! target mode by kexec, and by an entry of GRUB. This machine attaches through a forwarded port.

pub(super) mod disk;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::Lab;
use super::machine::{Flash, Machine, Start};
use super::trial::{BOOT, SOON, Trial};
use crate::architecture::Architecture;
use crate::vm::apt::succeed;
use crate::vm::case::Results;
use crate::vm::guest::virtio_disk;

const PACKAGES: &[&str] =
    &["grub-efi-amd64-signed", "ovmf", "shim-helpers-amd64-signed", "shim-signed"];
/// The serial number of the disk.
const SERIAL: &str = "SERVER1";
/// The host that the server knows, and its NQN.
const HOST: &str = "laptop";
const NQN: &str = "nqn.2024-01.test:laptop";
/// The time without a host after which the server returns by itself.
const RETURN_AFTER: &str = "2m";

/// Each boots the whole server.
pub(super) const TRIALS: &[Trial] = &[
    Trial {
        name: "now",
        tests: &["plan", "lends", "vlan", "keys", "compare", "untouched", "returns"],
        run: |lab, folder, results| now(lab, folder, results, false),
    },
    Trial {
        name: "now-secure-boot",
        tests: &["plan", "lends", "vlan", "keys", "compare", "untouched", "returns"],
        run: |lab, folder, results| now(lab, folder, results, true),
    },
    Trial {
        name: "entry",
        tests: &["written", "lends", "compare", "untouched", "returns"],
        run: entry,
    },
];

/// The server, and what the host needs.
struct Server {
    machine: Machine,
    program: PathBuf,
    disk: PathBuf,
    /// The key of the host.
    key: PathBuf,
    folder: PathBuf,
    /// The port of this machine that reaches the server's NVMe/TCP port.
    port: u16,
}

impl Server {
    fn power_on(lab: &Lab<'_>, folder: &Path, secure_boot: bool) -> Result<Self> {
        let bench = lab.maker.bench;
        let (disk, keys, key) =
            (folder.join("server.img"), folder.join("keys"), folder.join("key"));
        let owner = |words: &[&str]| {
            succeed(Command::new(&bench.program).args(words).arg("--keys").arg(&keys))
        };
        let to = key.display().to_string();
        owner(&["key", "generate", "--name", HOST])?;
        owner(&["key", "export", HOST, "--to", &to])?;
        owner(&["host", "add", NQN, "--name", HOST, "--tls-key", HOST])?;
        let loaders = bench.cache.pieces("server-loaders", Architecture::X86_64, PACKAGES)?;
        disk::write(bench, lab.maker.kernel, &loaders, &keys, &disk)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut devices = virtio_disk(&disk, SERIAL, false).to_vec();
        devices.extend([
            "-netdev".to_owned(),
            format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:4420"),
            "-device".to_owned(),
            "virtio-net-pci,netdev=net,romfile=".to_owned(),
        ]);
        let file = |name: &str| loaders.join("usr/share/OVMF").join(name);
        let names = match secure_boot {
            true => ["OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"],
            false => ["OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"],
        };
        let [code, variables] = names.map(file);
        let start = Start::Disk(Flash { code, variables, is_protected: secure_boot });
        let machine = Machine::power_on(&start, &devices, folder, "server")?;
        let folder = folder.to_owned();
        let program = bench.program.clone();
        let mut server = Self { machine, program, disk, key, folder, port };
        server.until_up(0)?;
        Ok(server)
    }

    /// Waits until the system has said, on a line from this number on, that it is up.
    fn until_up(&mut self, since: usize) -> Result<()> {
        self.machine.screen.shows(disk::UP, since, BOOT).map(drop)
    }

    /// Runs a command in the shell of the system; returns the lines of the screen since then.
    fn run(&mut self, command: &str) -> Result<String> {
        let since = self.machine.screen.now();
        self.machine.type_key(&format!("{command}; echo \"status $?.\"\n"))?;
        let status =
            |line: &str| line.strip_prefix("status ")?.strip_suffix('.')?.parse::<i32>().ok();
        let (_, status) = self.machine.screen.find(command, since, BOOT, status)?;
        let lines = self.machine.screen.since(since);
        ensure!(status == 0, "{command}: status {status}\n{lines}");
        Ok(lines)
    }

    /// Waits until the screen of target mode, on a line from this number on, lends the disk.
    fn until_lent(&mut self, since: usize) -> Result<()> {
        self.machine.screen.shows("this machine lends 1 disk", since, BOOT)?;
        self.machine.screen.shows(SERIAL, since, SOON).map(drop)
    }

    /// Checks that the screen, on a line from this number on, shows an address; a key shows the next.
    fn shows_address(&mut self, address: &str, since: usize) -> Result<()> {
        for _ in 0..8 {
            if self.machine.screen.shows(address, since, Duration::from_secs(2)).is_ok() {
                return Ok(());
            }
            self.machine.type_key("\t")?;
        }
        Err(anyhow!("{address} is not on the screen"))
    }

    /// Copies the disk to a file, with a key or without one; returns the file.
    fn copy(&self, key: Option<&Path>) -> Result<PathBuf> {
        let to = self.folder.join("copy.img");
        let mut copy = Command::new(&self.program);
        copy.args(["copy", "--force", "--hostnqn", NQN]);
        key.map(|key| copy.arg("--key").arg(key));
        succeed(copy.arg(format!("nvme://127.0.0.1:{}/", self.port)).arg(&to))?;
        Ok(to)
    }

    /// Checks that a host with another key is refused.
    fn refuses_another_key(&self) -> Result<()> {
        let other = self.folder.join("other-key");
        std::fs::write(&other, succeed(Command::new(&self.program).args(["key", "generate"]))?)?;
        let error = self.copy(Some(&other)).err().context("another key was accepted")?;
        ensure!(format!("{error:#}").contains("securely"), "{error:#}");
        Ok(())
    }

    /// Compares every byte of the disk with what a host reads, while the server writes nothing.
    fn compare(&mut self, key: Option<&Path>, results: &mut Results<'_>) -> Result<()> {
        // The system has written until it ended.
        let before = self.machine.control()?.changes()?;
        let compared = self
            .copy(key)
            .and_then(|copy| succeed(Command::new("cmp").arg(&self.disk).arg(copy)).map(drop));
        results.decide("compare", compared);
        let changes = self.machine.control()?.changes()? - before;
        let result =
            if changes == 0 { Ok(()) } else { Err(anyhow!("{changes} writes to the disk")) };
        results.decide("untouched", result);
        Ok(())
    }

    /// Waits until the system is up again, with its file system as it was left.
    fn until_returned(&mut self, since: usize) -> Result<()> {
        self.until_up(since)?;
        self.run("! dmesg | grep 'EXT4.*recover' && ! grep storagetm /proc/cmdline").map(drop)
    }
}

/// Restarts the server into target mode by kexec, and lets it return by itself.
fn now(
    lab: &mut Lab<'_>,
    folder: &Path,
    results: &mut Results<'_>,
    secure_boot: bool,
) -> Result<()> {
    let mut server = Server::power_on(lab, folder, secure_boot)?;
    let plan = server.run(&format!("storagetm boot --now --for {RETURN_AFTER} --dry-run"))?;
    results.decide(
        "plan",
        shows(&plan, &["10.0.2.15", disk::ON_VLAN, HOST, SERIAL, "restarts by itself after"]),
    );
    let since = server.machine.screen.now();
    server.machine.type_key(&format!("storagetm boot --now --for {RETURN_AFTER} --yes\n"))?;
    server.until_lent(since)?;
    results.decide("lends", Ok(()));
    // The plan has the address, too: only what the screen shows after the key counts.
    let shown = server.machine.screen.now();
    server.machine.type_key("\t")?;
    results.decide("vlan", server.shows_address(disk::ON_VLAN, shown));
    results.decide("keys", server.refuses_another_key());
    let since = server.machine.screen.now();
    let key = server.key.clone();
    server.compare(Some(&key), results)?;
    results.decide("returns", server.until_returned(since));
    Ok(())
}

/// Adds an entry of GRUB on the server, starts it once, and restarts from target mode by a key.
fn entry(lab: &mut Lab<'_>, folder: &Path, results: &mut Results<'_>) -> Result<()> {
    let mut server = Server::power_on(lab, folder, true)?;
    server.run("mount -o remount,rw /; update-grub")?;
    let line = "quiet console=ttyS0 ip=dhcp storagetm.open";
    let written = server.run(&format!(
        "storagetm image --for this-machine --entry --force --command-line '{line}'"
    ));
    results.decide("written", written.and_then(|text| shows(&text, &["grub-reboot storagetm"])));
    server.run("grub-reboot storagetm")?;
    let since = server.machine.screen.now();
    server.machine.type_key("reboot\n")?;
    server.until_lent(since)?;
    results.decide("lends", Ok(()));
    server.compare(None, results)?;
    let since = server.machine.screen.now();
    server.machine.type_key("r")?;
    results.decide("returns", server.until_returned(since));
    Ok(())
}

/// Checks that a text has all parts.
fn shows(text: &str, parts: &[&str]) -> Result<()> {
    let missing: Vec<&&str> = parts.iter().filter(|part| !text.contains(**part)).collect();
    ensure!(missing.is_empty(), "{missing:?} is not in:\n{text}");
    Ok(())
}
