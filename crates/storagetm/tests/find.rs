//! `storagetm find` and the announcer process, over multicast on the loopback interface at a port
//! of their own. Skipped with a note if multicast is not available.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "serve/process.rs"]
#[allow(dead_code, reason = "each program needs a part of it")]
mod process;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use process::{LONG, PROGRAM, Running};
use rustix::process::Signal;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);

/// Returns a UDP port that is free.
fn free_port() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.local_addr().unwrap().port()
}

/// Another multicast DNS responder on this machine.
fn neighbour(port: u16) -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).unwrap();
    socket.join_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST).unwrap();
    socket.set_multicast_if_v4(&Ipv4Addr::LOCALHOST).unwrap();
    let socket: UdpSocket = socket.into();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket
}

/// Returns whether this machine delivers multicast packets on its loopback interface.
fn has_multicast() -> bool {
    let port = free_port();
    let (one, other) = (neighbour(port), neighbour(port));
    let sent = one.send_to(b"word", (GROUP, port));
    let received = sent.is_ok() && other.recv(&mut [0; 16]).is_ok();
    if !received {
        println!("skip finding machines: no multicast on the loopback interface here");
    }
    received
}

/// Sends SIGTERM and waits for the end.
fn stop(running: &mut Running) {
    running.signal(Signal::TERM);
    running.end();
}

/// Returns the announcer process of that server, if there is one.
fn find_announcer(running: &Running) -> Option<u32> {
    let of = |folder: std::fs::DirEntry| -> Option<u32> {
        let pid: u32 = folder.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(folder.path().join("cmdline")).ok()?;
        let status = std::fs::read_to_string(folder.path().join("status")).ok()?;
        let parent = format!("PPid:\t{}\n", running.child.id());
        (line == b"storagetm\0announcer\0" && status.contains(&parent)).then_some(pid)
    };
    std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).find_map(of)
}

/// Waits for the announcer process and returns it.
fn announcer_of(running: &Running) -> u32 {
    process::find(|| find_announcer(running)).expect("a process that announces")
}

/// Starts a server of the demo disk on the loopback interface that announces at that port.
fn serve(port: u16, more: &[&str]) -> Running {
    let own = ["--json", "--demo=64M", "--listen", "127.0.0.1:0", "--io", "blocking"];
    let running = Running::serve(&[&own[..], &["--mdns-port", &port.to_string()], more].concat());
    running.until("ready");
    running
}

/// Starts the announcer process alone.
fn announcer(port: u16) -> (Running, ChildStdin) {
    let mut child = Command::new(PROGRAM)
        .arg("announcer")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut orders = child.stdin.take().unwrap();
    writeln!(orders, "{}", json!({"start": {"port": port}})).unwrap();
    (Running::of(child), orders)
}

fn service(name: &str, port: u16, keyed: bool) -> Value {
    json!({
        "kind": "nvme", "name": name, "host": "storagetm-00000000", "port": port,
        "addresses": ["127.0.0.1"], "interfaces": ["lo"], "keyed": keyed,
    })
}

fn find(port: u16, more: &[&str]) -> String {
    let (port, nothing) = (port.to_string(), std::env::temp_dir());
    let output = Command::new(PROGRAM)
        .args(["find", "--timeout", "2", "--mdns-port", &port])
        .args(more)
        .env("XDG_STATE_HOME", nothing.join("storagetm-no-such-folder"))
        .env("STATE_DIRECTORY", nothing.join("storagetm-no-such-folder"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the machines found, once their number is as expected: an announcement takes some time.
fn found(port: u16, count: usize) -> Vec<Value> {
    let end = Instant::now() + LONG;
    loop {
        let rows: Vec<Value> = serde_json::from_str(&find(port, &["--json"])).unwrap();
        if rows.len() >= count || Instant::now() > end {
            return rows;
        }
    }
}

/// Returns the text output once it contains those words. A responder does not repeat an answer
/// within a second (RFC 6762 §6).
fn shown(port: u16, args: &[&str]) -> String {
    let end = Instant::now() + LONG;
    loop {
        let text = find(port, &[]);
        if args.iter().all(|word| text.contains(word)) {
            return text;
        }
        assert!(Instant::now() < end, "{args:?} are not in: {text}");
    }
}

#[test]
fn target_is_found_beside_another_responder() {
    if !has_multicast() {
        return;
    }
    let port = free_port();
    let _other = neighbour(port);
    let mut running = serve(port, &["--writable", "demo"]);
    let rows = found(port, 1);
    assert_eq!(rows.len(), 1, "{rows:?}");
    let disk = &rows[0]["disks"][0];
    assert_eq!((&disk["bytes"], &disk["access"]), (&json!(64 << 20), &json!("writable")));
    assert_eq!(rows[0]["addresses"], json!(["127.0.0.1"]));
    assert_eq!(rows[0]["keyed"], json!(false));
    shown(port, &["67.1 MB, writable", "storagetm attach 127.0.0.1:"]);
    stop(&mut running);
}

#[test]
fn announcer_is_unprivileged_and_ends_with_its_parent() {
    let port = free_port();
    let mut running = serve(port, &[]);
    let pid = announcer_of(&running);
    let status = || std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    // Seccomp is the last part of its sandbox; the server does not wait for it.
    let end = Instant::now() + LONG;
    while !status().contains("Seccomp:\t2\n") {
        assert!(Instant::now() < end, "it keeps its rights: {}", status());
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = status();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!((&field("NoNewPrivs:")[0][..], &field("CapEff:")[0][..]), ("1", "0000000000000000"));
    assert!(field("Uid:").iter().all(|uid| uid != "0"), "{:?}", field("Uid:"));
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    let end = Instant::now() + LONG;
    while std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.contains(") Z "))
    {
        assert!(Instant::now() < end, "it lives on");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn no_announce_sends_nothing() {
    let port = free_port();
    let running = serve(port, &["--no-announce"]);
    assert_eq!(find_announcer(&running), None);
    assert!(find(port, &[]).starts_with("No machine nearby"));
}

/// A goodbye has a TTL of zero (RFC 6762 §10.1).
#[test]
fn shutdown_withdraws_announcements() {
    if !has_multicast() {
        return;
    }
    let port = free_port();
    let ear = neighbour(port);
    let mut running = serve(port, &[]);
    assert_eq!(found(port, 1).len(), 1);
    stop(&mut running);
    let end = Instant::now() + LONG;
    let mut packet = [0; 9000];
    loop {
        let got = ear.recv(&mut packet).expect("a goodbye comes");
        if is_goodbye(&packet[..got]) {
            return;
        }
        assert!(Instant::now() < end, "no goodbye came");
    }
}

/// Returns whether the packet is a response whose first record is that of a service, with a TTL of
/// zero.
fn is_goodbye(packet: &[u8]) -> bool {
    let questions = packet.get(4..6) == Some(&[0, 0]);
    let mut at = 12;
    while let Some(&length) = packet.get(at).filter(|length| **length != 0) {
        at += 1 + usize::from(length);
    }
    questions
        && packet.get(1..3).is_some()
        && packet.get(at + 5..at + 9) == Some(&[0; 4])
        && packet.windows(10).any(|some| some == b"_nvme-disc")
}

/// X01, X53: a machine that requires a key shows nothing else, and hostile announcements are
/// escaped.
#[test]
fn x01_x53_keyed_target_and_hostile_names_are_shown_safely() {
    if !has_multicast() {
        return;
    }
    let port = free_port();
    let closed_port =
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (_running, mut orders) = announcer(port);
    let evil = "\u{1b}[2J\u{202e}evil";
    let services =
        [service("storagetm-abcd", closed_port, true), service(evil, closed_port, false)];
    writeln!(orders, "{}", json!({"announce": {"services": services}})).unwrap();
    assert_eq!(found(port, 2).len(), 2);
    let pair = format!("needs a key: storagetm pair 127.0.0.1:{closed_port}\n");
    let args = ["storagetm-abcd, at 127.0.0.1\n", &pair, "it does not answer"];
    let text = shown(port, &args);
    assert!(
        text.chars().all(|c| c == '\n' || !c.is_control()) && !text.contains('\u{202e}'),
        "{text:?}"
    );
    assert!(!find(port, &["--json"]).contains('\u{1b}'));
}

/// Packets that are not DNS are ignored (reference case: garbage in multicast DNS).
#[test]
fn garbage_from_the_network_is_survived() {
    if !has_multicast() {
        return;
    }
    let port = free_port();
    let voice = neighbour(port);
    let running = serve(port, &[]);
    let pid = announcer_of(&running);
    let mut state = 1_u32;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    for round in 0..2000_usize {
        let mut packet: Vec<u8> = (0..round % 512).map(|_| byte()).collect();
        if round % 3 == 0 && packet.len() > 12 {
            // A response with one record, whose name is a compression pointer to itself.
            packet[..12].copy_from_slice(&[0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
            packet[12] = 0xc0;
        }
        let _ = voice.send_to(&packet, (GROUP, port));
    }
    assert_eq!(found(port, 1).len(), 1);
    assert_eq!(announcer_of(&running), pid, "the same process still");
}

#[test]
fn announcer_cannot_be_started_alone() {
    let output = Command::new(PROGRAM).arg("announcer").stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("start it by themselves"));
}
