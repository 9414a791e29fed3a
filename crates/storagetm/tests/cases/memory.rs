//! A host that takes all memory and all connections that it can get, on a machine with little of
//! both: other hosts are served, and the worker survives (X61).

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use rustix::net::{AddressFamily, SocketType, ipproto};

use crate::host::{NvmeClient, connect};
use crate::nbd_client::NbdClient;
use crate::scene::{DESK, Folder, LAPTOP, PROGRAM, Running, SIZE};

/// Limit of the address space of the program in KiB.
const ADDRESSES: &str = "480000";
/// Number of controllers, or NBD connections, that would need more than that.
const HOGS: usize = 164;
/// Number of reads of the whole disk that each connection requests and never receives.
const READS: u16 = 31;
/// The greedy host, and the other one.
const GREEDY: Ipv4Addr = Ipv4Addr::LOCALHOST;
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

fn serve(driver: &str, protocol: &str, disk: &str) -> Running {
    let mut command = Command::new("sh");
    let script = format!("ulimit -v {ADDRESSES} && exec \"$@\"");
    command.args([
        "-c",
        &script,
        "sh",
        PROGRAM,
        "serve",
        "--json",
        "--no-announce",
        "--io",
        driver,
    ]);
    command.args(["--listen", &format!("{protocol}:127.0.0.1:0"), disk]);
    Running::of(command.stdin(Stdio::null()))
}

/// Connects from that address of this machine.
fn from(ip: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let tcp = Some(ipproto::TCP);
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, tcp)?;
    rustix::net::bind(&socket, &SocketAddr::from((ip, 0)))?;
    rustix::net::connect(&socket, &to)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(crate::scene::LONG))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A command capsule that reads the whole disk (NVMe/TCP 1.0 §3.6.2.3; NVM Command Set 1.0 §3.2.4).
fn capsule(cid: u16) -> Vec<u8> {
    let mut bytes = vec![4, 0, 72, 0, 72, 0, 0, 0];
    let mut sqe = [0; 64];
    (sqe[0], sqe[1], sqe[4]) = (2, 0x40, 1);
    sqe[2..4].copy_from_slice(&cid.to_le_bytes());
    sqe[32..36].copy_from_slice(&u32::try_from(SIZE).unwrap().to_le_bytes());
    sqe[39] = 0x5a;
    sqe[48..50].copy_from_slice(&u16::try_from(SIZE / 512 - 1).unwrap().to_le_bytes());
    bytes.extend(sqe);
    bytes
}

/// Reads the whole disk many times. Returns what holds the memory, or `None` if access is refused.
fn hog_nvme(address: SocketAddr, disk: &str) -> Option<Box<dyn std::any::Any>> {
    let client = NvmeClient { depth: 64, ..NvmeClient::new(LAPTOP, disk) };
    let mut attached = client.attach(|| from(GREEDY, address)).ok()?;
    for cid in 0..READS {
        attached.io.stream.write_all(&capsule(cid)).ok()?;
    }
    Some(Box::new(attached))
}

fn hog_nbd(address: SocketAddr) -> Option<Box<dyn std::any::Any>> {
    let mut client = NbdClient::connected(from(GREEDY, address).ok()?).ok()?;
    client.go("disk").ok()?.ok()?;
    for _ in 0..READS {
        client.request(0, 0, 0, u32::try_from(SIZE).unwrap(), &[]).ok()?;
    }
    Some(Box::new(client))
}

fn hog_all(mut hog: impl FnMut() -> Option<Box<dyn std::any::Any>>) -> Vec<Box<dyn std::any::Any>> {
    let mut held = Vec::new();
    for _ in 0..HOGS {
        let Some(more) = hog() else { break };
        held.push(more);
    }
    held
}

#[test]
fn x61_memory_of_one_host_leaves_others_served_by_nvme() {
    for driver in ["uring", "blocking"] {
        let folder = Folder::new();
        let running = serve(driver, "nvme", &folder.image("disk.img", 7));
        let (address, names) = running.ready();
        let worker = running.worker();
        let held = hog_all(|| hog_nvme(address, &names[0]));
        assert!((10..HOGS).contains(&held.len()), "{driver}: {} controllers", held.len());
        for _ in 0..3 {
            let mut other =
                NvmeClient::new(DESK, &names[0]).attach(|| from(OTHER, address)).unwrap();
            assert_eq!(other.read(0).unwrap(), vec![7; 4096], "{driver}");
        }
        assert_eq!(running.worker(), worker, "{driver}: it lives");
        drop(held);
        let again = crate::scene::find(|| {
            let attached = NvmeClient::new(LAPTOP, &names[0]).attach(|| from(GREEDY, address));
            attached.ok()?.read(0).ok()
        });
        assert_eq!(again.unwrap(), vec![7; 4096], "{driver}: what was let go of is there again");
        assert_eq!(running.worker(), worker);
    }
}

#[test]
fn x61_memory_of_one_host_leaves_others_served_by_nbd() {
    for driver in ["uring", "blocking"] {
        let folder = Folder::new();
        let running = serve(driver, "nbd", &folder.image("disk.img", 7));
        let (address, _) = running.ready();
        let worker = running.worker();
        let held = hog_all(|| hog_nbd(address));
        assert!((20..HOGS).contains(&held.len()), "{driver}: {} connections", held.len());
        for _ in 0..3 {
            let mut other = NbdClient::connected(from(OTHER, address).unwrap()).unwrap();
            other.go("disk").unwrap().unwrap();
            assert_eq!(other.read(0, 4096).unwrap(), Ok(vec![7; 4096]), "{driver}");
        }
        drop(held);
        let again = crate::scene::find(|| {
            let mut client = NbdClient::connected(connect(address).ok()?).ok()?;
            client.go("disk").ok()?.ok()?;
            client.read(0, 4096).ok()?.ok()
        });
        assert_eq!(again.unwrap(), vec![7; 4096], "{driver}");
        assert_eq!(running.worker(), worker, "{driver}: it lives");
    }
}
