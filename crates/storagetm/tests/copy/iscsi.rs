//! Copies from and to iSCSI targets: this program's own, and tgt.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::port::free_port;
use crate::scene::{
    Folder, MIB, assert_equal, copy, events, fill, random_bytes, run, run_expecting, until_arrived,
};
use crate::target::{Running, Target};

/// Returns the URIs of the disks of a target.
fn uris(target: &Target, host: &str) -> Vec<String> {
    let port = target.port("iscsi");
    let names = target.lent.iter().map(|lent| lent["iqn"].as_str().unwrap());
    names.map(|name| format!("iscsi://{host}:{port}/{name}")).collect()
}

#[test]
fn disk_is_copied_from_and_to_a_target_by_iscsi() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 12 * MIB);
    let other = folder.path("other.img");
    fs::write(&other, vec![3; 16 << 20]).unwrap();
    let target = Target::serve(&["--listen", "iscsi:127.0.0.1:0", &image, "--writable", &other]);
    let [from, onto] = &uris(&target, "127.0.0.1")[..] else { panic!("two disks") };
    let to = folder.path("copy.img");
    let output = run(&["--json", from, &to]);
    let last = events(&output).pop().unwrap();
    assert!(output.status.success(), "{last}");
    assert_eq!(last["verified"], 12 * MIB, "{last}");
    assert!(last["zeroes"].as_u64().unwrap() >= 6 * MIB, "holes are not sent: {last}");
    assert_equal(&image, &to);
    run_expecting(0, &["--yes", from, onto]);
    let written = fs::read(&other).unwrap();
    assert!(written[..12 << 20] == fs::read(&image).unwrap()[..]);
    assert!(written[12 << 20..].iter().all(|byte| *byte == 3));
    // R43: the same disk, read-only, too small, or missing.
    let again = onto.replace("127.0.0.1", "[::ffff:127.0.0.1]");
    let message = run_expecting(5, &["--yes", &again, onto]);
    assert!(message.contains("are the same disk"), "{message}");
    let message = run_expecting(5, &["--yes", &to, from]);
    assert!(message.contains("read-only"), "{message}");
    let message = run_expecting(5, &["--yes", &folder.image("large.img", 24 * MIB), onto]);
    assert!(message.contains("choose a larger destination"), "{message}");
    let never = folder.path("never.img");
    let port = target.port("iscsi");
    let message = run_expecting(5, &[&format!("iscsi://127.0.0.1:{port}/iqn.a:b"), &never]);
    assert!(message.contains(target.lent[0]["iqn"].as_str().unwrap()), "{message}");
    let message = run_expecting(5, &[&format!("{from}/1"), &never]);
    assert!(message.contains("logical unit number"), "{message}");
    assert!(!Path::new(&never).exists());
}

/// The name of tgt's target.
const IQN: &str = "iqn.2026-01.test.tgt:disks";

/// An account of tgt.
const USER: &str = "laptop";
const SECRET: &str = "secretsecret12";

/// tgt, with its control socket in a folder; killed when dropped.
struct Tgt {
    _running: Running,
    socket: String,
    host: &'static str,
    port: u16,
    units: u8,
}

impl Tgt {
    /// Starts tgt at this port, with a target without logical units.
    fn start(folder: &Folder, port: u16) -> Self {
        Self::start_at(folder, "127.0.0.1", port)
    }

    fn start_at(folder: &Folder, host: &'static str, port: u16) -> Self {
        let socket = folder.path("tgt");
        let child = programs::command("tgtd")
            .args(["-f", "-t", "2", "--iscsi", &format!("portal={host}:{port}")])
            .env("TGT_IPC_SOCKET", &socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let tgt = Self { _running: Running(child), socket, host, port, units: 0 };
        let mut tries = 0..300;
        while TcpStream::connect((host, port)).is_err() {
            assert!(tries.next().is_some(), "tgt does not listen");
            sleep(Duration::from_millis(100));
        }
        tgt.set(&["--op", "new", "--mode", "target", "--tid", "1", "-T", IQN]);
        tgt.set(&["--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL"]);
        tgt
    }

    fn set(&self, args: &[&str]) {
        let mut command = programs::command("tgtadm");
        command.env("TGT_IPC_SOCKET", &self.socket).args(["--lld", "iscsi"]);
        let output = command.args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Adds an image as the next logical unit, with these blocks and parameters. Returns its URI.
    fn unit(&mut self, image: &str, block: &str, parameters: &str) -> String {
        self.units += 1;
        let lun = self.units.to_string();
        let unit = ["--mode", "logicalunit", "--tid", "1", "--lun", &lun];
        let new = ["--op", "new", "-b", image, "--bstype", "rdwr", "--blocksize", block];
        self.set(&[&unit[..], &new].concat());
        self.set(&[&unit[..], &["--op", "update", "--params", parameters]].concat());
        self.uri(&lun)
    }

    fn uri(&self, lun: &str) -> String {
        format!("iscsi://{}:{}/{IQN}/{lun}", self.host, self.port)
    }

    /// Redirects logins to another address.
    fn redirect(&self, port: u16, reason: &str) {
        for (name, value) in [
            ("RedirectAddress", NODE),
            ("RedirectPort", &port.to_string()),
            ("RedirectReason", reason),
        ] {
            let update = ["--op", "update", "--mode", "target", "--tid", "1"];
            self.set(&[&update[..], &["--name", name, "--value", value]].concat());
        }
    }

    /// Requires CHAP.
    fn require_secret(&self) {
        let account = ["--mode", "account", "--user", USER];
        self.set(&[&account[..], &["--op", "new", "--password", SECRET]].concat());
        self.set(&[&account[..], &["--op", "bind", "--tid", "1"]].concat());
    }
}

/// The address to which tgt redirects: it does not redirect to that of the initiator.
const NODE: &str = "127.0.0.2";

/// Whether tgt is missing.
fn lacks_tgt(test: &str) -> bool {
    programs::lacks(test, &["tgtd", "tgtadm"])
}

#[test]
fn interop_tgt_is_copied_from_and_to() {
    if lacks_tgt("tgt is copied from and to") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("disk.img", 24 * MIB);
    let mut tgt = Tgt::start(&folder, free_port());
    let source = tgt.unit(&image, "512", "readonly=1");
    for (name, block, parameters) in [
        ("plain", "512", "thin_provisioning=0"),
        ("thin", "512", "thin_provisioning=1"),
        ("large", "4096", "thin_provisioning=1"),
    ] {
        let (disk, to) = (folder.path(name), folder.path(&format!("{name}.img")));
        fs::write(&disk, vec![0xee; 24 << 20]).unwrap();
        let there = tgt.unit(&disk, block, parameters);
        run_expecting(0, &["--yes", &source, &there]);
        assert_equal(&image, &disk);
        run_expecting(0, &[&there, &to]);
        assert_equal(&image, &to);
    }
    let message = run_expecting(5, &["--yes", &image, &source]);
    assert!(message.contains("read-only"), "{message}");
    let never = folder.path("never.img");
    for (lun, reason) in [("0", "is not a disk"), ("9", "no disk with this logical unit number")] {
        let message = run_expecting(5, &[&tgt.uri(lun), &never]);
        assert!(message.contains(reason), "{message}");
    }
    assert!(!Path::new(&never).exists());
}

/// Two servers that were set up alike: their disks have the same names and identifiers.
#[test]
fn interop_disk_of_another_tgt_with_the_same_name() {
    if lacks_tgt("two tgt with targets of the same name") {
        return;
    }
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    let [image, disk] = ["disk.img", "other.img"].map(|it| folder.path(it));
    fs::write(&image, random_bytes(8, 4 << 20)).unwrap();
    fs::write(&disk, vec![0xee; 4 << 20]).unwrap();
    let mut tgt = Tgt::start(&folder, free_port());
    let mut other = Tgt::start(&elsewhere, free_port());
    let from = tgt.unit(&image, "512", "readonly=1");
    let onto = other.unit(&disk, "512", "thin_provisioning=0");
    run_expecting(0, &["--yes", &from, &onto]);
    assert_equal(&image, &disk);
    // By another address of its machine, it is the same disk.
    let same = onto.replace("127.0.0.1", "[::ffff:127.0.0.1]");
    let message = run_expecting(5, &["--yes", &same, &onto]);
    assert!(message.contains("are the same disk"), "{message}");
}

/// tgt 1.0.85 has MD5, and SHA-1 by the number that belongs to SHA-256.
#[test]
fn interop_tgt_with_a_secret_needs_md5() {
    if lacks_tgt("tgt with CHAP is copied from") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("disk.img", 4 * MIB);
    let [key, wrong, to, never] = ["key", "wrong", "to.img", "never.img"].map(|it| folder.path(it));
    fs::write(&key, SECRET).unwrap();
    fs::write(&wrong, "secretsecret13").unwrap();
    let mut tgt = Tgt::start(&folder, free_port());
    let source = tgt.unit(&image, "512", "readonly=1").replace("://", &format!("://{USER}@"));
    tgt.require_secret();
    let md5 = format!("{source}?chap=md5");
    run_expecting(0, &["--key", &key, &md5, &to]);
    assert_equal(&image, &to);
    let message = run_expecting(5, &["--key", &wrong, &md5, &never]);
    assert!(message.contains("authentication failed"), "{message}");
    run_expecting(5, &[&tgt.uri("1"), &never]);
    let message = run_expecting(5, &["--key", &key, &source, &never]);
    assert!(message.contains("?chap=md5"), "{message}");
    assert!(!Path::new(&never).exists());
}

/// A storage array has one address for all, and sends each login to one of its nodes.
#[test]
fn interop_login_redirected_by_tgt_is_followed() {
    if lacks_tgt("tgt that redirects logins") {
        return;
    }
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    let image = folder.image("disk.img", 4 * MIB);
    let portal = Tgt::start(&folder, free_port());
    let mut node = Tgt::start_at(&elsewhere, NODE, free_port());
    node.unit(&image, "512", "readonly=1");
    for reason in ["Temporary", "Permanent"] {
        let to = folder.path(reason);
        portal.redirect(node.port, reason);
        run_expecting(0, &[&portal.uri("1"), &to]);
        assert_equal(&image, &to);
    }
    let never = folder.path("never.img");
    let nobody = free_port();
    portal.redirect(nobody, "Temporary");
    let message = run_expecting(5, &[&portal.uri("1"), &never]);
    assert!(message.contains(&format!("moved to {NODE}:{nobody}")), "{message}");
}

/// X41: a disk of the same size and identity, but with other contents, is another disk. It is
/// neither written to nor read from.
#[test]
fn x41_tgt_with_another_disk_after_a_restart_ends_the_copy() {
    if lacks_tgt("tgt that is restarted with another disk") {
        return;
    }
    for to_target in [false, true] {
        let folder = Folder::new();
        let (image, local, other) =
            (folder.path("disk.img"), folder.path("local.img"), folder.path("other.img"));
        fs::write(if to_target { &local } else { &image }, random_bytes(41, 8 << 20)).unwrap();
        if to_target {
            File::create(&image).unwrap().set_len(8 << 20).unwrap();
        }
        fill(&other, 8 * MIB, 7);
        let before = fs::read(&other).unwrap();
        let port = free_port();
        let mut tgt = Tgt::start(&folder, port);
        let there = tgt.unit(&image, "512", "thin_provisioning=0");
        let (from, to) = if to_target { (&local, &there) } else { (&there, &local) };
        let child = copy(&["--yes", "--json", "--rate", "1M", "--no-sparse", from, to])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        until_arrived(if to_target { &image } else { &local }, 3 * MIB);
        drop(tgt);
        let mut tgt = Tgt::start(&folder, port);
        tgt.unit(&other, "512", "thin_provisioning=0");
        let output = child.wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{to_target}");
        assert!(message.contains("another disk"), "{to_target}: {message}");
        assert!(fs::read(&other).unwrap() == before, "it is not written to");
    }
}

/// R23: a copy goes on when tgt is back, with all that was not yet flushed.
#[test]
fn r23_copy_continues_after_tgt_restart() {
    if lacks_tgt("tgt that is restarted") {
        return;
    }
    let folder = Folder::new();
    let (image, other) = (folder.path("disk.img"), folder.path("other.img"));
    fs::write(&image, random_bytes(23, 6 << 20)).unwrap();
    File::create(&other).unwrap().set_len(6 << 20).unwrap();
    let port = free_port();
    let serve = || {
        let mut tgt = Tgt::start(&folder, port);
        let ends = [&image, &other].map(|file| tgt.unit(file, "512", "thin_provisioning=0"));
        (tgt, ends)
    };
    let (mut tgt, [from, onto]) = serve();
    let child = copy(&["--yes", "--json", "--rate", "2M", "--no-sparse", &from, &onto])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    for mib in [1, 3] {
        until_arrived(&other, mib * MIB);
        drop(tgt);
        tgt = serve().0;
    }
    let output = child.wait_with_output().unwrap();
    let events: Vec<Value> = events(&output);
    assert!(output.status.success(), "{events:?}");
    assert_equal(&image, &other);
    assert!(events.iter().any(|event| event["event"] == "reconnecting"), "{events:?}");
}
