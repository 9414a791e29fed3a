//! A state directory on a full file system: both ends of a pairing get an error, and the host is
//! not authorized.

use std::fs;

use crate::alone::{ELSEWHERE, is_alone};
use crate::scene::{Folder, KEYED, LAPTOP, Running, run};
use crate::small::Small;

#[test]
fn full_state_directory_is_reported_to_both_ends() {
    if !is_alone("full::full_state_directory_is_reported_to_both_ends") {
        return;
    }
    let (folder, guests) = (Folder::new(), Folder::new());
    let Some(small) = Small::mount(folder.keys().into(), c"size=64k,mode=700") else {
        println!("skip a full state directory: nothing can be mounted here");
        return;
    };
    let image = folder.image("disk.img", 4);
    let line = ["--pair", "--listen", KEYED, "--keys", &folder.keys(), &image];
    let running = Running::serve(&line);
    let (address, _, code) = running.settled();
    small.fill();
    let place = format!("{ELSEWHERE}:{}", address.port());
    let kept = guests.keys();
    let line = ["pair", &place, "--hostnqn", LAPTOP, "--name", "guest", "--keys", &kept];
    let client = |code: &str| run(&[&line[..], &["--code-file", "-"]].concat(), code);
    let output = client(&code);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("could not store the key: no space left on device"), "{message}");
    let reported = running.until("refused");
    let note = reported.iter().find(|event| event["event"] == "note").unwrap();
    let sentence = note["message"].as_str().unwrap();
    assert!(
        sentence.contains("guest is not authorized") && sentence.contains("No space"),
        "{note}"
    );
    assert!(
        reported.last().unwrap()["reason"].as_str().unwrap().contains("no space"),
        "{reported:?}"
    );
    // Neither end has stored a key.
    assert_eq!(fs::read_dir(small.0.join("keys")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(small.0.join("hosts")).unwrap().count(), 0);
    let targets = fs::read_dir(guests.0.0.join("state/targets"));
    assert_eq!(targets.map_or(0, Iterator::count), 0);
    // With free space it is authorized.
    fs::remove_file(small.0.join("fill")).unwrap();
    let code = reported.iter().rev().find(|event| event["event"] == "pairing");
    let code = code.map_or_else(|| running.code(), |it| it["code"].as_str().unwrap().to_owned());
    assert_eq!(client(&code).status.code(), Some(0));
    running.until("paired");
}
