//! Scripts for libnbd's programming interface, for requests that its tools do not make. Each script
//! checks its own expectations.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::foreign::{Folder, MIB, lacks, program, run};
use crate::server::{DRIVERS, Server};

/// The Python of the system: the library belongs to that one.
const PYTHON: &str = "/usr/bin/python3";

/// Returns whether the scripts cannot be run here, and prints the reason.
fn skip_without_libnbd(test: &str) -> bool {
    lacks(test, &["/usr/bin/python3:nbd"])
}

fn disk(folder: &Folder) -> String {
    let path = folder.hole("disk.img", 16 * MIB);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&vec![0x5a; MIB], 0).unwrap();
    path
}

fn passes(script: &str, uri: &str) {
    let output = run(program(PYTHON).args(["-c", script, uri]));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{uri}: {message}");
}

#[test]
fn interop_libnbd_does_all_that_a_client_can() {
    if skip_without_libnbd("libnbd does all that a client can") {
        return;
    }
    for io in DRIVERS {
        let folder = Folder::new();
        let server = Server::unix(&folder, &["--io", io, "--writable", &disk(&folder)]);
        passes(include_str!("session.py"), &server.uri("disk"));
    }
}

#[test]
fn r48_interop_libnbd_cannot_change_a_read_only_disk() {
    if skip_without_libnbd("libnbd cannot change what is lent read-only") {
        return;
    }
    for io in DRIVERS {
        let folder = Folder::new();
        let (image, before) = (disk(&folder), folder.path("before"));
        std::fs::copy(&image, &before).unwrap();
        let server = Server::tcp(&["--io", io, &image]);
        passes(include_str!("rejected.py"), &server.uri("disk"));
        crate::foreign::same(image, before);
    }
}

#[test]
fn interop_libnbd_haggles() {
    if skip_without_libnbd("libnbd haggles") {
        return;
    }
    let folder = Folder::new();
    let server = Server::tcp(&["--writable", &disk(&folder)]);
    passes(include_str!("options.py"), &server.uri(""));
}
