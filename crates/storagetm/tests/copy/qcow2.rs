//! Copies to qcow2 images, which QEMU checks and compares.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::scene::{Folder, MIB, assert_equal, copy, has, run_expecting};

fn qemu_img(args: &[&str]) {
    let output = programs::command("qemu-img").args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
}

#[test]
fn interop_copies_to_qcow2_are_those_of_qemu() {
    if !has("qemu-img") {
        return;
    }
    for bytes in [512, MIB, 5 * MIB + 512] {
        let folder = Folder::new();
        let image = folder.image("disk.img", bytes);
        for (name, more) in
            [("a.qcow2", &[][..]), ("B.QCOW2", &["--no-verify"]), ("c.qcow2", &["--no-hash"])]
        {
            let copied = folder.path(name);
            let message = run_expecting(0, &[more, &[&image, &copied]].concat());
            assert!(message.contains("becomes a qcow2 image"), "{message}");
            assert_eq!(message.contains("verified"), name != "B.QCOW2", "{message}");
            qemu_img(&["check", "-q", "-f", "qcow2", &copied]);
            qemu_img(&["compare", "-q", "-f", "raw", "-F", "qcow2", &image, &copied]);
            // The holes are left out: of 5 MiB there are 3 MiB of data.
            let len = fs::metadata(&copied).unwrap().len();
            assert!(len <= bytes.div_ceil(2) + 7 * 65536 + MIB, "{len}");
        }
    }
}

#[test]
fn qcow2_image_that_exists_is_overwritten_with_force_only() {
    let folder = Folder::new();
    let (image, copied) = (folder.image("disk.img", 3 * MIB), folder.path("copy.qcow2"));
    fs::write(&copied, "of somebody").unwrap();
    let message = run_expecting(5, &[&image, &copied]);
    assert!(message.contains("--force"), "{message}");
    assert_eq!(fs::read_to_string(&copied).unwrap(), "of somebody");
    run_expecting(0, &["--force", &image, &copied]);
    assert_eq!(fs::read(&copied).unwrap()[..4], *b"QFI\xfb");
    // Byte by byte.
    run_expecting(0, &["--force", "--format", "raw", &image, &copied]);
    assert_equal(&image, &copied);
}

#[test]
fn what_a_qcow2_image_cannot_be_is_refused() {
    let folder = Folder::new();
    let (image, copied) = (folder.image("disk.img", 3 * MIB), folder.path("copy.qcow2"));
    let map = folder.path("map");
    for option in [&["--map", &*map][..], &["--files"], &["--expand"], &["--new-ids"]] {
        let message = run_expecting(2, &[option, &[&image, &copied]].concat());
        assert!(message.contains("is a qcow2 image, which cannot be"), "{message}");
    }
    let file = fs::File::open(&image).unwrap();
    let piped = copy(&["-", &copied]).stdin(Stdio::from(file)).output().unwrap();
    let message = String::from_utf8_lossy(&piped.stderr).into_owned();
    assert_eq!(piped.status.code(), Some(5), "{message}");
    assert!(message.contains("comes as a stream"), "{message}");
    assert!(!Path::new(&copied).exists() && !Path::new(&map).exists());
}
