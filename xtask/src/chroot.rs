//! A directory with a minimal Debian, to test packages and to build without changing this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::architecture::Architecture;
use crate::cargo;
use crate::vm::mirror;

/// The newest stable Debian release.
pub(crate) const STABLE: &str = "trixie";
/// The release after it, without security updates of its own.
pub(crate) const NEXT: &str = "forky";

/// What a directory holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipe<'a> {
    pub(crate) name: &'a str,
    /// The Debian release.
    pub(crate) suite: &'a str,
    /// An architecture besides that of this machine, whose packages are named `PACKAGE:ARCHITECTURE`.
    pub(crate) foreign: Option<Architecture>,
    pub(crate) packages: &'a [&'a str],
}

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

/// Enters the directory `$0` and runs `$1` there, with the directories that follow at the same places. The
/// mounts are private to the command, and end with it.
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
line=$1
shift
for place; do
    mkdir -p "./$place"
    mount --bind "$place" "./$place"
done
exec chroot . /bin/sh -ec "$line"
"#;

#[derive(Debug)]
pub(crate) struct Chroot {
    root: PathBuf,
}

impl Chroot {
    /// Makes the directory with these packages, or reuses that of an earlier run. It is in
    /// `STORAGETM_CHROOTS`, or beside the builds.
    pub(crate) fn open(recipe: &Recipe<'_>) -> Result<Self> {
        let all = match std::env::var_os("STORAGETM_CHROOTS") {
            Some(folder) => PathBuf::from(folder),
            None => cargo::target_directory()?.join("chroot"),
        };
        let root = all.join(recipe.name);
        let marker = root.with_extension("complete");
        let wanted = format!("{} {}", recipe.suite, recipe.packages.join(","));
        if fs::read_to_string(&marker).is_ok_and(|made| made == wanted) {
            return Ok(Self { root });
        }
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        fs::create_dir_all(&all)?;
        make(&root, recipe)?;
        fs::write(marker, wanted)?;
        Ok(Self { root })
    }

    /// Returns its path on this machine.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Runs a command line of the shell in it, with `/proc`, `/sys` and a `/dev` of its own; returns what it printed.
    pub(crate) fn run(&self, line: &str) -> Result<String> {
        let output = self.command(line, &[]).output().context("unshare cannot be started")?;
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told).into_owned();
        ensure!(output.status.success(), "{line}\n{}", told.trim());
        Ok(told)
    }

    /// Runs a command line with inherited output and these directories of this machine.
    pub(crate) fn stream(&self, line: &str, places: &[PathBuf]) -> Result<()> {
        let status = self.command(line, places).status().context("unshare cannot be started")?;
        ensure!(status.success(), "{line} failed");
        Ok(())
    }

    fn command(&self, line: &str, places: &[PathBuf]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--", "sh", "-ec", ENTER]);
        command
            .arg(&self.root)
            .arg(line)
            .args(places)
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }
}

fn make(root: &Path, recipe: &Recipe<'_>) -> Result<()> {
    let (mirror, suite) = (mirror::of_this_machine()?, recipe.suite);
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=minbase"]);
    command.arg(format!("--include={}", recipe.packages.join(",")));
    // A mirror may be a snapshot, whose lists are past their date.
    command.arg("--aptopt=Acquire::Check-Valid-Until \"false\"");
    if let Some(foreign) = recipe.foreign {
        let own = Architecture::of_this_machine()?;
        command.arg(format!("--architectures={},{}", own.debian(), foreign.debian()));
    }
    command.arg(suite).arg(root).arg(format!("deb {} {suite} main", mirror.main));
    if let Some(security) = mirror.security.filter(|_| suite != NEXT) {
        command.arg(format!("deb {security} {suite}-security main"));
    }
    let output = command.output().context("mmdebstrap cannot be started")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "mmdebstrap failed: {}", complaint.trim());
    Ok(())
}
