//! The second machine: a distribution's kernel and nvme-cli, which runs the commands that the first
//! one shows. It keeps running while the first machines are booted and end.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::vm::Bench;
use crate::vm::cache::Kernel;
use crate::vm::console::Message;
use crate::vm::guest::{Guest, link};
use crate::vm::initramfs::{self, Job};

const BOOT: Duration = Duration::from_secs(240);
const STEP: Duration = Duration::from_secs(110);
/// The name of this machine's network interface to the first.
const INTERFACE: &str = "eth0";
/// The option of nvme-cli before the name of an interface.
const OPTION: &str = "--host-iface";

/// The running second machine.
#[derive(Debug)]
pub(super) struct Client {
    guest: Guest,
}

/// The result of `storagetm pair`.
#[derive(Debug)]
pub(super) struct Paired {
    /// The exit status.
    pub(super) status: i32,
    /// The commands that it prints.
    pub(super) lines: Vec<String>,
}

impl Client {
    /// Boots it at its end of the link and waits for its shell.
    pub(super) fn power_on(bench: &Bench, kernel: &Kernel, folder: &Path) -> Result<Self> {
        let job = Job {
            scenario: "boot",
            role: "remote",
            variables: vec![("interface", "169.254.200.2/16".to_owned())],
            files: vec![("usr/bin/storagetm", bench.program.clone())],
            extra: Some(&initramfs::KEYS),
        };
        let guest = Guest::boot(bench, kernel, folder, &job, &link(&folder.join("link"), 1))?;
        let mut client = Self { guest };
        client.finished("boot", BOOT)?;
        Ok(client)
    }

    /// Runs a command from the first machine's screen until `count` disks are attached; returns
    /// when they were.
    pub(super) fn attach(&mut self, line: &str, disks: usize) -> Result<Instant> {
        let attached = self.run(&format!("attach {disks} {}", with_own_interface(line)));
        let then = Instant::now();
        if attached.is_err() {
            self.detach()?;
        }
        attached.map(|_| then)
    }

    /// Runs the pairing command from the first machine's screen, with the code. `paired` returns
    /// the result: the first machine may have to confirm first.
    pub(super) fn pair(&mut self, line: &str, code: &str) -> Result<()> {
        self.guest.type_line(&format!("pair {code}:{}", with_own_interface(line)))
    }

    /// Returns the result of pairing.
    pub(super) fn paired(&mut self) -> Result<Paired> {
        let told = self.finished("pair", STEP)?.context("the second machine told nothing")?;
        let (status, lines) = told.split_once(';').unwrap_or((&told, ""));
        let lines = lines.split(';').filter(|line| !line.is_empty()).map(str::to_owned);
        Ok(Paired { status: status.parse()?, lines: lines.collect() })
    }

    /// Tries to attach disks by a command of the first machine's screen, and without a key. Both
    /// must fail.
    pub(super) fn is_refused(&mut self, line: &str) -> Result<()> {
        self.run(&format!("refused {}", with_own_interface(line))).map(drop)
    }

    /// Writes to the writable attached disk; returns its checksum then.
    pub(super) fn write(&mut self) -> Result<String> {
        self.run("write")?.context("the second machine told no checksum")
    }

    /// Returns the checksums of all attached disks, sorted.
    pub(super) fn sums(&mut self) -> Result<Vec<String>> {
        self.told("sums")
    }

    /// Returns size and protection of all attached disks, smallest first: `16777216:ro`.
    pub(super) fn protection(&mut self) -> Result<Vec<String>> {
        self.told("protection")
    }

    /// Gets an address on VLAN 5 of the link, too.
    pub(super) fn join_vlan(&mut self) -> Result<()> {
        self.run("vlan").map(drop)
    }

    /// Detaches all disks.
    pub(super) fn detach(&mut self) -> Result<()> {
        self.run("detach").map(drop)
    }

    fn told(&mut self, name: &str) -> Result<Vec<String>> {
        let told = self.run(name)?.context("the second machine told nothing")?;
        Ok(told.split(' ').map(str::to_owned).collect())
    }

    fn run(&mut self, command: &str) -> Result<Option<String>> {
        self.guest.type_line(command)?;
        let name = command.split(' ').next().unwrap_or(command);
        self.finished(name, STEP)
    }

    /// Waits for the end of a step; returns the last value reported.
    fn finished(&mut self, name: &str, patience: Duration) -> Result<Option<String>> {
        let deadline = Instant::now() + patience;
        let (mut value, mut notes) = (None, String::new());
        loop {
            match self.guest.console.next(deadline)? {
                Message::Passed(step) if step == name => return Ok(value),
                Message::Failed(step) => bail!("{step} failed on the second machine:\n{notes}"),
                Message::Value(_, told) => value = Some(told),
                Message::Note(note) => notes.extend([&note, "\n"]),
                Message::Passed(_) | Message::Ask(_) | Message::Event(_) => {}
                Message::End => bail!("the second machine ended"),
            }
        }
    }
}

/// Adapts a command: replaces the interface of a link-local IPv6 address by this machine's own, or
/// adds it as an option, since it is required.
fn with_own_interface(line: &str) -> String {
    let has_option = line.contains(OPTION);
    let mut after_option = false;
    let mut word = |word: &str| {
        let is_interface = std::mem::replace(&mut after_option, word == OPTION);
        match word.split_once('%') {
            _ if is_interface => INTERFACE.to_owned(),
            _ if !word.starts_with("fe80:") => word.to_owned(),
            Some((address, _)) => format!("{address}%{INTERFACE}"),
            None if has_option => word.to_owned(),
            None => format!("{word}%{INTERFACE}"),
        }
    };
    line.split(' ').map(&mut word).collect::<Vec<_>>().join(" ")
}

/// Checks that two lists of checksums are equal.
pub(super) fn same(expected: &[String], found: &[String]) -> Result<()> {
    ensure!(expected == found, "expected SHA-256 {expected:?}, the second machine read {found:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_interface_of_a_command_is_replaced() {
        let line = "nvme connect-all -t tcp -a fe80::1%enp0s2 -s 4420";
        let typed = "nvme connect-all -t tcp -a fe80::1%eth0 -s 4420";
        assert_eq!(with_own_interface(line), typed);
        assert_eq!(with_own_interface(&line.replace("%enp0s2", "")), typed);
        let line = "nvme connect-all -t tcp -a fe80::1 -s 4420 --host-iface enp0s2";
        assert_eq!(with_own_interface(line), line.replace("enp0s2", "eth0"));
        let line = "nvme connect-all -t tcp -a 169.254.1.2 -s 4420";
        assert_eq!(with_own_interface(line), line);
    }
}
