//! A flood of unauthenticated connections does not lock out other hosts (X54) and leaves nothing
//! behind (R38).

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use engine::tls::{Hash, Psk};
use export::Secret;
use serde_json::Value;

use crate::alone::{ELSEWHERE, is_alone};
use crate::host::{connect, connect_tls, pairing_psk};
use crate::nbd_client::{GO, STARTTLS, option_bytes};
use crate::process::field;
use crate::scene::{Folder, KEYED, LAPTOP, Running, find, run_ok};

/// Duration of the flood.
const FLOOD: Duration = Duration::from_secs(4);
/// Time limit for pairing during the flood: less than the ten-second timeout of incomplete
/// handshakes.
const TIMEOUT: Duration = Duration::from_secs(8);
/// Maximum number of connections that each kind of flood holds open.
const HELD: usize = 200;
/// Maximum growth of the worker process in KiB: less than 4 for each connection of the flood.
const GROWTH: u64 = 8 << 10;

/// Starts a handshake with an unknown key.
fn stranger(address: SocketAddr) -> Option<TcpStream> {
    let psk = Psk {
        identity: format!("NVMe1R01 {LAPTOP} nqn.2024-01.test:disk"),
        secret: Secret::new(vec![7; 32]),
        hash: Hash::Sha256,
        key: None,
    };
    assert!(connect_tls(address, psk).is_err());
    None
}

/// Opens a pairing channel, and sends an invalid hello or nothing.
fn visitor(address: SocketAddr, speaks: bool) -> Option<TcpStream> {
    let mut channel = connect_tls(address, pairing_psk()).ok()?;
    if speaks {
        let _ = channel.write_all(&[9; 40]).and_then(|()| channel.flush());
    }
    channel.socket().try_clone().ok()
}

/// Sends the first bytes of a TLS handshake and nothing else.
fn ditherer(address: SocketAddr) -> Option<TcpStream> {
    let mut stream = connect(address).ok()?;
    let _ = stream.write_all(&[0x16, 3, 1, 0, 200, 1]);
    Some(stream)
}

/// Opens connections until `over` is set; closes only the oldest ones.
fn flood(open: impl Fn() -> Option<TcpStream>, over: &AtomicBool, count: &AtomicUsize) {
    let mut held = Vec::new();
    while !over.load(Ordering::Relaxed) {
        held.extend(open());
        if held.len() > HELD {
            held.remove(0);
        }
        count.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(2));
    }
}

/// Returns the resident memory of a process in KiB.
fn memory(process: &Path) -> u64 {
    let status = fs::read_to_string(process.join("status")).unwrap();
    let memory = field(&status, "VmRSS").unwrap();
    memory.strip_suffix(" kB").unwrap().trim().parse().unwrap()
}

/// Connects, reads the greeting of an NBD server, and sends nothing.
fn nbd_listener(address: SocketAddr) -> Option<TcpStream> {
    let mut stream = connect(address).ok()?;
    stream.read_exact(&mut [0; 18]).ok()?;
    Some(stream)
}

/// Sends the flags of an NBD client (fixed newstyle, no zeroes) and an option, and returns the stream.
fn nbd_option(address: SocketAddr, option: u32, data: &[u8]) -> Option<TcpStream> {
    let mut stream = nbd_listener(address)?;
    stream.write_all(&[&3_u32.to_be_bytes()[..], &option_bytes(option, data)].concat()).ok()?;
    Some(stream)
}

/// Asks an NBD server for TLS, and sends the first bytes of a handshake and nothing else.
fn nbd_ditherer(address: SocketAddr) -> Option<TcpStream> {
    let mut stream = nbd_option(address, STARTTLS, &[])?;
    stream.read_exact(&mut [0; 20]).ok()?;
    let _ = stream.write_all(&[0x16, 3, 1, 0, 200, 1]);
    Some(stream)
}

/// A way to open a connection that does not become one of a host.
type Opens = fn(SocketAddr) -> Option<TcpStream>;

/// Starts a target that requires keys, floods the listener of that protocol from one address, and pairs from another one
/// at the same time, by NVMe/TCP.
fn pairs_beside_a_flood(protocol: &str, opens: &[Opens]) {
    let (folder, guests) = (Folder::new(), Folder::new());
    let image = folder.image("disk.img", 1);
    let (nvme, nbd) = (format!("nvme:{KEYED}"), format!("nbd:{KEYED}"));
    let line = ["--pair", "--listen", &nvme, "--listen", &nbd, "--keys", &folder.keys(), &image];
    let running = Running::serve(&line);
    let events = running.until("ready");
    let port = |protocol: &str| {
        let is_it = |it: &&Value| it["event"] == "listening" && it["protocol"] == protocol;
        u16::try_from(events.iter().find(is_it).unwrap()["port"].as_u64().unwrap()).unwrap()
    };
    let (address, pairing) = (SocketAddr::from(([127, 0, 0, 1], port(protocol))), port("nvme-tcp"));
    let worker = running.worker();
    let (over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (over, count) = (&over, &count);
    let (took, before, after) = thread::scope(|scope| {
        for open in opens {
            scope.spawn(move || flood(|| open(address), over, count));
        }
        // On a slow machine the flood takes longer to begin.
        let rises = || (count.load(Ordering::Relaxed) > 200).then_some(());
        thread::sleep(FLOOD / 5);
        let _ = find(rises);
        let before = memory(&worker);
        thread::sleep(FLOOD / 5);
        let took = [(), ()].map(|()| pair_from_elsewhere(&running, &guests, pairing));
        thread::sleep(FLOOD / 5 * 3);
        let _ = find(|| (count.load(Ordering::Relaxed) > 500).then_some(()));
        let after = memory(&worker);
        over.store(true, Ordering::Relaxed);
        (took, before, after)
    });
    let count = count.load(Ordering::Relaxed);
    println!("{count} connected; paired after {took:?}; {before} KiB, then {after} KiB");
    assert!(count > 500, "that is not a flood: {count}");
    assert!(took.iter().all(|took| *took <= TIMEOUT), "{took:?}");
    assert!(after <= before + GROWTH, "{before} KiB, then {after} KiB");
    assert_eq!(worker, running.worker(), "it is the same process");
    let output = String::from_utf8(running.output()).unwrap();
    let paired = output.lines().filter(|line| line.contains("\"event\":\"paired\""));
    let from_elsewhere = format!("\"address\":\"{ELSEWHERE}:");
    assert_eq!(paired.filter(|line| line.contains(&from_elsewhere)).count(), 2, "{output}");
}

/// X54: while one address floods the server with bad keys, abandoned pairings and idle connections,
/// another one can pair without delay, and memory use does not grow. (Wrong codes are counted for
/// all addresses together: X06.)
#[test]
fn x54_flood_from_one_address_does_not_block_others() {
    if !is_alone("flood::x54_flood_from_one_address_does_not_block_others") {
        return;
    }
    let opens: [Opens; 5] = [
        stranger,
        |address| visitor(address, true),
        |address| visitor(address, false),
        ditherer,
        |address| connect(address).ok(),
    ];
    pairs_beside_a_flood("nvme-tcp", &opens);
}

/// X54: the same with a flood of NBD clients.
#[test]
fn x54_flood_of_nbd_clients_does_not_block_pairing() {
    if !is_alone("flood::x54_flood_of_nbd_clients_does_not_block_pairing") {
        return;
    }
    let opens: [Opens; 5] = [
        |address| connect(address).ok(),
        nbd_listener,
        |address| nbd_option(address, GO, &[0; 40]),
        |address| nbd_option(address, u32::MAX, &[7; 4000]),
        nbd_ditherer,
    ];
    pairs_beside_a_flood("nbd", &opens);
}

/// Returns how long pairing from another address takes.
fn pair_from_elsewhere(running: &Running, guests: &Folder, port: u16) -> Duration {
    let code = running.code();
    let place = format!("{ELSEWHERE}:{port}");
    let kept = guests.keys();
    let line = ["pair", &place, "--hostnqn", LAPTOP, "--keys", &kept, "--code-file", "-"];
    let begun = Instant::now();
    run_ok(&line, &code);
    begun.elapsed()
}

/// R38: connections that are closed at once leave no memory and no descriptor behind. Only root can
/// count descriptors.
#[test]
fn r38_flood_of_connections_leaves_no_memory_or_descriptors() {
    if !is_alone("flood::r38_flood_of_connections_leaves_no_memory_or_descriptors") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("disk.img", 1);
    let running = Running::serve(&["--listen", KEYED, "--keys", &folder.keys(), &image]);
    let (address, _) = running.ready();
    let worker = running.worker();
    let descriptors = || fs::read_dir(worker.join("fd")).map_or(0, Iterator::count);
    let begin = [0x16, 3, 1, 0, 200, 1];
    let connect_many = |times: usize| {
        let connected = (0..times).filter_map(|at| Some((at, connect(address).ok()?)));
        connected.map(|(at, mut stream)| stream.write_all(&begin[..at % 7])).count()
    };
    // The worker may still open a few that it keeps.
    let before = descriptors() + 8;
    connect_many(1000);
    find(|| (descriptors() <= before).then_some(())).expect("descriptors are given back");
    // By now the program has allocated what it keeps for later use.
    let warm = memory(&worker);
    let connected = connect_many(20_000);
    let left = || (descriptors(), memory(&worker));
    println!("{connected} connected; {before} descriptors and {warm} KiB, then {:?}", left());
    assert!(connected > 15_000, "that is not a flood: {connected}");
    let is_back = || (descriptors() <= before && memory(&worker) <= warm + warm / 10).then_some(());
    find(is_back).unwrap_or_else(|| panic!("{before}, {warm} KiB; then {:?}", left()));
    assert_eq!(worker, running.worker(), "it is the same process");
}
