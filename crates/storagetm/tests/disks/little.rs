//! A kernel without io_uring or Landlock, as in many containers, and a process without capabilities.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::thread;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use testkit::Scratch;

use crate::process::{PROGRAM, Running};
use crate::remote::{LISTEN, Lent, WAYS};
use crate::{image, path};

/// Numbers of `io_uring_setup` and `landlock_create_ruleset`, which are the same on all architectures.
const IO_URING_SETUP: i64 = 425;
const LANDLOCK_CREATE_RULESET: i64 = 444;

/// `ENOSYS`: the system call does not exist.
const ENOSYS: u32 = 38;

/// Starts a program on a kernel without these system calls.
fn start_without(calls: &[i64], command: Command) -> Running {
    let rules: BTreeMap<i64, Vec<_>> = calls.iter().map(|call| (*call, Vec::new())).collect();
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    // A filter belongs to the thread, and to what it starts.
    let start = move || {
        if !rules.is_empty() {
            let (allow, missing) = (SeccompAction::Allow, SeccompAction::Errno(ENOSYS));
            let filter = SeccompFilter::new(rules, allow, missing, arch).unwrap();
            seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
        }
        let mut command = command;
        Running::start(command.stderr(Stdio::inherit()))
    };
    thread::spawn(start).join().unwrap()
}

/// The command line of `serve`, as a process that has no capability if `bare`.
fn command(bare: bool, args: &[&str]) -> Command {
    let mut command = Command::new(if bare { "setpriv" } else { PROGRAM });
    if bare {
        command.args(["--bounding-set=-all", "--inh-caps=-all", PROGRAM]);
    }
    command.args(["serve", "--json"]).args(LISTEN).args(args);
    command
}

fn disk_works(calls: &[i64], bare: bool) {
    let folder = Scratch::new();
    let disk = path(&folder, "disk.img");
    image(&disk, 1 << 20);
    let running = start_without(calls, command(bare, &["--writable", &disk]));
    let lent = Lent::all(&running.until("ready")).remove(0);
    for (at, way) in WAYS.into_iter().enumerate() {
        let mut disk = lent.open(way).unwrap();
        let (offset, block) = (4096 * at as u64, [u8::try_from(at).unwrap() + 1; 4096]);
        disk.write(offset, &block).unwrap().unwrap();
        disk.flush().unwrap().unwrap();
        assert_eq!(disk.read(offset, 4096).unwrap().unwrap(), block, "{calls:?} {way:?}");
    }
}

#[test]
fn disk_is_lent_without_io_uring() {
    disk_works(&[IO_URING_SETUP], false);
    // The filter takes effect: there is no ring.
    let folder = Scratch::new();
    let disk = path(&folder, "disk.img");
    image(&disk, 1 << 20);
    let mut running = start_without(&[IO_URING_SETUP], command(false, &["--io", "uring", &disk]));
    assert!(!running.end().success());
}

#[test]
fn disk_is_lent_without_landlock() {
    disk_works(&[LANDLOCK_CREATE_RULESET], false);
}

#[test]
fn disk_is_lent_without_capabilities() {
    if programs::lacks("a process without capabilities", &["setpriv"]) {
        return;
    }
    // Only who has capabilities can give them up.
    let is_root = rustix::process::geteuid().is_root();
    disk_works(&[], is_root);
    disk_works(&[IO_URING_SETUP, LANDLOCK_CREATE_RULESET], is_root);
}
