//! Disks with unreadable sectors.

use std::time::Instant;

use serde_json::Value;

use crate::device::{BYTES, Device, skip_without_loop_devices};
use crate::foreign::{Folder, program, run};
use crate::serve::{PROGRAM, Serve};

fn json(args: &[&str]) -> Value {
    let output = run(program(PROGRAM).args(args));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A disk whose first page cannot be read does not count as in use: it is listed as unreadable,
/// exported read-only, and can be copied.
#[test]
fn r61_unreadable_first_sectors_are_noted_and_copied() {
    if skip_without_loop_devices("unreadable first sectors are noted and copied") {
        return;
    }
    let folder = Folder::new();
    let Some(device) = Device::failing(&folder, "device", 4096) else { return };
    let expected = "cannot be read at byte 0; its contents are unknown";

    let rows = json(&["list", "--json"]);
    let row = rows.as_array().unwrap().iter().find(|row| row["path"] == *device.path).unwrap();
    let reasons = row["reasons"].as_array().unwrap();
    let reason = reasons.iter().find(|reason| reason["code"] == "unreadable").unwrap();
    assert_eq!(reason["text"], expected);
    assert!(reasons.iter().all(|reason| reason["code"] != "doubt"), "{reasons:?}");

    let image = folder.path("image");
    let output = run(program(PROGRAM).args(["copy", &device.path, &image]));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains(expected) && !message.contains("in use"), "{message}");
    assert!(message.contains("4.1 kB could not be read, in 1 place"), "{message}");
    assert_eq!(std::fs::metadata(&image).unwrap().len(), BYTES);

    let mut serve = Serve::start(&[&device.path]);
    let events = serve.until_named("note");
    assert!(events.iter().any(|event| event["event"] == "lent"), "{events:?}");
    assert_eq!(events.last().unwrap()["message"], format!("{} {expected}", device.path));
    serve.terminate();
}

/// A disk with unreadable first sectors may be an array member, so writing needs `--force`.
#[test]
fn r61_unreadable_first_sectors_are_written_only_with_force() {
    if skip_without_loop_devices("unreadable first sectors are written only with force") {
        return;
    }
    let folder = Folder::new();
    let Some(device) = Device::failing_writable(&folder, "device", 4096) else { return };
    let output = run(program(PROGRAM).args(["serve", "--writable", &device.path]));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("--force") && !message.contains("in use"), "{message}");

    let image = folder.hole("image", 1 << 20);
    let copy = ["copy", "--yes", "--no-verify", &image, &device.path];
    let output = run(program(PROGRAM).args(copy));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && message.contains("add --force"), "{message}");
    let output = run(program(PROGRAM).args(copy).arg("--force"));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{message}");

    let mut serve = Serve::start(&["--force", "--writable", &device.path]);
    let events = serve.until_named("ready");
    let lent = events.iter().find(|event| event["event"] == "lent").unwrap();
    assert_eq!(lent["access"], "writable");
    serve.terminate();
}

/// 256 KiB of unreadable sectors (512) are each read twice. At most one `fault` event per second is
/// emitted, and the counts add up.
#[test]
fn r62_faults_are_limited_to_one_a_second_and_counted() {
    if skip_without_loop_devices("faults are limited to one a second and counted") {
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
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("262.1 kB could not be read"), "{message}");
    let seconds = begun.elapsed().as_secs();
    serve.terminate();
    let events = serve.until_named("stopped");
    let faults: Vec<&Value> = events.iter().filter(|event| event["event"] == "fault").collect();
    let limit = usize::try_from(seconds).unwrap() + 3;
    assert!((1..=limit).contains(&faults.len()), "{} in {seconds} s", faults.len());
    let count: u64 = faults.iter().map(|fault| fault["count"].as_u64().unwrap()).sum();
    assert!(count >= 2 * 512, "each sector was tried twice, {count} failures");
    let total = format!("{}: {count} requests failed in total, between bytes 0 and ", device.path);
    let is_total = |event: &Value| event["message"].as_str().is_some_and(|m| m.starts_with(&total));
    assert!(events.iter().any(is_total), "{events:?}");
}
