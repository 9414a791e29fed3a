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
use std::path::Path;
use std::process::{Command, Output};

use host::NvmeClient;
use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;
use scene::{DESK, Folder, LAPTOP, PROGRAM, Running};

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
    fs::copy(VOLUME, folder.path("home/alice.home")).unwrap();
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

fn is_locked(path: &Path) -> bool {
    flock(File::open(path).unwrap(), FlockOperation::NonBlockingLockExclusive).is_err()
}

#[test]
fn home_is_lent_and_locked_to_a_host_with_a_key() {
    let Some(folder) = homes("a home that is lent") else { return };
    let key = folder.authorize(LAPTOP, "laptop", "tls", &["--writable", "--disk", "home-alice"]);
    folder.authorize(DESK, "desk", "tls", &["--disk", "another"]);
    let mut command = serve(&folder, &["--homes", "--listen", "nvme:127.0.0.1:0"]);
    let running = Running::of(&mut command);
    let events = running.until("ready");
    let lent = events.iter().find(|event| event["event"] == "lent").unwrap();
    assert_eq!((&lent["name"], &lent["model"]), (&"home-alice".into(), &"home of alice".into()));
    assert_eq!(lent["access"], "writable");
    assert!(is_locked(Path::new(&folder.path("home/alice.home"))));
    let disk = lent["nqn"].as_str().unwrap();
    let port = events.iter().find(|event| event["event"] == "listening").unwrap()["port"].as_u64();
    let address = ([127, 0, 0, 1], u16::try_from(port.unwrap()).unwrap()).into();
    assert!(NvmeClient::new(LAPTOP, disk).attach_plain(address).is_err(), "without a key");
    let mut home = NvmeClient::new(LAPTOP, disk).attach_tls(address, &key).unwrap();
    assert!(home.read(0).unwrap().starts_with(b"LUKS\xba\xbe"));
    assert!(home.write_blocks(40, &[7; 512], true).is_ok());
    drop(running);
    assert_eq!(fs::read(folder.path("home/alice.home")).unwrap()[40 * 512..][..512], [7; 512]);
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
