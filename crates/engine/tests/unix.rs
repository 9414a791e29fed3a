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
use toy::{BLOCK, Client, FREE, Log, Manner, lend, opener, pattern, tunnel, wait_for};

const DRIVERS: [Driver; 2] = [Driver::Auto, Driver::Blocking];

struct House {
    engine: Engine,
    log: Arc<Log>,
    open: MakeSession,
    peers: Arc<Mutex<Vec<Peer>>>,
}

fn house(driver: Driver) -> House {
    let config = Config { driver, limits: FREE, ..Config::default() };
    let engine = Engine::start(config, Arc::new(|event| panic!("{event:?}"))).unwrap();
    let (log, peers) = (Arc::new(Log::default()), Arc::new(Mutex::new(Vec::new())));
    let inner = opener(&log, &lend(8 << 20), Manner::default());
    let seen = peers.clone();
    let open: MakeSession = Arc::new(move |peer, account, now| {
        seen.lock().unwrap().push(peer.clone());
        inner(peer, account, now)
    });
    House { engine, log, open, peers }
}

impl House {
    fn stop(self) {
        assert!(self.engine.stop(Duration::from_secs(30)));
        assert_eq!(Log::read(&self.log.wronged), 0);
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
        let (house, path) = (house(driver), path(&format!("served-{driver}")));
        // A blocking socket, as it may be inherited.
        let listener = UnixListener::bind(&path).unwrap();
        let security = Security::open();
        let at = house.engine.accept(listener.into(), security, house.open.clone()).unwrap();
        assert_eq!(at, Peer::LOCAL);
        let mut clients: Vec<_> =
            (0..10).map(|_| client(UnixStream::connect(&path).unwrap())).collect();
        clients.iter_mut().for_each(works);
        let here =
            Peer { remote: Peer::LOCAL, local: Peer::LOCAL, auth: Auth::None, channel: None };
        assert_eq!(house.peers.lock().unwrap()[..], vec![here; 10]);
        drop(clients);
        wait_for("the clients to go", || house.engine.connections() == 0);
        house.stop();
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn unix_socket_can_require_tls() {
    let (house, path) = (house(Driver::Auto), path("keyed"));
    let listener = UnixListener::bind(&path).unwrap();
    house.engine.accept(listener.into(), tunnel::security(), house.open.clone()).unwrap();
    let socket = TcpStream::from(OwnedFd::from(UnixStream::connect(&path).unwrap()));
    let until = Instant::now() + Duration::from_secs(60);
    let stream = tls::connect(socket, tunnel::key(), until).unwrap();
    wait_for("the session", || Log::read(&house.log.opened) == 1);
    drop(stream);
    house.stop();
    std::fs::remove_file(path).unwrap();
}

#[test]
fn blocking_listener_is_accepted_from() {
    let house = house(Driver::Auto);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let security = Security::open();
    let at = house.engine.accept(listener.into(), security.clone(), house.open.clone()).unwrap();
    assert_eq!(at, address);
    let other: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    let other = house.engine.listen(other, None, security, house.open.clone()).unwrap();
    for address in [address, other, address, other] {
        works(&mut client(TcpStream::connect(address).unwrap()));
    }
    house.stop();
}

#[test]
fn existing_connection_is_adopted() {
    for driver in DRIVERS {
        let house = house(driver);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far_tcp, from) = listener.accept().unwrap();
        let (unix, far_unix) = UnixStream::pair().unwrap();
        let ends: [(OwnedFd, OwnedFd, _); 2] =
            [(tcp.into(), far_tcp.into(), from), (unix.into(), far_unix.into(), Peer::LOCAL)];
        for (near, far, from) in ends {
            // A non-blocking one works as well, without busy waiting.
            rustix::io::ioctl_fionbio(&far, true).unwrap();
            house.engine.adopt(far, Security::open(), house.open.clone()).unwrap();
            let mut client = client(near);
            works(&mut client);
            assert_eq!(house.peers.lock().unwrap().pop().unwrap().remote, from);
            drop(client);
            wait_for("it to go", || house.engine.connections() == 0);
        }
        house.stop();
    }
}

#[test]
fn other_descriptors_are_refused() {
    let house = house(Driver::Auto);
    let listener = || OwnedFd::from(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let pair = || UnixStream::pair().unwrap().0.into();
    let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let udp = || OwnedFd::from(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let datagrams = || OwnedFd::from(UnixDatagram::pair().unwrap().0);
    for wrong in [file(), udp(), datagrams(), listener()] {
        let adopted = house.engine.adopt(wrong, Security::open(), house.open.clone());
        assert!(adopted.is_err());
    }
    for wrong in [file(), udp(), datagrams(), pair()] {
        let accepted = house.engine.accept(wrong, Security::open(), house.open.clone());
        assert_ne!(accepted.unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    assert_eq!(house.engine.connections(), 0);
    house.stop();
}
