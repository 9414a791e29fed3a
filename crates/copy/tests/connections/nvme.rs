//! Connections to our own NVMe/TCP target.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use client::ignoring_subsystem;
use copy::{Endpoint, EndpointError, NvmeEndpoint, NvmeHost, Request, RequestError};

use export::{Access, Host, KeyId, Policy, Rule, Secret};
use nvme::auth::chap::Key;
use nvme::auth::credential::{chap_controller, chap_host};
use nvme::auth::{Credentials, Hash};
use nvme::status::Status;

use crate::driver::{Driven, pattern, random_requests_match_model};
use crate::machine::{BYTES, Machine, dial, eventually};

fn host() -> NvmeHost {
    let nqn = "nqn.2014-08.org.nvmexpress:uuid:host".to_owned();
    NvmeHost { nqn, id: [3; 16], credentials: None }
}

fn endpoint(machine: &Machine, wanted: &str) -> NvmeEndpoint {
    let name = format!("nvme://{}/{wanted}", machine.address);
    NvmeEndpoint::new(&name, wanted, host(), ignoring_subsystem(machine.dial()))
}

fn machine() -> (Machine, Vec<u8>) {
    let mut machine = Machine::new();
    let bytes = machine.export_disk(1);
    (machine, bytes)
}

#[test]
fn disk_properties_are_reported() {
    let (machine, _) = machine();
    let (disk, _lane) = endpoint(&machine, "").open().unwrap();
    assert_eq!((disk.bytes, disk.block, disk.writable), (BYTES as u64, 512, true));
    assert_eq!((disk.reports_extents, disk.remote, disk.blank), (false, true, false));
    assert_eq!(disk.max_zero, 65536 * 512);
    assert!(disk.max_transfer >= 64 << 10, "{}", disk.max_transfer);
    assert_eq!(
        disk.identity,
        "nvme nqn.2014-08.org.nvmexpress:uuid:1 uuid 01010101010101010101010101010101 serial SN1"
    );
}

#[test]
fn concurrent_random_requests_match_model() {
    for seed in [1, 77] {
        let (machine, bytes) = machine();
        let (_, connection) = endpoint(&machine, "").open().unwrap();
        random_requests_match_model(connection, bytes, seed);
    }
}

#[test]
fn digests_work() {
    let (machine, bytes) = machine();
    let (_, connection) = endpoint(&machine, "").with_digests().open().unwrap();
    random_requests_match_model(connection, bytes, 5);
}

#[test]
fn unaligned_or_out_of_range_request_fails() {
    let (machine, _) = machine();
    let mut driven = Driven::new(endpoint(&machine, "").open().unwrap().1);
    assert_eq!(driven.read(1, 512), Err(RequestError::OutOfRange));
    assert_eq!(driven.read(BYTES as u64, 512), Err(RequestError::OutOfRange));
    assert_eq!(driven.write(100, &[1; 512]), Err(RequestError::OutOfRange));
    assert_eq!(driven.zero(0, 100), Err(RequestError::Unsupported));
    assert_eq!(driven.extents(0, 4096), Err(RequestError::Unsupported));
    assert_eq!(driven.read(0, 512).map(|bytes| bytes.len()), Ok(512));
}

#[test]
fn disk_is_found_by_any_of_its_names() {
    let (mut machine, _) = machine();
    let first = "nqn.2014-08.org.nvmexpress:uuid:1".to_owned();
    assert_eq!(endpoint(&machine, "").nqn().unwrap(), first);
    machine.export_disk(2);
    for wanted in ["1", "uuid:1", "disk1", "SN1", "sn1", "Model 1", &first] {
        assert_eq!(endpoint(&machine, wanted).nqn().unwrap(), first, "{wanted}");
    }
    for wanted in ["", "3", "SN3"] {
        let Err(EndpointError::Permanent(sentence)) = endpoint(&machine, wanted).nqn() else {
            panic!("{wanted} is there");
        };
        assert!(sentence.contains("its disks: disk1, disk2"), "{sentence}");
    }
    let (disk, _) = endpoint(&machine, "Model 2").open().unwrap();
    assert_eq!(disk.bytes, BYTES as u64);
}

#[test]
fn error_of_an_unidentified_disk_is_reported() {
    let (mut machine, _) = machine();
    machine.export_disk(2);
    let dial = machine.dial();
    let unreachable = Arc::new(move |nqn: &str| match nqn.ends_with(":2") {
        true => Err(EndpointError::Temporary("no route to disk 2".to_owned())),
        false => dial(),
    });
    let endpoint = |wanted| NvmeEndpoint::new("there", wanted, host(), unreachable.clone());
    let Err(EndpointError::Temporary(sentence)) = endpoint("SN2").nqn() else {
        panic!("disk 2 was identified");
    };
    assert!(sentence.starts_with("no route to disk 2; "), "{sentence}");
    assert!(sentence.contains("its disks: nqn."), "{sentence}");
    assert!(endpoint("SN1").nqn().is_ok());
}

#[test]
fn missing_disk_is_refused_with_a_message() {
    let (machine, _) = machine();
    match endpoint(&machine, "nqn.2026-01.org.example:none").open().err() {
        Some(EndpointError::Permanent(sentence)) => {
            assert!(sentence.contains("refused this host"), "{sentence}");
        }
        other => panic!("{other:?}"),
    }
}

/// R23, R24: after any loss, a new connection leads to the same disk.
#[test]
fn r23_lost_connection_is_reopened() {
    let (mut machine, bytes) = machine();
    let endpoint = endpoint(&machine, "");
    let (before, connection) = endpoint.open().unwrap();
    let mut driven = Driven::new(connection);
    for _ in 0..3 {
        assert!(driven.read(4096, 65536).unwrap() == bytes[4096..4096 + 65536]);
        let buffer = driven.buffer(512);
        machine.stop();
        driven.submit(Request::Read { offset: 0, buffer });
        let lost = driven.wait(1).map(|completions| completions.len()).unwrap_err();
        assert!(!lost.reason.is_empty());
        assert!(matches!(endpoint.open().err(), Some(EndpointError::Temporary(_))));
        machine.start();
        let (after, connection) = eventually(|| endpoint.open().ok());
        assert_eq!(after, before);
        driven = Driven::new(connection);
    }
}

#[test]
fn several_connections_share_one_disk() {
    let (machine, mut bytes) = machine();
    let endpoint = endpoint(&machine, "");
    let mut connections: Vec<_> = (0..4).map(|_| Driven::new(endpoint.open().unwrap().1)).collect();
    for (at, connection) in connections.iter_mut().enumerate() {
        let data = pattern(at as u64, 1 << 20);
        let largest = 256 << 10;
        for (piece, chunk) in data.chunks(largest).enumerate() {
            connection.write(((at << 20) + piece * largest) as u64, chunk).unwrap();
        }
        bytes[at << 20..(at + 1) << 20].copy_from_slice(&data);
    }
    connections.iter_mut().for_each(|connection| connection.flush().unwrap());
    assert!(machine.bytes(0) == bytes);
}

fn key(byte: u8) -> Key {
    Key { hash: Some(Hash::Sha256), key: Secret::new(vec![byte; 32]) }
}

/// A machine that accepts hosts with `key(1)`, and authenticates itself with `key(2)`.
fn keyed_machine() -> (Machine, Vec<u8>) {
    let (mut machine, bytes) = machine();
    machine.stop();
    machine.keyed = true;
    let rule = Rule { disk: None, access: Access::Writable };
    let known = Host {
        id: host().nqn,
        name: "laptop".to_owned(),
        key: KeyId::new(7),
        credentials: vec![chap_host(key(1).emit(), false), chap_controller(key(2).emit())],
        rules: vec![rule],
    };
    machine.catalogue.set_policy(Policy { hosts: vec![Arc::new(known)] });
    machine.start();
    (machine, bytes)
}

fn with_key(machine: &Machine, own: u8, theirs: u8) -> NvmeEndpoint {
    let credentials = Credentials { controller: Some(key(theirs)), ..Credentials::new(key(own)) };
    let host = NvmeHost { credentials: Some(Arc::new(credentials)), ..host() };
    NvmeEndpoint::new("nvme://keyed", "", host, ignoring_subsystem(machine.dial()))
}

#[test]
fn both_sides_authenticate_if_required() {
    let (machine, bytes) = keyed_machine();
    let mut driven = Driven::new(with_key(&machine, 1, 2).open().unwrap().1);
    assert!(driven.read(0, 4096).unwrap() == bytes[..4096]);
    for (own, theirs) in [(3, 2), (1, 3)] {
        match with_key(&machine, own, theirs).open().err() {
            Some(EndpointError::Permanent(sentence)) => {
                assert!(sentence.contains("authentication failed"), "{sentence}");
            }
            other => panic!("{own} {theirs}: {other:?}"),
        }
    }
    match endpoint(&machine, "").open().err() {
        Some(EndpointError::Permanent(sentence)) => assert!(sentence.contains("key"), "{sentence}"),
        other => panic!("{other:?}"),
    }
}

/// An idle connection stays alive if it is driven at its deadlines, else it is lost.
#[test]
fn idle_connection_is_kept_alive() {
    let (machine, bytes) = machine();
    let endpoint = endpoint(&machine, "").with_keep_alive(Duration::from_secs(4));
    let (mut driven, mut left) =
        (Driven::new(endpoint.open().unwrap().1), Driven::new(endpoint.open().unwrap().1));
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        let deadline = driven.connection.deadline().unwrap();
        thread::sleep(deadline.saturating_duration_since(Instant::now()));
        driven.connection.advance().unwrap();
    }
    assert!(driven.read(0, 512).unwrap() == bytes[..512]);
    let buffer = left.buffer(512);
    left.submit(Request::Read { offset: 0, buffer });
    assert!(left.wait(1).is_err());
}

#[test]
fn disk_beyond_the_32nd_is_found_by_name() {
    let (machine, _) = machine();
    (2..=40).for_each(|number| machine.export_file(number, &machine.files[0]));
    let last = endpoint(&machine, "disk40").nqn().unwrap();
    assert_eq!(last, "nqn.2014-08.org.nvmexpress:uuid:40");
    let Err(EndpointError::Permanent(sentence)) = endpoint(&machine, "none").nqn() else {
        panic!()
    };
    assert!(sentence.contains("disk1, ") && sentence.contains("and 24 others"), "{sentence}");
}

/// Passes connections on to a target, and replaces the status of the next answers to commands of
/// I/O queues that are not reads.
struct Proxy {
    address: SocketAddr,
    statuses: Arc<Mutex<Vec<Status>>>,
    connections: Arc<AtomicUsize>,
}

impl Proxy {
    fn new(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (statuses, connections) = (Arc::<Mutex<Vec<Status>>>::default(), Arc::default());
        let proxy = Self { address, statuses, connections };
        let (statuses, connections) = (proxy.statuses.clone(), proxy.connections.clone());
        // Errors of a host that disconnects are ignored.
        thread::spawn(move || {
            for host in listener.incoming().flatten() {
                let target = TcpStream::connect(target).unwrap();
                let (statuses, connections) = (statuses.clone(), connections.clone());
                thread::spawn(move || drop(pass(host, target, &statuses, &connections)));
            }
        });
        proxy
    }
}

fn pass(
    mut host: TcpStream,
    mut target: TcpStream,
    statuses: &Mutex<Vec<Status>>,
    connections: &AtomicUsize,
) -> std::io::Result<()> {
    // ICReq, then a capsule with Connect and its queue identifier.
    let mut start = [0; 128 + 8 + 64];
    let (mut from, mut to) = (host.try_clone()?, target.try_clone()?);
    let mut reply = [0; 128];
    from.read_exact(&mut start[..128])?;
    to.write_all(&start[..128])?;
    target.read_exact(&mut reply)?;
    host.write_all(&reply)?;
    from.read_exact(&mut start[128..])?;
    to.write_all(&start[128..])?;
    let is_io = start[128 + 8 + 42] != 0;
    connections.fetch_add(usize::from(is_io), Ordering::SeqCst);
    thread::spawn(move || std::io::copy(&mut from, &mut to));
    let mut is_connected = false;
    loop {
        let mut pdu = vec![0; 8];
        target.read_exact(&mut pdu)?;
        let len = u32::from_le_bytes([pdu[4], pdu[5], pdu[6], pdu[7]]);
        pdu.resize(usize::try_from(len).unwrap(), 0);
        target.read_exact(&mut pdu[8..])?;
        // CapsuleResp; the first one is that of Connect.
        if is_io
            && pdu[0] == 5
            && std::mem::replace(&mut is_connected, true)
            && let Some(status) = statuses.lock().unwrap().pop()
        {
            pdu[22..24].copy_from_slice(&status.to_field().to_le_bytes());
        }
        host.write_all(&pdu)?;
    }
}

#[test]
fn transient_nvme_status_is_retried_on_the_same_association() {
    let (machine, _) = machine();
    let proxy = Proxy::new(machine.address);
    let dial = ignoring_subsystem(dial(proxy.address));
    let endpoint = NvmeEndpoint::new("nvme://there", "", host(), dial);
    let mut driven = Driven::new(endpoint.open().unwrap().1);
    let interrupted = Status::COMMAND_INTERRUPTED;
    for statuses in [vec![interrupted; 2], vec![Status::INTERNAL_ERROR; 5]] {
        proxy.statuses.lock().unwrap().extend(statuses);
        driven.write(8192, &[9; 4096]).unwrap();
        assert_eq!(machine.bytes(0)[8192..12288], [9; 4096]);
        assert!(proxy.statuses.lock().unwrap().is_empty());
    }
    proxy.statuses.lock().unwrap().push(interrupted);
    driven.flush().unwrap();
    proxy.statuses.lock().unwrap().extend([Status::INTERNAL_ERROR; 6]);
    assert_eq!(driven.write(8192, &[9; 4096]), Err(RequestError::Refused));
    proxy.statuses.lock().unwrap().push(Status::INTERNAL_ERROR.dnr());
    assert_eq!(driven.write(8192, &[9; 4096]), Err(RequestError::Refused));
    assert_eq!(proxy.connections.load(Ordering::SeqCst), 1);
}
