//! Copies between local files, pipes and disks.

use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, Stdio};

use crate::scene::{Attached, Folder, MIB, allocated, assert_equal, copy, run, run_expecting};

#[test]
fn file_is_copied_with_holes_and_hashed_like_b3sum() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 9 * MIB + 513);
    let to = folder.path("copy.img");
    let output = run(&["--json", &image, &to]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_equal(&image, &to);
    assert!(allocated(&to) < 7 * MIB, "holes stay holes: {}", allocated(&to));
    let finished = crate::scene::events(&output).pop().unwrap();
    let hash = blake3_of(&image);
    assert_eq!(finished["hash"].as_str().unwrap(), hash);
    assert_eq!((&finished["bytes"], &finished["bad"]), (&(9 * MIB + 513).into(), &0.into()));
}

fn blake3_of(path: &str) -> String {
    blake3::hash(&fs::read(path).unwrap()).to_hex().to_string()
}

#[test]
fn copy_without_hash_is_verified() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 9 * MIB + 513);
    let output = run(&["--json", "--no-hash", &image, &folder.path("copy.img")]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_equal(&image, folder.path("copy.img"));
    let finished = crate::scene::events(&output).pop().unwrap();
    assert!(finished["hash"].is_null(), "{finished}");
    assert_eq!(finished["verified"], 9 * MIB + 513);
}

/// Slower than disks are, so that the reading threads keep up.
#[test]
fn copy_is_verified_while_it_is_written() {
    let folder = Folder::new();
    let (image, to) = (folder.path("disk.img"), folder.path("copy.img"));
    let mut file = File::create(&image).unwrap();
    let mut mib = crate::scene::random_bytes(5, 1 << 20);
    for number in 0..640_u32 {
        mib[..4].copy_from_slice(&number.to_le_bytes());
        file.write_all(&mib).unwrap();
    }
    let output = run(&["--json", "--verify=during", "--rate", "300M", &image, &to]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_equal(&image, &to);
    let finished = crate::scene::events(&output).pop().unwrap();
    assert_eq!(finished["hash"].as_str().unwrap(), blake3_of(&image));
    assert_eq!(finished["verified"], 640 * MIB);
    let during = finished["verified_during"].as_u64().unwrap();
    // A folder in memory has no disk to read from.
    let is_in_memory = rustix::fs::statfs(&to).unwrap().f_type == 0x0102_1994;
    assert_eq!(during == 0, is_in_memory, "{finished}");
    assert!(during <= 384 * MIB, "the last 256 MiB are read after: {finished}");
}

#[test]
fn zeros_are_written_if_that_is_asked_for() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 4 * MIB);
    let to = folder.path("copy.img");
    run_expecting(0, &["--no-sparse", "--no-verify", &image, &to]);
    assert_equal(&image, &to);
    assert_eq!(allocated(&to), 4 * MIB);
}

#[test]
fn existing_file_is_overwritten_only_with_force() {
    let folder = Folder::new();
    let (image, to) = (folder.image("disk.img", MIB), folder.path("copy.img"));
    fs::write(&to, vec![9; 3 << 20]).unwrap();
    let message = run_expecting(5, &[&image, &to]);
    assert!(message.contains("--force"), "{message}");
    assert_eq!(fs::read(&to).unwrap(), vec![9; 3 << 20]);
    run_expecting(0, &["--force", &image, &to]);
    assert_equal(&image, &to);
}

#[test]
fn an_empty_file_is_copied() {
    let folder = Folder::new();
    let (image, to) = (folder.path("empty"), folder.path("copy"));
    fs::write(&image, "").unwrap();
    run_expecting(0, &[&image, &to]);
    assert_eq!(fs::read(&to).unwrap(), b"");
}

#[test]
fn a_pipe_is_a_source_and_a_destination() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 5 * MIB + 77);
    let to = folder.path("copy.img");
    let output = copy(&[&image, "-"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == fs::read(&image).unwrap());
    let mut child = copy(&["-", &to]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    for piece in output.stdout.chunks(70_001) {
        input.write_all(piece).unwrap();
    }
    drop(input);
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    assert_equal(&image, &to);
}

#[test]
fn a_reader_that_goes_away_is_a_failure() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 8 * MIB);
    let mut child =
        copy(&[&image, "-"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", String::from_utf8_lossy(&ended.stderr));
}

#[test]
fn with_data_on_standard_output_events_are_on_standard_error() {
    let folder = Folder::new();
    let image = folder.image("disk.img", MIB);
    let output = run(&["--json", &image, "-"]);
    assert!(output.stdout == fs::read(&image).unwrap());
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.lines().all(|line| line.starts_with("{\"event\":")), "{message}");
}

#[test]
fn block_device_is_read_and_written_after_confirmation() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 3 * MIB);
    let backing = folder.path("backing");
    fs::write(&backing, vec![7; 4 << 20]).unwrap();
    let Some(device) = Attached::new(&backing, 512) else { return };
    let message = run_expecting(5, &[&image, &device.0]);
    assert!(message.contains("--yes") && message.contains(&device.0), "{message}");
    assert!(fs::read(&backing).unwrap().iter().all(|byte| *byte == 7));
    run_expecting(0, &["--yes", &image, &device.0]);
    let written = fs::read(&backing).unwrap();
    assert!(written[..3 << 20] == fs::read(&image).unwrap()[..]);
    assert!(written[3 << 20..].iter().all(|byte| *byte == 7), "what is behind the image stays");
    let back = folder.path("back.img");
    run_expecting(0, &[&device.0, &back]);
    assert_equal(&backing, &back);
}

/// The writer of the pipe failed: the copy must fail.
#[test]
fn a_pipe_with_nothing_in_it_is_no_copy_of_a_disk() {
    let folder = Folder::new();
    let (backing, empty) = (folder.path("backing"), folder.path("empty"));
    fs::write(&backing, vec![7; 2 << 20]).unwrap();
    fs::write(&empty, []).unwrap();
    let Some(device) = Attached::new(&backing, 512) else { return };
    let mut copy = Command::new(env!("CARGO_BIN_EXE_storagetm"));
    copy.args(["copy", "--yes", "-", &device.0]).stdin(File::open(&empty).unwrap());
    let message = copy.output().unwrap();
    let args = String::from_utf8_lossy(&message.stderr);
    assert_eq!(message.status.code(), Some(1), "{args}");
    assert!(args.contains("no data came"), "{args}");
    assert!(fs::read(&backing).unwrap().iter().all(|byte| *byte == 7));
}

/// R43, X42: a disk that is too small, in use or the source itself is never written.
#[test]
fn r43_a_device_that_is_too_small_or_in_use_is_left_alone() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 3 * MIB);
    let backing = folder.path("backing");
    fs::write(&backing, vec![7; 2 << 20]).unwrap();
    let Some(device) = Attached::new(&backing, 512) else { return };
    let message = run_expecting(5, &["--yes", &image, &device.0]);
    assert!(message.contains("larger"), "{message}");
    let message = run_expecting(5, &["--yes", &device.0, &device.0]);
    assert!(message.contains("both"), "{message}");
    let message = run_expecting(5, &["--force", &image, &backing]);
    assert!(message.contains("in use"), "{message}");
    let small = folder.image("small.img", MIB);
    let held = File::open(&device.0).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let message = run_expecting(5, &["--yes", &small, &device.0]);
    assert!(message.contains("locked"), "{message}");
    drop(held);
    assert!(fs::read(&backing).unwrap().iter().all(|byte| *byte == 7));
}
