//! The benchmark itself works: a workload on a disk in memory has a figure.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::process::Command;

#[test]
fn workload_on_memory_has_a_rate() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["run", "--disk", "memory", "--only", "4 KiB random read, depth 32"])
        .args(["--seconds", "0.05", "--processor", "0"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let line = text.lines().find(|line| line.starts_with("memory")).unwrap();
    let rate: f64 =
        line.split("depth 32").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert!(rate > 0.0, "{line}");
}

#[test]
fn tls_is_measured_beside_clear_text() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["run", "--disk", "null", "--only", "4 KiB random read, depth 32", "--tls", "256"])
        .args(["--seconds", "0.05", "--processor", "0"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("in TLS"));
    let line = line.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    assert!(line.contains('['), "{line}");
}

#[test]
fn client_program_is_measured_in_rounds() {
    if programs::lacks("run", &["taskset"]) {
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["run", "--disk", "null", "--only", "128 KiB sequential write", "--rounds", "2"])
        .args(["--seconds", "1", "--processor", "0", "--client", "echo {rw} {size} {depth}"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(&format!(" {} ", 128 << 10)), "{text}");
}
