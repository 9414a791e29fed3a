//! Images of virtual machines are lent as the disks in them, and compared by QEMU.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use crate::foreign::{Folder, lacks, stdout_of};
use crate::server::{DRIVERS, PROGRAM, Server};

const MIB: u64 = 1 << 20;

/// Formats of QEMU with their options, and whether to compress.
const FORMATS: [(&str, &str, bool); 9] = [
    ("qcow2", "compat=1.1", false),
    ("qcow2", "cluster_size=4k", true),
    ("qcow2", "compression_type=zstd", true),
    ("vpc", "subformat=dynamic,force_size=on", false),
    ("vpc", "subformat=fixed,force_size=on", false),
    ("vhdx", "subformat=dynamic", false),
    ("vmdk", "subformat=monolithicSparse", false),
    ("vmdk", "subformat=streamOptimized", false),
    ("vdi", "static=off", false),
];

/// An image with data, holes and zeros.
fn raw(folder: &Folder) -> String {
    let image = folder.sparse("raw.img", 20 << 20);
    let file = fs::File::options().write(true).open(&image).unwrap();
    let data: Vec<u8> = (0..3 * MIB).map(|at| (at / 512 % 251) as u8 | 1).collect();
    for at in [0, 5 * MIB + 512, 17 * MIB] {
        file.write_all_at(&data, at).unwrap();
    }
    file.write_all_at(&vec![0; 1 << 20], 9 * MIB).unwrap();
    image
}

#[test]
fn interop_images_are_lent_as_the_disks_in_them() {
    if lacks("images of virtual machines are lent", &["qemu-img", "nbdinfo"]) {
        return;
    }
    for io in DRIVERS {
        let folder = Folder::new();
        let raw = raw(&folder);
        for (number, (format, options, compressed)) in FORMATS.into_iter().enumerate() {
            // A file of its own: that of the server before is locked until it has ended.
            let name = format!("image{number}");
            let image = folder.path(&name);
            let mut convert = vec!["convert", "-f", "raw", "-O", format, "-o", options];
            convert.extend(compressed.then_some("-c"));
            stdout_of("qemu-img", &[&convert[..], &[&raw, &image]].concat());
            let before = fs::read(&image).unwrap();
            let server = Server::unix(&folder, &["--io", io, &image]);
            let (lent, uri) = (server.lent(), server.uri(&name));
            assert_eq!(lent["bytes"].as_u64(), Some(20 * MIB), "{format} {options}");
            assert_eq!(lent["access"], "read-only");
            stdout_of("qemu-img", &["compare", "-f", "raw", "-F", "raw", &raw, &uri]);
            drop(server);
            assert!(fs::read(&image).unwrap() == before, "{format}: the image has changed");
        }
    }
}

/// Holes of the disk are holes to a client.
#[test]
fn interop_holes_of_an_image_are_reported() {
    if lacks("holes of images of virtual machines", &["qemu-img", "nbdinfo"]) {
        return;
    }
    let folder = Folder::new();
    let (raw, image) = (raw(&folder), folder.path("image"));
    stdout_of("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-c", &raw, &image]);
    let server = Server::unix(&folder, &[&image]);
    let map = stdout_of("nbdinfo", &["--map", "--totals", &server.uri("image")]);
    let data = map.lines().find(|line| line.ends_with("data")).unwrap();
    let bytes: u64 = data.split_whitespace().next().unwrap().parse().unwrap();
    assert!((9 * MIB..13 * MIB).contains(&bytes), "{map}");
}

/// X58: what an image cannot give is said, and nothing is lent.
#[test]
fn x58_images_that_cannot_be_lent_are_refused() {
    if lacks("images of virtual machines are refused", &["qemu-img"]) {
        return;
    }
    let folder = Folder::new();
    let (base, image) = (folder.path("base"), folder.path("image"));
    let refused = |arguments: &[&str]| {
        // One that is lent all the same would not end.
        let own = ["60", PROGRAM, "serve", "--listen", "nbd:127.0.0.1:0", "--no-announce"];
        let mut command = Command::new("timeout");
        let served = command.args(own).args(arguments).stdin(Stdio::null()).output().unwrap();
        assert!(!served.status.success());
        String::from_utf8_lossy(&served.stderr).into_owned()
    };
    stdout_of("qemu-img", &["create", "-q", "-f", "qcow2", &base, "1M"]);
    stdout_of("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "qcow2", &image]);
    assert!(refused(&[&image]).contains("backing file"));
    assert!(refused(&["--writable", &base]).contains("is never written to"));
    let raw = raw(&folder);
    // The only signature of a fixed VHD is at its end.
    for (format, options, _) in FORMATS.into_iter().filter(|it| !it.1.contains("fixed")) {
        stdout_of("qemu-img", &["convert", "-O", format, "-o", options, &raw, &image]);
        let whole = fs::read(&image).unwrap();
        for cut in [1024, whole.len() / 2] {
            fs::write(&image, &whole[..cut]).unwrap();
            let message = refused(&[&image]);
            let is_explained = message.contains("cut off") || message.contains("damaged");
            assert!(is_explained && message.contains("--format raw"), "{format} {cut}: {message}");
        }
    }
}

/// A partition table for blocks of 4096 bytes gives the disk such blocks; a part of a block is the last one.
#[test]
fn block_size_and_odd_sizes_of_images_are_kept() {
    if lacks("block sizes of images", &["qemu-img", "nbdinfo"]) {
        return;
    }
    let folder = Folder::new();
    let (raw, image) = (raw(&folder), folder.path("image"));
    let file = fs::File::options().write(true).open(&raw).unwrap();
    let header = b"EFI PART\0\0\x01\0\x5c\0\0\0\x5a\xce\x7f\x53\0\0\0\0\x01";
    file.write_all_at(&[0; 8192], 0).unwrap();
    file.write_all_at(header, 4096).unwrap();
    for (name, compressed) in [("packed", &["-c"][..]), ("image", &[])] {
        let image = folder.path(name);
        let convert = [&["convert", "-O", "qcow2"], compressed, &[&raw, &image]].concat();
        stdout_of("qemu-img", &convert);
        let server = Server::unix(&folder, &[&image]);
        assert_eq!(server.lent()["block_size"], 4096);
        stdout_of("qemu-img", &["compare", "-f", "raw", "-F", "raw", &raw, &server.uri(name)]);
    }
    // QEMU makes no such image, and reads it.
    let mut odd = fs::read(&image).unwrap();
    odd[24..32].copy_from_slice(&(20 * MIB - 100).to_be_bytes());
    let image = folder.path("odd");
    fs::write(&image, odd).unwrap();
    file.set_len(20 * MIB - 100).unwrap();
    let server = Server::unix(&folder, &[&image]);
    assert_eq!(server.lent()["bytes"], 20 * MIB - 100);
    let copy = folder.path("copy");
    stdout_of("qemu-img", &["convert", "-f", "raw", "-O", "raw", &server.uri("odd"), &copy]);
    let (copy, raw) = (fs::read(&copy).unwrap(), fs::read(&raw).unwrap());
    assert!(copy[..raw.len()] == raw && copy[raw.len()..].iter().all(|byte| *byte == 0));
}
