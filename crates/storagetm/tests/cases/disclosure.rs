//! What an unauthenticated peer can learn, and which addresses answer at all: X01, X02, X52.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use std::{fs, thread};

use engine::tls::{Hash, Psk, Stream};
use export::Secret;
use pair::client::{ClientInfo, Step};
use pair::{Client, Code};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::alone::{Cable, ELSEWHERE, MACHINE, is_alone};
use crate::host::{NvmeClient, connect, connect_tls, pairing_psk};
use crate::nbd_client;
use crate::scene::{DESK, Folder, KEYED, LAPTOP, Running, SIZE, contains};
use crate::tap::Tap;

/// Addresses of the near end with listeners by default.
const NEAR: [&str; 2] = ["169.254.7.9", "fe80::1"];
const PORTS: [u16; 4] = [3260, 4420, 8009, 10809];
/// The last of them, at which the client sends first.
const NBD: u16 = 10809;
/// How long an unauthenticated peer reads.
const MOMENT: Duration = Duration::from_millis(300);
/// Less than the ten-second timeout of incomplete handshakes.
const SOON: Duration = Duration::from_secs(5);

/// Returns an ICReq (NVMe/TCP 1.0 §3.6.2.2).
fn icreq() -> Vec<u8> {
    let mut bytes = vec![0; 128];
    (bytes[2], bytes[4]) = (128, 128);
    bytes
}

/// Reads until the timeout or the end of the stream.
fn read_to_timeout(mut stream: impl Read) -> Vec<u8> {
    let (mut all, mut some) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut some) {
        all.extend_from_slice(&some[..count]);
    }
    all
}

/// Sends bytes in plaintext. Returns the reply within `patience`, and whether the connection was
/// closed.
fn reply(address: SocketAddr, bytes: &[u8], patience: Duration) -> (Vec<u8>, bool) {
    let mut stream = connect(address).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    let _ = stream.write_all(bytes);
    let (mut all, mut some) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut some) {
            Ok(0) => return (all, true),
            Ok(count) => all.extend_from_slice(&some[..count]),
            Err(error) => return (all, error.kind() != ErrorKind::WouldBlock),
        }
    }
}

/// Returns the reply in the public pairing channel, to `bytes` and to silence.
fn reply_in_pairing_channel(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let Ok(mut channel) = connect_tls(address, pairing_psk()) else { return Vec::new() };
    channel.socket().set_read_timeout(Some(MOMENT)).unwrap();
    let _ = channel.write_all(bytes).and_then(|()| channel.flush());
    read_to_timeout(channel)
}

/// Tries to pair with a wrong code; returns everything received in the channel.
fn pair_with_wrong_code(address: SocketAddr, code: &Code) -> Vec<u8> {
    let Ok(mut channel) = connect_tls(address, pairing_psk()) else { return Vec::new() };
    channel.socket().set_read_timeout(Some(MOMENT)).unwrap();
    let asking = ClientInfo { host: LAPTOP, name: "a guest", writable: true };
    let binding = channel.channel().binding;
    let mut client = Client::new(code, &asking, binding, Zeroizing::new([9; 32]));
    let (mut all, mut some) = (Vec::new(), [0; 4096]);
    loop {
        while let Some(step) = client.poll() {
            match step {
                Step::Send(bytes) => send(&mut channel, &bytes),
                Step::Failed(_) => return all,
                other => panic!("let in without the code: {other:?}"),
            }
        }
        match channel.read(&mut some) {
            Ok(count @ 1..) => {
                all.extend_from_slice(&some[..count]);
                client.receive(&some[..count]);
            }
            _ => client.disconnected(),
        }
    }
}

fn send(channel: &mut Stream, bytes: &[u8]) {
    channel.write_all(bytes).and_then(|()| channel.flush()).unwrap();
}

/// Returns everything an unauthenticated peer receives, on the wire and in TLS channels.
fn interrogate(target: SocketAddr, wrong: &Code, disk: &str) -> Vec<u8> {
    let tap = Tap::on(target);
    let mut received = Vec::new();
    let discover = [icreq(), vec![4, 0, 72, 0, 72, 0, 0, 0]].concat();
    let hello = [0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0];
    for bytes in [&discover[..], b"GET / HTTP/1.0\r\n\r\n", &[0xff; 300], &hello, &[0x16; 300], b""]
    {
        received.extend(reply(tap.address, bytes, MOMENT).0);
    }
    for bytes in [&discover[..], &[0xff; 300], &[1, 2, 0, 0], b""] {
        received.extend(reply_in_pairing_channel(tap.address, bytes));
    }
    received.extend(pair_with_wrong_code(tap.address, wrong));
    let stranger = Psk {
        identity: format!("NVMe1R01 {LAPTOP} {disk} AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        secret: Secret::new(vec![7; 32]),
        hash: Hash::Sha256,
        key: None,
    };
    assert!(connect_tls(tap.address, stranger).is_err());
    // The pairing channel offers no disk under any name.
    let through = || connect_tls(tap.address, pairing_psk());
    assert!(NvmeClient::new(LAPTOP, disk).attach(through).is_err());
    received.extend(tap.received());
    received
}

/// The same for an NBD listener.
fn interrogate_nbd(target: SocketAddr) -> Vec<u8> {
    let tap = Tap::on(target);
    let mut received = Vec::new();
    let name = [&11u32.to_be_bytes()[..], b"quartz-disk", &[0; 2]].concat();
    let flags = 3u32.to_be_bytes().to_vec();
    let with =
        |option, data: &[u8]| [flags.clone(), nbd_client::option_bytes(option, data)].concat();
    for bytes in [
        with(nbd_client::LIST, &[]),
        with(nbd_client::INFO, &name),
        with(nbd_client::GO, &name),
        with(nbd_client::EXPORT_NAME, b""),
        with(nbd_client::EXPORT_NAME, b"quartz-disk"),
        with(77, &[1; 77]),
        icreq(),
        vec![0xff; 300],
        vec![0x16; 300],
    ] {
        received.extend(reply(tap.address, &bytes, MOMENT).0);
    }
    let everybody = |psk| {
        let mut client = nbd_client::NbdClient::connected(connect(tap.address).unwrap()).unwrap();
        assert_eq!(client.negotiate(nbd_client::STARTTLS, &[]).unwrap(), nbd_client::ACK);
        engine::tls::connect(client.0, psk, Instant::now() + SOON)
    };
    // NBD ports do not offer pairing.
    assert!(everybody(pairing_psk()).is_err());
    received.extend(tap.received());
    received
}

/// Strings that must not be disclosed, from the events of the server.
fn secrets(lent: &Value) -> Vec<String> {
    let texts = ["nqn", "disk", "name", "model", "serial"].map(|name| lent[name].as_str().unwrap());
    let uuid = texts[0].rsplit(':').next().unwrap();
    let more = [uuid, MACHINE, "quartz", "nqn.", "storagetm"];
    let all = texts.iter().chain(&more).filter(|text| !text.is_empty());
    all.map(|text| (*text).to_owned()).chain([SIZE.to_string()]).collect()
}

/// Waits until all listeners that require a key, the disk, and with `pairs` a code are reported.
fn keyed(running: &Running, count: usize, pairs: bool) -> (Value, usize, String) {
    let (mut lent, mut code, mut found) = (None, String::new(), 0);
    while lent.is_none() || found < count || (pairs && code.is_empty()) {
        let event = running.event();
        found += usize::from(event["event"] == "listening" && event["keyed"] == true);
        code = event["code"].as_str().map_or(code, str::to_owned);
        lent = lent.or_else(|| (event["event"] == "lent").then_some(event));
    }
    (lent.unwrap(), found, code)
}

/// Returns an address of the near end as the far end connects to it.
fn near(ip: &str, port: u16) -> SocketAddr {
    match ip.parse().unwrap() {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            SocketAddrV6::new(ip, port, 0, interface()).into()
        }
        ip => (ip, port).into(),
    }
}

/// Returns the interface index of the far end in its namespace.
fn interface() -> u32 {
    let table = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
    let row = table.lines().find(|row| row.ends_with(" far")).unwrap();
    u32::from_str_radix(row.split_whitespace().nth(1).unwrap(), 16).unwrap()
}

/// Returns the ports with a listener in this namespace: TCP, and any of UDP.
fn listened() -> (BTreeSet<u16>, usize) {
    let table = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
    let rows = |text: &str| -> Vec<Vec<String>> {
        let args = |line: &str| line.split_whitespace().map(str::to_owned).collect();
        text.lines().skip(1).map(args).collect()
    };
    let port =
        |row: &Vec<String>| u16::from_str_radix(row[1].rsplit(':').next().unwrap(), 16).unwrap();
    let tcp = [rows(&table("tcp")), rows(&table("tcp6"))].concat();
    let udp = [rows(&table("udp")), rows(&table("udp6"))].concat();
    (tcp.iter().filter(|row| row[3] == "0A").map(port).collect(), udp.len())
}

/// X01: at every port, with every opening, an unauthenticated peer learns nothing about the disk or
/// the machine.
#[test]
fn x01_keyless_peer_learns_nothing_at_any_port() {
    if !is_alone("disclosure::x01_keyless_peer_learns_nothing_at_any_port") {
        return;
    }
    let (cable, folder) = (Cable::lay(), Folder::new());
    let image = folder.image("quartz-disk.img", 7);
    let running = Running::serve(&["--no-announce", "--pair", "--keys", &folder.keys(), &image]);
    let (lent, _, code) = keyed(&running, 8, true);
    let secrets = secrets(&lent);
    let nqn = lent["nqn"].as_str().unwrap();
    let wrong = if code == "12345678" { "12345679" } else { "12345678" };
    let wrong = Code::parse(wrong).unwrap();
    assert_eq!(listened(), (BTreeSet::from(PORTS), 0), "nothing else answers");
    let received: Vec<u8> = cable.there(|| {
        let all = NEAR.iter().flat_map(|ip| PORTS.map(|port| near(ip, port)));
        let each: Vec<_> = all
            .map(|at| {
                thread::spawn({
                    let (wrong, nqn) = (wrong.clone(), nqn.to_owned());
                    move || match at.port() {
                        NBD => interrogate_nbd(at),
                        _ => interrogate(at, &wrong, &nqn),
                    }
                })
            })
            .collect();
        each.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(received.len() > 500, "only {} bytes: was anybody asked?", received.len());
    let reported: Vec<&String> =
        secrets.iter().filter(|secret| contains(&received, secret)).collect();
    assert!(reported.is_empty(), "told: {reported:?}");
    // Positive control: a loopback client does receive them.
    let tap = Tap::on(([127, 0, 0, 1], 4420).into());
    let open = NvmeClient::new(DESK, nqn).attach_plain(tap.address);
    open.unwrap().read(0).unwrap();
    let serial = lent["serial"].as_str().unwrap();
    assert!(contains(&tap.received(), serial), "the serial number {serial} is told who may know");
}

/// X02: a port that requires a key closes plaintext connections without a reply.
#[test]
fn x02_keyed_port_closes_plaintext_connections() {
    if !is_alone("disclosure::x02_keyed_port_closes_plaintext_connections") {
        return;
    }
    for driver in ["uring", "blocking"] {
        let folder = Folder::new();
        let key = folder.authorize(LAPTOP, "laptop", "tls", &[]);
        let image = folder.image("disk.img", 1);
        let keys = folder.keys();
        let line = ["--pair", "--io", driver, "--listen", KEYED, "--keys", &keys, &image];
        let running = Running::serve(&line);
        let (address, names, _) = running.settled();
        for bytes in [&icreq()[..], b"G", b"\x15\x03\x03\x00\x02\x02\x28"] {
            let begun = Instant::now();
            assert_eq!(reply(address, bytes, SOON), (Vec::new(), true), "{driver}");
            assert!(begun.elapsed() < SOON);
            let refused = running.next("refused");
            assert_eq!(
                (refused["host"].as_str(), refused["wanted"].as_str()),
                (Some(""), Some(""))
            );
        }
        let client = NvmeClient::new(LAPTOP, &names[0]);
        assert!(client.attach_plain(address).is_err());
        assert_eq!(client.attach_tls(address, &key).unwrap().read(0).unwrap(), vec![1; 4096]);
    }
}

/// X52: by default only machines on the link are answered: not at a routed address, and not at a
/// link-local address through another interface than its own.
#[test]
fn x52_unasked_only_link_local_and_loopback_addresses_answer() {
    if !is_alone("disclosure::x52_unasked_only_link_local_and_loopback_addresses_answer") {
        return;
    }
    let (cable, folder) = (Cable::lay(), Folder::new());
    let image = folder.image("disk.img", 7);
    let running = Running::serve(&["--no-announce", "--keys", &folder.keys(), &image]);
    let (_, found, _) = keyed(&running, 8, false);
    assert_eq!(found, 8, "four ports at two addresses");
    let other = TcpListener::bind("0.0.0.0:5555").unwrap();
    let reach = |at: SocketAddr| TcpStream::connect_timeout(&at, SOON).is_ok();
    cable.there(|| {
        assert!(reach(near("10.98.0.1", 5555)), "the way is there");
        for port in PORTS {
            for ip in NEAR {
                assert!(reach(near(ip, port)), "{ip} port {port}");
            }
            for ip in ["10.98.0.1", "2001:db8::1", ELSEWHERE] {
                assert!(!reach(near(ip, port)), "{ip} port {port}");
            }
            assert!(!routed(near("10.98.0.1", port)));
        }
        assert!(routed(near("10.98.0.1", 5555)));
    });
    drop(other);
    let (ports, datagrams) = listened();
    assert_eq!((ports, datagrams), (BTreeSet::from(PORTS), 0));
    let reported = running.names_within(MOMENT);
    assert!(!reported.iter().any(|name| name == "listening"), "{reported:?}");
}

/// Returns whether a peer behind a router gets an answer.
fn routed(at: SocketAddr) -> bool {
    let far = "10.99.0.2:0".parse::<SocketAddr>().unwrap();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&far.into()).unwrap();
    socket.connect_timeout(&at.into(), SOON).is_ok()
}
