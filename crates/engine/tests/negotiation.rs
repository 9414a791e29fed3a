//! Listeners where this end sends first: cleartext negotiation, how connections continue with and
//! without TLS, and what idle ones can cost. A toy negotiation of four-byte words precedes the toy
//! protocol, over loopback TCP.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod toy;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::tls::{self, Hash, Psk, Stream};
use engine::{
    Config, Driver, Engine, Limits, MakeSession, NegotiationStep, Negotiator, NextStep, Security,
};
use export::{Auth, Event, KeyId, Secret};
use toy::{
    BLOCK, Client, Log, SessionOptions, UNLIMITED, memory_export, pattern, session_maker, wait_for,
};

const PATIENCE: Duration = Duration::from_secs(30);
const HELLO: [u8; 6] = *b"hello\n";
const LONG: usize = 8 << 20;

/// The words: `tls.` starts TLS, `deny` is answered, `long` is answered at length, `bye.` closes,
/// `ugly` is refused, `boom` panics. `more` waits for more without consuming. Everything else is
/// for the session.
fn negotiate(received: &[u8], open: &MakeSession) -> NegotiationStep {
    let reply = |bytes: &[u8], next| NegotiationStep { consumed: 4, reply: bytes.to_vec(), next };
    match received.get(..4) {
        None => NegotiationStep { consumed: 0, reply: Vec::new(), next: NextStep::Wait },
        Some(b"tls.") => reply(b"yes.", NextStep::Secure(open.clone())),
        Some(b"deny") => reply(b"no..", NextStep::Wait),
        Some(b"long") => reply(&vec![b'!'; LONG], NextStep::Wait),
        Some(b"bye.") => reply(b"bye.", NextStep::Close),
        Some(b"ugly") => reply(b"", NextStep::Refuse("with an ugly word")),
        Some(b"boom") => panic!("as the test wants it"),
        Some(b"more") => NegotiationStep { consumed: 0, reply: Vec::new(), next: NextStep::Wait },
        Some(_) => NegotiationStep { consumed: 0, reply: Vec::new(), next: NextStep::Plain },
    }
}

fn negotiation(open: MakeSession) -> Negotiator {
    let mut has_greeted = false;
    Box::new(move |bytes| {
        if !std::mem::replace(&mut has_greeted, true) {
            assert!(bytes.is_empty());
            return NegotiationStep { consumed: 0, reply: HELLO.to_vec(), next: NextStep::Wait };
        }
        negotiate(bytes, &open)
    })
}

struct TestServer {
    engine: Engine,
    address: SocketAddr,
    /// Logs of the cleartext sessions, and of those over TLS.
    plain: Arc<Log>,
    secured: Arc<Log>,
    events: Arc<Mutex<Vec<Event>>>,
}

fn key(byte: u8) -> Psk {
    let secret = Secret::new(vec![byte; 32]);
    Psk { identity: "host".to_owned(), secret, hash: Hash::Sha256, key: Some(KeyId::new(7)) }
}

fn start(driver: Driver, limits: Limits, auth: Auth) -> TestServer {
    let events = Arc::new(Mutex::new(Vec::new()));
    let events_in = events.clone();
    let sink = Arc::new(move |event| events_in.lock().unwrap().push(event));
    let engine = Engine::start(Config { driver, limits, ..Config::default() }, sink).unwrap();
    let (plain, secured) = (Arc::new(Log::default()), Arc::new(Log::default()));
    let disk = memory_export(8 << 20);
    let behind = session_maker(&secured, &disk, SessionOptions::default());
    let security = Security {
        auth,
        keys: Some(Arc::new(|| vec![key(1)])),
        plain: Arc::new(move || auth == Auth::None),
        negotiation: Some(Arc::new(move |_| negotiation(behind.clone()))),
        certificates: None,
    };
    let open = session_maker(&plain, &disk, SessionOptions::default());
    let address = engine.listen((Ipv4Addr::LOCALHOST, 0).into(), None, security, open).unwrap();
    TestServer { engine, address, plain, secured, events }
}

impl TestServer {
    /// Connects and reads the greeting.
    fn enter(&self) -> Client {
        let mut client = self.raw();
        assert_eq!(read(&mut client, HELLO.len()), HELLO);
        client
    }

    fn raw(&self) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Client(stream)
    }

    fn secure(&self) -> std::io::Result<Stream> {
        let mut client = self.enter();
        client.0.write_all(b"tls.").unwrap();
        assert_eq!(read(&mut client, 4), b"yes.");
        tls::connect(client.0, key(1), Instant::now() + PATIENCE)
    }

    fn refusals(&self) -> Vec<&'static str> {
        let reason = |event: &Event| match event {
            Event::Refused { reason, .. } => *reason,
            other => panic!("{other:?}"),
        };
        self.events.lock().unwrap().iter().map(reason).collect()
    }

    fn opened(&self) -> (usize, usize) {
        (Log::read(&self.plain.opened), Log::read(&self.secured.opened))
    }

    fn stop(self) {
        assert!(self.engine.stop(PATIENCE));
        assert_eq!(
            (Log::read(&self.plain.violations), Log::read(&self.secured.violations)),
            (0, 0)
        );
    }
}

fn read(client: &mut Client, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    client.0.read_exact(&mut bytes).unwrap();
    bytes
}

/// Reads until the other end closes.
fn rest(client: &mut Client) -> Vec<u8> {
    let mut bytes = Vec::new();
    match client.0.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    bytes
}

fn ask(stream: &mut Stream, tag: u32) {
    stream.write_all(&Client::command(b'E', tag, 0, 0)).unwrap();
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..4], tag.to_le_bytes());
}

#[test]
fn cleartext_continues_without_losing_bytes() {
    for driver in [Driver::Auto, Driver::Blocking] {
        let server = start(driver, UNLIMITED, Auth::None);
        // Alone; after other words; with all that follows in one segment; byte by byte.
        let mut client = server.enter();
        assert_eq!(client.ask(b'E', 1), 0);
        let mut client = server.enter();
        client.0.write_all(b"denydenydeny").unwrap();
        assert_eq!(read(&mut client, 12), b"no..no..no..");
        assert_eq!(client.ask(b'E', 1), 0);
        for pieces in [usize::MAX, 1] {
            let mut client = server.raw();
            let data = pattern(5, 6 * BLOCK);
            let mut bytes = Client::command(b'E', 1, 0, 0).to_vec();
            bytes.extend(Client::command(b'W', 2, 9, data.len()));
            bytes.extend(&data);
            bytes.chunks(pieces.min(bytes.len())).for_each(|c| client.0.write_all(c).unwrap());
            assert_eq!(read(&mut client, HELLO.len()), HELLO);
            assert_eq!(client.receive().unwrap(), (1, 0, Vec::new()));
            assert_eq!(client.receive().unwrap(), (2, 0, Vec::new()));
            assert_eq!(client.read(9, data.len()).unwrap(), data);
        }
        assert_eq!((server.opened(), server.refusals()), ((4, 0), vec![]));
        server.stop();
    }
}

#[test]
fn starttls_gets_its_own_session() {
    for driver in [Driver::Auto, Driver::Blocking] {
        for auth in [Auth::None, Auth::Required] {
            let server = start(driver, UNLIMITED, auth);
            let mut stream = server.secure().unwrap();
            assert_eq!(stream.channel().identity, "host");
            ask(&mut stream, 3);
            stream.close().unwrap();
            assert_eq!((server.opened(), server.refusals()), ((0, 1), vec![]));
            server.stop();
        }
    }
}

/// X02, negotiation: where authentication is required, cleartext is refused whatever the negotiator
/// decides.
#[test]
fn x02_cleartext_is_refused_where_auth_is_required() {
    let server = start(Driver::Auto, UNLIMITED, Auth::Required);
    let mut client = server.enter();
    client.0.write_all(b"deny").unwrap();
    assert_eq!(read(&mut client, 4), b"no..");
    client.0.write_all(&Client::command(b'E', 1, 0, 0)).unwrap();
    assert_eq!(rest(&mut client), b"");
    wait_for("the report", || server.refusals() == ["TLS is required here"]);
    assert_eq!(server.opened(), (0, 0));
    server.stop();
}

/// X04: bytes in the segment of the TLS request, or before its answer, are passed neither to the
/// handshake nor to the session.
#[test]
fn x04_bytes_after_the_starttls_request_end_it() {
    for auth in [Auth::None, Auth::Required] {
        let server = start(Driver::Auto, UNLIMITED, auth);
        let junk: [&[u8]; 4] = [b"x", b"deny", &[22, 3, 1, 0, 9], &Client::command(b'E', 1, 0, 0)];
        for junk in junk {
            let mut client = server.enter();
            client.0.write_all(&[b"tls.", junk].concat()).unwrap();
            assert_eq!(rest(&mut client), b"");
        }
        // Everything in one segment, before the greeting is read.
        let mut client = server.raw();
        client.0.write_all(b"denytls.tls.").unwrap();
        let _ = rest(&mut client);
        wait_for("the server to empty", || server.engine.connections() == 0);
        assert_eq!(server.refusals(), ["sent clear text after it had requested TLS"; 5]);
        assert_eq!(server.opened(), (0, 0));
        ask(&mut server.secure().unwrap(), 1);
        server.stop();
    }
}

/// X03: a peer that continues in clear text after it requested TLS is disconnected.
#[test]
fn x03_cleartext_after_the_starttls_request_ends_it() {
    let server = start(Driver::Auto, UNLIMITED, Auth::None);
    let words: [&[u8]; 3] = [&Client::command(b'E', 1, 0, 0), b"tls.tls.", &[0; 300]];
    for words in words {
        let mut client = server.enter();
        client.0.write_all(b"tls.").unwrap();
        assert_eq!(read(&mut client, 4), b"yes.");
        client.0.write_all(words).unwrap();
        // There may be an alert, but nothing of a session.
        assert!(rest(&mut client).len() <= 7);
    }
    let mut client = server.enter();
    client.0.write_all(b"tls.").unwrap();
    assert_eq!(read(&mut client, 4), b"yes.");
    let wrong = tls::connect(client.0, key(2), Instant::now() + PATIENCE).unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::PermissionDenied);
    wait_for("the server to empty", || server.engine.connections() == 0);
    assert_eq!(server.opened(), (0, 0));
    server.stop();
}

#[test]
fn negotiation_can_close_or_refuse() {
    let server = start(Driver::Auto, UNLIMITED, Auth::None);
    let mut client = server.enter();
    client.0.write_all(b"bye.").unwrap();
    assert_eq!(rest(&mut client), b"bye.");
    let mut client = server.enter();
    client.0.write_all(b"ugly").unwrap();
    assert_eq!(rest(&mut client), b"");
    // More than the limit on unconsumed bytes, and endless words.
    let mut client = server.enter();
    let _ = client.0.write_all(&b"more".repeat(4 << 10));
    assert_eq!(rest(&mut client), b"");
    let mut client = server.enter();
    let _ = client.0.write_all(&b"deny".repeat(4 << 10));
    assert!(rest(&mut client).len() <= 16 << 10);
    wait_for("the server to empty", || server.engine.connections() == 0);
    let talks = "sent too much data during negotiation";
    assert_eq!(server.refusals(), ["with an ugly word", talks, talks]);
    assert_eq!(server.opened(), (0, 0));
    server.stop();
}

#[test]
fn panic_in_a_negotiator_affects_only_its_connection() {
    let server = start(Driver::Auto, UNLIMITED, Auth::None);
    let mut other = server.enter();
    let mut client = server.enter();
    client.0.write_all(b"boom").unwrap();
    assert_eq!(rest(&mut client), b"");
    other.0.write_all(b"deny").unwrap();
    assert_eq!(read(&mut other, 4), b"no..");
    ask(&mut server.secure().unwrap(), 1);
    server.stop();
}

#[test]
fn peer_that_does_not_read_does_not_block_others() {
    let server = start(Driver::Auto, UNLIMITED, Auth::None);
    let mut deaf: Vec<_> = (0..5).map(|_| server.enter()).collect();
    deaf.iter_mut().for_each(|client| client.0.write_all(b"long").unwrap());
    ask(&mut server.secure().unwrap(), 1);
    for client in &mut deaf {
        assert!(read(client, LONG).iter().all(|&byte| byte == b'!'));
        assert_eq!(client.ask(b'E', 1), 0);
    }
    server.stop();
}

/// Handshakes are rate-limited per address, negotiations are not.
#[test]
fn negotiations_do_not_count_as_handshakes() {
    let limits = Limits { at_once: 2, each_second: 0, burst: 2 };
    let server = start(Driver::Auto, limits, Auth::Required);
    let mut silent: Vec<_> = (0..50).map(|_| server.enter()).collect();
    ask(&mut server.secure().unwrap(), 1);
    // Nor do handshakes evict negotiations.
    for client in &mut silent {
        client.0.write_all(b"deny").unwrap();
        assert_eq!(read(client, 4), b"no..");
    }
    server.stop();
}

/// R36, negotiation: slow peers time out, and do not keep others out.
#[test]
fn r36_slow_negotiations_time_out_and_block_nobody() {
    let server = start(Driver::Auto, Limits::default(), Auth::Required);
    let began = Instant::now();
    let mut slow: Vec<_> = (0..200).map(|_| server.raw()).collect();
    for (at, client) in slow.iter_mut().enumerate() {
        let _ = client.0.write_all(&b"tls"[..at % 4]);
    }
    assert!(server.engine.connections() <= 128 + 200);
    wait_for("some to be accepted", || server.engine.connections() > 100);
    while server.engine.connections() > 0 {
        let connecting = Instant::now();
        ask(&mut server.secure().unwrap(), 1);
        // Less than the ten seconds after which slow peers time out.
        assert!(connecting.elapsed() < Duration::from_secs(8));
        std::thread::sleep(Duration::from_millis(500));
        assert!(began.elapsed() < Duration::from_secs(60), "{}", server.engine.connections());
    }
    assert!(server.refusals().iter().all(|&reason| reason == "the handshake timed out"));
    server.stop();
}
