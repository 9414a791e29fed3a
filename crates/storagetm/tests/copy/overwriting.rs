//! Existing files and disks are not overwritten without confirmation, by any command.

use std::fs;
use std::process::{Command, Stdio};

use crate::scene::{Folder, MIB, PROGRAM, assert_equal, random_bytes, run_expecting};
use crate::target::Target;

#[test]
fn remote_disk_is_overwritten_only_after_consent() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 2 * MIB);
    let other = folder.path("other.img");
    let mut before = vec![0; 4 << 20];
    before[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xef]);
    before[1024 + 120..1024 + 126].copy_from_slice(b"photos");
    for (protocol, scheme) in [("nvme", "nvme"), ("nbd", "nbd")] {
        fs::write(&other, &before).unwrap();
        let listen = format!("{protocol}:127.0.0.1:0");
        let target = Target::serve(&["--listen", &listen, "--writable", &other]);
        let onto = format!("{scheme}://127.0.0.1:{}/other", target.port(protocol));
        let message = run_expecting(5, &[&image, &onto]);
        for part in ["ext2 \"photos\"", "4.2 MB", "--yes", &onto] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(fs::read(&other).unwrap() == before);
        run_expecting(0, &["--yes", &image, &onto]);
    }
}

#[test]
fn file_that_is_there_is_named_with_what_is_in_it() {
    let folder = Folder::new();
    let (image, to) = (folder.image("disk.img", MIB), folder.path("copy.img"));
    for (bytes, what) in [
        (vec![0; 3 << 20], "looks empty"),
        (random_bytes(1, 3 << 20), "not recognised"),
        (Vec::new(), "an empty file"),
    ] {
        fs::write(&to, &bytes).unwrap();
        let message = run_expecting(5, &[&image, &to]);
        assert!(message.contains(what) && message.contains("--force"), "{message}");
        assert!(fs::read(&to).unwrap() == bytes);
    }
    run_expecting(0, &["--force", &image, &to]);
    assert_equal(&image, &to);
}

#[test]
fn map_in_which_nothing_is_done_is_no_consent() {
    let folder = Folder::new();
    let (image, to, map) =
        (folder.image("disk.img", MIB), folder.path("copy.img"), folder.path("map"));
    fs::write(&map, "0 ? 1\n0 0x100000 ?\n").unwrap();
    fs::write(&to, "precious").unwrap();
    let message = run_expecting(5, &["--map", &map, &image, &to]);
    assert!(message.contains("--force"), "{message}");
    assert_eq!(fs::read(&to).unwrap(), b"precious");
    run_expecting(0, &["--force", "--map", &map, &image, &to]);
    assert_equal(&image, &to);
}

/// `storagetm image` and `storagetm key export` ask as well, before anything slow.
#[test]
fn image_and_key_files_are_overwritten_only_by_force() {
    let folder = Folder::new();
    let file = folder.path("there");
    fs::write(&file, "precious").unwrap();
    let keys = folder.path("keys");
    let run = |args: &[&str]| {
        let output = Command::new(PROGRAM)
            .args(args)
            .env("STATE_DIRECTORY", &keys)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for kind in ["--disk", "--uki", "--initramfs"] {
        // The kernel does not exist: the command fails after the confirmation.
        let line =
            ["image", "--kernel", "/nonexistent/kernel", "--modules", "/nonexistent", kind, &file];
        let (status, message) = run(&line);
        assert!(status == Some(1) && message.contains("--force"), "{message}");
        let (status, message) = run(&[&line[..], &["--force"]].concat());
        assert!(status == Some(1) && message.contains("/nonexistent"), "{message}");
    }
    assert_eq!(run(&["key", "generate", "tls", "--name", "laptop"]).0, Some(0));
    let export = ["key", "export", "laptop", "--to", &file];
    let (status, message) = run(&export);
    assert!(status == Some(1) && message.contains("--force"), "{message}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert_eq!(run(&[&export[..], &["--force"]].concat()).0, Some(0));
    assert!(fs::read_to_string(&file).unwrap().starts_with("NVMeTLSkey-1:"));
}
