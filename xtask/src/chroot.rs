//! A directory with a minimal Debian, to test packages without changing this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

use crate::cargo;
use crate::vm::mirror;

/// The Debian release.
const SUITE: &str = "trixie";

/// Returns why this machine cannot make one, if it cannot.
pub(crate) fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root".to_owned());
    }
    let is_there = |program: &str| {
        Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    let missing =
        ["mmdebstrap", "unshare", "chroot"].into_iter().find(|program| !is_there(program));
    missing.map(|program| format!("{program} is not installed"))
}

/// Enters the directory `$0` and runs `$1` there. The mounts are private to the command, and end with it.
const ENTER: &str = r#"
mount --bind "$0" "$0"
cd "$0"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs tmpfs run
mount -t tmpfs -o mode=0755 tmpfs dev
for device in null zero full random urandom tty; do
    cp -a "/dev/$device" dev
done
mkdir dev/shm
ln -s /proc/self/fd dev/fd
exec chroot . /bin/sh -ec "$1"
"#;

#[derive(Debug)]
pub(crate) struct Chroot {
    root: PathBuf,
}

impl Chroot {
    /// Makes the directory `name` with these packages, or reuses that of an earlier run.
    pub(crate) fn open(name: &str, packages: &[&str]) -> Result<Self> {
        let root = cargo::target_directory()?.join("chroot").join(name);
        let marker = root.with_extension("complete");
        let wanted = packages.join(",");
        if fs::read_to_string(&marker).is_ok_and(|made| made == wanted) {
            return Ok(Self { root });
        }
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        fs::create_dir_all(root.parent().context("a root without a parent")?)?;
        make(&root, &wanted)?;
        fs::write(marker, wanted)?;
        Ok(Self { root })
    }

    /// Returns its path on this machine.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Runs a command line of the shell in it, with `/proc`, `/sys` and a `/dev` of its own; returns what it printed.
    pub(crate) fn run(&self, line: &str) -> Result<String> {
        let output = self.attempt(line)?;
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told).into_owned();
        ensure!(output.status.success(), "{line}\n{}", told.trim());
        Ok(told)
    }

    fn attempt(&self, line: &str) -> Result<Output> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--", "sh", "-ec", ENTER]);
        command
            .arg(&self.root)
            .arg(line)
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.output().context("unshare cannot be started")
    }
}

fn make(root: &Path, packages: &str) -> Result<()> {
    let mirror = mirror::of_this_machine()?;
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=minbase", &format!("--include={packages}"), SUITE]);
    command.arg(root).arg(format!("deb {} {SUITE} main", mirror.main));
    if let Some(security) = mirror.security {
        command.arg(format!("deb {security} {SUITE}-security main"));
    }
    let output = command.output().context("mmdebstrap cannot be started")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "mmdebstrap failed: {}", complaint.trim());
    Ok(())
}
