//! The program as a process: output, exit status, refusals.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "serve/awake.rs"]
mod awake;
#[path = "serve/images.rs"]
mod images;
#[path = "serve/nbd.rs"]
mod nbd;
#[path = "serve/nbd_client.rs"]
#[allow(dead_code, reason = "each program needs a part of it")]
mod nbd_client;
#[path = "serve/nvmet.rs"]
mod nvmet;
#[path = "serve/process.rs"]
#[allow(dead_code, reason = "each program needs a part of it")]
mod process;
#[path = "serve/terminal.rs"]
mod terminal;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use process::{LONG, PROGRAM, Running};
use rustix::process::{Signal, geteuid};
use serde_json::Value;
use testkit::Scratch;

const ANY_PORT: &str = "127.0.0.1:0";

/// A temporary folder; removed when dropped.
struct Folder(Scratch);

impl Folder {
    fn new() -> Self {
        Self(Scratch::new())
    }

    fn image(&self, name: &str, bytes: u64) -> String {
        let path = self.0.0.join(name);
        fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        text(&path)
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Runs the command, which must end by itself.
fn run(arguments: &[&str]) -> Output {
    let started = Instant::now();
    let output = Command::new(PROGRAM).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(started.elapsed() < LONG, "{arguments:?}");
    output
}

/// Returns the sentence of a failure.
fn sentence(output: &Output, status: i32) -> String {
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(status), "{message}");
    assert!(output.stdout.is_empty());
    assert!(message.starts_with("storagetm: ") && message.lines().count() == 1, "{message}");
    message
}

fn refused(disk: &str, part: &str) {
    let output = run(&["serve", "--json", "--listen", ANY_PORT, disk]);
    let message = sentence(&output, 1);
    assert!(message.contains(disk) && message.contains(part), "{message}");
}

#[test]
fn invalid_disk_is_refused_in_one_sentence() {
    let folder = Folder::new();
    refused(&text(&folder.0.0.join("missing.img")), "no such disk or file");
    refused(&text(&folder.0.0), "directory");
    refused("/dev/null", "character device");
    refused(&folder.image("empty.img", 0), "empty");
    refused(&folder.image("tiny.img", 100), "less than one block");
    let pipe = folder.0.0.join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    refused(&text(&pipe), "pipe");
}

#[test]
fn unopenable_disk_is_refused_in_one_sentence() {
    let folder = Folder::new();
    let image = folder.image("secret.img", 1 << 20);
    fs::set_permissions(&image, fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--listen", ANY_PORT, &image]).stdin(Stdio::null());
    if geteuid().is_root() {
        command.uid(65534).gid(65534);
    } else {
        fs::set_permissions(&image, fs::Permissions::from_mode(0o000)).unwrap();
    }
    match command.output() {
        Ok(output) => {
            let message = sentence(&output, 1);
            assert!(message.contains("permission denied") && message.contains("root"), "{message}");
        }
        Err(error) => println!("skip serve as another user: {PROGRAM} cannot be run: {error}"),
    }
}

#[test]
fn port_in_use_is_reported_in_one_sentence() {
    let taken = TcpListener::bind(ANY_PORT).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = Folder::new();
    let image = folder.image("disk.img", 1 << 20);
    let message =
        sentence(&run(&["serve", "--json", "--listen", &address, "--writable", &image]), 1);
    assert!(message.contains("another program") && message.contains("--listen"), "{message}");
    let mut next = Running::serve(&["--json", "--listen", ANY_PORT, "--writable", &image]);
    next.until("ready");
    next.signal(Signal::TERM);
    assert!(next.end().success());
}

#[test]
fn wrong_options_end_with_status_2() {
    for line in [
        vec![],
        vec!["--all", "/dev/sda"],
        vec!["--demo", "--listen", "here"],
        vec!["--demo=3"],
        vec!["--demo", "--unknown"],
        vec!["--demo", "--nqn", "a laptop"],
    ] {
        let output = run(&[&["serve"], &line[..]].concat());
        assert_eq!(output.status.code(), Some(2), "{line:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
    assert_eq!(run(&[]).status.code(), Some(2));
}

#[test]
fn keys_are_required_except_on_loopback_or_with_open() {
    let folder = Folder::new();
    let keys = text(&folder.0.0.join("keys"));
    for (more, address, keyed) in [
        (&["--open"][..], "0.0.0.0:0", false),
        (&["--keys", &keys], "0.0.0.0:0", true),
        (&["--keys", &keys], "127.0.0.1:0", false),
    ] {
        let line = ["--json", "--demo", "--protocol", "nvme", "--listen", address];
        let running = Running::serve(&[&line[..], more].concat());
        let event = running.event();
        assert_eq!((&event["event"], &event["keyed"]), (&"listening".into(), &keyed.into()));
        let lent = running.event();
        let line = lent["attach"][0].as_str().unwrap().to_owned();
        assert_eq!(line.ends_with(" --tls"), keyed, "{line}");
    }
}

#[test]
fn first_events_are_listeners_disks_and_ready() {
    let folder = Folder::new();
    let (one, two) = (folder.image("one.img", (1 << 20) + 7), folder.image("two.img", 2 << 20));
    let nvme = ["--json", "--protocol", "nvme", "--listen", ANY_PORT];
    let line = [&nvme[..], &[&one, "--writable", &two, "--digests"]].concat();
    let mut running = Running::serve(&line);
    let events = running.until("ready");
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["listening", "lent", "lent", "ready"]);
    let port = events[0]["port"].as_u64().unwrap();
    assert_eq!((&events[0]["protocol"], port > 0), (&"nvme-tcp".into(), true));
    let (first, second) = (&events[1], &events[2]);
    assert_eq!((&first["disk"], &first["access"]), (&one.into(), &"read-only".into()));
    assert_eq!((&second["disk"], &second["access"]), (&two.into(), &"writable".into()));
    assert_eq!((&second["bytes"], &second["block_size"]), (&(2 << 20).into(), &512.into()));
    let nqn = second["nqn"].as_str().unwrap();
    let line =
        format!("nvme connect -t tcp -a 127.0.0.1 -s {port} -n {nqn} --hdr-digest --data-digest");
    assert_eq!(second["attach"][0], line);
    running.signal(Signal::INT);
    assert_eq!(running.until("stopped").len(), 2, "a note and the end");
    assert_eq!(running.end().code(), Some(0));
}

#[test]
fn each_protocol_has_a_free_port_of_its_own() {
    for (named, wanted) in [
        (&["--protocol", "nbd,nvme"][..], &["nvme-tcp", "nbd"][..]),
        (&[], &["nvme-tcp", "nbd", "iscsi"]),
    ] {
        let line = [&["--json", "--demo=64M", "--listen", ANY_PORT], named].concat();
        let running = Running::serve(&line);
        let events = running.until("ready");
        let listening = events.iter().filter(|event| event["event"] == "listening");
        let (protocols, ports): (Vec<&str>, Vec<u64>) = listening
            .map(|event| (event["protocol"].as_str().unwrap(), event["port"].as_u64().unwrap()))
            .unzip();
        assert_eq!(protocols, wanted);
        for (at, port) in ports.iter().enumerate() {
            assert!(!ports[..at].contains(port), "{ports:?}");
            let port = u16::try_from(*port).unwrap();
            assert!(TcpStream::connect(("127.0.0.1", port)).is_ok(), "{port}");
        }
    }
}

#[test]
fn plain_output_has_commands_and_no_escapes() {
    let mut running = Running::serve(&["--demo", "--protocol", "nvme", "--listen", ANY_PORT]);
    let lines: Vec<String> = std::iter::from_fn(|| Some(running.line()))
        .take_while(|line| !line.starts_with("    nvme connect -t tcp"))
        .collect();
    assert!(lines[0].ends_with("lends 1 disk over NVMe/TCP"), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("    nvme connect-all -t tcp -a 127.0.0.1")));
    assert!(lines.iter().all(|line| line.is_ascii() && !line.contains('\x1b')));
    running.signal(Signal::TERM);
    assert_eq!(running.end().code(), Some(0));
}

#[test]
fn connected_host_does_not_delay_shutdown() {
    let mut running = Running::serve(&["--json", "--demo=64M", "--listen", ANY_PORT]);
    let events = running.until("ready");
    let port = u16::try_from(events[0]["port"].as_u64().unwrap()).unwrap();
    let mut host = TcpStream::connect(("127.0.0.1", port)).unwrap();
    host.set_read_timeout(Some(LONG)).unwrap();
    // ICReq (NVMe/TCP 1.0 §3.6.2.2).
    let mut request = [0; 128];
    request[2] = 128;
    request[4] = 128;
    host.write_all(&request).unwrap();
    let mut response = [0; 128];
    host.read_exact(&mut response).unwrap();
    assert_eq!(response[..8], [1, 0, 128, 0, 128, 0, 0, 0]);
    let asked = Instant::now();
    running.signal(Signal::TERM);
    running.until("stopped");
    assert_eq!(running.end().code(), Some(0));
    assert!(asked.elapsed() < LONG / 2);
}

#[test]
fn two_disks_with_one_identity_are_refused() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 1 << 20);
    let link = text(&folder.0.0.join("link.img"));
    symlink(&image, &link).unwrap();
    let message = sentence(&run(&["serve", "--listen", ANY_PORT, &image, &link]), 1);
    assert!(message.contains(&image) && message.contains(&link), "{message}");
}

#[test]
fn a_disk_that_is_lent_writable_is_lent_once() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 1 << 20);
    let first = Running::serve(&["--json", "--listen", ANY_PORT, "--writable", &image]);
    first.until("ready");
    let message = sentence(&run(&["serve", "--listen", ANY_PORT, &image]), 1);
    assert!(message.contains(&image) && message.contains("locked"), "{message}");
}

#[test]
fn both_drivers_serve() {
    for driver in ["auto", "blocking"] {
        let running =
            Running::serve(&["--json", "--demo=64M", "--listen", ANY_PORT, "--io", driver]);
        running.until("ready");
    }
}

#[test]
fn a_reader_that_is_gone_ends_it_quietly() {
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--json", "--demo", "--listen", ANY_PORT]).stdin(Stdio::null());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let mut running = Running::of(child);
    assert_eq!(running.end().code(), Some(0));
    let mut message = String::new();
    running.child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
    assert_eq!(message, "");
}

#[test]
fn help_teaches_with_examples() {
    for (line, part) in
        [(vec!["--help"], "storagetm serve --demo"), (vec!["serve", "--help"], "--listen")]
    {
        let output = run(&line);
        let message = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success());
        assert!(message.contains("Examples:") && message.contains(part), "{message}");
    }
}

#[test]
fn list_shows_the_disks_of_this_machine() {
    if !Path::new("/sys/class/block").exists() {
        println!("skip list of the machine: /sys is not mounted here");
        return;
    }
    let rows = || -> Value {
        let output = run(&["list", "--json"]);
        assert!(output.status.success());
        serde_json::from_slice(&output.stdout).unwrap()
    };
    // Other tests make and remove loop devices.
    let (rows, table) = process::find(|| {
        let (before, table) = (rows(), run(&["list"]).stdout);
        (before == rows()).then(|| (before, String::from_utf8(table).unwrap()))
    })
    .expect("two equal lists");
    let complete = |row: &Value| row["path"].is_string() && row["lendable"].is_boolean();
    assert!(rows.as_array().unwrap().iter().all(complete));
    assert!(table.starts_with("NAME"));
    // The line about USB is behind an empty one.
    let listed = table.lines().take_while(|line| !line.is_empty());
    assert_eq!(listed.count(), rows.as_array().unwrap().len() + 1);
}

#[test]
fn program_runs_alone_in_an_empty_root() {
    if !geteuid().is_root() {
        println!("skip serve in an empty chroot: it needs root");
        return;
    }
    let folder = Folder::new();
    fs::copy(PROGRAM, folder.0.0.join("storagetm")).unwrap();
    let inside = |arguments: &[&str]| {
        let mut command = programs::command("chroot");
        command.arg(&folder.0.0).arg("/storagetm").args(arguments);
        command
    };
    let mut running =
        Running::start(&mut inside(&["serve", "--json", "--demo=64M", "--listen", ANY_PORT]));
    let port = running.until("ready")[0]["port"].as_u64().unwrap();
    TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap())).unwrap();
    running.signal(Signal::TERM);
    running.until("stopped");
    assert_eq!(running.end().code(), Some(0));
    let listed = inside(&["list"]).stdin(Stdio::null()).output().unwrap();
    assert!(sentence(&listed, 1).contains("/sys"));
}
