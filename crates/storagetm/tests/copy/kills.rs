//! A copy that is killed repeatedly, and resumed each time.

use std::fs;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::scene::{Folder, MIB, assert_equal, copy, events, random_bytes, run};

const KILLS: usize = 50;

/// R41: a copy that is killed at fifty random points is equal in the end, and does not restart from
/// zero.
#[test]
fn r41_copy_killed_fifty_times_is_equal_in_the_end() {
    let folder = Folder::new();
    let (image, to, map) = (folder.path("disk.img"), folder.path("copy.img"), folder.path("map"));
    fs::write(&image, random_bytes(41, 40 << 20)).unwrap();
    let random = random_bytes(u64::from(std::process::id()), 2 * KILLS);
    let mut finished = 0;
    for (number, point) in random.chunks_exact(2).enumerate() {
        let point = u64::from(u16::from_le_bytes(point.try_into().unwrap())) % 600;
        let before = rescued(&map);
        let mut child = copy(&["--rate", "2M", "--map", &map, &image, &to])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The map is saved every two seconds: some copies live that long.
        let end = Instant::now() + Duration::from_secs(30);
        while number % 4 == 0 && rescued(&map) == before && Instant::now() < end {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            sleep(Duration::from_millis(10));
        }
        sleep(Duration::from_millis(10 + point));
        child.kill().unwrap();
        finished += u32::from(child.wait().unwrap().success());
    }
    let output = run(&["--json", "--map", &map, &image, &to]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_equal(&image, &to);
    let events = events(&output);
    let last = events.last().unwrap();
    let hash = blake3::hash(&fs::read(&image).unwrap()).to_hex();
    // Hashes of data copied just before a kill may be lost; the comparison computes them again.
    assert_eq!(last["hash"], hash.as_str(), "{last}");
    assert_eq!(last["verified"], 40 * MIB, "everything was compared");
    assert!(last["earlier"].as_u64().unwrap() >= 4 * MIB, "{last}");
    assert!(finished < 10, "too many copies ended before the kill: {finished}");
}

/// Returns the number of copied bytes in a map: lines of position, size and `+`.
fn rescued(map: &str) -> u64 {
    let text = fs::read_to_string(map).unwrap_or_default();
    let size = |line: &str| -> Option<u64> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, size, "+"] = fields[..] else { return None };
        u64::from_str_radix(size.strip_prefix("0x")?, 16).ok()
    };
    text.lines().filter_map(size).sum()
}

/// R41: a map torn by a crash of the machine is rejected; the copy only takes longer.
#[test]
fn r41_torn_map_is_rejected_or_resumed() {
    let folder = Folder::new();
    let (image, to, map) =
        (folder.image("disk.img", 4 * MIB), folder.path("copy.img"), folder.path("map"));
    let output = run(&["--map", &map, &image, &to]);
    assert!(output.status.success());
    let text = fs::read(&map).unwrap();
    fs::write(&map, &text[..text.len() / 2]).unwrap();
    let output = run(&["--map", &map, &image, &to]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        // Either the map is rejected, or the copy resumes from its valid part.
        Some(5) => assert!(message.contains("map"), "{message}"),
        Some(0) => {}
        other => panic!("{other:?}: {message}"),
    }
    assert_equal(&image, &to);
}
