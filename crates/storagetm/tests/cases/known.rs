//! Pairing of a host that is known: the disks and the time that the owner gave it stay.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::alone::{ELSEWHERE, is_alone};
use crate::scene::{Folder, KEYED, LAPTOP, Running, run};

/// X18: a host that is limited to one disk and pairs again is told that disk only.
#[test]
fn x18_known_host_is_told_its_own_disks_only() {
    if !is_alone("known::x18_known_host_is_told_its_own_disks_only") {
        return;
    }
    let (folder, guests) = (Folder::new(), Folder::new());
    let (one, other) = (folder.image("one.img", 1), folder.image("other.img", 2));
    let keys = folder.keys();
    let running = Running::serve(&["--pair", "--listen", KEYED, "--keys", &keys, &one, &other]);
    let (address, names, code) = running.settled();
    folder.authorize(LAPTOP, "laptop", "tls", &["--disk", &names[0]]);
    let place = format!("{ELSEWHERE}:{}", address.port());
    let kept = guests.keys();
    let line = ["pair", &place, "--json", "--code-file", "-", "--hostnqn", LAPTOP, "--keys", &kept];
    let output = run(&line, &code);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let reported: Value = serde_json::from_slice(&output.stdout).unwrap();
    let disks = reported["disks"].as_array().unwrap();
    assert_eq!((disks.len(), disks[0]["nqn"].as_str()), (1, Some(names[0].as_str())), "{reported}");
}

/// X18: a host whose time is over is not given more by pairing, until its owner has given it more.
#[test]
fn x18_pairing_does_not_revive_an_expired_host() {
    if !is_alone("known::x18_pairing_does_not_revive_an_expired_host") {
        return;
    }
    let (folder, guests) = (Folder::new(), Folder::new());
    let (image, keys) = (folder.image("disk.img", 1), folder.keys());
    let running = Running::serve(&["--pair", "--listen", KEYED, "--keys", &keys, &image]);
    let (address, _, code) = running.settled();
    folder.authorize(LAPTOP, "laptop", "tls", &["--expires", "2999-01-01"]);
    let record = Path::new(&keys).join("hosts/laptop.json");
    let text = fs::read_to_string(&record).unwrap();
    assert!(text.contains("2999-01-01"));
    fs::write(&record, text.replace("2999-01-01", "2026-01-01")).unwrap();
    let place = format!("{ELSEWHERE}:{}", address.port());
    let pair = |code: &str| {
        let kept = guests.keys();
        let line = ["pair", &place, "--code-file", "-", "--hostnqn", LAPTOP, "--keys", &kept];
        let output = run(&line, code);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (status, message) = pair(&code);
    assert!(status == Some(3) && message.contains("expired"), "{message}");
    let events = running.until("note");
    let note = events.last().unwrap();
    assert!(note["message"].as_str().unwrap().contains("host add"), "{note}");
    // The code has been used.
    let anew = events.iter().find(|event| event["event"] == "pairing");
    let code = anew.map(|event| event["code"].as_str().unwrap().to_owned());
    let code = code.unwrap_or_else(|| running.code());
    folder.run_command(&["host", "add", LAPTOP, "--replace", "--all-disks"]);
    assert_eq!(pair(&code).0, Some(0));
}
