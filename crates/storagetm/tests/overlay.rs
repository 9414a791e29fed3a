//! Overlays with the program: hosts write over every protocol, and the disk is not changed.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

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

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};

use host::NvmeClient;
use nbd_client::{NbdClient, READ_ONLY};
use rustix::process::{Pid, Signal, kill_process};
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
    serve_within("unlimited", driver, image)
}

/// As [`serve`], with that many KiB of address space.
fn serve_within(addresses: &str, driver: &str, image: &str) -> (Running, Vec<Value>) {
    let listen = ["nvme", "nbd", "iscsi"].map(|protocol| format!("{protocol}:127.0.0.1:0"));
    let listen = listen.iter().flat_map(|at| ["--listen", at.as_str()]);
    let script = format!("ulimit -v {addresses} && exec \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh", PROGRAM, "serve", "--json", "--io", driver]);
    command.args(["--no-announce", "--overlay", image]).args(listen);
    let running = Running::of(command.stdin(Stdio::null()));
    let events = running.until("ready");
    (running, events)
}

fn nbd(events: &[Value]) -> NbdClient<TcpStream> {
    let stream = TcpStream::connect(address(events, "nbd")).unwrap();
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
        let (running, events) = serve(driver, &image);
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
        // A page of data, and the table and a leaf of the map, twice.
        assert!((5 * 4096..=scene::SIZE as u64).contains(&kept), "{driver} {kept}");
        assert!(fs::read(&image).unwrap() == vec![7; scene::SIZE], "{driver}");
        drop(running);
        // The changes are gone.
        let (_running, events) = serve(driver, &image);
        assert_eq!(self::nbd(&events).read(512, 512).unwrap().unwrap(), [7; 512]);
    }
}

#[test]
fn overlay_outlives_the_worker() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 7);
    let (running, events) = serve("uring", &image);
    let attach = |host| {
        let nqn = lent(&events)["nqn"].as_str().unwrap();
        NvmeClient::new(host, nqn).attach_plain(address(&events, "nvme-tcp"))
    };
    let mut nvme = attach(LAPTOP).unwrap();
    nvme.write_blocks(4, &[5; 512], false).unwrap();
    let worker = running.worker();
    let number: i32 = worker.file_name().unwrap().to_str().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(number).unwrap(), Signal::KILL).unwrap();
    let mut again = process::find(|| attach(DESK).ok()).expect("a new worker");
    let wanted = [&[7; 4 * 512][..], &[5; 512], &[7; 3 * 512]].concat();
    assert!(again.read(0).unwrap() == wanted);
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
        let (_running, events) = serve_within(ADDRESSES, driver, &image);
        let disk = lent(&events);
        let limit = disk["overlay"]["limit"].as_u64().unwrap();
        // Without the table of the map.
        assert!((61_439_000..61_440_000).contains(&limit), "{driver} {limit}");
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
