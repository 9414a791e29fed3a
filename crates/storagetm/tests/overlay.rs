//! Overlays with the program: hosts write over every protocol, and the disk is not changed.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "overlay/files.rs"]
mod files;
#[path = "nbd/foreign.rs"]
#[allow(dead_code, reason = "shared with other tests, which need all of it")]
mod foreign;
#[path = "cases/host.rs"]
#[allow(dead_code, reason = "shared with other tests, which need all of it")]
mod host;
#[path = "serve/nbd_client.rs"]
#[allow(dead_code, reason = "shared with other tests, which need all of it")]
mod nbd_client;
#[path = "serve/process.rs"]
#[allow(dead_code, reason = "each program needs a part of it")]
mod process;
#[path = "cases/scene.rs"]
#[allow(dead_code, reason = "shared with other tests, which need all of it")]
mod scene;
#[path = "overlay/virtual_disks.rs"]
mod virtual_disks;

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};

use host::NvmeClient;
use nbd_client::{NbdClient, READ_ONLY};
use rustix::process::{Signal, kill_process};
use scene::{DESK, Folder, LAPTOP, PROGRAM, Running};
use serde_json::Value;

/// Returns the address of the listener of a protocol.
fn address(events: &[Value], protocol: &str) -> SocketAddr {
    let listens = |event: &&Value| event["protocol"] == protocol && event["port"].is_u64();
    let port = events.iter().find(listens).unwrap()["port"].as_u64().unwrap();
    ([127, 0, 0, 1], u16::try_from(port).unwrap()).into()
}

fn lent(events: &[Value]) -> &Value {
    events.iter().find(|event| event["event"] == "lent").unwrap()
}

/// Serves an image under an overlay over all protocols, and returns the events of the start.
fn serve(driver: &str, image: &str) -> (Running, Vec<Value>) {
    serve_within("unlimited", driver, &[image])
}

/// As [`serve`], with one state for all hosts.
fn serve_shared(driver: &str, image: &str) -> (Running, Vec<Value>) {
    serve_within("unlimited", driver, &[image, "--overlay-shared"])
}

/// As [`serve`], with that many KiB of address space and more options.
fn serve_within(addresses: &str, driver: &str, image: &[&str]) -> (Running, Vec<Value>) {
    let listen = ["nvme", "nbd", "iscsi"].map(|protocol| format!("{protocol}:127.0.0.1:0"));
    let listen = listen.iter().flat_map(|at| ["--listen", at.as_str()]);
    let script = format!("ulimit -v {addresses} && exec \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh", PROGRAM, "serve", "--json", "--io", driver]);
    command.args(["--no-announce", "--overlay"]).args(image).args(listen);
    let running = Running::of(command.stdin(Stdio::null()));
    let events = running.until("ready");
    (running, events)
}

fn nbd(events: &[Value]) -> NbdClient<TcpStream> {
    nbd_from(events, [127, 0, 0, 1])
}

/// Connects from this address.
fn nbd_from(events: &[Value], from: [u8; 4]) -> NbdClient<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&address(events, "nbd").into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(scene::LONG)).unwrap();
    let mut client = NbdClient::connected(stream).unwrap();
    let (size, flags) = client.go("").unwrap().unwrap();
    assert_eq!((Some(size), flags & READ_ONLY), (lent(events)["bytes"].as_u64(), 0));
    client
}

#[test]
fn writes_of_all_protocols_leave_the_disk_unchanged() {
    for driver in ["uring", "blocking"] {
        let folder = Folder::new();
        let image = folder.image("disk.img", 7);
        let (running, events) = serve_shared(driver, &image);
        let disk = lent(&events);
        assert_eq!(
            (&disk["access"], &disk["overlay"]["kept_in"]),
            (&"writable".into(), &"memory".into())
        );
        let nqn = disk["nqn"].as_str().unwrap();
        let mut nvme =
            NvmeClient::new(LAPTOP, nqn).attach_plain(address(&events, "nvme-tcp")).unwrap();
        let mut nbd = nbd(&events);
        // Blocks 1 and 2 by NVMe, the next three by NBD: one read finds the disk and both.
        nvme.write_blocks(1, &[1; 1024], true).unwrap();
        nvme.flush().unwrap();
        assert_eq!(nbd.write(3 * 512, &[2; 3 * 512]).unwrap(), 0);
        assert_eq!(nbd.flush().unwrap(), 0);
        let wanted = [&[7; 512][..], &[1; 1024], &[2; 3 * 512], &[7; 1024]].concat();
        assert!(nvme.read(0).unwrap() == wanted, "{driver}");
        assert!(nbd.read(0, 4096).unwrap().unwrap() == wanted, "{driver}");
        if !foreign::lacks("an overlay by an iSCSI initiator", &["iscsi-test-cu"]) {
            let uri = disk["iscsi"][0].as_str().unwrap();
            let write = ["--dataloss", "-t", "SCSI.Write10.Simple", uri];
            let output = foreign::stdout_of("iscsi-test-cu", &write);
            assert!(nvme.read(0).unwrap() != wanted, "{output}");
        }
        drop((nvme, nbd));
        let kept = running.next("detached")["kept"].as_u64().unwrap();
        // A page of data, and the head, the table and a leaf of the map, twice.
        assert!((7 * 4096..=scene::SIZE as u64).contains(&kept), "{driver} {kept}");
        assert!(fs::read(&image).unwrap() == vec![7; scene::SIZE], "{driver}");
        drop(running);
        // The changes are gone.
        let (_running, events) = serve_shared(driver, &image);
        assert_eq!(self::nbd(&events).read(512, 512).unwrap().unwrap(), [7; 512]);
    }
}

/// A whole disk of that byte, as [`Folder::image`].
fn disk_of(byte: u8) -> Vec<u8> {
    vec![byte; scene::SIZE]
}

#[test]
fn hosts_see_what_they_have_written_themselves() {
    for driver in ["uring", "blocking"] {
        let folder = Folder::new();
        let image = folder.image("disk.img", 7);
        let (running, events) = serve(driver, &image);
        let disk = lent(&events);
        assert_eq!(disk["overlay"]["shared"], false);
        let nvme = |host| {
            let client = NvmeClient::new(host, disk["nqn"].as_str().unwrap());
            client.attach_plain(address(&events, "nvme-tcp")).unwrap()
        };
        let (mut laptop, mut desk) = (nvme(LAPTOP), nvme(DESK));
        let mut nbd = [1, 2].map(|last| nbd_from(&events, [127, 0, 0, last]));
        laptop.write_blocks(1, &[1; 512], false).unwrap();
        desk.write_blocks(1, &[2; 1024], true).unwrap();
        assert_eq!(nbd[0].write(1024, &[3; 512]).unwrap(), 0);
        assert_eq!(nbd[1].write(1024, &[4; 1024]).unwrap(), 0);
        let wanted = |parts: &[(u8, usize)]| -> Vec<u8> {
            parts.iter().flat_map(|(byte, blocks)| vec![*byte; 512 * blocks]).collect()
        };
        let wanted = [
            wanted(&[(7, 1), (1, 1), (7, 6)]),
            wanted(&[(7, 1), (2, 2), (7, 5)]),
            wanted(&[(7, 2), (3, 1), (7, 5)]),
            wanted(&[(7, 2), (4, 2), (7, 4)]),
        ];
        let mut both = |laptop: &mut host::Attached<TcpStream>, desk: &mut host::Attached<_>| {
            let nbd = nbd.each_mut().map(|nbd| nbd.read(0, 4096).unwrap().unwrap());
            let [one, other] = nbd;
            assert!([laptop.read(0).unwrap(), desk.read(0).unwrap(), one, other] == wanted);
        };
        both(&mut laptop, &mut desk);
        // A host finds its writes when it connects again.
        drop((laptop, desk));
        let detached = [running.next("detached"), running.next("detached")];
        let kept_by = detached[1]["kept_by"].as_array().unwrap();
        let hosts: Vec<_> = kept_by.iter().map(|one| one["host"].as_str().unwrap()).collect();
        assert_eq!(hosts, [LAPTOP, DESK, "127.0.0.1", "127.0.0.2"]);
        let bytes: Vec<_> = kept_by.iter().map(|one| one["bytes"].as_u64().unwrap()).collect();
        assert_eq!(
            (bytes.iter().sum(), bytes[0]),
            (detached[1]["kept"].as_u64().unwrap(), 7 * 4096)
        );
        both(&mut nvme(LAPTOP), &mut nvme(DESK));
        assert!(fs::read(&image).unwrap() == disk_of(7), "{driver}");
    }
}

#[test]
fn initiators_see_what_they_have_written_themselves() {
    for driver in ["uring", "blocking"] {
        let folder = Folder::new();
        let image = folder.image("disk.img", 7);
        let other = folder.image("other.img", 9);
        let (_running, events) = serve(driver, &image);
        let uri = lent(&events)["iscsi"][0].as_str().unwrap();
        let by = |host: &str| format!("{uri}?initiator=iqn.2026-01.org.example:{host}");
        let read = |host: &str| {
            let out = folder.path(host);
            scene::run_ok(&["copy", "--yes", &by(host), &out], "");
            fs::read(out).unwrap()
        };
        scene::run_ok(&["copy", "--yes", &other, &by("a")], "");
        assert!(read("a") == disk_of(9) && read("b") == disk_of(7), "{driver}");
        assert!(fs::read(&image).unwrap() == disk_of(7), "{driver}");
    }
}

#[test]
fn hosts_without_a_state_can_only_read() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 7);
    let (_running, events) = serve("uring", &image);
    let attach = |number: usize| {
        let host = format!("nqn.2026-01.org.example:{number}");
        let client = NvmeClient::new(&host, lent(&events)["nqn"].as_str().unwrap());
        client.attach_plain(address(&events, "nvme-tcp")).unwrap()
    };
    for number in 0..8 {
        attach(number).write_blocks(0, &[1; 512], false).unwrap();
    }
    let mut ninth = attach(8);
    assert!(ninth.write_blocks(0, &[1; 512], false).is_err());
    assert!(ninth.read(0).unwrap() == disk_of(7)[..4096]);
    attach(3).write_blocks(1, &[1; 512], false).unwrap();
}

#[test]
fn overlay_outlives_the_worker() {
    for in_files in [false, true] {
        let folder = Folder::new();
        let image = folder.image("disk.img", 7);
        let (running, events) = match in_files {
            true => files::serve_files("uring", &image, &folder),
            false => serve("uring", &image),
        };
        let attach = |host| {
            let nqn = lent(&events)["nqn"].as_str().unwrap();
            NvmeClient::new(host, nqn).attach_plain(address(&events, "nvme-tcp"))
        };
        let mut nvme = attach(LAPTOP).unwrap();
        attach(DESK).unwrap().write_blocks(4, &[6; 512], false).unwrap();
        nvme.write_blocks(4, &[5; 512], false).unwrap();
        kill_process(files::number(&running.worker()), Signal::KILL).unwrap();
        process::find(|| attach("nqn.2026-01.org.example:third").ok()).expect("a new worker");
        for (host, byte) in [(DESK, 6), (LAPTOP, 5)] {
            let wanted = [&[7; 4 * 512][..], &[byte; 512], &[7; 3 * 512]].concat();
            assert!(attach(host).unwrap().read(0).unwrap() == wanted, "{in_files}");
        }
    }
}

#[test]
fn r18_full_overlay_is_reported_by_every_protocol() {
    /// Limits the overlay to an eighth: 60,000 KB.
    const ADDRESSES: &str = "480000";
    const NO_SPACE: u32 = 28;
    const DISCARD: u16 = 4;
    for driver in ["uring", "blocking"] {
        let folder = Folder::new();
        let image = folder.image("disk.img", 7);
        File::options().write(true).open(&image).unwrap().set_len(80 << 20).unwrap();
        let before = fs::metadata(&image).unwrap();
        let (_running, events) = serve_within(ADDRESSES, driver, &[&image, "--overlay-shared"]);
        let disk = lent(&events);
        let limit = disk["overlay"]["limit"].as_u64().unwrap();
        assert_eq!(limit, 61_440_000, "{driver}");
        let mut nvme = NvmeClient::new(LAPTOP, disk["nqn"].as_str().unwrap())
            .attach_plain(address(&events, "nvme-tcp"))
            .unwrap();
        let mut nbd = nbd(&events);
        // The first MiB stays unwritten.
        let mut written = 1 << 20;
        let full = [1 << 20, 4096].map(|len| {
            loop {
                match nbd.write(written, &vec![9; len]).unwrap() {
                    0 => written += len as u64,
                    error => break error,
                }
            }
        });
        assert_eq!(full, [NO_SPACE; 2], "{driver}");
        assert!((58_000_000..=61_440_000 + (1 << 20)).contains(&written), "{driver} {written}");
        let refused = nvme.write_blocks(16, &[1; 4096], false).unwrap_err();
        assert_eq!(refused, "CAPACITY_EXCEEDED|DNR", "{driver}");
        if !foreign::lacks("a full overlay by an iSCSI initiator", &["iscsi-test-cu"]) {
            let uri = disk["iscsi"][0].as_str().unwrap();
            let write = ["--dataloss", "-v", "-t", "SCSI.Write10.Simple", uri];
            let shown = foreign::stderr_of_failing("iscsi-test-cu", &write);
            assert!(shown.contains("2707"), "{driver} {shown}");
        }
        // What is there is read and overwritten, and a discard makes room.
        assert!(nvme.read(0).unwrap() == [7; 4096], "{driver}");
        assert!(nvme.read(2048).unwrap() == [9; 4096], "{driver}");
        nvme.write_blocks(2048, &[1; 512], true).unwrap();
        nvme.flush().unwrap();
        nbd.request(0, DISCARD, written - 4096, 4096, &[]).unwrap();
        assert_eq!(nbd.answer().unwrap(), 0, "{driver}");
        nvme.write_blocks(16, &[1; 4096], false).unwrap();
        let (after, mut start) = (fs::metadata(&image).unwrap(), vec![0; scene::SIZE]);
        File::open(&image).unwrap().read_exact_at(&mut start, 0).unwrap();
        assert!(start == vec![7; scene::SIZE], "{driver}");
        let unchanged = |file: &fs::Metadata| (file.blocks(), file.mtime(), file.mtime_nsec());
        assert_eq!(unchanged(&after), unchanged(&before), "{driver}");
    }
}
