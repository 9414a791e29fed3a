//! Output of a copy: lines, events, and how to resume.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::scene::{Folder, MIB, assert_equal, copy, events, run, run_expecting, until_arrived};

const MEMBERS: [&str; 12] = [
    "outcome",
    "reason",
    "bytes",
    "copied",
    "zeroes",
    "earlier",
    "resent",
    "verified",
    "verified_during",
    "bad",
    "hash",
    "seconds",
];

#[test]
fn events_have_all_members_in_order() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 6 * MIB);
    let to = folder.path("copy.img");
    let events = events(&run(&["--json", "--rate", "2M", &image, &to]));
    let named = |name: &'static str| events.iter().filter(move |event| event["event"] == name);
    let started = named("started").next().unwrap();
    assert_eq!(started, &events[0]);
    assert_eq!((&started["bytes"], &started["resumed"]), (&(6 * MIB).into(), &false.into()));
    assert_eq!((&started["source"], &started["destination"]), (&image.into(), &to.into()));
    let finished = named("finished").next().unwrap();
    for member in MEMBERS {
        assert!(finished.get(member).is_some(), "{member}");
    }
    assert_eq!((&finished["outcome"], &finished["reason"]), (&"success".into(), &Value::Null));
    assert_eq!(finished["verified"], 6 * MIB);
    let progress: Vec<&Value> = named("progress").collect();
    assert!(progress.len() >= 2, "{events:?}");
    assert!(progress.iter().any(|event| event["phase"] == "verifying"), "{events:?}");
}

/// R47: progress never decreases within a phase, never exceeds the total, and is reported each
/// second.
#[test]
fn r47_progress_is_true() {
    let folder = Folder::new();
    let image = folder.path("disk.img");
    std::fs::write(&image, crate::scene::random_bytes(3, 4 << 20)).unwrap();
    let to = folder.path("copy.img");
    let line = ["--json", "--rate", "1M", "--no-verify", "--force", &image, &to];
    // Other load on this machine may delay an event, but not in each attempt.
    assert!((0..4).any(|_| longest_silence(&events(&run(&line))) < 2.0));
}

/// Returns the longest time in seconds between two progress events.
fn longest_silence(events: &[Value]) -> f64 {
    let is_told = |event: &&Value| event["event"] == "progress" && event["phase"] != "checking";
    let progress: Vec<&Value> = events.iter().filter(is_told).collect();
    let (mut last, mut longest) = ((0, 0.0, ""), 0.0_f64);
    for event in &progress {
        let (done, total) = (event["done"].as_u64().unwrap(), event["total"].as_u64().unwrap());
        let (seconds, phase) =
            (event["seconds"].as_f64().unwrap(), event["phase"].as_str().unwrap());
        assert!(done <= total && total == 4 * MIB);
        assert!(done >= last.0 || phase != last.2, "{events:?}");
        longest = longest.max(seconds - last.1);
        last = (done, seconds, phase);
    }
    assert!(progress.len() >= 3, "{events:?}");
    longest
}

#[test]
fn without_a_terminal_there_are_plain_lines() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 2 * MIB);
    let message = run_expecting(0, &[&image, &folder.path("copy.img")]);
    assert!(
        message.is_ascii() && !message.contains('\x1b') && !message.contains('\r'),
        "{message}"
    );
    assert!(message.lines().any(|line| line.starts_with("copied 2.1 MB in ")), "{message}");
    assert!(message.lines().any(|line| line.starts_with("BLAKE3 ")), "{message}");
}

#[test]
fn interrupted_copy_prints_how_to_resume() {
    let folder = Folder::new();
    let image = folder.path("disk.img");
    std::fs::write(&image, crate::scene::random_bytes(5, 24 << 20)).unwrap();
    let (to, map) = (folder.path("copy.img"), folder.path("map"));
    let args = ["--rate", "2M", "--map", &map, &image, &to];
    let child = copy(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until_arrived(&to, 2 * MIB);
    let asked = Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ended = child.wait_with_output().unwrap();
    let message = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(6), "{message}");
    // Ten more seconds would complete the copy.
    assert!(asked.elapsed() < Duration::from_secs(8));
    assert!(
        message.contains("copy --rate 2M --map ") && message.contains("to go on from there"),
        "{message}"
    );
    let output = run(&["--json", "--map", &map, &image, &to]);
    let events = events(&output);
    assert_eq!(events[0]["resumed"], true);
    let finished = events.last().unwrap();
    assert_eq!(finished["outcome"], "success");
    assert!(finished["earlier"].as_u64().unwrap() >= MIB, "{finished}");
    assert_equal(&image, &to);
}
