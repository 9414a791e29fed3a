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

use std::fs;
use std::net::{SocketAddr, TcpStream};

use host::NvmeClient;
use nbd_client::{NbdClient, READ_ONLY};
use rustix::process::{Pid, Signal, kill_process};
use scene::{DESK, Folder, LAPTOP, Running};
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
    let listen = ["nvme", "nbd", "iscsi"].map(|protocol| format!("{protocol}:127.0.0.1:0"));
    let listen = listen.iter().flat_map(|at| ["--listen", at.as_str()]);
    let listen: Vec<&str> = listen.collect();
    let line = ["--io", driver, "--no-announce", "--overlay", image];
    let running = Running::serve(&[&line[..], &listen].concat());
    let events = running.until("ready");
    (running, events)
}

fn nbd(events: &[Value]) -> NbdClient<TcpStream> {
    let stream = TcpStream::connect(address(events, "nbd")).unwrap();
    stream.set_read_timeout(Some(scene::LONG)).unwrap();
    let mut client = NbdClient::connected(stream).unwrap();
    let (size, flags) = client.go("").unwrap().unwrap();
    assert_eq!((size, flags & READ_ONLY), (scene::SIZE as u64, 0));
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
        assert!((4096..=scene::SIZE as u64).contains(&kept), "{driver} {kept}");
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
