//! Connections that do not come over a network: Unix sockets, inherited listening sockets, and
//! existing connections.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod toy;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::{Config, Driver, Engine, MakeSession, Security, tls};
use export::{Auth, Peer};
use toy::{
    BLOCK, Client, Log, SessionOptions, UNLIMITED, memory_export, pattern, session_maker, tunnel,
    wait_for,
};

const DRIVERS: [Driver; 2] = [Driver::Auto, Driver::Blocking];

struct TestServer {
    engine: Engine,
    log: Arc<Log>,
    open: MakeSession,
    peers: Arc<Mutex<Vec<Peer>>>,
}

fn server(driver: Driver) -> TestServer {
    let config = Config { driver, limits: UNLIMITED, ..Config::default() };
    let engine = Engine::start(config, Arc::new(|event| panic!("{event:?}"))).unwrap();
    let (log, peers) = (Arc::new(Log::default()), Arc::new(Mutex::new(Vec::new())));
    let inner = session_maker(&log, &memory_export(8 << 20), SessionOptions::default());
    let seen = peers.clone();
    let open: MakeSession = Arc::new(move |peer, account, now| {
        seen.lock().unwrap().push(peer.clone());
        inner(peer, account, now)
    });
    TestServer { engine, log, open, peers }
}

impl TestServer {
    fn stop(self) {
        assert!(self.engine.stop(Duration::from_secs(30)));
        assert_eq!(Log::read(&self.log.violations), 0);
        assert_eq!(Log::read(&self.log.dropped), Log::read(&self.log.opened));
    }
}

fn path(name: &str) -> PathBuf {
    let name = format!("{name}-{}.sock", std::process::id());
    std::env::temp_dir().join(name)
}

/// Returns a client of the toy protocol on any stream.
fn client(stream: impl Into<OwnedFd>) -> Client {
    let stream = TcpStream::from(stream.into());
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    Client(stream)
}

fn works(client: &mut Client) {
    let data = pattern(3, 200 * BLOCK);
    assert_eq!(client.write(5, &data), 0);
    assert_eq!(client.read(5, data.len()).unwrap(), data);
}

#[test]
fn unix_socket_is_served() {
    for driver in DRIVERS {
        let (server, path) = (server(driver), path(&format!("served-{driver}")));
        // A blocking socket, as it may be inherited.
        let listener = UnixListener::bind(&path).unwrap();
        let security = Security::open();
        let at = server.engine.accept(listener.into(), security, server.open.clone()).unwrap();
        assert_eq!(at, None);
        let mut clients: Vec<_> =
            (0..10).map(|_| client(UnixStream::connect(&path).unwrap())).collect();
        clients.iter_mut().for_each(works);
        let here = Peer::unix(Auth::None);
        assert_eq!(server.peers.lock().unwrap()[..], vec![here; 10]);
        drop(clients);
        wait_for("the clients to go", || server.engine.connections() == 0);
        server.stop();
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn unix_socket_can_require_tls() {
    let (server, path) = (server(Driver::Auto), path("keyed"));
    let listener = UnixListener::bind(&path).unwrap();
    server.engine.accept(listener.into(), tunnel::security(), server.open.clone()).unwrap();
    let socket = TcpStream::from(OwnedFd::from(UnixStream::connect(&path).unwrap()));
    let until = Instant::now() + Duration::from_secs(60);
    let stream = tls::connect(socket, tunnel::key(), until).unwrap();
    wait_for("the session", || Log::read(&server.log.opened) == 1);
    drop(stream);
    server.stop();
    std::fs::remove_file(path).unwrap();
}

#[test]
fn blocking_listener_is_accepted_from() {
    let server = server(Driver::Auto);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let security = Security::open();
    let at = server.engine.accept(listener.into(), security.clone(), server.open.clone()).unwrap();
    assert_eq!(at, Some(address));
    let other: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    let other = server.engine.listen(other, None, security, server.open.clone()).unwrap();
    for address in [address, other, address, other] {
        works(&mut client(TcpStream::connect(address).unwrap()));
    }
    server.stop();
}

#[test]
fn existing_connection_is_adopted() {
    for driver in DRIVERS {
        let server = server(driver);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far_tcp, from) = listener.accept().unwrap();
        let (unix, far_unix) = UnixStream::pair().unwrap();
        let ends: [(OwnedFd, OwnedFd, _); 2] =
            [(tcp.into(), far_tcp.into(), Some(from)), (unix.into(), far_unix.into(), None)];
        for (near, far, from) in ends {
            // A non-blocking one works as well, without busy waiting.
            rustix::io::ioctl_fionbio(&far, true).unwrap();
            server.engine.adopt(far, Security::open(), server.open.clone()).unwrap();
            let mut client = client(near);
            works(&mut client);
            assert_eq!(server.peers.lock().unwrap().pop().unwrap().remote(), from);
            drop(client);
            wait_for("it to go", || server.engine.connections() == 0);
        }
        server.stop();
    }
}

#[test]
fn other_descriptors_are_refused() {
    let server = server(Driver::Auto);
    let listener = || OwnedFd::from(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let pair = || UnixStream::pair().unwrap().0.into();
    let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let udp = || OwnedFd::from(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let datagrams = || OwnedFd::from(UnixDatagram::pair().unwrap().0);
    for wrong in [file(), udp(), datagrams(), listener()] {
        let adopted = server.engine.adopt(wrong, Security::open(), server.open.clone());
        assert!(adopted.is_err());
    }
    for wrong in [file(), udp(), datagrams(), pair()] {
        let accepted = server.engine.accept(wrong, Security::open(), server.open.clone());
        assert_ne!(accepted.unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    assert_eq!(server.engine.connections(), 0);
    server.stop();
}
