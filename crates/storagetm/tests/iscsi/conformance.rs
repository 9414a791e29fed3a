//! libiscsi's conformance suite, `iscsi-test-cu`: every test, with the results that are expected.
//!
//! `STORAGETM_ISCSI_TARGET=URI[,URI]` runs the suite against another target, and prints its results in
//! the form of the table; a second URI is another portal of the same unit.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::server::Server;

/// The expected results: a line `SUITE.TEST RESULT`, and the reason where it is not `pass`.
const EXPECTED: &str = include_str!("conformance.txt");

/// Size of the units in bytes.
const SIZE: u64 = 1 << 30;

/// The start of the header of an empty GPT, with its checksum.
const PARTITION_TABLE: &[u8; 25] = b"EFI PART\0\0\x01\0\x5c\0\0\0\x5a\xce\x7f\x53\0\0\0\0\x01";

/// Longest time of a suite, in seconds. A test that waits for a reply does so for ever.
const LIMIT: &str = "100";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Pass,
    Skip,
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Skip => "skip",
            Self::Fail => "fail",
        })
    }
}

/// The result of a test, and what the suite printed about it.
#[derive(Debug)]
struct Found {
    verdict: Verdict,
    text: String,
}

#[test]
fn conformance_suite_has_the_expected_results() {
    if programs::lacks("iSCSI conformance", &["iscsi-test-cu"]) {
        return;
    }
    let other = std::env::var("STORAGETM_ISCSI_TARGET").ok();
    let own = other.is_none();
    // The second one is for the suite of write-protected units.
    let servers: Vec<Server> = [true, false]
        .into_iter()
        .filter(|_| own)
        .map(|writable| Server::of_zeros(&[SIZE], writable))
        .collect();
    let uris_of = |writable: bool| match servers.get(usize::from(!writable)) {
        Some(server) => vec![server.uri(0)],
        None => other.iter().flat_map(|uris| uris.split(',')).map(str::to_owned).collect(),
    };
    let (uris, read_only) = (uris_of(true), uris_of(false));
    let uris = |suite: &str| if suite == "ReadOnly" { &read_only } else { &uris };
    let mut found: BTreeMap<String, Found> =
        suites().iter().flat_map(|suite| run(suite, uris(suite))).collect();
    let others = own.then(other_units).into_iter().flatten();
    others.for_each(|(server, tests)| {
        found.extend(tests.iter().flat_map(|tests| run(tests, &[server.uri(0)])));
    });
    for (name, found) in &found {
        println!("{name} {} {}", found.verdict, found.text);
    }
    if own {
        compare(&found);
    }
}

/// Returns units that differ from the one of all other tests, and the tests that need them.
fn other_units() -> [(Server, &'static [&'static str]); 2] {
    let removable = Server::of_images(&[SIZE], true, &["--removable"], |_| {});
    // A partition table has the size of the blocks.
    let large_blocks = Server::of_images(&[SIZE], true, &[], |image| {
        image.write_all_at(PARTITION_TABLE, 4096).unwrap();
    });
    let prevention: &[&str] = &["PreventAllow", "StartStopUnit"];
    [(removable, prevention), (large_blocks, &["GetLBAStatus.UnmapSingle"])]
}

/// Compares the results with the table.
fn compare(found: &BTreeMap<String, Found>) {
    let expected: BTreeMap<&str, (&str, &str)> = EXPECTED.lines().filter_map(row).collect();
    let mut wrong = Vec::new();
    for (name, found) in found {
        let verdict = found.verdict.to_string();
        match expected.get(name.as_str()) {
            Some((known, _)) if *known == verdict => {}
            // A test of a later version of the suite.
            None if found.verdict == Verdict::Pass => {}
            _ => wrong.push(format!("{name}: {verdict} {}", found.text)),
        }
    }
    let unexplained = |row: &&(&str, (&str, &str))| row.1.0 != "pass" && row.1.1.is_empty();
    let rows: Vec<_> = EXPECTED.lines().filter_map(row).collect();
    let unexplained = rows.iter().filter(unexplained);
    wrong.extend(unexplained.map(|(name, _)| format!("{name}: no reason in the table")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let left_out = expected.keys().filter(|name| !found.contains_key(**name));
    let left_out: Vec<_> = left_out.collect();
    assert!(left_out.is_empty() && found.len() >= 200, "did not run: {left_out:?}");
}

/// Parses a line of the table: name, result, reason.
fn row(line: &str) -> Option<(&str, (&str, &str))> {
    let line = line.split('#').next().unwrap_or_default();
    let mut words = line.trim().splitn(3, ' ');
    Some((
        words.next().filter(|name| !name.is_empty())?,
        (words.next()?, words.next().unwrap_or("")),
    ))
}

/// The names of the suites, such as `Read10`.
fn suites() -> Vec<String> {
    let list = Command::new("iscsi-test-cu").arg("--list").output().unwrap();
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let suites = list.lines().filter_map(|line| line.trim().strip_prefix("ALL."));
    suites.filter(|name| !name.contains('.')).map(str::to_owned).collect()
}

/// Runs a suite, or a test `SUITE.TEST`, in a process of its own: a test that is skipped can leave state behind that makes
/// later ones of the process fail.
fn run(tests: &str, uris: &[String]) -> Vec<(String, Found)> {
    let (suite, _) = tests.split_once('.').unwrap_or((tests, ""));
    let uris = if suite == "MultipathIO" && uris.len() == 1 {
        [uris, uris].concat()
    } else {
        uris.to_vec()
    };
    let uris = if suite == "MultipathIO" { &uris[..] } else { &uris[..1] };
    let ran = Command::new("timeout")
        .args([LIMIT, "iscsi-test-cu", "-d", "-S", "-v", "-t", &format!("ALL.{tests}")])
        .args(uris)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    parse(suite, &text)
}

/// Parses what a suite printed. A test without an end has timed out, and failed.
fn parse(suite: &str, text: &str) -> Vec<(String, Found)> {
    let mut all = Vec::new();
    let (_, tests) = text.split_once(&format!("Suite: {suite}")).unwrap_or_default();
    let (tests, _) = tests.split_once("Run Summary").unwrap_or((tests, ""));
    for test in tests.split("  Test: ").skip(1) {
        let (name, printed) = test.split_once(" ...").unwrap_or((test, ""));
        // What is logged when the test has ended may follow its result on one line.
        let passed =
            |line: &str| line.trim().starts_with("passed") || line.trim().ends_with("passed");
        let passed = printed.lines().any(passed);
        let verdict = if passed && printed.contains("[SKIPPED]") {
            Verdict::Skip
        } else if passed {
            Verdict::Pass
        } else {
            Verdict::Fail
        };
        let said = printed.lines().map(str::trim).filter(|line| !matches!(*line, "" | "passed"));
        let text = said.collect::<Vec<_>>().join("; ");
        all.push((format!("{suite}.{}", name.trim()), Found { verdict, text }));
    }
    all
}
