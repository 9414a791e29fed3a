//! Copies that are refused before anything is written.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::scene::{Folder, MIB, PROGRAM, run, run_expecting};

#[test]
fn wrong_options_end_with_status_2() {
    let folder = Folder::new();
    let image = folder.image("disk.img", MIB);
    for line in [
        vec![],
        vec![image.as_str()],
        vec!["-", "-"],
        vec!["nvme://", "x"],
        vec![&image, "nbd://host/?tls-verify-peer=no"],
        vec!["--map", "m", &image, "-"],
        vec!["--map", &image, &image, "copy.img"],
        vec!["--connections", "0", &image, "copy.img"],
    ] {
        let message = run_expecting(2, &line);
        assert!(!message.is_empty(), "{line:?}");
    }
    assert!(!Path::new("copy.img").exists());
}

#[test]
fn invalid_destination_is_refused_in_one_sentence() {
    let folder = Folder::new();
    let image = folder.image("disk.img", MIB);
    let link = folder.path("link");
    std::os::unix::fs::symlink("/dev/absent", &link).unwrap();
    let inside = folder.path("no/such/copy.img");
    for (source, destination, part) in [
        (image.as_str(), image.as_str(), "both the source and the destination"),
        (&image, &folder.path("./disk.img"), "both the source and the destination"),
        (&folder.path("absent"), &folder.path("copy.img"), "no such disk or file"),
        (&folder.path(""), &folder.path("copy.img"), "neither a disk nor a file"),
        (&image, &folder.path(""), "neither a disk nor a file"),
        (&image, "/dev/storagetm-absent", "no such disk"),
        (&image, &link, "a link to what is not there"),
        (&image, &inside, "not an existing directory"),
        (
            "nbd+unix:///?socket=/nonexistent/socket",
            &folder.path("copy.img"),
            "/nonexistent/socket",
        ),
        ("nvme://127.0.0.1:1/disk", &folder.path("copy.img"), "127.0.0.1:1"),
    ] {
        let message = run_expecting(5, &[source, destination]);
        assert!(message.contains(part), "{message}");
        assert!(message.starts_with("storagetm: ") && message.lines().count() == 1, "{message}");
    }
    assert!(!Path::new(&folder.path("copy.img")).exists(), "nothing is left of what was refused");
}

#[test]
fn a_refusal_is_an_event_too() {
    let folder = Folder::new();
    let output = run(&["--json", &folder.path("absent"), &folder.path("copy.img")]);
    assert_eq!(output.status.code(), Some(5));
    let events = crate::scene::events(&output);
    assert_eq!((events.len(), &events[0]["outcome"]), (1, &"refused".into()));
    assert!(events[0]["reason"].as_str().unwrap().contains("no such disk or file"));
}

/// R42: a map of another disk cannot be resumed.
#[test]
fn r42_a_map_of_another_disk_is_refused_and_nothing_is_written() {
    let folder = Folder::new();
    let (image, to, map) =
        (folder.image("disk.img", 4 * MIB), folder.path("copy.img"), folder.path("map"));
    run_expecting(0, &["--map", &map, &image, &to]);
    let before = fs::read(&to).unwrap();
    // Another size.
    let longer = folder.image("longer.img", 5 * MIB);
    run_expecting(5, &["--map", &map, &longer, &to]);
    // Same size, other content: the finished ranges of the map do not apply.
    let other = folder.path("other.img");
    crate::scene::fill(&other, 4 * MIB, 12345);
    let text = fs::read_to_string(&map).unwrap();
    // As ddrescue saves it: without the comments of this program.
    let bare: String = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .fold(String::new(), |all, line| all + line + "\n");
    let half = bare.replace("0x00400000  +", "0x00200000  +") + "0x00200000  0x00200000  ?\n";
    for map_text in [&text, &bare, &half] {
        fs::write(&map, map_text).unwrap();
        let message = run_expecting(5, &["--map", &map, &other, &to]);
        assert!(message.contains("another disk"), "{message}");
        assert!(fs::read(&to).unwrap() == before, "{map_text}");
    }
    fs::write(&map, "no map\n").unwrap();
    run_expecting(5, &["--map", &map, &image, &to]);
    fs::write(&map, text).unwrap();
    fs::remove_file(&to).unwrap();
    let message = run_expecting(5, &["--map", &map, &image, &to]);
    assert!(message.contains("is not there"), "{message}");
    // If the map is empty, the previous version beside it is used.
    fs::write(&map, "").unwrap();
    let message = run_expecting(5, &["--map", &map, &image, &to]);
    assert!(message.contains("is not there"), "{message}");
}

#[test]
fn the_map_and_what_is_kept_beside_it_are_no_ends() {
    let folder = Folder::new();
    let (image, map) = (folder.image("disk.img", MIB), folder.path("map"));
    fs::create_dir(folder.path("in")).unwrap();
    let detour = folder.path("in/../map");
    for to in [&detour, &format!("{map}.bak"), &format!("{map}.new")] {
        run_expecting(2, &["--map", &map, &image, to]);
    }
}

#[test]
fn unreadable_key_causes_no_plaintext_fallback() {
    let folder = Folder::new();
    let key = folder.path("key");
    let to = folder.path("copy.img");
    let args = ["--key", &key, "nvme://127.0.0.1:1/disk", &to];
    assert!(run_expecting(5, &args).contains(&key));
    fs::write(&key, "secret words").unwrap();
    let message = run_expecting(5, &args);
    assert!(message.contains(&key) && !message.contains("secret words"), "{message}");
    let message = run_expecting(5, &["nbds://127.0.0.1:1/disk", &to]);
    assert!(message.contains("there is no key"), "{message}");
}

/// A limit of the shell on the size of files (`ulimit -f`, in 512 bytes) does not kill the program.
#[test]
fn file_beyond_the_size_limit_of_the_shell_is_refused() {
    let folder = Folder::new();
    let (image, to) = (folder.image("disk.img", MIB), folder.path("copy.img"));
    let line = ["-c", "ulimit -f 100 && exec \"$@\"", "sh", PROGRAM, "copy", &image, &to];
    let output = Command::new("sh").args(line).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(5), "{message}");
    assert!(message.contains("copy.img"), "{message}");
    assert!(!Path::new(&to).exists());
}
