//! X01 to X04 and X16 over NBD: what an unauthenticated client can learn, what the key of a host
//! grants, and when it ends.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use engine::tls::{self, Stream};
use export::Secret;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::alone::{Cable, ip, is_alone};
use crate::host::connect;
use crate::nbd_client::{
    ABORT, ACK, EPERM, EXPORT_NAME, GO, INFO, LIST, NbdClient, READ_ONLY, STARTTLS,
    STRUCTURED_REPLY, TLS_REQD, UNKNOWN, option_bytes,
};
use crate::scene::{DESK, Folder, KEYED, LAPTOP, Running, contains};

/// Time limit to disconnect a revoked host.
const SECOND: Duration = Duration::from_secs(1);

fn serve(folder: &Folder, driver: &str, more: &[&str]) -> Running {
    let (listen, keys) = (format!("nbd:{KEYED}"), folder.keys());
    let line = ["--no-announce", "--io", driver, "--listen", &listen, "--keys", &keys];
    Running::serve(&[&line[..], more].concat())
}

/// The PSK of NBD clients, as `storagetm key export` writes it.
fn psk(folder: &Folder, name: &str) -> tls::Psk {
    let line = folder.run_command(&["key", "export", name, "--nbd"]);
    let (identity, hex) = line.trim().split_once(':').unwrap();
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    let secret = Secret::new((0..hex.len()).step_by(2).map(byte).collect());
    assert_eq!(secret.bytes().len(), 32);
    tls::Psk { identity: identity.to_owned(), secret, hash: tls::Hash::Sha256, key: None }
}

/// Negotiates STARTTLS. Returns the connection after the ACK.
fn connect_tls(address: SocketAddr, psk: tls::Psk) -> std::io::Result<NbdClient<Stream>> {
    let mut client = NbdClient::connected(connect(address)?)?;
    assert_eq!(client.negotiate(STARTTLS, &[])?, ACK);
    tls::connect(client.0, psk, Instant::now() + 30 * SECOND).map(NbdClient)
}

/// R27: NBD has no keep-alive; a peer that disappears is detected by TCP keep-alive in thirty
/// seconds.
#[test]
fn r27_dead_peer_without_keep_alive_is_found() {
    if !is_alone("nbd::r27_dead_peer_without_keep_alive_is_found") {
        return;
    }
    let (cable, folder) = (Cable::lay(), Folder::new());
    let disk = folder.image("disk.img", 7);
    let listen = ["--no-announce", "--open", "--listen", "nbd:10.98.0.1:0"];
    let running = Running::serve(&[&listen[..], &[&disk]].concat());
    let port = running.ready().0.port();
    let stream = cable.there(|| connect(([10, 98, 0, 1], port).into()).unwrap());
    let mut peer = NbdClient::connected(stream).unwrap();
    peer.go("disk").unwrap().unwrap();
    running.next("attached");
    assert_eq!(peer.read(0, 512).unwrap(), Ok(vec![7; 512]));
    let began = Instant::now();
    cable.there(|| ip(&["link", "set", "far", "down"]));
    running.next("detached");
    let found = began.elapsed();
    // With ten more seconds for a busy machine.
    assert!(found > 5 * SECOND && found < 40 * SECOND, "{found:?}");
}

/// Returns the bytes received until the other end closes.
fn rest(mut stream: impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    // A reset is as good as an orderly close.
    let _ = stream.read_to_end(&mut all);
    all
}

/// X01, X02: where a key is required, every option but STARTTLS and ABORT gets the same error, and
/// no reply mentions the disk or the machine.
#[test]
fn x01_x02_before_tls_every_option_has_one_answer() {
    for driver in ["uring", "blocking"] {
        let folder = Folder::new();
        folder.authorize(LAPTOP, "laptop", "tls", &[]);
        let running = serve(&folder, driver, &[&folder.image("quartz-disk.img", 7)]);
        let (address, _) = running.ready();
        let mut client = NbdClient::connected(connect(address).unwrap()).unwrap();
        let name = [&11u32.to_be_bytes()[..], b"quartz-disk", &[0; 2]].concat();
        for (option, data) in [
            (LIST, &[][..]),
            (INFO, &name),
            (GO, &name),
            (STRUCTURED_REPLY, &[]),
            (10, &name),
            (77, b"anything"),
        ] {
            client.send_option(option, data).unwrap();
            let (kind, message) = client.reply(option).unwrap();
            assert_eq!(kind, TLS_REQD, "{driver}: option {option}");
            assert!(!contains(&message, "quartz") || message.is_empty(), "{message:?}");
        }
        assert_eq!(client.negotiate(ABORT, &[]).unwrap(), ACK);
        assert_eq!(rest(client.0), b"", "{driver}");
        let mut client = NbdClient::connected(connect(address).unwrap()).unwrap();
        client.send_option(EXPORT_NAME, b"quartz-disk").unwrap();
        assert_eq!(rest(client.0), b"", "{driver}: it has no errors, so it has no answer");
    }
}

/// X03: options negotiated before TLS do not apply after it.
#[test]
fn x03_what_came_before_tls_is_forgotten() {
    let folder = Folder::new();
    folder.authorize(LAPTOP, "laptop", "tls", &[]);
    let running = serve(&folder, "auto", &[&folder.image("disk.img", 7)]);
    let (address, _) = running.ready();
    let mut client = NbdClient::connected(connect(address).unwrap()).unwrap();
    assert_eq!(client.negotiate(STRUCTURED_REPLY, &[]).unwrap(), TLS_REQD);
    assert_eq!(client.negotiate(STARTTLS, &[]).unwrap(), ACK);
    let key = psk(&folder, "laptop");
    let mut client = NbdClient(tls::connect(client.0, key, Instant::now() + 30 * SECOND).unwrap());
    client.go("").unwrap().unwrap();
    // A simple reply, as structured replies were not negotiated in the channel.
    assert_eq!(client.read(0, 512).unwrap(), Ok(vec![7; 512]));
}

/// X04: plaintext bytes after STARTTLS are discarded: they may come from another sender.
#[test]
fn x04_bytes_after_starttls_end_the_connection() {
    for driver in ["uring", "blocking"] {
        let folder = Folder::new();
        folder.authorize(LAPTOP, "laptop", "tls", &[]);
        let running = serve(&folder, driver, &[&folder.image("disk.img", 7)]);
        let (address, _) = running.ready();
        let mut client = NbdClient::connected(connect(address).unwrap()).unwrap();
        let both = [option_bytes(STARTTLS, &[]), option_bytes(LIST, &[])].concat();
        std::io::Write::write_all(&mut client.0, &both).unwrap();
        assert!(rest(client.0).len() <= 20, "{driver}: an ACK at most");
        assert_eq!(running.next("refused")["protocol"], "nbd");
    }
}

/// The key of a host grants what its rules allow, and not more; other keys are refused.
#[test]
fn a_key_opens_what_its_host_may_have() {
    let folder = Folder::new();
    let (one, two) = (folder.image("one.img", 1), folder.image("two.img", 2));
    folder.authorize(LAPTOP, "laptop", "tls", &["--disk", &one]);
    folder.authorize(DESK, "desk", "tls", &["--writable"]);
    let running = serve(&folder, "auto", &["--writable", &one, "--writable", &two]);
    let (address, _) = running.ready();
    let mut laptop = connect_tls(address, psk(&folder, "laptop")).unwrap();
    assert_eq!(laptop.go("two").unwrap(), Err(UNKNOWN));
    let (_, flags) = laptop.go("").unwrap().unwrap();
    assert_ne!(flags & READ_ONLY, 0, "of the two it sees one, and may read it");
    assert_eq!(laptop.read(0, 512).unwrap(), Ok(vec![1; 512]));
    assert_eq!(laptop.write(0, &[9; 512]).unwrap(), EPERM);
    let attached = running.next("attached");
    assert_eq!((&attached["key"], &attached["host"]), (&"laptop".into(), &LAPTOP.into()));
    assert_eq!(attached["tls"], "TLS_AES_128_GCM_SHA256");
    // By its NQN it is the same host, with the same key.
    let desk = tls::Psk { identity: DESK.to_owned(), ..psk(&folder, "desk") };
    let mut desk = connect_tls(address, desk).unwrap();
    let (_, flags) = desk.go("two").unwrap().unwrap();
    assert_eq!(flags & READ_ONLY, 0);
    assert_eq!(desk.write(0, &[9; 512]).unwrap(), 0);
    let stranger = tls::Psk { identity: "desk".to_owned(), ..psk(&folder, "laptop") };
    assert!(connect_tls(address, stranger).is_err());
}

fn is_cut_off(socket: &TcpStream, by: Instant) -> bool {
    let left = by.saturating_duration_since(Instant::now());
    let mut ends = [PollFd::new(socket, PollFlags::RDHUP)];
    poll(&mut ends, Timespec::try_from(left).ok().as_ref()).unwrap() == 1
}

/// X16 over NBD.
#[test]
fn x16_only_the_removed_nbd_host_is_disconnected() {
    for driver in ["uring", "blocking"] {
        // Other load on this machine may delay one attempt.
        assert!((0..4).any(|_| time_to_disconnect(driver) <= SECOND), "{driver}");
    }
}

/// Returns the time from the removal of a host to its disconnection.
fn time_to_disconnect(driver: &str) -> Duration {
    let folder = Folder::new();
    folder.authorize(LAPTOP, "laptop", "tls", &[]);
    folder.authorize(DESK, "desk", "tls", &[]);
    let running = serve(&folder, driver, &[&folder.image("disk.img", 5)]);
    let (address, _) = running.ready();
    let keys = ["laptop", "desk"].map(|name| psk(&folder, name));
    let [mut laptop, mut desk] = keys.clone().map(|psk| connect_tls(address, psk).unwrap());
    for client in [&mut laptop, &mut desk] {
        client.go("").unwrap().unwrap();
        assert_eq!(client.read(0, 512).unwrap(), Ok(vec![5; 512]));
    }
    let socket = laptop.0.socket().try_clone().unwrap();
    assert!(!is_cut_off(&socket, Instant::now() + SECOND / 4), "not disconnected");
    folder.run_command(&["host", "remove", "laptop"]);
    let begun = Instant::now();
    assert!(is_cut_off(&socket, begun + 20 * SECOND), "{driver}");
    let after = begun.elapsed();
    assert!(laptop.read(0, 512).is_err());
    let [lost, kept] = keys;
    assert!(connect_tls(address, lost).is_err(), "its key is none now");
    assert_eq!(desk.read(0, 512).unwrap(), Ok(vec![5; 512]));
    assert_eq!(running.next("detached")["read"], 512);
    assert!(connect_tls(address, kept).unwrap().go("").unwrap().is_ok());
    after
}
