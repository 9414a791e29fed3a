//! A host whose access is revoked is disconnected within a second and cannot reconnect: X16.

use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::alone::is_alone;
use crate::host::{NvmeClient, connect_tls, disk_psk};
use crate::scene::{Folder, KEYED, LAPTOP, Running};

/// Time limit to disconnect a revoked host.
const SECOND: Duration = Duration::from_secs(1);
/// The same on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Returns whether one of a few attempts is in time: other load on this machine may delay some.
fn is_in_time(mut cut_off_after: impl FnMut() -> Option<Duration>) -> bool {
    (0..4).any(|_| cut_off_after().is_some_and(|after| after <= SECOND))
}

/// Waits until the other end has closed both connections. Returns whether it did before `end`.
fn are_cut_off(sockets: &[TcpStream; 2], by: Instant) -> bool {
    sockets.iter().all(|socket| {
        let left = by.saturating_duration_since(Instant::now());
        let mut ends = [PollFd::new(socket, PollFlags::RDHUP)];
        poll(&mut ends, Timespec::try_from(left).ok().as_ref()).unwrap() == 1
    })
}

fn serve(folder: &Folder, driver: &str) -> Running {
    let image = folder.image("disk.img", 5);
    let keys = folder.keys();
    Running::serve(&["--pair", "--io", driver, "--listen", KEYED, "--keys", &keys, &image])
}

/// X16 for a host with a TLS key.
#[test]
fn x16_removed_host_is_disconnected_within_a_second() {
    if !is_alone("revocation::x16_removed_host_is_disconnected_within_a_second") {
        return;
    }
    for driver in ["uring", "blocking"] {
        assert!(is_in_time(|| Some(time_to_disconnect(driver))), "{driver}");
    }
}

/// Returns the time from the removal of a host to its disconnection.
fn time_to_disconnect(driver: &str) -> Duration {
    let folder = Folder::new();
    let key = folder.authorize(LAPTOP, "laptop", "tls", &[]);
    let running = serve(&folder, driver);
    let (address, names, _) = running.settled();
    let client = NvmeClient::new(LAPTOP, &names[0]);
    let mut disk = client.attach_tls(address, &key).unwrap();
    let sockets = [&disk.admin, &disk.io].map(|w| w.stream.socket().try_clone().unwrap());
    assert_eq!(disk.read(0).unwrap(), vec![5; 4096]);
    assert!(!are_cut_off(&sockets, Instant::now() + SECOND / 4), "not disconnected");
    folder.run_command(&["host", "remove", "laptop"]);
    let begun = Instant::now();
    assert!(are_cut_off(&sockets, begun + TIMEOUT), "{driver}");
    let after = begun.elapsed();
    println!("{driver}: cut off after {after:?}");
    assert!(disk.read(0).is_err());
    assert!(
        connect_tls(address, disk_psk(&key, LAPTOP, &names[0])).is_err(),
        "its key is none now"
    );
    assert!(client.attach_plain(address).is_err());
    assert_eq!(running.next("detached")["read"], 4096);
    after
}

/// X16 for a host with a key for DH-HMAC-CHAP.
#[test]
fn x16_removed_chap_host_is_disconnected() {
    if !is_alone("revocation::x16_removed_chap_host_is_disconnected") {
        return;
    }
    assert!(is_in_time(|| Some(removed_with_chap())));
}

fn removed_with_chap() -> Duration {
    let folder = Folder::new();
    let key = folder.authorize(LAPTOP, "laptop", "chap", &[]);
    // Another host exists, so that plaintext connections are still answered.
    folder.authorize("nqn.2024-01.test:other", "other", "chap", &[]);
    let running = serve(&folder, "auto");
    let (address, names, _) = running.settled();
    let client = NvmeClient::new(LAPTOP, &names[0]).with_credentials(&key);
    let mut disk = client.attach_plain(address).unwrap();
    let sockets = [&disk.admin, &disk.io].map(|wire| wire.stream.try_clone().unwrap());
    assert_eq!(disk.read(0).unwrap(), vec![5; 4096]);
    folder.run_command(&["host", "remove", "laptop"]);
    let begun = Instant::now();
    assert!(are_cut_off(&sockets, begun + TIMEOUT));
    let after = begun.elapsed();
    assert!(disk.read(0).is_err());
    let again = client.attach_plain(address).err().unwrap();
    assert!(again.starts_with("Connect: Refused"), "{again}");
    after
}

/// Returns a time in the format of the program, some seconds from now.
fn moment(after: Duration) -> (SystemTime, String) {
    let time = (SystemTime::now() + after).duration_since(UNIX_EPOCH).unwrap().as_secs();
    let form = ["-u", "-d", &format!("@{time}"), "+%Y-%m-%dT%H:%M:%SZ"];
    let text = Command::new("date").args(form).output().unwrap().stdout;
    (UNIX_EPOCH + Duration::from_secs(time), String::from_utf8(text).unwrap().trim().to_owned())
}

/// X16 for a host whose access expires.
#[test]
fn x16_expired_host_is_disconnected_within_a_second() {
    if !is_alone("revocation::x16_expired_host_is_disconnected_within_a_second") {
        return;
    }
    let mut seconds = [5, 10, 30, 60].into_iter();
    assert!(is_in_time(|| expired(seconds.next()?)));
}

/// Returns how long after its expiry a host is disconnected; `None` if this machine is too slow to
/// attach it before.
fn expired(seconds: u64) -> Option<Duration> {
    let folder = Folder::new();
    let (end, text) = moment(Duration::from_secs(seconds));
    let key = folder.authorize(LAPTOP, "laptop", "tls", &["--expires", &text]);
    let running = serve(&folder, "auto");
    let (address, names, _) = running.settled();
    let client = NvmeClient::new(LAPTOP, &names[0]);
    let left = || end.duration_since(SystemTime::now()).ok();
    let disk = client.attach_tls(address, &key);
    let remaining = left()?;
    let mut disk = disk.unwrap();
    let sockets = [&disk.admin, &disk.io].map(|wire| wire.stream.socket().try_clone().unwrap());
    // Before that the host can read.
    thread::sleep(remaining.saturating_sub(SECOND / 2));
    let read = disk.read(0);
    let remaining = left()?;
    assert_eq!(read.unwrap(), vec![5; 4096]);
    assert!(are_cut_off(&sockets, Instant::now() + remaining + TIMEOUT));
    let after = SystemTime::now().duration_since(end).expect("not before its time is over");
    assert!(disk.read(0).is_err());
    assert!(client.attach_tls(address, &key).is_err());
    let listed = folder.run_command(&["host", "list", "--json"]);
    assert!(
        listed.contains("\"expired\": true") || listed.contains("\"expired\":true"),
        "{listed}"
    );
    Some(after)
}
