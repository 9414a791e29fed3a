//! Copies whole disks with nbdcopy, qemu-img, qemu-io and fio, in both directions.

use crate::foreign::{Folder, MIB, lacks, program, run, same, stdout_of};
use crate::server::{DRIVERS, Server};

#[test]
fn interop_nbdcopy_reads_a_disk() {
    if lacks("nbdcopy reads a disk", &["nbdcopy"]) {
        return;
    }
    for io in DRIVERS {
        let folder = Folder::new();
        let (full, thin) =
            (folder.random_bytes("full.img", 20 * MIB), folder.sparse("thin.img", 50 * MIB));
        let server = Server::unix(&folder, &["--io", io, &full, &thin]);
        for (name, image) in [("full", full), ("thin", thin)] {
            let copy = folder.path("copy");
            stdout_of("nbdcopy", &[&server.uri(name), &copy]);
            same(image, &copy);
            std::fs::remove_file(&copy).unwrap();
        }
    }
}

/// An image that ends within a block is copied to its last byte, also by clients that use blocks.
#[test]
fn interop_image_of_odd_size_is_read_to_its_last_byte() {
    if lacks("an image of odd size is read whole", &["nbdcopy", "nbdinfo", "qemu-img"]) {
        return;
    }
    for io in DRIVERS {
        let folder = Folder::new();
        let image = folder.random_bytes("odd.img", 1_000_001);
        let server = Server::unix(&folder, &["--io", io, &image]);
        let (uri, copy) = (server.uri("odd"), folder.path("copy"));
        assert_eq!(stdout_of("nbdinfo", &["--size", &uri]).trim(), "1000001");
        stdout_of("nbdcopy", &[&uri, &copy]);
        same(&image, &copy);
        stdout_of("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &uri]);
    }
}

#[test]
fn interop_nbdcopy_writes_a_disk() {
    if lacks("nbdcopy writes a disk", &["nbdcopy"]) {
        return;
    }
    for io in DRIVERS {
        for sparse in [false, true] {
            let folder = Folder::new();
            let make = if sparse { Folder::sparse } else { Folder::random_bytes };
            let source = make(&folder, "source.img", 30 * MIB);
            // Old contents must be overwritten where the source has holes.
            let disk = folder.random_bytes("disk.img", 30 * MIB + 512);
            std::fs::File::options().write(true).open(&disk).unwrap().set_len(30 << 20).unwrap();
            let server = Server::tcp(&["--io", io, "--writable", &disk]);
            stdout_of("nbdcopy", &["--flush", "--connections=4", &source, &server.uri("disk")]);
            same(&source, &disk);
        }
    }
}

#[test]
fn interop_nbdcopy_between_two_of_us() {
    if lacks("nbdcopy between two of us", &["nbdcopy"]) {
        return;
    }
    let folder = Folder::new();
    let (from, to) = (folder.sparse("from.img", 12 * MIB), folder.hole("to.img", 12 * MIB));
    let server = Server::unix(&folder, &[&from, "--writable", &to]);
    stdout_of("nbdcopy", &["--synchronous", &server.uri("from"), &server.uri("to")]);
    same(from, to);
}

#[test]
fn interop_qemu_img_converts_and_compares_both_ways() {
    if lacks("qemu-img converts both ways", &["qemu-img"]) {
        return;
    }
    for io in DRIVERS {
        let folder = Folder::new();
        let (source, disk) =
            (folder.sparse("source.img", 24 * MIB), folder.random_bytes("disk.img", 24 * MIB));
        let server = Server::unix(&folder, &["--io", io, "--writable", &disk]);
        let uri = server.uri("disk");
        let raw = ["-f", "raw"];
        let to = ["convert", "-n", "-m", "8", "-W", "-O", "raw"];
        stdout_of("qemu-img", &[&to, &raw[..], &[&source, &uri]].concat());
        stdout_of("qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &uri]);
        same(&source, &disk);
        let back = folder.path("back.img");
        stdout_of("qemu-img", &[&["convert", "-O", "raw"], &raw[..], &[&uri, &back]].concat());
        same(&source, back);
        let bench = ["bench", "-f", "raw", "-c", "2000", "-d", "32", "-s", "4096", &uri];
        stdout_of("qemu-img", &bench);
        stdout_of(
            "qemu-img",
            &[&bench[..], &["-w", "--pattern=170", "--flush-interval=64"]].concat(),
        );
    }
}

#[test]
fn interop_qemu_io_finds_its_patterns() {
    if lacks("qemu-io finds its patterns", &["qemu-io"]) {
        return;
    }
    const STEPS: [&str; 16] = [
        "write -P 0xab 1M 64k",
        "read -P 0xab 1M 64k",
        "write -f -P 0xcd 1049600 512",
        "read -P 0xcd 1049600 512",
        "read -P 0xab 1M 1k",
        "write -z 1M 32k",
        "read -P 0 1M 32k",
        "read -P 0xab 1081344 32k",
        "write -z -u 2M 64k",
        "read -P 0 2M 64k",
        "discard 3M 1M",
        "read -P 0 3M 1M",
        "writev -P 0x11 5M 4k 8k 512",
        "read -P 0x11 5M 12800",
        "aio_write -P 0x22 6M 1M",
        "aio_flush",
    ];
    for io in DRIVERS {
        let folder = Folder::new();
        let disk = folder.random_bytes("disk.img", 8 * MIB);
        let server = Server::unix(&folder, &["--io", io, "--writable", &disk]);
        let mut args = vec!["-f", "raw"];
        args.extend(STEPS.iter().flat_map(|step| ["-c", step]));
        let uri = server.uri("disk");
        args.extend(["-c", "read -P 0x22 6M 1M", "-c", "flush", &uri]);
        let message = stdout_of("qemu-io", &args);
        assert!(!message.contains("erification failed"), "{io}: {message}");
        let end = run(program("qemu-io").args(["-r", "-f", "raw", "-c", "read 8M 512", &uri]));
        let message = String::from_utf8_lossy(&[end.stdout, end.stderr].concat()).into_owned();
        assert!(message.contains("failed") || message.contains("error"), "{io}: {message}");
    }
}

#[test]
fn r02_interop_fio_verifies_what_it_wrote() {
    if lacks("fio verifies what it wrote", &["fio"]) {
        return;
    }
    for io in DRIVERS {
        let folder = Folder::new();
        let disk = folder.hole("disk.img", 64 * MIB);
        let server = Server::tcp(&["--io", io, "--writable", &disk]);
        let uri = format!("--uri={}", server.uri("disk"));
        let all = ["--name=verify", "--ioengine=nbd", &uri, "--size=64m", "--verify_fatal=1"];
        // Without this option fio leaves its state in the current directory.
        let keep = format!("--aux-path={}", folder.path(""));
        let random =
            ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--verify=crc32c", "--io_size=24m"];
        stdout_of("fio", &[&[&keep[..]], &all[..], &random, &["--do_verify=1"]].concat());
        let mixed = ["--rw=randrw", "--bsrange=512-256k", "--iodepth=16", "--serialize_overlap=1"];
        let checked = ["--verify=sha256", "--do_verify=1", "--io_size=48m"];
        stdout_of("fio", &[&[&keep[..]], &all[..], &mixed, &checked].concat());
        let read = ["--rw=read", "--bs=128k", "--iodepth=16"];
        stdout_of("fio", &[&all[..3], &["--size=64m"], &read].concat());
    }
}
