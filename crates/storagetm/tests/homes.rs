//! Homes of systemd-homed with the program: `/home` is a directory of the test, in a mount namespace.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "cases/host.rs"]
#[allow(dead_code, reason = "shared with other tests, which need all of it")]
mod host;
#[path = "serve/process.rs"]
#[allow(dead_code, reason = "each program needs a part of it")]
mod process;
#[path = "cases/scene.rs"]
#[allow(dead_code, reason = "shared with other tests, which need all of it")]
mod scene;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use host::NvmeClient;
use nvme::command::{FabricsCommand, IoCommand, PropertySize};
use nvme::wire::fabrics::{Cc, property};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use scene::{DESK, Folder, LAPTOP, PROGRAM, Running};
use serde_json::Value;

/// Two headers of a LUKS2 volume of alice, without anything in it.
const VOLUME: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/home/volume");

/// A directory with a home of alice in it, and one of bob that is a directory; `None` if this machine cannot mount it.
fn homes(test: &str) -> Option<Folder> {
    if !geteuid().is_root() {
        println!("skip {test}: only root mounts");
        return None;
    }
    if programs::lacks(test, &["unshare", "mount"]) {
        return None;
    }
    let folder = Folder::new();
    fs::create_dir_all(folder.path("home/bob.homedir")).unwrap();
    // Without holes.
    fs::write(folder.path("home/alice.home"), fs::read(VOLUME).unwrap()).unwrap();
    Some(folder)
}

/// The program with these arguments, with the directory as `/home`.
fn serve(folder: &Folder, arguments: &[&str]) -> Command {
    let mut command = programs::command("unshare");
    let script = "mount --bind \"$1\" /home && shift && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script, "sh", &folder.path("home"), PROGRAM, "serve"]);
    command.args(["--json", "--no-announce", "--keys", &folder.keys()]).args(arguments);
    command
}

/// Returns the address of the listener (at 127.0.0.1), and the name of the home.
fn lent(events: &[Value]) -> (SocketAddr, &str) {
    let find = |name: &str| events.iter().find(|event| event["event"] == name).unwrap();
    let port = u16::try_from(find("listening")["port"].as_u64().unwrap()).unwrap();
    (([127, 0, 0, 1], port).into(), find("lent")["nqn"].as_str().unwrap())
}

fn stored_blocks(folder: &Folder) -> u64 {
    let home = File::open(folder.path("home/alice.home")).unwrap();
    home.sync_all().unwrap();
    home.metadata().unwrap().blocks()
}

fn is_locked(path: &Path) -> bool {
    flock(File::open(path).unwrap(), FlockOperation::NonBlockingLockExclusive).is_err()
}

#[test]
fn home_is_lent_and_locked_to_a_host_with_a_key() {
    let Some(folder) = homes("a home that is lent") else { return };
    let key = folder.authorize(LAPTOP, "laptop", "tls", &["--writable", "--disk", "home-alice"]);
    let other = folder.authorize(DESK, "desk", "tls", &["--disk", "another"]);
    let mut command = serve(&folder, &["--homes", "--listen", "nvme:127.0.0.1:0"]);
    let running = Running::of(&mut command);
    let events = running.until("ready");
    let lent = events.iter().find(|event| event["event"] == "lent").unwrap();
    assert_eq!((&lent["name"], &lent["model"]), (&"home-alice".into(), &"home of alice".into()));
    assert_eq!(lent["access"], "writable");
    assert!(is_locked(Path::new(&folder.path("home/alice.home"))));
    let (address, disk) = self::lent(&events);
    assert!(NvmeClient::new(LAPTOP, disk).attach_plain(address).is_err(), "without a key");
    let desk = NvmeClient::new(DESK, disk).attach_tls(address, &other);
    assert!(desk.is_err(), "with a key, and no right to this disk");
    let mut home = NvmeClient::new(LAPTOP, disk).attach_tls(address, &key).unwrap();
    assert!(home.read(0).unwrap().starts_with(b"LUKS\xba\xbe"));
    assert!(home.write_blocks(40, &[7; 512], true).is_ok());
    let stored = stored_blocks(&folder);
    assert_eq!(home.deallocate(32, 8), Ok(true));
    let zeros = IoCommand::WriteZeroes { nsid: 1, slba: 48, nlb: 8, fua: true, deallocate: true };
    assert_eq!(home.execute_io(zeros.emit()), Ok(true));
    assert_eq!(stored_blocks(&folder), stored, "no hole that may not be filled again");
    drop(running);
    assert_eq!(fs::read(folder.path("home/alice.home")).unwrap()[40 * 512..][..512], [7; 512]);
}

/// The host that used the home may still have it mounted when the process that talked to it is replaced.
#[test]
fn home_is_kept_for_its_host_when_the_worker_dies() {
    let Some(folder) = homes("a home that is kept") else { return };
    let may = ["--writable", "--disk", "home-alice"];
    let keys = [(LAPTOP, "laptop"), (DESK, "desk")]
        .map(|(host, name)| folder.authorize(host, name, "tls", &may));
    let mut command = serve(&folder, &["--homes", "--listen", "nvme:127.0.0.1:0"]);
    let running = Running::of(&mut command);
    let events = running.until("ready");
    let (address, disk) = lent(&events);
    let attach =
        |host: usize| NvmeClient::new([LAPTOP, DESK][host], disk).attach_tls(address, &keys[host]);
    let attach_soon = |host: usize| {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            match attach(host) {
                Ok(attached) => return attached,
                Err(error) => assert!(Instant::now() < end, "{error}"),
            }
            sleep(Duration::from_millis(200));
        }
    };
    let mut laptop = attach(0).unwrap();
    laptop.write_blocks(40, &[7; 512], true).unwrap();
    let worker = running.worker().file_name().unwrap().to_str().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(worker).unwrap(), Signal::KILL).unwrap();
    drop(laptop);
    // Its next connection changes nothing and ends: that alone would free the home.
    drop(attach_soon(0));
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        assert!(attach(1).is_err(), "the laptop may have mounted it");
        sleep(Duration::from_millis(200));
    }
    let mut laptop = attach_soon(0);
    laptop.write_blocks(40, &[8; 512], true).unwrap();
    let cc = Cc::default().with_en(1).with_iosqes(6).with_iocqes(4).with_shn(Cc::SHN_NORMAL);
    let (attrib, offset, value) = (PropertySize::Four, property::CC, cc.0.into());
    let shutdown = FabricsCommand::PropertySet { attrib, offset, value }.emit();
    assert_eq!(laptop.execute_admin(shutdown), Ok(true));
    drop(laptop);
    attach_soon(1);
}

#[test]
fn home_that_cannot_be_lent_is_refused_with_the_reason() {
    let Some(folder) = homes("homes that cannot be lent") else { return };
    let refused = |arguments: &[&str]| {
        let Output { status, stderr, .. } = serve(&folder, arguments).output().unwrap();
        assert_eq!(status.code(), Some(1), "{arguments:?}");
        String::from_utf8(stderr).unwrap()
    };
    let alice = File::open(folder.path("home/alice.home")).unwrap();
    flock(&alice, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert!(refused(&["--homes=alice"]).contains("alice is logged in here"));
    assert!(refused(&["--homes"]).contains("alice is logged in here"));
    assert!(refused(&["/home/alice.home"]).contains("alice is logged in here"));
    drop(alice);
    assert!(refused(&["--homes=bob"]).contains("it is a directory"));
    assert!(refused(&["--homes=carol"]).contains("there is no home of carol"));
    assert!(refused(&["--homes", "--overlay", "home-bob"]).contains("this home is not lent"));
    fs::rename(folder.path("home/alice.home"), folder.path("home/eve.home")).unwrap();
    assert!(refused(&["--homes=eve"]).contains("it is the home of alice, not of eve"));
    fs::write(folder.path("home/eve.home"), [0; 1 << 16]).unwrap();
    assert!(refused(&["--homes=eve"]).contains("is no home directory of systemd-homed"));
}
