//! TLS at a listener: who is accepted, what others can learn, and what they can cost. With both
//! drivers where they are involved; over loopback TCP, with the toy protocol.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod toy;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use engine::tls::{self, Hash, Psk, Stream};
use engine::{Config, Driver, Engine, Limits, Security};
use export::{Auth, Channel, Event, KeyId, Peer, Secret};
use toy::{
    BLOCK, Client, Log, SessionOptions, UNLIMITED, at_best, memory_export, pattern, session_maker,
    tunnel, wait_for,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// An engine with one listener for the toy protocol.
struct TestServer {
    engine: Engine,
    address: SocketAddr,
    log: Arc<Log>,
    events: Arc<Mutex<Vec<Event>>>,
    peers: Arc<Mutex<Vec<Peer>>>,
}

fn keyed(keys: impl Fn() -> Vec<Psk> + Send + Sync + 'static) -> Security {
    Security::keyed(Arc::new(keys))
}

fn start(driver: Driver, limits: Limits, security: Security) -> TestServer {
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = {
        let events = events.clone();
        Arc::new(move |event| events.lock().unwrap().push(event))
    };
    let engine = Engine::start(Config { driver, limits, ..Config::default() }, sink).unwrap();
    let (log, peers) = (Arc::new(Log::default()), Arc::new(Mutex::new(Vec::new())));
    let inner = session_maker(&log, &memory_export(8 << 20), SessionOptions::default());
    let seen = peers.clone();
    let open: engine::MakeSession = Arc::new(move |peer, account, now| {
        seen.lock().unwrap().push(peer.clone());
        inner(peer, account, now)
    });
    let address = engine.listen((Ipv4Addr::LOCALHOST, 0).into(), None, security, open).unwrap();
    TestServer { engine, address, log, events, peers }
}

impl TestServer {
    fn refusals(&self) -> Vec<&'static str> {
        let events = self.events.lock().unwrap();
        let reason = |event: &Event| match event {
            Event::Refused { reason, host, wanted, .. } if host.is_empty() && wanted.is_empty() => {
                Some(*reason)
            }
            _ => None,
        };
        events.iter().filter_map(reason).collect()
    }

    fn raw(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    fn connect(&self, key: Psk) -> std::io::Result<Stream> {
        tls::connect(self.raw(), key, Instant::now() + PATIENCE)
    }

    fn stop(self) {
        assert!(self.engine.stop(PATIENCE));
        assert_eq!(Log::read(&self.log.violations), 0);
    }
}

fn key(name: &str, byte: u8, hash: Hash) -> Psk {
    let len = if hash == Hash::Sha256 { 32 } else { 48 };
    let secret = Secret::new(vec![byte; len]);
    Psk { identity: name.to_owned(), secret, hash, key: Some(KeyId::new(byte.into())) }
}

/// Sends a command without data and checks the answer: its tag, status 0.
fn ask(stream: &mut Stream, tag: u32) {
    stream.write_all(&Client::command(b'E', tag, 0, 0)).unwrap();
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!((&answer[..4], &answer[4..]), (&tag.to_le_bytes()[..], &[0; 12][..]));
}

/// Reads until the other end closes.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    bytes
}

/// Returns the ClientHello of our client with this key.
fn hello(key: Psk) -> Vec<u8> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let begin = thread::spawn(move || tls::connect(socket, key, Instant::now() + PATIENCE));
    let (mut other, _) = listener.accept().unwrap();
    let mut bytes = vec![0; 5];
    other.read_exact(&mut bytes).unwrap();
    bytes.resize(5 + usize::from(u16::from_be_bytes([bytes[3], bytes[4]])), 0);
    other.read_exact(&mut bytes[5..]).unwrap();
    drop(other);
    assert!(begin.join().unwrap().is_err());
    bytes
}

#[test]
fn both_ends_agree_on_the_channel() {
    let keys = || vec![key("one", 1, Hash::Sha256), key("two", 2, Hash::Sha384)];
    for driver in [Driver::Auto, Driver::Blocking] {
        let server = start(driver, UNLIMITED, keyed(keys));
        for (key, cipher) in keys().into_iter().zip(["AES_128_GCM", "AES_256_GCM"]) {
            let mut stream = server.connect(key.clone()).unwrap();
            ask(&mut stream, 7);
            let peer = server.peers.lock().unwrap().pop().unwrap();
            let Channel { identity, binding, .. } = stream.channel();
            let theirs = peer.channel.as_ref().unwrap();
            assert!(theirs.cipher.contains(cipher), "{}", theirs.cipher);
            assert_eq!((peer.auth, theirs.key), (Auth::Required, key.key));
            assert_eq!((&theirs.identity, &theirs.binding), (identity, binding));
            assert_eq!(*identity, key.identity);
            assert_eq!(peer.remote().unwrap(), stream.socket().local_addr().unwrap());
            let other = server.connect(key).unwrap();
            assert_ne!(other.channel().binding, *binding);
        }
        server.stop();
    }
}

/// X02.
#[test]
fn x02_cleartext_is_refused_where_tls_is_required() {
    let server = start(Driver::Auto, UNLIMITED, keyed(|| vec![tunnel::key()]));
    for first in [&Client::command(b'E', 1, 0, 0)[..], b"\x00", b"GET / HTTP/1.0\r\n\r\n"] {
        let mut stream = server.raw();
        stream.write_all(first).unwrap();
        assert_eq!(rest(&mut stream), b"");
    }
    wait_for("the server to empty", || server.engine.connections() == 0);
    assert_eq!(Log::read(&server.log.opened), 0);
    assert_eq!(server.refusals(), ["TLS is required here"; 3]);
    server.stop();
}

#[test]
fn cleartext_is_accepted_while_permitted() {
    let lets_in = Arc::new(AtomicBool::new(true));
    let asked = lets_in.clone();
    let plain = Arc::new(move || asked.load(Ordering::SeqCst));
    let security = Security { plain, ..keyed(|| vec![tunnel::key()]) };
    let server = start(Driver::Auto, UNLIMITED, security);
    let mut client = Client::connect(server.address);
    assert_eq!(client.ask(b'E', 1), 0);
    lets_in.store(false, Ordering::SeqCst);
    let mut late = server.raw();
    late.write_all(&Client::command(b'E', 1, 0, 0)).unwrap();
    assert_eq!(rest(&mut late), b"");
    // An established connection stays.
    assert_eq!(client.ask(b'E', 2), 0);
    assert_eq!(server.peers.lock().unwrap()[0].channel, None);
    ask(&mut server.connect(tunnel::key()).unwrap(), 3);
    drop(client);
    server.stop();
}

#[test]
fn current_keys_are_used() {
    let keys = Arc::new(Mutex::new(vec![key("old", 1, Hash::Sha256)]));
    let current = keys.clone();
    let server = start(Driver::Auto, UNLIMITED, keyed(move || current.lock().unwrap().clone()));
    ask(&mut server.connect(key("old", 1, Hash::Sha256)).unwrap(), 1);
    *keys.lock().unwrap() = vec![key("new", 2, Hash::Sha256)];
    let refused = server.connect(key("old", 1, Hash::Sha256)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    ask(&mut server.connect(key("new", 2, Hash::Sha256)).unwrap(), 1);
    server.stop();
}

/// X20: a client detects that the server does not have the key.
#[test]
fn x20_server_without_the_key_is_refused() {
    let server = start(Driver::Auto, UNLIMITED, keyed(|| vec![key("name", 1, Hash::Sha256)]));
    for wrong in [key("name", 2, Hash::Sha256), key("other", 1, Hash::Sha256)] {
        let error = server.connect(wrong).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    }
    wait_for("the reports", || server.refusals().len() == 2);
    assert_eq!(server.refusals(), ["no valid key or certificate"; 2]);
    assert_eq!(Log::read(&server.log.opened), 0);
    server.stop();
}

/// X05: neither the answer nor its timing reveals whether an identity exists.
#[test]
fn x05_unknown_identity_and_wrong_key_look_alike() {
    let server =
        start(Driver::Auto, UNLIMITED, keyed(|| vec![key("NVMe1R01 known", 1, Hash::Sha256)]));
    let hellos = ["NVMe1R01 known", "NVMe1R01 other"].map(|name| hello(key(name, 9, Hash::Sha256)));
    let medians = || medians(&server, &hellos);
    let [known, unknown] =
        at_best(medians, |[known, unknown]| known.abs_diff(*unknown) < Duration::from_millis(1));
    println!("medians: {known:?} with a known name, {unknown:?} with an unknown one");
    assert!(known.abs_diff(unknown) < Duration::from_millis(1), "{known:?} and {unknown:?}");
    server.stop();
}

/// Returns the median time to the answer for each of them.
fn medians(server: &TestServer, hellos: &[Vec<u8>; 2]) -> [Duration; 2] {
    let mut took = [const { Vec::new() }; 2];
    for _ in 0..1000 {
        for (hello, took) in hellos.iter().zip(&mut took) {
            let mut stream = server.raw();
            stream.set_nodelay(true).unwrap();
            let began = Instant::now();
            stream.write_all(hello).unwrap();
            // decrypt_error (RFC 8446 §6.2), and the end of the stream.
            assert_eq!(rest(&mut stream), [21, 3, 3, 0, 2, 2, 51]);
            took.push(began.elapsed());
        }
    }
    took.map(|mut took| {
        took.sort();
        took[took.len() / 2]
    })
}

/// X03, X04: clear text around the handshake reaches no session.
#[test]
fn x04_junk_around_the_handshake_ends_it() {
    let server = start(Driver::Auto, UNLIMITED, keyed(|| vec![tunnel::key()]));
    let good = hello(tunnel::key());
    let junk: [&[u8]; 4] =
        [&[23, 3, 3, 0, 17], &[21, 3, 3, 0, 2, 2, 40], &[0; 64], &[22, 3, 3, 0, 0]];
    for junk in junk {
        let mut stream = server.raw();
        stream.write_all(&good).unwrap();
        // The server may have closed the connection already.
        let _ = stream.write_all(junk);
        let _ = stream.write_all(&[0x5a; 64]);
        let _ = stream.shutdown(Shutdown::Write);
        // There may be a ServerHello, but nothing of a session.
        let _ = rest(&mut stream);
    }
    wait_for("the server to empty", || server.engine.connections() == 0);
    assert_eq!(Log::read(&server.log.opened), 0);
    ask(&mut server.connect(tunnel::key()).unwrap(), 1);
    server.stop();
}

/// R39, before a session: malformed hellos are refused, and leak nothing.
#[test]
fn r39_malformed_hellos_leak_nothing() {
    let server = start(Driver::Auto, UNLIMITED, keyed(|| vec![tunnel::key()]));
    let good = hello(tunnel::key());
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        if bad[0] != 0x16 || at == 3 || at == 4 {
            bad.truncate(at + 5);
        }
        let mut stream = server.raw();
        stream.write_all(&bad).unwrap();
        let _ = stream.shutdown(Shutdown::Write);
        let _ = rest(&mut stream);
    }
    wait_for("the server to empty", || server.engine.connections() == 0);
    assert_eq!(Log::read(&server.log.opened), 0);
    assert!(server.refusals().len() < 40, "{} reports", server.refusals().len());
    ask(&mut server.connect(tunnel::key()).unwrap(), 1);
    server.stop();
}

/// R36: slow handshakes time out, and do not keep others out.
#[test]
fn r36_slow_handshakes_time_out_and_block_nobody() {
    let server = start(Driver::Auto, Limits::default(), keyed(|| vec![tunnel::key()]));
    let good = hello(tunnel::key());
    let began = Instant::now();
    // Idle connections, and others that send a byte now and then.
    let silent: Vec<_> = (0..20).map(|_| server.raw()).collect();
    let mut slow: Vec<_> = (0..38).map(|_| (server.raw(), 0)).collect();
    wait_for("them to be accepted", || server.engine.connections() == 58);
    while server.engine.connections() > 0 {
        for (stream, sent) in &mut slow {
            let byte = &good[*sent..=*sent];
            *sent += usize::from(stream.write_all(byte).is_ok());
        }
        let connecting = Instant::now();
        let mut stream = server.connect(tunnel::key()).unwrap();
        ask(&mut stream, 1);
        // Less than the ten seconds after which slow handshakes time out.
        assert!(connecting.elapsed() < Duration::from_secs(8));
        stream.close().unwrap();
        drop(stream);
        thread::sleep(Duration::from_millis(300));
        assert!(began.elapsed() < Duration::from_secs(60), "{} left", server.engine.connections());
    }
    drop(silent);
    server.stop();
}

/// R38, shortened: a flood of connections that close immediately leaks nothing.
#[test]
fn r38_connection_flood_leaks_nothing() {
    let server = start(Driver::Auto, Limits::default(), keyed(|| vec![tunnel::key()]));
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let (good, before) = (hello(tunnel::key()), descriptors());
    for at in 0..2000 {
        let mut stream = server.raw();
        let _ = stream.write_all(&good[..at % good.len()]);
    }
    wait_for("the server to empty", || server.engine.connections() == 0);
    // Other tests of this program have descriptors, too.
    assert!(descriptors() < before + 600, "{} descriptors, {before} before", descriptors());
    thread::sleep(Duration::from_millis(200));
    ask(&mut server.connect(tunnel::key()).unwrap(), 1);
    server.stop();
}

/// X54: peers without a key cause little work, and another address can connect meanwhile.
#[test]
fn x54_handshake_flood_is_cheap_and_blocks_nobody() {
    let tried = Arc::new(AtomicUsize::new(0));
    let counter = tried.clone();
    let security = keyed(move || {
        counter.fetch_add(1, Ordering::SeqCst);
        vec![tunnel::key()]
    });
    let server = start(Driver::Auto, Limits::default(), security);
    let wrong = hello(key("NVMe1R02 host subsystem", 9, Hash::Sha384));
    let began = Instant::now();
    let mut attempts = 0;
    let mut worst = Duration::ZERO;
    while began.elapsed() < Duration::from_secs(2) || attempts <= 400 {
        for _ in 0..50 {
            let mut stream = server.raw();
            let _ = stream.write_all(&wrong);
            attempts += 1;
        }
        let connecting = Instant::now();
        let stream = from([127, 0, 0, 2], server.address);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let stream =
            tls::connect(stream.try_clone().unwrap(), tunnel::key(), connecting + PATIENCE);
        ask(&mut stream.unwrap(), 1);
        worst = worst.max(connecting.elapsed());
    }
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
    let legit = Log::read(&server.log.opened);
    let tried = tried.load(Ordering::SeqCst) - legit;
    assert!(tried <= 40 + 20 * seconds, "{tried} of {attempts} were tried in {seconds} s");
    assert!(worst < Duration::from_secs(8), "a neighbour took {worst:?}");
    assert!(server.refusals().contains(&"too many connection attempts from this address"));
    server.stop();
}

/// Connects from this local address.
fn from(local: [u8; 4], to: SocketAddr) -> TcpStream {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((local, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

#[test]
fn key_updates_are_transparent() {
    for driver in [Driver::Auto, Driver::Blocking] {
        let server = start(driver, UNLIMITED, keyed(|| vec![tunnel::key()]));
        let mut stream = server.connect(tunnel::key()).unwrap();
        for round in 0..20u32 {
            let data = pattern(round as usize, 64 << 10);
            stream.write_all(&Client::command(b'W', 8, round * 128, data.len())).unwrap();
            // In the middle of a payload; every other time a key update of the other end is
            // requested, too.
            stream.write_all(&data[..1000]).unwrap();
            stream.update(round % 2 == 0).unwrap();
            stream.write_all(&data[1000..]).unwrap();
            let mut answer = [0; 16];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer[4..], [0; 12]);
            stream.write_all(&Client::command(b'R', 7, round * 128, data.len())).unwrap();
            let mut read = vec![0; 16 + data.len()];
            stream.read_exact(&mut read).unwrap();
            assert!(read[16..] == data);
        }
        assert!(stream.updates_seen() >= 9, "{} changes of the other end", stream.updates_seen());
        stream.close().unwrap();
        server.stop();
    }
}

#[test]
fn close_notify_is_sent_and_truncation_is_an_error() {
    for driver in [Driver::Auto, Driver::Blocking] {
        let server = start(driver, UNLIMITED, keyed(|| vec![tunnel::key()]));
        // The session closes: its answer, close_notify, end of stream.
        let mut stream = server.connect(tunnel::key()).unwrap();
        stream.write_all(&Client::command(b'C', 1, 0, 0)).unwrap();
        let mut sent = Vec::new();
        stream.read_to_end(&mut sent).unwrap();
        assert_eq!(sent.len(), 16);
        // We send close_notify in the middle of a payload: the other end does the same and closes.
        let mut stream = server.connect(tunnel::key()).unwrap();
        stream.write_all(&Client::command(b'W', 1, 0, BLOCK)).unwrap();
        stream.write_all(&[1; 100]).unwrap();
        stream.close().unwrap();
        wait_for("the connection to go", || server.engine.connections() == 1);
        // Truncation without close_notify.
        let mut stream = server.connect(tunnel::key()).unwrap();
        ask(&mut stream, 1);
        drop(stream);
        wait_for("the server to empty", || server.engine.connections() <= 1);
        wait_for("the sessions' ends", || Log::read(&server.log.disconnected) == 3);
        server.stop();
    }
}

/// A byte is modified in transit: the connection ends, and its session has seen nothing of the
/// record.
#[test]
fn modified_record_ends_the_connection() {
    let server = start(Driver::Auto, UNLIMITED, keyed(|| vec![tunnel::key()]));
    let mut stream = server.connect(tunnel::key()).unwrap();
    ask(&mut stream, 1);
    (&mut stream.socket()).write_all(&[&[23, 3, 3, 0, 40][..], &[0x5a; 40]].concat()).unwrap();
    let mut rest = Vec::new();
    // The alert of the other end is the last that it sends.
    let _ = stream.read_to_end(&mut rest);
    assert_eq!(rest, b"");
    wait_for("the connection to go", || server.engine.connections() == 0);
    let events = server.events.lock().unwrap();
    assert!(matches!(events[..], [Event::Violation { rule: "TlsBadRecordMac", .. }]), "{events:?}");
    drop(events);
    server.stop();
}

#[test]
fn stopping_drops_pending_handshakes() {
    let server = start(Driver::Auto, UNLIMITED, keyed(|| vec![tunnel::key()]));
    let silent: Vec<_> = (0..5).map(|_| server.raw()).collect();
    let mut slow = server.raw();
    slow.write_all(&hello(tunnel::key())[..50]).unwrap();
    wait_for("them to be accepted", || server.engine.connections() == 6);
    let began = Instant::now();
    server.stop();
    // Less than the handshake timeout of ten seconds.
    assert!(began.elapsed() < Duration::from_secs(8));
    assert_eq!(rest(&mut slow), b"");
    drop(silent);
}
