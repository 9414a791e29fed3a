//! Disks of which a part cannot be read.

use std::time::Instant;

use serde_json::Value;

use crate::device::{BYTES, Device, cannot};
use crate::foreign::{Folder, program, run};
use crate::serve::{PROGRAM, Serve};

fn json(words: &[&str]) -> Value {
    let output = run(program(PROGRAM).args(words));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A disk whose first page cannot be read is not in use: it is listed as what it is, lent read-only, and copied.
#[test]
fn r61_an_unreadable_head_is_lent_and_copied_with_a_note() {
    if cannot("an unreadable head is lent and copied with a note") {
        return;
    }
    let folder = Folder::new();
    let Some(device) = Device::failing(&folder, "device", 4096) else { return };
    let wanted = "cannot be read at 0: what is on it is not known";

    let rows = json(&["list", "--json"]);
    let row = rows.as_array().unwrap().iter().find(|row| row["path"] == *device.path).unwrap();
    let reasons = row["reasons"].as_array().unwrap();
    let reason = reasons.iter().find(|reason| reason["code"] == "unreadable").unwrap();
    assert_eq!(reason["text"], wanted);
    assert!(reasons.iter().all(|reason| reason["code"] != "doubt"), "{reasons:?}");

    let image = folder.path("image");
    let output = run(program(PROGRAM).args(["copy", &device.path, &image]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(wanted) && !said.contains("in use"), "{said}");
    assert!(said.contains("4.1 kB could not be read, in 1 place"), "{said}");
    assert_eq!(std::fs::metadata(&image).unwrap().len(), BYTES);

    let mut serve = Serve::start(&[&device.path]);
    let events = serve.until_named("note");
    assert!(events.iter().any(|event| event["event"] == "lent"), "{events:?}");
    assert_eq!(events.last().unwrap()["message"], format!("{} {wanted}", device.path));
    serve.terminate();
}

/// It may be part of an array that cannot be seen, so writing needs --force.
#[test]
fn r61_an_unreadable_head_is_written_only_with_force() {
    if cannot("an unreadable head is written only with force") {
        return;
    }
    let folder = Folder::new();
    let Some(device) = Device::failing_writable(&folder, "device", 4096) else { return };
    let output = run(program(PROGRAM).args(["serve", "--writable", &device.path]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--force") && !said.contains("in use"), "{said}");

    let image = folder.hole("image", 1 << 20);
    let copy = ["copy", "--yes", "--no-verify", &image, &device.path];
    let output = run(program(PROGRAM).args(copy));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("add --force"), "{said}");
    let output = run(program(PROGRAM).args(copy).arg("--force"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");

    let mut serve = Serve::start(&["--force", "--writable", &device.path]);
    let events = serve.until_named("ready");
    let lent = events.iter().find(|event| event["event"] == "lent").unwrap();
    assert_eq!(lent["access"], "writable");
    serve.terminate();
}

/// 2 MiB of unreadable sectors are read one by one, and again: an event a second, and nothing is left out of the count.
#[test]
fn r62_bad_sectors_are_a_few_events_with_their_number() {
    if cannot("bad sectors are a few events with their number") {
        return;
    }
    let folder = Folder::new();
    let Some(device) = Device::failing(&folder, "device", 256 << 10) else { return };
    let mut serve = Serve::start(&["--protocol", "nbd", &device.path]);
    let events = serve.until_named("ready");
    let lent = events.iter().find(|event| event["event"] == "lent").unwrap();
    let uri = lent["nbd"][0].as_str().unwrap().to_owned();
    let begun = Instant::now();
    let image = folder.path("image");
    let output = run(program(PROGRAM).args(["copy", "--retries", "1", &uri, &image]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("262.1 kB could not be read"), "{said}");
    let seconds = begun.elapsed().as_secs();
    serve.terminate();
    let events = serve.until_named("stopped");
    let faults: Vec<&Value> = events.iter().filter(|event| event["event"] == "fault").collect();
    let limit = usize::try_from(seconds).unwrap() + 3;
    assert!((1..=limit).contains(&faults.len()), "{} in {seconds} s", faults.len());
    let count: u64 = faults.iter().map(|fault| fault["count"].as_u64().unwrap()).sum();
    assert!(count >= 2 * 512, "each sector was tried twice, {count} failures");
    let total = format!("{}: {count} requests failed in all, between 0 and ", device.path);
    let is_total = |event: &Value| event["message"].as_str().is_some_and(|m| m.starts_with(&total));
    assert!(events.iter().any(is_total), "{events:?}");
}
