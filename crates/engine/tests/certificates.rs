//! TLS with certificates: which clients a server accepts, which servers a client accepts, and
//! interoperability with OpenSSL and GnuTLS. Over loopback TCP, with the toy protocol.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod toy;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::tls::{self, Certificates, Hash, Psk, Stream, Trust};
use engine::{Config, Driver, Engine, MakeSession, Security};
use export::{Auth, Event, Peer, Secret};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, date_time_ymd,
};
use toy::{Client, Log, SessionOptions, UNLIMITED, memory_export, session_maker, wait_for};

const PATIENCE: Duration = Duration::from_secs(30);

/// A certification authority for all certificates of a test.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its private key, in PEM.
#[derive(Clone)]
struct Pair {
    chain: Vec<u8>,
    key: Vec<u8>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "the authority");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn pem(&self) -> Vec<u8> {
        self.0.pem().into_bytes()
    }

    fn sign(&self, params: &CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let chain = params.signed_by(&key, &self.0).unwrap().pem().into_bytes();
        Pair { chain, key: key.serialize_pem().into_bytes() }
    }

    /// Returns a server certificate for `localhost` and 127.0.0.1.
    fn server(&self) -> Pair {
        self.sign(&named(&["localhost", "127.0.0.1"]))
    }

    /// Returns a client certificate with this common name.
    fn client(&self, name: &str) -> Pair {
        let mut params = named(&[]);
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }
}

fn named(names: &[&str]) -> CertificateParams {
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
}

fn expired() -> CertificateParams {
    let mut params = named(&["localhost"]);
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2001, 1, 1);
    params
}

fn certificates(pair: &Pair, authority: Option<&Authority>) -> Certificates {
    let authority = authority.map(Authority::pem);
    let key = Secret::new(pair.key.clone());
    Certificates::new(&pair.chain, &key, authority.as_deref()).unwrap()
}

fn trust(authority: &Authority, name: &str, own: Option<&Pair>) -> Trust {
    let own = own.map(|own| (own.chain.clone(), Secret::new(own.key.clone())));
    Trust { authority: authority.pem(), name: name.to_owned(), own }
}

fn key() -> Psk {
    let secret = Secret::new(vec![1; 32]);
    Psk { identity: "host".to_owned(), secret, hash: Hash::Sha256, key: None }
}

struct TestServer {
    engine: Engine,
    address: SocketAddr,
    log: Arc<Log>,
    peers: Arc<Mutex<Vec<Peer>>>,
    events: Arc<Mutex<Vec<Event>>>,
}

fn start_server(auth: Auth, certificates: Certificates) -> TestServer {
    let events = Arc::new(Mutex::new(Vec::new()));
    let events_in = events.clone();
    let sink = Arc::new(move |event| events_in.lock().unwrap().push(event));
    let config = Config { driver: Driver::Auto, limits: UNLIMITED, ..Config::default() };
    let engine = Engine::start(config, sink).unwrap();
    let (log, peers) = (Arc::new(Log::default()), Arc::new(Mutex::new(Vec::new())));
    let (inner, seen) =
        (session_maker(&log, &memory_export(1 << 20), SessionOptions::default()), peers.clone());
    let open: MakeSession = Arc::new(move |peer, account, now| {
        seen.lock().unwrap().push(peer.clone());
        inner(peer, account, now)
    });
    let security = Security {
        auth,
        certificates: Some(certificates),
        ..Security::keyed(Arc::new(|| vec![key()]))
    };
    let address = engine.listen((Ipv4Addr::LOCALHOST, 0).into(), None, security, open).unwrap();
    TestServer { engine, address, log, peers, events }
}

impl TestServer {
    fn connect(&self, trust: &Trust) -> std::io::Result<Stream> {
        connect(self.address, trust)
    }

    /// Connects, checks that a session answers, and returns the peer as the session sees it.
    fn enter(&self, trust: &Trust) -> Peer {
        let mut stream = self.connect(trust).unwrap();
        ask(&mut stream).unwrap();
        let peer = self.peers.lock().unwrap().pop().unwrap();
        let (ours, theirs) = (stream.channel(), peer.channel.as_ref().unwrap());
        assert_eq!((&ours.binding, &ours.cipher), (&theirs.binding, &theirs.cipher));
        assert_eq!((ours.certified, &ours.identity), (true, &trust.name));
        stream.close().unwrap();
        peer
    }

    /// Connects, and checks that no session answers.
    fn is_refused(&self, trust: &Trust) {
        let before = Log::read(&self.log.opened);
        // In TLS 1.3 the client's handshake may complete before the server has verified its
        // certificate.
        if let Ok(mut stream) = self.connect(trust) {
            assert!(ask(&mut stream).is_err());
        }
        wait_for("all connections to end", || self.engine.connections() == 0);
        assert_eq!(Log::read(&self.log.opened), before);
    }

    fn stop(self) {
        assert!(self.engine.stop(PATIENCE));
    }
}

fn connect(address: SocketAddr, trust: &Trust) -> std::io::Result<Stream> {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    tls::connect_certified(socket, trust, Instant::now() + PATIENCE)
}

fn ask(stream: &mut Stream) -> std::io::Result<()> {
    stream.write_all(&Client::command(b'E', 3, 0, 0))?;
    let mut answer = [0; 16];
    stream.read_exact(&mut answer)?;
    assert_eq!(answer[..4], 3u32.to_le_bytes());
    Ok(())
}

#[test]
fn client_with_a_certificate_is_authenticated() {
    let authority = Authority::new();
    for auth in [Auth::None, Auth::Required] {
        let listener = start_server(auth, certificates(&authority.server(), Some(&authority)));
        let laptop = authority.client("laptop");
        for name in ["localhost", "127.0.0.1"] {
            let peer = listener.enter(&trust(&authority, name, Some(&laptop)));
            let channel = peer.channel.unwrap();
            assert_eq!((channel.certified, channel.key), (true, None));
            assert_eq!((&channel.identity[..], peer.auth), ("laptop", auth));
        }
        // A client with a PSK is identified by it.
        let socket = TcpStream::connect(listener.address).unwrap();
        let mut stream = tls::connect(socket, key(), Instant::now() + PATIENCE).unwrap();
        ask(&mut stream).unwrap();
        let channel = listener.peers.lock().unwrap().pop().unwrap().channel.unwrap();
        assert_eq!((channel.certified, &channel.identity[..]), (false, "host"));
        drop(stream);
        listener.stop();
    }
}

#[test]
fn certificate_is_required_only_with_auth_required() {
    let authority = Authority::new();
    let nothing = trust(&authority, "localhost", None);
    for knows in [Some(&authority), None] {
        let open = start_server(Auth::None, certificates(&authority.server(), knows));
        let channel = open.enter(&nothing).channel.unwrap();
        assert_eq!((channel.certified, channel.key, &channel.identity[..]), (false, None, ""));
        open.stop();
        let keyed = start_server(Auth::Required, certificates(&authority.server(), knows));
        keyed.is_refused(&nothing);
        let refused = "no valid key or certificate";
        let events = keyed.events.lock().unwrap();
        assert!(
            matches!(events[..], [Event::Refused { reason, .. }] if reason == refused),
            "{events:?}"
        );
        drop(events);
        keyed.stop();
    }
    // Client certificates are useless without an authority.
    let keyed = start_server(Auth::Required, certificates(&authority.server(), None));
    keyed.is_refused(&trust(&authority, "localhost", Some(&authority.client("laptop"))));
    keyed.stop();
}

#[test]
fn in_band_clients_use_tls_without_a_certificate() {
    let authority = Authority::new();
    let own = authority.server();
    for auth in [Auth::None, Auth::Required] {
        let in_band = Certificates::in_band(&own.chain, &Secret::new(own.key.clone())).unwrap();
        let server = start_server(auth, in_band);
        let peer = server.enter(&trust(&authority, "localhost", None));
        let channel = peer.channel.unwrap();
        assert_eq!((channel.certified, channel.key, peer.auth), (false, None, auth));
        // Clear text is refused, whether authentication is required or not.
        let mut clear = TcpStream::connect(server.address).unwrap();
        clear.set_read_timeout(Some(PATIENCE)).unwrap();
        clear.write_all(&Client::command(b'E', 3, 0, 0)).unwrap();
        assert!(clear.read_exact(&mut [0; 1]).is_err());
        server.stop();
    }
}

#[test]
fn foreign_or_expired_client_certificate_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let mut late = expired();
    late.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let mut server = named(&["localhost"]);
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let wrong = [other.client("laptop"), authority.sign(&late), authority.sign(&server)];
    for auth in [Auth::None, Auth::Required] {
        let listener = start_server(auth, certificates(&authority.server(), Some(&authority)));
        for own in &wrong {
            listener.is_refused(&trust(&authority, "localhost", Some(own)));
        }
        listener.stop();
    }
}

/// X20: a client refuses every server but the one it asked for.
#[test]
fn x20_wrong_server_certificate_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let refuses = |server: &Pair, name: &str| {
        let listener = start_server(Auth::None, certificates(server, None));
        let error = listener.connect(&trust(&authority, name, None)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        assert!(error.to_string().contains("certificates"), "{error}");
        listener.is_refused(&trust(&authority, name, None));
        listener.stop();
    };
    refuses(&other.server(), "localhost");
    refuses(&authority.server(), "example.org");
    refuses(&authority.server(), "127.0.0.2");
    refuses(&authority.server(), "::1");
    refuses(&authority.sign(&expired()), "localhost");
    refuses(&authority.client("localhost"), "localhost");
    let mut bare = named(&[]);
    bare.distinguished_name.push(DnType::CommonName, "127.0.0.1");
    refuses(&authority.sign(&bare), "127.0.0.1");
    // Nor a server with PSKs only, nor one without TLS.
    let keyed = start_server(Auth::None, certificates(&other.server(), None));
    assert!(keyed.connect(&trust(&authority, "localhost", None)).is_err());
    keyed.stop();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let clear = std::thread::spawn(move || {
        let mut socket = listener.accept().unwrap().0;
        socket.write_all(b"NBDMAGICIHAVEOPT").unwrap();
        let _ = socket.read(&mut [0; 1000]);
    });
    assert!(connect(address, &trust(&authority, "localhost", None)).is_err());
    clear.join().unwrap();
}

/// The key type that most tools create.
#[test]
fn rsa_certificates_work() {
    let authority = Authority::new();
    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let mut params = named(&["localhost"]);
    params.distinguished_name.push(DnType::CommonName, "heavy");
    let chain = params.signed_by(&key, &authority.0).unwrap().pem().into_bytes();
    let pair = Pair { chain, key: key.serialize_pem().into_bytes() };
    let listener = start_server(Auth::Required, certificates(&pair, Some(&authority)));
    let channel = listener.enter(&trust(&authority, "localhost", Some(&pair))).channel.unwrap();
    // The first of its names.
    assert_eq!(channel.identity, "localhost");
    listener.stop();
}

#[test]
fn addresses_and_wildcards_match() {
    let authority = Authority::new();
    let server = authority.sign(&named(&["::1", "*.example.org", "10.1.2.3"]));
    let listener = start_server(Auth::None, certificates(&server, None));
    for name in ["::1", "0:0::1", "a.example.org", "10.1.2.3"] {
        listener.enter(&trust(&authority, name, None));
    }
    for name in ["example.org", "a.b.example.org", "10.1.2.4"] {
        listener.is_refused(&trust(&authority, name, None));
    }
    listener.stop();
}

#[test]
fn invalid_pem_is_reported_without_the_key() {
    let authority = Authority::new();
    let (one, other) = (authority.server(), authority.server());
    let ask = |chain: &[u8], key: &[u8], trusted: Option<&[u8]>| {
        let error = Certificates::new(chain, &Secret::new(key.to_vec()), trusted).unwrap_err();
        let text = error.to_string();
        assert!(!text.contains("BEGIN") && error.kind() == ErrorKind::InvalidData, "{text}");
        text.split(':').next().unwrap().to_owned()
    };
    let own = "the server's certificate with its key cannot be used";
    assert_eq!(ask(&one.chain, &other.key, None), own);
    assert_eq!(ask(b"", b"", None), own);
    assert_eq!(ask(&one.key, &one.chain, None), own);
    let trusted = "the authority's certificate cannot be used";
    assert_eq!(ask(&one.chain, &one.key, Some(b"nonsense")), trusted);
    let mut wrong = trust(&authority, "localhost", Some(&one));
    assert!(wrong.check().is_ok());
    wrong.authority.clear();
    assert!(wrong.check().unwrap_err().to_string().starts_with(trusted));
    let mixed = Pair { chain: one.chain, key: other.key };
    let mixed = trust(&authority, "localhost", Some(&mixed));
    assert!(mixed.check().unwrap_err().to_string().starts_with("the client's certificate"));
}

/// Temporary files of a test, removed on drop.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An external program, killed on drop.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program, or skips the test if it is missing.
fn start(command: &[&str]) -> Option<Program> {
    if programs::lacks("certificates with other TLS programs", &[command[0]]) {
        return None;
    }
    let mut program = programs::command(command[0]);
    program.args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
    Some(Program(program.stderr(Stdio::null()).spawn().unwrap()))
}

/// Clients of other implementations: their commands are answered by a session.
#[test]
fn openssl_and_gnutls_clients_connect() {
    let (authority, files) = (Authority::new(), Files::new("clients"));
    let listener =
        start_server(Auth::Required, certificates(&authority.server(), Some(&authority)));
    let own = authority.client("foreign");
    let (ca, cert) = (files.put("ca", &authority.pem()), files.put("cert", &own.chain));
    let (key, port) = (files.put("key", &own.key), listener.address.port().to_string());
    let at = listener.address.to_string();
    let openssl = [
        "openssl",
        "s_client",
        "-quiet",
        "-tls1_3",
        "-connect",
        &at,
        "-CAfile",
        &ca,
        "-cert",
        &cert,
        "-key",
        &key,
        "-verify_return_error",
        "-verify_hostname",
        "localhost",
    ];
    let gnutls = [
        "gnutls-cli",
        "--logfile=/dev/null",
        "--x509cafile",
        &ca,
        "--x509certfile",
        &cert,
        "--x509keyfile",
        &key,
        "--verify-hostname=localhost",
        "-p",
        &port,
        "127.0.0.1",
    ];
    for command in [&openssl[..], &gnutls[..]] {
        let Some(mut program) = start(command) else { continue };
        let mut stdin = program.0.stdin.take().unwrap();
        // Neither program may interpret a line as an interactive command.
        stdin.write_all(&Client::command(b'E', 3, 0, 0)).unwrap();
        stdin.flush().unwrap();
        let mut answer = [0; 16];
        program.0.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
        assert_eq!(answer[..4], 3u32.to_le_bytes(), "{command:?}");
        let peer = listener.peers.lock().unwrap().pop().unwrap();
        assert_eq!(peer.channel.unwrap().identity, "foreign");
    }
    listener.stop();
}

/// Returns a port that is free now.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Servers of other implementations, which require a certificate of ours. They send tickets that
/// contain it.
#[test]
fn openssl_and_gnutls_servers_accept_us() {
    let (authority, files) = (Authority::new(), Files::new("servers"));
    let (server, own) = (authority.server(), authority.client("ours"));
    let (ca, cert) = (files.put("ca", &authority.pem()), files.put("cert", &server.chain));
    let key = files.put("key", &server.key);
    let port = free_port().to_string();
    let openssl = [
        "openssl",
        "s_server",
        "-quiet",
        "-rev",
        "-accept",
        &port,
        "-CAfile",
        &ca,
        "-cert",
        &cert,
        "-key",
        &key,
        "-Verify",
        "1",
        "-verify_return_error",
    ];
    let other = free_port().to_string();
    let gnutls = [
        "gnutls-serv",
        "--echo",
        "--quiet",
        "-p",
        &other,
        "--x509cafile",
        &ca,
        "--x509certfile",
        &cert,
        "--x509keyfile",
        &key,
        "--require-client-cert",
        "--verify-client-cert",
    ];
    for (command, port, sent) in
        [(&openssl[..], port.clone(), "olleh"), (&gnutls[..], other.clone(), "hello")]
    {
        let Some(_program) = start(command) else { continue };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().unwrap()));
        wait_for("it to listen", || TcpStream::connect(address).is_ok());
        for round in 0..2 {
            let mut stream = connect(address, &trust(&authority, "localhost", Some(&own))).unwrap();
            stream.write_all(b"hello\n").unwrap();
            let mut received = [0; 5];
            stream.read_exact(&mut received).unwrap();
            assert_eq!(received, sent.as_bytes(), "{command:?} {round}");
            let _ = stream.close();
        }
        let nobody = connect(address, &trust(&authority, "localhost", None));
        let received = nobody.and_then(|mut stream| {
            stream.write_all(b"hello\n")?;
            stream.read_exact(&mut [0; 5])
        });
        assert!(received.is_err(), "{command:?}");
        assert!(connect(address, &trust(&Authority::new(), "localhost", Some(&own))).is_err());
    }
}

/// X20: older versions of TLS are refused.
#[test]
fn x20_older_tls_versions_are_refused() {
    let (authority, files) = (Authority::new(), Files::new("older"));
    let listener = start_server(Auth::None, certificates(&authority.server(), Some(&authority)));
    let (ca, at) = (files.put("ca", &authority.pem()), listener.address.to_string());
    let old = ["openssl", "s_client", "-tls1_2", "-connect", &at, "-CAfile", &ca];
    if let Some(mut program) = start(&old) {
        let mut sent = String::new();
        drop(program.0.stdin.take());
        program.0.stdout.take().unwrap().read_to_string(&mut sent).unwrap();
        assert!(sent.contains("Cipher is (NONE)"), "{sent}");
        assert!(!program.0.wait().unwrap().success());
    }
    let server = authority.server();
    let (cert, key) = (files.put("cert", &server.chain), files.put("key", &server.key));
    let port = free_port();
    let number = port.to_string();
    let old = [
        "openssl", "s_server", "-quiet", "-tls1_2", "-accept", &number, "-cert", &cert, "-key",
        &key,
    ];
    if let Some(_program) = start(&old) {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wait_for("it to listen", || TcpStream::connect(address).is_ok());
        assert!(connect(address, &trust(&authority, "localhost", None)).is_err());
    }
    assert_eq!(Log::read(&listener.log.opened), 0);
    listener.stop();
}
