//! `storagetm boot --now` is refused where nobody could attach a disk afterwards. Nothing here
//! restarts the machine: all lines have `--dry-run`, or are refused before.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::{Command, Stdio};

use testkit::Scratch;

const PROGRAM: &str = env!("CARGO_BIN_EXE_storagetm");

/// Returns the exit status and standard error of `storagetm boot`.
fn boot(arguments: &[&str]) -> (Option<i32>, String) {
    let keys = Scratch::new();
    let mut command = Command::new(PROGRAM);
    command.arg("boot").args(arguments).stdin(Stdio::null());
    if arguments.contains(&"--now") {
        command.arg("--keys").arg(keys.0.join("state"));
    }
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn machine_without_hosts_is_not_restarted() {
    let (status, text) = boot(&["--now", "--dry-run"]);
    assert_eq!(status, Some(1), "{text}");
    if !rustix::process::geteuid().is_root() {
        return assert!(text.contains("needs root"), "{text}");
    }
    assert!(text.contains("no host may attach the disks") && text.contains("--open"), "{text}");
}

#[test]
fn wrong_lines_are_usage_errors() {
    for line in [
        &[][..],
        &["--dry-run"],
        &["--for", "30m"],
        &["--now", "--for", "30"],
        &["--now", "--dry-run", "--yes"],
    ] {
        let (status, text) = boot(line);
        assert_eq!(status, Some(2), "{line:?}: {text}");
    }
}
