//! Instructions of the NVMe target for one request, without the copies of payload, counted by
//! callgrind. An upper bound each, so that the data path does not become slower unnoticed. They are
//! those of the build for tests, which is less optimized than a release.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::process::Stdio;

/// Returns the instructions of the target for `requests` requests.
fn count(arguments: &[&str], requests: u32) -> u64 {
    let out = std::env::temp_dir().join(format!("storagetm-count-{}", std::process::id()));
    let output = programs::command("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*count*Link*serve*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(env!("CARGO_BIN_EXE_bench"))
        .arg("count")
        .args(arguments)
        .arg(format!("--requests={requests}"))
        .stdout(Stdio::null())
        .output()
        .unwrap();
    let _ = std::fs::remove_file(out);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    let collected = text.lines().find_map(|line| line.split_once("Collected : "));
    collected.unwrap_or_else(|| panic!("{text}")).1.trim().parse().unwrap()
}

#[test]
fn requests_need_no_more_instructions_than_before() {
    if programs::lacks("instructions", &["valgrind"]) {
        return;
    }
    let bounds: [(&[&str], u64); 4] = [
        (&["--size=4096"], 4500),
        (&["--size=4096", "--write"], 5800),
        (&["--size=131072"], 4500),
        (&["--size=131072", "--write"], 8000),
    ];
    for (arguments, bound) in bounds {
        let each = (count(arguments, 600) - count(arguments, 100)) / 500;
        println!("{arguments:?}: {each} instructions");
        assert!(each > 1000, "nothing was counted: {each}");
        assert!(each <= bound, "{arguments:?}: {each} instructions, at most {bound}");
    }
}
