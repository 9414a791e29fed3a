//! Servers with injected faults: a copy retries, and never reports a failure as a success.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use crate::foreign::{Folder, MIB, lacks, same, wait_for};
use crate::peer::{Peer, copy, run_expecting};

/// One request in fifty fails; retries succeed.
#[test]
fn interop_errors_that_come_and_go_cost_nothing() {
    if lacks("errors that come and go cost nothing", &["nbdkit"]) {
        return;
    }
    let folder = Folder::new();
    let image = folder.random_bytes("disk.img", 32 * MIB);
    let args = ["--filter=error", "file", &image, "error-pread-rate=2%", "error=EIO"];
    let peer = Peer::nbdkit(&folder, &args);
    let copied = folder.path("copied.img");
    run_expecting(0, &["--retries", "20", "--map", &folder.path("map"), &peer.uri, &copied]);
    same(image, copied);
}

/// R16: the first error, early or late, of each kind of request.
#[test]
fn r16_interop_a_destination_that_fails_is_never_a_success() {
    if lacks("a destination that fails is never a success", &["nbdkit"]) {
        return;
    }
    for fault in ["error-pwrite-rate=100%", "error-pwrite-rate=10%"] {
        let folder = Folder::new();
        let (source, disk) =
            (folder.random_bytes("source.img", 32 * MIB), folder.hole("disk.img", 32 * MIB));
        let peer = Peer::nbdkit(&folder, &["--filter=error", "file", &disk, fault, "error=EIO"]);
        for more in [&[][..], &["--no-verify"]] {
            let end = run_expecting(1, &[&["--yes", &source, &peer.uri], more].concat());
            assert_ne!(end["outcome"], "success", "{end}");
        }
    }
}

/// R17: what is not on stable storage is not copied.
#[test]
fn r17_interop_a_flush_that_fails_is_never_a_success() {
    if lacks("a flush that fails is never a success", &["nbdkit"]) {
        return;
    }
    let folder = Folder::new();
    let (source, disk) =
        (folder.random_bytes("source.img", 4 * MIB), folder.hole("disk.img", 4 * MIB));
    let read =
        format!("pread=dd if={disk} skip=$4 count=$3 iflag=count_bytes,skip_bytes status=none");
    let write =
        format!("pwrite=dd of={disk} seek=$4 conv=notrunc oflag=seek_bytes status=none bs=1M");
    let args = [
        "eval",
        "get_size=echo 4M",
        &read,
        "can_write=exit 0",
        &write,
        "can_flush=exit 0",
        "flush=echo EIO no >&2; exit 1",
    ];
    let peer = Peer::nbdkit(&folder, &args);
    for more in [&[][..], &["--no-verify"]] {
        run_expecting(1, &[&["--yes", &source, &peer.uri], more].concat());
    }
    same(source, disk);
}

/// R24: after a loss of the server only the requests in flight, and little else, are repeated.
#[test]
fn r24_interop_restart_rereads_little() {
    if lacks("little is read twice after the server went and came", &["nbdkit"]) {
        return;
    }
    let folder = Folder::new();
    let image = folder.random_bytes("disk.img", 160 * MIB);
    let statistics = |number: u32| folder.path(&format!("statistics-{number}"));
    let serve = |number: u32| {
        let file = format!("statsfile={}", statistics(number));
        Peer::nbdkit(&folder, &["--filter=stats", "file", &image, &file])
    };
    let first = serve(0);
    let uri = first.uri.clone();
    let copied = folder.path("copied.img");
    let line = ["--no-verify", "--rate", "60M", "--patience", "30", &uri, &copied];
    thread::scope(|scope| {
        let copying = scope.spawn(|| copy(&line));
        let mut peer = first;
        for number in 1..=2 {
            // Until a part is copied; the time depends on the machine.
            wait_for("the copy", || {
                (allocated(&copied) > (u64::from(number) * 24) << 20).then_some(())
            });
            peer.end();
            thread::sleep(Duration::from_millis(300));
            // The same socket again.
            let socket = uri.split_once("socket=").unwrap().1;
            let _ = fs::remove_file(socket);
            peer = serve(number);
            assert_eq!(peer.uri, uri);
        }
        let ended = copying.join().unwrap();
        assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
        peer.end();
    });
    same(&image, &copied);
    let read: f64 = (0..=2).map(|number| read_bytes(&statistics(number))).sum();
    let whole = 160.0 * 1048576.0;
    assert!(read >= whole * 0.99 && read <= whole + 64.0 * 1048576.0, "{read} of {whole}");
}

/// Returns the allocated bytes of a file; 0 if it does not exist.
fn allocated(path: &str) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

/// Returns the bytes that nbdkit counted as read: `read: 17 ops, 0.01 s, 512.00 KiB, ...`.
fn read_bytes(file: &str) -> f64 {
    let text = fs::read_to_string(file).unwrap();
    let Some(line) = text.lines().find(|line| line.starts_with("read:")) else { return 0.0 };
    let mut args = line.split_whitespace().map(|word| word.trim_matches(','));
    let unit = args.clone().position(|word| word.ends_with("bytes") || word.ends_with("iB"));
    let unit = unit.unwrap_or_else(|| panic!("{text}"));
    let number: f64 = args.clone().nth(unit - 1).unwrap().parse().unwrap();
    let scale = match args.nth(unit).unwrap() {
        "KiB" => 1024.0,
        "MiB" => 1048576.0,
        "GiB" => 1073741824.0,
        _ => 1.0,
    };
    number * scale
}
