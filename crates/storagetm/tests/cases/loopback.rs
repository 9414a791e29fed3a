//! Loopback addresses cannot be reached from other machines in any network configuration (X59), and
//! keys work on them as elsewhere.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use engine::tls;

use crate::alone::{Cable, ip, is_alone};
use crate::host::{NvmeClient, connect};
use crate::nbd_client::NbdClient;
use crate::scene::{DESK, Folder, LAPTOP, PROGRAM, Running};

/// Time that a peer waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Makes this namespace accept packets for 127.0.0.0/8 from the veth pair, as container software
/// does, and the other one send them.
fn expose(cable: &Cable) {
    let set = |interface: &str| {
        for (path, value) in [
            (format!("{interface}/route_localnet"), "1"),
            (format!("{interface}/rp_filter"), "0"),
            ("all/rp_filter".to_owned(), "0"),
        ] {
            fs::write(format!("/proc/sys/net/ipv4/conf/{path}"), value).unwrap();
        }
    };
    set("near");
    cable.there(|| {
        set("far");
        ip(&["address", "del", "127.0.0.1/8", "dev", "lo"]);
        ip(&["route", "add", "127.0.0.1/32", "via", "10.98.0.1"]);
    });
}

/// Returns whether the other namespace receives a byte from that port of 127.0.0.1.
fn is_answered(cable: &Cable, port: u16) -> bool {
    cable.there(|| {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let Ok(mut stream) = TcpStream::connect_timeout(&address, TIMEOUT) else { return false };
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.read(&mut [0; 1]).is_ok_and(|got| got > 0)
    })
}

fn is_served(port: u16) -> bool {
    NbdClient::connected(connect(([127, 0, 0, 1], port).into()).unwrap()).is_ok()
}

/// Serves on a listening socket that is passed as systemd does.
fn activated(listener: TcpListener, disk: &str) -> Running {
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", PROGRAM, "serve", "--json", "--no-announce"]);
    command.args(["--protocol", "nbd", disk]).stdin(OwnedFd::from(listener));
    Running::of(&mut command)
}

#[test]
fn x59_a_neighbour_does_not_reach_loopback_listeners() {
    if !is_alone("loopback::x59_a_neighbour_does_not_reach_loopback_listeners") {
        return;
    }
    let (cable, folder) = (Cable::lay(), Folder::new());
    expose(&cable);
    let disk = folder.image("disk.img", 7);
    // Positive control: another program can be reached.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    let reached = std::thread::scope(|scope| {
        scope.spawn(|| std::io::Write::write(&mut other.accept().unwrap().0, b"x").unwrap());
        let reached = is_answered(&cable, port);
        // Ends the accepting thread.
        drop(TcpStream::connect(("127.0.0.1", port)));
        reached
    });
    assert!(reached, "route_localnet has no effect here");
    let keys = folder.keys();
    let listen = ["--listen", "127.0.0.1:0"];
    for more in [&[][..], &listen, &[&["--open"][..], &listen].concat()] {
        let line = ["--no-announce", "--protocol", "nbd", "--keys", &keys];
        let running = Running::serve(&[&line, more, &[&disk]].concat());
        let port = running.ready().0.port();
        assert!(is_served(port) && !is_answered(&cable, port), "{more:?}");
    }
    let handed = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = handed.local_addr().unwrap().port();
    let running = activated(handed, &disk);
    running.ready();
    assert!(is_served(port) && !is_answered(&cable, port), "a socket that was handed over");
    let refused = running.next("refused");
    assert!(refused["reason"].as_str().unwrap().contains("from another machine"), "{refused}");
}

/// Exports a disk only at a loopback address. Returns it and the key of a host.
fn scene(folder: &Folder) -> (Running, SocketAddr, String, String) {
    let key = folder.authorize(LAPTOP, "laptop", "tls", &[]);
    let (disk, keys) = (folder.image("disk.img", 7), folder.keys());
    let line = ["--no-announce", "--listen", "nvme:127.0.0.1:0", "--keys", &keys];
    let running = Running::serve(&[&line[..], &[&disk]].concat());
    let (address, names) = running.ready();
    (running, address, names[0].clone(), key)
}

#[test]
fn a_known_key_works_at_a_loopback_address() {
    let folder = Folder::new();
    let (running, address, name, key) = scene(&folder);
    let client = NvmeClient::new(LAPTOP, &name);
    let mut disk = client.attach_tls(address, &key).unwrap();
    assert_eq!(disk.read(0).unwrap(), vec![7; 4096]);
    let attached = running.next("attached");
    assert_eq!(attached["host"], LAPTOP, "{attached}");
    assert!(attached["tls"].is_string() && attached["key"].is_string(), "{attached}");
    drop(disk);
    // No key is needed there.
    assert_eq!(client.attach_plain(address).unwrap().read(0).unwrap(), vec![7; 4096]);
    // But a key that is presented must be valid: not that of another host, and not an unknown one.
    let other = NvmeClient::new(DESK, &name);
    let psk = crate::host::disk_psk(&key, LAPTOP, &name);
    let connect = || {
        let tls::Psk { identity, secret, hash, key } = &psk;
        let (identity, secret) = (identity.clone(), secret.clone());
        crate::host::connect_tls(address, tls::Psk { identity, secret, hash: *hash, key: *key })
    };
    assert!(other.attach(connect).is_err());
    let wrong = folder.authorize(DESK, "desk", "tls", &[]);
    assert!(client.attach_tls(address, &wrong).is_err());
}

/// Connects with OpenSSL's client, with each identity that a host may use with its key.
#[test]
fn interop_openssl_speaks_tls_at_a_loopback_address() {
    let here = Command::new("openssl").arg("version").output();
    if here.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        println!("skip OpenSSL at a loopback address: not installed: openssl");
        return;
    }
    let folder = Folder::new();
    let (_running, address, name, key) = scene(&folder);
    let secret = export::Secret::new(key.as_bytes().to_vec());
    let derived = nvme::auth::psk::derive_psks(&secret, false, LAPTOP, &name).unwrap();
    let sha256 = derived.iter().filter(|psk| psk.hash == nvme::auth::Hash::Sha256);
    let mut versions = Vec::new();
    for psk in sha256 {
        versions.push(psk.identity.get(..5).unwrap().to_owned());
        assert!(openssl(address, &psk.identity, psk.secret.bytes()), "{}", psk.identity);
        assert!(!openssl(address, &psk.identity, &[7; 32]), "{}", psk.identity);
    }
    versions.sort();
    versions.dedup();
    assert_eq!(versions, ["NVMe0", "NVMe1"]);
}

/// Returns whether the handshake succeeds.
fn openssl(address: SocketAddr, identity: &str, secret: &[u8]) -> bool {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &address.to_string(), "-tls1_3", "-brief"])
        .args(["-ciphersuites", "TLS_AES_128_GCM_SHA256"])
        .args(["-psk_identity", identity, "-psk", &hex])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    output.contains("CONNECTION ESTABLISHED")
}
