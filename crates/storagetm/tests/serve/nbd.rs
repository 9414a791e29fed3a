//! NBD for users and scripts: where it is served, what is reported, and how the program is started
//! by clients.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::nbd_client::{ABORT, ACK, LIST, NbdClient, READ_ONLY, SERVER, UNKNOWN};
use crate::{ANY_PORT, Folder, LONG, PROGRAM, Running, run, sentence, text};

const SIZE: u64 = 1 << 20;

/// Creates an image with `byte` in its first block.
fn image(folder: &Folder, name: &str, byte: u8) -> String {
    let path = folder.image(name, SIZE);
    fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(&[byte; 512]).unwrap();
    path
}

fn tcp(port: u64) -> NbdClient<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap())).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    NbdClient::connected(stream).unwrap()
}

fn unix(path: &Path) -> NbdClient<UnixStream> {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    NbdClient::connected(stream).unwrap()
}

/// Reads the first block of the export of that name.
fn first_block<S: Read + Write>(client: &mut NbdClient<S>, name: &str) -> Vec<u8> {
    let (size, flags) = client.go(name).unwrap().unwrap();
    assert_eq!((size, flags & READ_ONLY), (SIZE, READ_ONLY));
    client.read(0, 512).unwrap().unwrap()
}

#[test]
fn nbd_is_served_on_request_and_reported() {
    for driver in ["uring", "blocking"] {
        let folder = Folder::new();
        let (one, two) = (image(&folder, "one.img", 1), image(&folder, "two.img", 2));
        let socket = folder.0.0.join("x y.sock");
        let path = format!("unix:{}", text(&socket));
        let line = ["--json", "--io", driver, "--listen", "nbd:127.0.0.1:0", "--listen", &path];
        let mut running = Running::serve(&[&line[..], &[&one, &two]].concat());
        let events = running.until("ready");
        let (net, local) = (&events[0], &events[1]);
        assert_eq!((&net["protocol"], &net["serves"]), (&"nbd".into(), &["disks"][..].into()));
        assert_eq!((&local["protocol"], &local["path"]), (&"nbd".into(), &text(&socket).into()));
        assert!(local["port"].is_null() && local["keyed"] == false);
        let port = net["port"].as_u64().unwrap();
        assert_eq!((&events[2]["name"], &events[3]["name"]), (&"one".into(), &"two".into()));
        assert_eq!(events[3]["nbd"][0], format!("nbd://127.0.0.1:{port}/two"));
        assert!(events[3]["nbd"][1].as_str().unwrap().starts_with("nbd+unix:///two?socket=/"));
        assert_eq!(events[3]["attach"].as_array().unwrap().len(), 0, "NVMe/TCP is not served");
        assert_eq!(first_block(&mut tcp(port), "two"), [2; 512]);
        let attached = running.until("attached").pop().unwrap();
        assert_eq!((&attached["protocol"], &attached["host"]), (&"nbd".into(), &"".into()));
        assert!(attached["address"].as_str().unwrap().starts_with("127.0.0.1:"));
        let detached = running.until("detached").pop().unwrap();
        assert_eq!((&detached["disk"], &detached["read"]), (&two.into(), &512.into()));
        assert_eq!(first_block(&mut unix(&socket), "one"), [1; 512]);
        assert_eq!(running.until("attached").pop().unwrap()["address"], "unix");
        assert_eq!(tcp(port).go("three").unwrap(), Err(UNKNOWN));
        assert_eq!(running.until("refused").pop().unwrap()["wanted"], "three");
        running.signal(Signal::TERM);
        assert!(running.end().success());
        assert!(!socket.exists(), "the socket's file is left behind");
    }
}

#[test]
fn export_names_are_short_and_unique() {
    let folder = Folder::new();
    fs::create_dir(folder.0.0.join("more")).unwrap();
    let disks = ["disk.img", "disk.raw", "more/disk.img"].map(|name| image(&folder, name, 1));
    let disks: Vec<&str> = disks.iter().map(String::as_str).collect();
    let listen = ["--json", "--demo=4M", "--listen", "nbd:127.0.0.1:0"];
    let running = Running::serve(&[&listen[..], &disks].concat());
    let events = running.until("ready");
    let names: Vec<&str> = events.iter().filter_map(|event| event["name"].as_str()).collect();
    assert_eq!(names, ["disk", "disk-2", "disk-3", "demo"]);
    let mut client = tcp(events[0]["port"].as_u64().unwrap());
    client.send_option(LIST, &[]).unwrap();
    for name in names {
        let (kind, data) = client.reply(LIST).unwrap();
        // NBD_REP_SERVER: length of the name, the name, and details.
        let len = u32::from_be_bytes(data[..4].try_into().unwrap()) as usize;
        assert_eq!((kind, &data[4..4 + len]), (SERVER, name.as_bytes()));
    }
    assert_eq!(client.reply(LIST).unwrap().0, ACK);
    // An empty name selects the only disk; there are four.
    assert_eq!(client.go("").unwrap(), Err(UNKNOWN));
    assert_eq!(client.negotiate(ABORT, &[]).unwrap(), ACK);
}

#[test]
fn stale_socket_is_replaced_but_no_other_file() {
    let folder = Folder::new();
    let disk = image(&folder, "disk.img", 3);
    let path = folder.0.0.join("x.sock");
    drop(UnixListener::bind(&path).unwrap());
    let listen = format!("unix:{}", text(&path));
    let mut running = Running::serve(&["--json", "--listen", &listen, &disk]);
    running.until("ready");
    assert_eq!(first_block(&mut unix(&path), ""), [3; 512]);
    let message = sentence(&run(&["serve", "--listen", &listen, &disk]), 1);
    assert!(message.contains("another program"), "{message}");
    running.signal(Signal::TERM);
    assert!(running.end().success());
    let listen = format!("unix:{disk}");
    let message = sentence(&run(&["serve", "--listen", &listen, &disk]), 1);
    assert!(message.contains("not a socket"), "{message}");
    assert_eq!(fs::metadata(&disk).unwrap().len(), SIZE);
}

#[test]
fn disabled_protocol_has_no_listener() {
    let folder = Folder::new();
    let disk = image(&folder, "disk.img", 3);
    for (line, status) in [
        (&["--protocol", "nvme", "--listen", "unix:/run/x"][..], 2),
        (&["--protocol", "nbd", "--listen", "nvme:127.0.0.1:0"], 2),
    ] {
        sentence(&run(&[&["serve"], line, &[&disk]].concat()), status);
    }
    let running = Running::serve(&["--json", "--protocol", "nbd", "--listen", ANY_PORT, &disk]);
    let event = running.event();
    assert_eq!(event["protocol"], "nbd");
    assert_eq!(first_block(&mut tcp(event["port"].as_u64().unwrap()), "disk"), [3; 512]);
}

/// Starts the program with a listening socket at descriptor 3, as systemd does.
fn activated(listener: OwnedFd, args: &[&str]) -> Running {
    let script =
        "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=unknown exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", PROGRAM, "serve"]).args(args);
    Running::of(command.stdin(listener).stdout(Stdio::piped()).spawn().unwrap())
}

#[test]
fn activation_socket_is_served_without_stdout() {
    let folder = Folder::new();
    let disk = image(&folder, "disk.img", 4);
    let path = folder.0.0.join("x.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut running = activated(listener.into(), &[&disk]);
    // A client that connects before it is ready waits in the socket's backlog.
    assert_eq!(first_block(&mut unix(&path), ""), [4; 512]);
    running.signal(Signal::TERM);
    assert!(running.end().success());
    assert_eq!(running.lines.recv_timeout(LONG).ok(), None, "output on stdout");
    assert!(path.exists(), "the socket file of systemd was removed");
    let listener = std::net::TcpListener::bind(ANY_PORT).unwrap();
    let port = listener.local_addr().unwrap().port().into();
    let mut running = activated(listener.into(), &["--json", &disk]);
    let events = running.until("ready");
    assert_eq!((&events[0]["protocol"], &events[0]["port"]), (&"nbd".into(), &port));
    assert_eq!(events[1]["event"], "lent", "no other listener");
    assert_eq!(first_block(&mut tcp(port.as_u64().unwrap()), "disk"), [4; 512]);
    running.signal(Signal::TERM);
    assert!(running.end().success());
}

#[test]
fn stdin_client_is_served_until_it_disconnects() {
    for driver in ["uring", "blocking"] {
        let folder = Folder::new();
        let disk = image(&folder, "disk.img", 5);
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(LONG)).unwrap();
        let output = OwnedFd::from(theirs.try_clone().unwrap());
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--stdin", "--io", driver, &disk]);
        let child = command.stdin(OwnedFd::from(theirs)).stdout(output).spawn().unwrap();
        drop(command);
        let mut running = Running::of(child);
        let mut client = NbdClient::connected(ours).unwrap();
        assert_eq!(first_block(&mut client, "disk"), [5; 512]);
        let begun = Instant::now();
        drop(client);
        assert!(running.end().success());
        // Less than the seven seconds in which hosts must disconnect.
        assert!(begun.elapsed() < Duration::from_secs(6), "{driver}: {:?}", begun.elapsed());
    }
}

#[test]
fn half_closed_client_on_stdin_gets_its_replies() {
    const READS: usize = 1000;
    let folder = Folder::new();
    let disk = image(&folder, "disk.img", 5);
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(LONG)).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--stdin", &disk]).stdin(OwnedFd::from(theirs));
    let mut running = Running::of(command.spawn().unwrap());
    drop(command);
    let mut client = NbdClient::connected(ours).unwrap();
    client.go("disk").unwrap().unwrap();
    let read = [&[0x25, 0x60, 0x95, 0x13][..], &[0; 22], &[2, 0]].concat();
    client.0.write_all(&read.repeat(READS)).unwrap();
    client.0.shutdown(std::net::Shutdown::Write).unwrap();
    let mut received = Vec::new();
    client.0.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), READS * (16 + 512));
    drop(client);
    assert!(running.end().success());
}

#[test]
fn protocol_violation_on_stdin_ends_the_program() {
    let folder = Folder::new();
    let disk = image(&folder, "disk.img", 5);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--stdin", &disk]).stdin(OwnedFd::from(theirs));
    let mut running = Running::of(command.spawn().unwrap());
    drop(command);
    ours.write_all(&[0xff; 64]).unwrap();
    ours.set_read_timeout(Some(LONG)).unwrap();
    let mut received = Vec::new();
    ours.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), 18, "more than the greeting");
    drop(ours);
    assert!(running.end().success());
}

#[test]
fn stdin_without_a_client_is_reported() {
    let folder = Folder::new();
    let disk = image(&folder, "disk.img", 5);
    let message = sentence(&run(&["serve", "--stdin", &disk]), 1);
    assert!(message.contains("not a connected socket"), "{message}");
    assert_eq!(run(&["serve", "--stdin", "--listen", ANY_PORT, &disk]).status.code(), Some(2));
}

/// Without the socket it must not fall back to its default listeners.
#[test]
fn missing_activation_socket_is_reported() {
    let folder = Folder::new();
    let disk = image(&folder, "disk.img", 5);
    let line = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" serve \"$1\" 3<&-";
    let output = Command::new("sh").args(["-c", line, PROGRAM, &disk]).output().unwrap();
    let message = sentence(&output, 1);
    assert!(message.contains("LISTEN_FDS"), "{message}");
}

/// As in the manuals of NBD clients: the client starts the server, with a socket and without a
/// port.
#[test]
fn nbdinfo_starts_and_stops_the_server() {
    if programs::lacks("nbdinfo starts a server and ends it", &["nbdinfo"]) {
        return;
    }
    let folder = Folder::new();
    let disk = image(&folder, "disk.img", 6);
    let mut command = programs::command("nbdinfo");
    command.args(["--json", "--", "[", PROGRAM, "serve", &disk, "]"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let export = &found["exports"][0];
    assert_eq!((&export["export-name"], &export["export-size"]), (&"disk".into(), &SIZE.into()));
    assert_eq!(export["is_read_only"], true);
}

#[test]
fn missing_certificates_are_reported() {
    let folder = Folder::new();
    let disk = image(&folder, "disk.img", 5);
    let here = text(&folder.0.0);
    let line = ["serve", "--listen", ANY_PORT, "--tls-certificates", &here, &disk];
    let message = sentence(&run(&line), 1);
    assert!(message.contains("server-key.pem"), "{message}");
    for name in ["server-key.pem", "server-cert.pem"] {
        fs::write(folder.0.0.join(name), "-----BEGIN NOTHING-----\n").unwrap();
    }
    let message = sentence(&run(&line), 1);
    assert!(message.contains("--tls-certificates"), "{message}");
}
