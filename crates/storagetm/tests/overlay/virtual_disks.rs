//! Overlays over the disks in images of virtual machines, compared by QEMU.

use std::fs;
use std::os::unix::fs::FileExt;

use super::files::{end, overlay_folder, refused};
use super::{lent, nbd, serve, serve_within};
use crate::foreign::{lacks, stdout_of};
use crate::scene::{self, Folder};

const MIB: usize = 1 << 20;

/// Formats of QEMU with their options, and whether to compress.
const FORMATS: [(&str, &str, bool); 7] = [
    ("qcow2", "compat=1.1", false),
    ("qcow2", "compression_type=zstd", true),
    ("vpc", "subformat=dynamic,force_size=on", false),
    ("vpc", "subformat=fixed,force_size=on", false),
    ("vhdx", "subformat=dynamic", false),
    ("vmdk", "subformat=monolithicSparse", false),
    ("vdi", "static=off", false),
];

/// Makes an image of a disk of 4 MiB, with holes. Returns its path and the contents of the disk.
fn image(
    folder: &Folder,
    name: &str,
    (format, options, packed): (&str, &str, bool),
) -> (String, Vec<u8>) {
    let mut disk = vec![0; 4 * MIB];
    for at in [0, MIB + 512, 3 * MIB] {
        let data = disk[at..at + MIB / 2].iter_mut().zip(0..);
        data.for_each(|(byte, index): (&mut u8, usize)| {
            *byte = u8::try_from(index / 512 % 251).unwrap() | 1;
        });
    }
    let (raw, image) = (folder.path(&format!("{name}.raw")), folder.path(name));
    fs::write(&raw, &disk).unwrap();
    let mut convert = vec!["convert", "-f", "raw", "-O", format, "-o", options];
    convert.extend(packed.then_some("-c"));
    stdout_of("qemu-img", &[&convert[..], &[&raw, &image]].concat());
    (image, disk)
}

#[test]
fn writes_leave_images_of_all_formats_unchanged() {
    if lacks("overlays over images of virtual machines", &["qemu-img"]) {
        return;
    }
    for driver in ["uring", "blocking"] {
        let folder = Folder::new();
        for (number, format) in FORMATS.into_iter().enumerate() {
            let (image, mut disk) = image(&folder, &format!("image{number}"), format);
            let before = fs::read(&image).unwrap();
            let (running, events) = serve(driver, &image);
            assert_eq!(lent(&events)["access"], "writable", "{format:?}");
            let mut client = nbd(&events);
            // Into data, a hole, and over the border of both.
            for (at, len, byte) in [(512, 512, 1), (2 * MIB, 1024, 2), (MIB, 4096, 3)] {
                assert_eq!(client.write(at as u64, &vec![byte; len]).unwrap(), 0);
                disk[at..at + len].fill(byte);
            }
            client.request(0, 4, 3 * MIB as u64 + 512, 65536, &[]).unwrap();
            assert_eq!(client.answer().unwrap(), 0);
            disk[3 * MIB + 512..3 * MIB + 512 + 65536].fill(0);
            for (at, piece) in disk.chunks(MIB).enumerate() {
                let read = client.read((at * MIB) as u64, 1 << 20).unwrap().unwrap();
                assert!(read == piece, "{driver} {format:?} {at}");
            }
            drop((client, running));
            assert!(fs::read(&image).unwrap() == before, "{format:?}");
        }
    }
}

#[test]
fn changes_of_an_image_are_kept_and_exported() {
    if lacks("overlays in files over images of virtual machines", &["qemu-img"]) {
        return;
    }
    for format in [FORMATS[0], FORMATS[1], FORMATS[4]] {
        let folder = Folder::new();
        let (image, mut disk) = image(&folder, "image", format);
        let before = fs::read(&image).unwrap();
        let overlays = folder.path("overlays");
        let options = [&*image, "--overlay-dir", &overlays];
        for (at, byte) in [(512, 1), (2 * MIB, 2)] {
            // The second time the changes of the first are there.
            let (running, events) = serve_within("unlimited", "uring", &options);
            let mut client = nbd(&events);
            assert_eq!(client.read(512, 512).unwrap().unwrap(), disk[512..1024]);
            assert_eq!(client.write(at as u64, &[byte; 512]).unwrap(), 0);
            assert_eq!(client.flush().unwrap(), 0);
            disk[at..at + 512].fill(byte);
            drop(client);
            end(running);
        }
        let at = overlay_folder(&folder);
        let said = refused(&["overlay", "commit", &at, &image, "--yes"]);
        assert!(said.contains("nothing is written to an image in that format"), "{said}");
        let (changed, wanted) = (folder.path("changed.qcow2"), folder.path("wanted"));
        scene::run_ok(&["overlay", "export", &at, &changed, "--qcow2", &image], "");
        fs::write(&wanted, &disk).unwrap();
        stdout_of("qemu-img", &["check", "-f", "qcow2", &changed]);
        stdout_of("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", &changed, &wanted]);
        assert!(fs::read(&image).unwrap() == before, "{format:?}");
        // The image is changed under its overlay.
        fs::File::options().write(true).open(&image).unwrap().write_all_at(&[0], 600).unwrap();
        let serve = ["serve", "--no-announce", "--overlay", &image, "--overlay-dir", &overlays];
        let said = refused(&serve);
        assert!(said.contains("has changed since its overlay was made"), "{said}");
    }
}
