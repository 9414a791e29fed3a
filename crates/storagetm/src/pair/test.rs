//! Pairing with a server over a TLS channel on this machine.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use engine::{Config, Engine, Security};
use export::{Event, Notice, PairingRequest};
use pair::{PairingServer, Verdict};

use super::*;
use keys::record::Allowed;
use testkit::Scratch;

const HOST: &str = "nqn.2024-01.test:laptop";

/// A target with a code on its screen.
struct TestTarget {
    server: Arc<PairingServer>,
    engine: Engine,
    requests: Receiver<Arc<PairingRequest>>,
    place: TargetAddr,
}

impl TestTarget {
    fn new() -> Self {
        let server = PairingServer::new(
            "desk pc",
            Instant::now(),
            Box::new(|bytes| assert!(nvme::auth::chap::system_random(bytes))),
        );
        let (send, requests): (Sender<Arc<PairingRequest>>, _) = channel();
        let sink = Arc::new(move |event| {
            if let Event::PairingRequested { request, .. } = event {
                let _ = send.send(request);
            }
        });
        let engine = Engine::start(Config::default(), sink).unwrap();
        let public_psk = Psk {
            identity: pair::IDENTITY.to_owned(),
            secret: Secret::new(pair::PSK.to_vec()),
            hash: Hash::Sha256,
            key: None,
        };
        let keys = Arc::new(move || vec![public_psk.clone()]);
        let sessions = server.clone();
        let open: engine::MakeSession =
            Arc::new(move |peer, _, now| Box::new(sessions.open_session(peer, now)));
        let any = "127.0.0.1:0".parse().unwrap();
        let address = engine.listen(any, None, Security::keyed(keys), open).unwrap();
        let place = TargetAddr::parse(&address.to_string(), None).unwrap();
        Self { server, engine, requests, place }
    }

    fn code(&self) -> Code {
        self.server.status(Instant::now()).codes.unwrap().digits
    }

    /// Runs a client with `code`; `verdict` answers its request.
    fn try_code(
        &self,
        code: &Code,
        writable: bool,
        verdict: Option<Verdict>,
    ) -> Result<Paired, Failure> {
        let place = &self.place;
        std::thread::scope(|scope| {
            let client_info = ClientInfo { host: HOST, name: "laptop", writable };
            let client = scope.spawn(move || {
                let channel = open_channel(place, place.connect()?)?;
                run_pairing(channel, code, &client_info, &confirm_authenticated)
            });
            if let Some(verdict) = verdict {
                let request = self.requests.recv_timeout(PEER_TIMEOUT).unwrap();
                assert_eq!((request.host.as_str(), request.writable), (HOST, writable));
                assert!(self.server.answer(request.number, verdict));
                self.engine.notify(Notice::StateChanged);
            }
            client.join().unwrap()
        })
    }
}

fn disk(nqn: &str) -> pair::Disk {
    pair::Disk {
        nqn: nqn.to_owned(),
        name: "sda".to_owned(),
        model: "Example".to_owned(),
        bytes: 1 << 30,
        access: Access::Writable,
    }
}

#[test]
fn code_authorizes_and_both_derive_the_same_key() {
    let peer = TestTarget::new();
    let disks = vec![disk("nqn.2024-01.test:disk0"), disk("nqn.\u{1b}[2J")];
    let verdict = Verdict::Granted { access: Access::ReadOnly, disks };
    let paired = peer.try_code(&peer.code(), false, Some(verdict)).unwrap();
    let own = HostNqn { nqn: HOST.to_owned(), is_from_nvme_cli: true };
    let endpoint = peer.place.endpoint("127.0.0.1:4420".parse().unwrap());
    let target = target(&paired, &own, &endpoint);
    assert_eq!((target.name.as_str(), target.access), ("desk pc", Allowed::ReadOnly));
    assert_eq!(target.disks.len(), 1, "a name that is none is left out");
    assert_eq!(target.disks[0].access, Allowed::ReadOnly, "no more than was granted");
    let folder = Scratch::new();
    let store = Store::open(&folder.0.join("state")).unwrap();
    let tree = Tree::at(&folder.0);
    let note = keep(&store, &tree, &target, |file, note| {
        let lines = std::fs::read_to_string(&file).unwrap();
        assert_eq!(lines.lines().count(), 2);
        assert!(lines.lines().all(|line| line.starts_with(&format!("NVMe1R01 {HOST} nqn."))));
        Report::new(&target, &own, &endpoint, file, note)
    });
    assert!(note.unwrap().text().contains("not in the kernel's keyring"), "this tree has none");
    for kept in ["desk-pc.json", "desk-pc.keys"] {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(folder.0.join("state/targets").join(kept)).unwrap();
        assert_eq!(meta.mode() & 0o7777, 0o600);
    }
}

#[test]
fn refused_pairing_ends_with_status_3() {
    let peer = TestTarget::new();
    let right = peer.code();
    let wrong = if Code::parse("12345678").unwrap() == right { "12345679" } else { "12345678" };
    let failure = peer.try_code(&Code::parse(wrong).unwrap(), false, None).unwrap_err();
    assert_eq!(failure.status(), 3, "{failure}");
    // X07: the code on the screen is no longer valid.
    peer.server.unlock(Instant::now());
    assert_eq!(peer.try_code(&right, false, None).unwrap_err().status(), 3);
    peer.server.unlock(Instant::now());
    let failure = peer.try_code(&peer.code(), true, Some(Verdict::Denied)).unwrap_err();
    assert!(failure.status() == 3 && failure.to_string().contains("denied access"), "{failure}");
    peer.server.close();
    assert_eq!(peer.try_code(&right, false, None).unwrap_err().status(), 3);
}

#[test]
fn server_without_pairing_is_reported() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let place = TargetAddr::parse(&listener.local_addr().unwrap().to_string(), None).unwrap();
    let socket = place.connect().unwrap();
    drop(listener.accept().unwrap());
    assert!(open_channel(&place, socket).is_err());
}

#[test]
fn codes_are_parsed_in_all_notations() {
    for text in ["12345678\n", "1234 5678", "1234-5678"] {
        let (code, addresses) = parse_code(text).unwrap();
        assert_eq!((code, addresses), (Code::parse("12345678").unwrap(), Vec::new()));
    }
    let code = Code::long(*b"0123456789abcdef");
    let invite = Invite { at: vec!["10.0.0.1:4420".to_owned()], code: code.clone() };
    assert_eq!(parse_code(&format!("{invite}\n")).unwrap(), (code, invite.at));
    for wrong in ["", "1234", "123456789", "abcdefgh", "http://example.org"] {
        assert!(parse_code(wrong).is_none(), "{wrong}");
    }
}

#[test]
fn no_more_of_a_line_is_read_than_a_code_has() {
    assert_eq!(line(&b"1234 5678\nmore"[..]).unwrap().as_str(), "1234 5678\n");
    assert_eq!(line(&[b'1'; 10_000][..]).unwrap().len(), MAX_CODE_LEN);
}

/// The target sends the alert access_denied (RFC 8446 §6.2), as one that shows no code does.
#[test]
fn target_without_a_code_takes_none() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = TargetAddr::parse(&listener.local_addr().unwrap().to_string(), None).unwrap();
    let target = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut hello = [0; 4096];
        assert!(io::Read::read(&mut socket, &mut hello).unwrap() > 0);
        socket.write_all(&[0x15, 3, 3, 0, 2, 2, 49]).unwrap();
        // Nothing follows: the client has gone.
        io::Read::read(&mut socket, &mut hello).unwrap_or(0)
    });
    let keys = Scratch::new();
    let request = PairRequest {
        at: &at,
        code: "12345678",
        name: "laptop",
        writable: false,
        keys: &keys.0,
        confirmed: &|_| panic!("no code was sent"),
    };
    let refused = request.open().err().unwrap();
    assert_eq!(refused.status(), 3, "{refused}");
    assert!(refused.to_string().contains("does its screen show a code?"), "{refused}");
    target.join().unwrap();
    let wrong = PairRequest { code: "x", ..request }.open().err().unwrap();
    assert_eq!(wrong.status(), 2, "{wrong}");
}
