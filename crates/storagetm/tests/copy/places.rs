//! Copies from and to other machines: this program's own target, and NBD servers of others.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::port::free_port;
use crate::scene::{
    Folder, MIB, assert_equal, copy, events, fill, has, random_bytes, run, run_expecting,
    until_arrived, until_listens,
};
use crate::target::{Running, Target};

#[test]
fn disk_is_copied_from_and_to_a_target_by_nvme() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 12 * MIB);
    let other = folder.path("other.img");
    fs::write(&other, vec![3; 16 << 20]).unwrap();
    let target = Target::serve(&["--listen", "nvme:127.0.0.1:0", &image, "--writable", &other]);
    let port = target.port("nvme");
    let nqn = |at: usize| target.lent[at]["nqn"].as_str().unwrap();
    let (from, onto) = (
        format!("nvme://127.0.0.1:{port}/{}", nqn(0)),
        format!("nvme://127.0.0.1:{port}/{}", nqn(1)),
    );
    let to = folder.path("copy.img");
    run_expecting(0, &[&from, &to]);
    assert_equal(&image, &to);
    run_expecting(0, &["--yes", "--digests", &from, &onto]);
    let written = fs::read(&other).unwrap();
    assert!(written[..12 << 20] == fs::read(&image).unwrap()[..]);
    assert!(written[12 << 20..].iter().all(|byte| *byte == 3));
    // R43: read-only, too small, or missing.
    let message = run_expecting(5, &["--yes", &to, &from]);
    assert!(message.contains("read-only"), "{message}");
    let message =
        run_expecting(5, &[&format!("nvme://127.0.0.1:{port}/nothing"), &folder.path("x")]);
    assert!(message.contains("nothing"), "{message}");
    assert!(!Path::new(&folder.path("x")).exists());
}

#[test]
fn disk_is_copied_from_and_to_a_target_by_nbd() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 12 * MIB);
    let other = folder.path("other.img");
    fs::write(&other, vec![3; 12 << 20]).unwrap();
    let target = Target::serve(&["--listen", "nbd:127.0.0.1:0", &image, "--writable", &other]);
    let port = target.port("nbd");
    let to = folder.path("copy.img");
    let output = run(&["--json", &format!("nbd://127.0.0.1:{port}/disk"), &to]);
    let events = events(&output);
    assert!(output.status.success(), "{events:?}");
    assert_equal(&image, &to);
    assert!(events.last().unwrap()["zeroes"].as_u64().unwrap() >= 6 * MIB, "holes are not sent");
    run_expecting(0, &["--yes", &image, &format!("nbd://127.0.0.1:{port}/other")]);
    assert_equal(&image, &other);
    let message = run_expecting(5, &[&to, &format!("nbd://127.0.0.1:{port}/disk")]);
    assert!(message.contains("read-only"), "{message}");
}

/// An nbdkit at a Unix socket.
fn nbdkit(socket: &str, args: &[&str]) -> Running {
    let _ = fs::remove_file(socket);
    let child = programs::command("nbdkit")
        .args(["--foreground", "--unix", socket])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let running = Running(child);
    until_listens(socket);
    running
}

fn uri(socket: &str) -> String {
    format!("nbd+unix:///?socket={socket}")
}

#[test]
fn nbdkit_is_a_source_and_a_destination() {
    if !has("nbdkit") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("disk.img", 7 * MIB + 1024);
    let (socket, other) = (folder.path("socket"), folder.path("other.img"));
    let _server = nbdkit(&socket, &["file", &image]);
    run_expecting(0, &[&uri(&socket), &folder.path("copy.img")]);
    assert_equal(&image, folder.path("copy.img"));
    fill(&other, 7 * MIB + 1024, 99);
    let second = folder.path("second");
    let _server = nbdkit(&second, &["file", &other]);
    run_expecting(0, &["--yes", &uri(&socket), &uri(&second)]);
    assert_equal(&image, &other);
}

/// A destination that acknowledges each write and discards it.
#[test]
fn corrupting_destination_fails_verification() {
    if !has("nbdkit") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("disk.img", 4 * MIB);
    let socket = folder.path("socket");
    let _server = nbdkit(&socket, &["null", "4M"]);
    let output = run(&["--yes", "--json", &image, &uri(&socket)]);
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    let events = events(&output);
    let unlike = |event: &&Value| event["event"] == "mismatch";
    let bytes: u64 =
        events.iter().filter(unlike).map(|event| event["bytes"].as_u64().unwrap()).sum();
    assert!(bytes >= 2 * MIB, "{events:?}");
    assert_eq!(events.last().unwrap()["outcome"], "verify-failed");
    run_expecting(0, &["--yes", "--no-verify", &image, &uri(&socket)]);
}

/// R16: if writes fail, the copy fails.
#[test]
fn r16_a_failed_write_is_a_failed_copy() {
    if !has("nbdkit") {
        return;
    }
    let folder = Folder::new();
    let (image, other, socket) =
        (folder.path("disk.img"), folder.path("other.img"), folder.path("socket"));
    fs::write(&image, random_bytes(16, 16 << 20)).unwrap();
    for error in ["EIO", "ENOSPC", "EPERM"] {
        fs::write(&other, vec![0; 16 << 20]).unwrap();
        let (error, rate) = (format!("error-pwrite={error}"), "error-pwrite-rate=30%");
        let _server = nbdkit(&socket, &["--filter=error", "file", &other, &error, rate]);
        for more in ["--verify", "--no-verify"] {
            let message = run_expecting(1, &["--yes", more, &image, &uri(&socket)]);
            assert!(message.contains("writing"), "{message}");
        }
    }
}

/// R15: exactly the unreadable sectors are reported as bad, and the rest is copied.
#[test]
fn r15_bad_sectors_are_reported_and_the_rest_copied() {
    if !has("nbdkit") {
        return;
    }
    let folder = Folder::new();
    let (image, to, socket) =
        (folder.path("disk.img"), folder.path("copy.img"), folder.path("socket"));
    let bytes = random_bytes(15, 4 << 20);
    fs::write(&image, &bytes).unwrap();
    let (rescued, map) = (folder.path("rescued.map"), folder.path("map"));
    // Three bad ranges: one sector, several, and the end.
    let bad = [(0x5200, 0x200), (0x10_0000, 0x8000), (0x3f_fe00, 0x200)];
    fs::write(&rescued, rescue_map(&bad, 4 << 20)).unwrap();
    let args = ["--filter=ddrescue", "file", &image, &format!("ddrescue-mapfile={rescued}")];
    let _server = nbdkit(&socket, &args);
    let output = run(&["--json", "--map", &map, &uri(&socket), &to]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let events = events(&output);
    let reported: Vec<(u64, u64)> = events
        .iter()
        .filter(|event| event["event"] == "bad")
        .map(|event| (event["offset"].as_u64().unwrap(), event["bytes"].as_u64().unwrap()))
        .collect();
    assert_eq!(reported, bad);
    let mut expected = bytes;
    for (offset, len) in bad {
        let (offset, len) = (usize::try_from(offset).unwrap(), usize::try_from(len).unwrap());
        expected[offset..offset + len].fill(0);
    }
    assert!(fs::read(&to).unwrap() == expected);
    assert!(
        fs::read_to_string(&map)
            .unwrap()
            .lines()
            .any(|line| line.trim_start().starts_with("0x00005200"))
    );
}

fn rescue_map(bad: &[(u64, u64)], bytes: u64) -> String {
    let mut text = "# Mapfile\n0x00000000     +\n".to_owned();
    let mut at = 0;
    for (offset, len) in bad {
        text += &format!("0x{at:08X}  0x{:08X}  +\n0x{offset:08X}  0x{len:08X}  -\n", offset - at);
        at = offset + len;
    }
    if at < bytes {
        text += &format!("0x{at:08X}  0x{:08X}  +\n", bytes - at);
    }
    text
}

/// R23: a copy continues when the server comes back.
#[test]
fn r23_copy_continues_after_server_restart() {
    if !has("nbdkit") {
        return;
    }
    let folder = Folder::new();
    let (image, to, socket) =
        (folder.path("disk.img"), folder.path("copy.img"), folder.path("socket"));
    fs::write(&image, random_bytes(23, 8 << 20)).unwrap();
    let mut server = nbdkit(&socket, &["file", &image]);
    let child = copy(&["--json", "--rate", "2M", &uri(&socket), &to])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    for mib in [1, 4] {
        until_arrived(&to, mib * MIB);
        drop(server);
        sleep(Duration::from_millis(300));
        server = nbdkit(&socket, &["file", &image]);
    }
    let output = child.wait_with_output().unwrap();
    let events = events(&output);
    assert!(output.status.success(), "{events:?}");
    assert_equal(&image, &to);
    assert!(events.iter().any(|event| event["event"] == "reconnecting"), "{events:?}");
    assert!(events.last().unwrap()["resent"].as_u64().unwrap() <= 64 * MIB);
}

/// R23: the same with a storagetm target, by each protocol, in both directions.
#[test]
fn r23_copy_continues_after_target_restart() {
    for protocol in ["nvme", "nbd", "iscsi"] {
        let folder = Folder::new();
        let (image, other) = (folder.path("disk.img"), folder.path("other.img"));
        fs::write(&image, random_bytes(23, 8 << 20)).unwrap();
        File::create(&other).unwrap().set_len(8 << 20).unwrap();
        let port = free_port();
        let listen = format!("{protocol}:127.0.0.1:{port}");
        let serve = || Target::serve(&["--listen", &listen, &image, "--writable", &other]);
        let mut target = serve();
        let key = match protocol {
            "nvme" => "nqn",
            "nbd" => "name",
            _ => "iqn",
        };
        let names = target.lent.iter().map(|lent| lent[key].as_str().unwrap().to_owned());
        let names: Vec<String> = names.collect();
        let uri = |at: usize| format!("{protocol}://127.0.0.1:{port}/{}", names[at]);
        let child = copy(&["--yes", "--json", "--rate", "2M", "--no-sparse", &uri(0), &uri(1)])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        for mib in [1, 4] {
            until_arrived(&other, mib * MIB);
            drop(target);
            sleep(Duration::from_millis(200));
            target = serve();
        }
        let output = child.wait_with_output().unwrap();
        let events = events(&output);
        assert!(output.status.success(), "{events:?}");
        assert_equal(&image, &other);
        assert!(events.iter().any(|event| event["event"] == "reconnecting"), "{events:?}");
        assert!(events.last().unwrap()["resent"].as_u64().unwrap() <= 64 * MIB);
    }
}

/// If the server does not come back, the copy fails after `--patience`, and can be resumed from the
/// map.
#[test]
fn lost_server_is_a_failure_that_can_be_resumed() {
    if !has("nbdkit") {
        return;
    }
    let folder = Folder::new();
    let (image, to, socket) =
        (folder.path("disk.img"), folder.path("copy.img"), folder.path("socket"));
    let map = folder.path("map");
    fs::write(&image, random_bytes(24, 6 << 20)).unwrap();
    let server = nbdkit(&socket, &["file", &image]);
    let child = copy(&["--rate", "2M", "--patience", "1", "--map", &map, &uri(&socket), &to])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until_arrived(&to, MIB);
    drop(server);
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("to try again from there: "), "{message}");
    let _server = nbdkit(&socket, &["file", &image]);
    run_expecting(0, &["--map", &map, &uri(&socket), &to]);
    assert_equal(&image, &to);
}

/// Ctrl-C while a server is lost ends the copy, and does not say that the server is back.
#[test]
fn copy_is_interrupted_while_its_server_is_lost() {
    if !has("nbdkit") {
        return;
    }
    let folder = Folder::new();
    let (image, to, socket) =
        (folder.path("disk.img"), folder.path("copy.img"), folder.path("socket"));
    fs::write(&image, random_bytes(24, 6 << 20)).unwrap();
    let server = nbdkit(&socket, &["file", &image]);
    let mut child = copy(&["--rate", "2M", "--json", &uri(&socket), &to])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    until_arrived(&to, MIB);
    drop(server);
    assert!(lines.any(|line| line.contains("\"reconnecting\"")), "the server is lost");
    rustix::process::kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let rest: Vec<String> = lines.collect();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(6), "{rest:?}");
    assert!(!rest.iter().any(|line| line.contains("it is there again")), "{rest:?}");
}

/// X20: a copy succeeds with the key of the server, and fails with another key or in plaintext.
#[test]
fn x20_nbdkit_with_keys_is_reached_by_the_right_one_only() {
    if !has("nbdkit") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("disk.img", 2 * MIB);
    let (socket, list, wrong) = (folder.path("socket"), folder.path("psk"), folder.path("wrong"));
    fs::write(&list, format!("copier:{}\n", "5a".repeat(32))).unwrap();
    fs::write(&wrong, format!("copier:{}\n", "a5".repeat(32))).unwrap();
    let psk = format!("--tls-psk={list}");
    let _server = nbdkit(&socket, &["--tls=require", &psk, "file", &image]);
    let to = folder.path("copy.img");
    run_expecting(0, &[&format!("nbds+unix://copier@/?socket={socket}&tls-psk-file={list}"), &to]);
    assert_equal(&image, &to);
    let never = folder.path("never.img");
    let refused = [
        format!("nbds+unix://copier@/?socket={socket}&tls-psk-file={wrong}"),
        format!("nbds+unix://other@/?socket={socket}&tls-psk-file={list}"),
        uri(&socket),
    ];
    for from in &refused {
        run_expecting(5, &[from, &never]);
    }
    let plain = folder.path("plain");
    let _server = nbdkit(&plain, &["--tls=off", "file", &image]);
    run_expecting(
        5,
        &[&format!("nbds+unix://copier@/?socket={plain}&tls-psk-file={list}"), &never],
    );
    assert!(!Path::new(&never).exists());
}

/// X20: the certificate of a server must be issued by the given CA for the name of the server.
#[test]
fn x20_nbdkit_with_certificates_is_verified() {
    if !has("nbdkit") || !has("openssl") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("disk.img", 2 * MIB);
    let (own, other) = (folder.path("own"), folder.path("other"));
    for place in [&own, &other] {
        fs::create_dir(place).unwrap();
        certify(place);
    }
    let socket = folder.path("socket");
    let certificates = format!("--tls-certificates={own}");
    let _server = nbdkit(&socket, &["--tls=require", &certificates, "file", &image]);
    let from = |place: &str, name: &str| {
        format!("nbds+unix:///?socket={socket}&tls-certificates={place}&tls-hostname={name}")
    };
    let (to, never) = (folder.path("copy.img"), folder.path("never.img"));
    run_expecting(0, &[&from(&own, "server.test"), &to]);
    assert_equal(&image, &to);
    run_expecting(5, &[&from(&other, "server.test"), &never]);
    run_expecting(5, &[&from(&own, "another.test"), &never]);
    assert!(!Path::new(&never).exists());
}

/// Creates a CA in that folder and a server certificate.
fn certify(place: &str) {
    let openssl = |args: &[&str]| {
        let run = programs::command("openssl").args(args).current_dir(place).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    };
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let authority = [
        "-x509",
        "-keyout",
        "ca-key.pem",
        "-out",
        "ca-cert.pem",
        "-subj",
        "/CN=authority",
        "-days",
        "2",
    ];
    openssl(&[&["req"][..], &curve, &authority].concat());
    let request = ["-keyout", "server-key.pem", "-out", "server.csr", "-subj", "/CN=server.test"];
    openssl(&[&["req"][..], &curve, &request].concat());
    fs::write(format!("{place}/names"), "subjectAltName=DNS:server.test\n").unwrap();
    openssl(&[
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca-cert.pem",
        "-CAkey",
        "ca-key.pem",
        "-CAcreateserial",
        "-out",
        "server-cert.pem",
        "-days",
        "2",
        "-extfile",
        "names",
    ]);
}
