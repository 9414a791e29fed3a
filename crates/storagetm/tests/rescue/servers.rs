//! Copies of whole disks from and to servers without faults, some with unusual behaviour.

use crate::foreign::{Folder, MIB, lacks, same};
use crate::peer::{Peer, run_expecting};

/// Copies from a server, and back to it over other contents.
fn both_ways(serve: impl Fn(&Folder, &str) -> Peer) {
    for make in [Folder::sparse, Folder::random_bytes] {
        let folder = Folder::new();
        let source = make(&folder, "source.img", 24 * MIB);
        let from = serve(&folder, &source);
        let copied = folder.path("copied.img");
        run_expecting(0, &[&from.uri, &copied]);
        same(&source, &copied);
        let disk = folder.path("disk.img");
        std::fs::write(&disk, vec![0xee; 24 * MIB]).unwrap();
        drop(from);
        let to = serve(&folder, &disk);
        run_expecting(0, &["--yes", &source, &to.uri]);
        to.end();
        same(&source, &disk);
    }
}

#[test]
fn interop_qemu_nbd_is_copied_from_and_to() {
    if !lacks("qemu-nbd is copied from and to", &["qemu-nbd"]) {
        both_ways(Peer::qemu_nbd);
    }
}

#[test]
fn interop_nbd_server_is_copied_from_and_to() {
    if !lacks("nbd-server is copied from and to", &["nbd-server"]) {
        both_ways(Peer::nbd_server);
    }
}

#[test]
fn interop_nbdkit_is_copied_from_and_to() {
    if !lacks("nbdkit is copied from and to", &["nbdkit"]) {
        both_ways(|folder, image| Peer::nbdkit(folder, &["file", image]));
    }
}

/// Filters that reply late and out of order, that support neither holes nor zeroing, and that serve
/// one request at a time.
#[test]
fn interop_unusual_servers_are_copied_from_and_to() {
    if lacks("servers with odd manners are copied from and to", &["nbdkit"]) {
        return;
    }
    let manners: [&[&str]; 5] = [
        &["--filter=delay", "rdelay=5ms", "wdelay=5ms"],
        &["--filter=noextents", "--filter=nozero", "--filter=fua", "--filter=nocache"],
        &["--filter=noparallel", "serialize=all-requests"],
        &["--filter=multi-conn", "multi-conn-mode=disable"],
        &["--no-sr"],
    ];
    for manner in manners {
        both_ways(|folder, image| {
            let (options, parameters): (Vec<&str>, Vec<&str>) =
                manner.iter().partition(|word| word.starts_with("--"));
            Peer::nbdkit(folder, &[&options[..], &["file", image], &parameters].concat())
        });
    }
}

/// The filter fails writes that change data.
#[test]
fn interop_checkwrite_finds_nothing_to_complain_of() {
    if lacks("checkwrite finds nothing to complain of", &["nbdkit"]) {
        return;
    }
    let folder = Folder::new();
    let (image, other) =
        (folder.sparse("disk.img", 24 * MIB), folder.random_bytes("other.img", 24 * MIB));
    let peer = Peer::nbdkit(&folder, &["--filter=checkwrite", "file", &image]);
    run_expecting(0, &["--yes", &image, &peer.uri]);
    run_expecting(1, &["--yes", &other, &peer.uri]);
}
