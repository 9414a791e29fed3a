//! The control socket of `storagetm serve`, and its clients `storagetm status`, `add` and `remove`.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "serve/loop_device.rs"]
#[allow(dead_code, reason = "shared with the tests of the provider")]
mod loop_device;
#[path = "serve/nbd_client.rs"]
#[allow(dead_code, reason = "shared with the tests of serve")]
mod nbd_client;
#[path = "serve/process.rs"]
#[allow(dead_code, reason = "shared with the tests of serve")]
mod process;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use loop_device::Loop;
use nbd_client::NbdClient;
use process::{PROGRAM, Running, find};
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::Scratch;
use varlink::client::{CallError, Client};

const INTERFACE: &str = "io.github.storagetm.Serve";

/// A running `storagetm serve` that lends `first.img` over NBD.
struct Server {
    running: Running,
    socket: PathBuf,
    at: SocketAddr,
    folder: Scratch,
}

impl Server {
    fn start(options: &[&str]) -> Self {
        let folder = Scratch::new();
        let socket = folder.0.join("control");
        let first = image(&folder, "first.img");
        let control = socket.to_str().unwrap();
        let line = ["--json", "--protocol", "nbd", "--listen", "127.0.0.1:0", "--control", control];
        // The options are for that disk.
        let running = Running::serve(&[&line[..], options, &[&first]].concat());
        let (at, _) = running.ready();
        Self { running, socket, at, folder }
    }

    fn client(&self) -> Client {
        let client = Client::connect(&self.socket).unwrap();
        client.set_timeout(Some(Duration::from_secs(60))).unwrap();
        client
    }

    fn call(&self, method: &str, parameters: Value) -> Result<Value, (String, Value)> {
        let method = format!("{INTERFACE}.{method}");
        match self.client().call(&method, parameters) {
            Ok(output) => Ok(Value::Object(output)),
            Err(CallError::Service { name, parameters }) => Err((name, Value::Object(parameters))),
            Err(error) => panic!("{method}: {error}"),
        }
    }

    /// Runs `storagetm` with the socket of this server.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(PROGRAM);
        command.arg(arguments[0]).arg("--socket").arg(&self.socket).args(&arguments[1..]);
        command.current_dir(&self.folder.0).stdin(Stdio::null()).output().unwrap()
    }

    /// Opens an export over NBD.
    fn nbd(&self, name: &str) -> Option<NbdClient<TcpStream>> {
        let mut client = NbdClient::connected(TcpStream::connect(self.at).unwrap()).unwrap();
        client.go(name).unwrap().is_ok().then_some(client)
    }
}

fn image(folder: &Scratch, name: &str) -> String {
    let path = folder.0.join(name);
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    path.to_str().unwrap().to_owned()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn failure(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8(output.stderr.clone()).unwrap())
}

fn error(name: &str, parameters: Value) -> Result<Value, (String, Value)> {
    Err((format!("{INTERFACE}.{name}"), parameters))
}

#[test]
fn disks_are_added_and_removed_without_a_restart() {
    let server = Server::start(&[]);
    image(&server.folder, "second.img");
    let added = text(&server.run(&["add", "--writable", "second.img"]));
    assert!(added.contains("second.img is lent as second, writable"), "{added}");
    assert_eq!(server.running.event()["event"], "lent");
    let mut disk = server.nbd("second").unwrap();
    assert_eq!(disk.write(512, &[7; 512]).unwrap(), 0);
    let attached = failure(&server.run(&["remove", "second"]));
    assert!(attached.0 == Some(1) && attached.1.contains("is attached by"), "{attached:?}");
    drop(disk);
    server.running.until("detached");
    let removed = text(&server.run(&["remove", "second"]));
    assert_eq!(removed, "second is not lent any more\n");
    assert_eq!(server.running.until("withdrawn").last().unwrap()["reason"], REMOVED);
    assert!(server.nbd("second").is_none());
    assert_eq!(fs::read(server.folder.0.join("second.img")).unwrap()[512..1024], [7; 512]);
    // It can be lent again, as nothing holds it, and removed as it was added.
    text(&server.run(&["add", "second.img"]));
    assert!(server.nbd("second").is_some());
    let removed = text(&server.run(&["remove", "--force", "second.img"]));
    assert!(removed.starts_with("second.img is not lent any more"), "{removed}");
    let unknown = failure(&server.run(&["remove", "second.img"]));
    assert_eq!(unknown, (Some(1), "storagetm: no disk second.img is lent\n".to_owned()));
}

const REMOVED: &str = "it was removed at the machine";

/// An error (NBD, Error values): the server ends.
const ESHUTDOWN: u32 = 108;

#[test]
fn forced_removal_takes_a_disk_from_its_host() {
    let server = Server::start(&[]);
    let mut disk = server.nbd("first").unwrap();
    disk.read(0, 512).unwrap().unwrap();
    let removed = text(&server.run(&["remove", "--force", "first"]));
    // The client stays connected, and the disk open with it.
    assert!(removed.contains("still open"), "{removed}");
    assert_eq!(disk.read(0, 512).unwrap(), Err(ESHUTDOWN));
    assert_eq!(server.call("List", json!({})).unwrap(), json!({"exports": []}));
}

#[test]
fn changes_in_memory_are_given_up_by_force_only() {
    let server = Server::start(&["--overlay"]);
    let mut disk = server.nbd("first").unwrap();
    assert_eq!(disk.write(512, &[7; 512]).unwrap(), 0);
    drop(disk);
    server.running.until("detached");
    let kept = failure(&server.run(&["remove", "first"]));
    assert!(kept.0 == Some(1) && kept.1.contains("is kept in memory only"), "{kept:?}");
    let removed = text(&server.run(&["remove", "--force", "first"]));
    assert_eq!(removed, "first is not lent any more\n");
}

#[test]
fn added_overlay_leaves_its_disk_unchanged() {
    let server = Server::start(&[]);
    image(&server.folder, "second.img");
    let added: Value = serde_json::from_str(&text(&server.run(&[
        "add",
        "--json",
        "--overlay-shared",
        "--overlay",
        "second.img",
    ])))
    .unwrap();
    assert_eq!(added[0]["access"], "writable", "{added}");
    let lent = server.running.event();
    let overlay = &lent["overlay"];
    assert_eq!((&overlay["kept_in"], &overlay["shared"]), (&json!("memory"), &json!(true)));
    let mut disk = server.nbd("second").unwrap();
    assert_eq!(disk.write(512, &[7; 512]).unwrap(), 0);
    assert_eq!(disk.read(512, 512).unwrap().unwrap(), [7; 512]);
    assert_eq!(disk.flush().unwrap(), 0);
    drop(disk);
    server.running.until("detached");
    let kept = failure(&server.run(&["remove", "second"]));
    assert!(kept.0 == Some(1) && kept.1.contains("is kept in memory only"), "{kept:?}");
    text(&server.run(&["remove", "--force", "second"]));
    let second = fs::read(server.folder.0.join("second.img")).unwrap();
    assert!(second.iter().all(|byte| *byte == 0));
}

#[test]
fn disk_is_not_added_writable_and_with_an_overlay() {
    let server = Server::start(&[]);
    let path = image(&server.folder, "second.img");
    let input = json!({"disk": path, "writable": true, "overlay": true});
    let refused = server.call("Add", input).unwrap_err();
    assert_eq!(refused.1["parameter"], "writable", "{refused:?}");
    server.call("Add", json!({"disk": path, "writable": false, "overlay": true})).unwrap();
}

#[test]
fn added_overlay_in_files_survives_a_restart() {
    let server = Server::start(&[]);
    let path = image(&server.folder, "second.img");
    let add = ["add", "--overlay", "second.img", "--overlay-dir", "overlays"];
    text(&server.run(&add));
    assert_eq!(server.running.event()["overlay"]["kept_in"], "files");
    let mut disk = server.nbd("second").unwrap();
    assert_eq!(disk.write(512, &[7; 512]).unwrap(), 0);
    assert_eq!(disk.flush().unwrap(), 0);
    drop(disk);
    server.running.until("detached");
    assert_eq!(text(&server.run(&["remove", "second"])), "second is not lent any more\n");
    let again = Server::start(&[]);
    let dir = server.folder.0.join("overlays");
    let input = json!({"disk": path, "overlay": true, "overlay_dir": dir});
    again.call("Add", input).unwrap();
    let mut disk = again.nbd("second").unwrap();
    assert_eq!(disk.read(512, 512).unwrap().unwrap(), [7; 512]);
    assert!(fs::read(path).unwrap().iter().all(|byte| *byte == 0));
    for (input, name) in [
        (json!({"disk": "/x", "overlay_shared": true}), "overlay"),
        (json!({"disk": "/x", "overlay": true, "overlay_dir": "x"}), "overlay_dir"),
    ] {
        let refused = again.call("Add", input).unwrap_err();
        assert_eq!(refused.1["parameter"], name, "{refused:?}");
    }
}

#[test]
fn status_shows_disks_and_hosts() {
    let server = Server::start(&[]);
    let mut disk = server.nbd("first").unwrap();
    disk.read(0, 4096).unwrap().unwrap();
    server.running.until("attached");
    let report: Value = serde_json::from_str(&text(&server.run(&["status", "--json"]))).unwrap();
    let one = &report[0];
    let (export, host) = (&one["exports"][0], &one["hosts"][0]);
    assert_eq!((&one["disks"], &one["attached"]), (&json!(1), &json!(1)));
    assert_eq!(one["endpoints"][0]["port"], server.at.port());
    assert_eq!(one["process"], server.running.child.id());
    assert_eq!((&export["name"], &export["access"]), (&json!("first"), &json!("read-only")));
    assert_eq!((&host["name"], &host["address"]), (&json!("first"), &json!("127.0.0.1")));
    let counted = find(|| {
        let exports = server.call("List", json!({})).unwrap();
        (exports["exports"][0]["read"] == 4096).then_some(())
    });
    assert!(counted.is_some());
    let text = text(&server.run(&["status"]));
    assert!(text.contains("1 disk lent, 1 attached") && text.contains("first.img"), "{text}");
}

#[test]
fn metrics_are_those_of_prometheus() {
    let server = Server::start(&[]);
    let text = text(&server.run(&["status", "--metrics"]));
    let size = text.lines().find(|line| line.starts_with("storagetm_disk_size_bytes{"));
    let size = size.unwrap_or_else(|| panic!("{text}"));
    assert!(size.contains("name=\"first\"") && size.ends_with("} 1048576"), "{size}");
    if !programs::is_installed("promtool") {
        println!("skip metrics_are_those_of_prometheus: not installed: promtool");
        return;
    }
    let mut check = Command::new("promtool");
    check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut check = check.stderr(Stdio::piped()).spawn().unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn what_cannot_be_lent_is_refused_with_its_reason() {
    let server = Server::start(&[]);
    let missing = failure(&server.run(&["add", "missing.img"]));
    assert!(missing.0 == Some(1) && missing.1.contains("no such disk or file"), "{missing:?}");
    let again = failure(&server.run(&["add", "first.img"]));
    assert_eq!(again.0, Some(1), "{again:?}");
    let unknown = server.call("Remove", json!({"name": "third"}));
    assert_eq!(unknown, error("NoSuchExport", json!({"name": "third"})));
    // The working directory of a client is not that of the server.
    let relative = server.call("Add", json!({"disk": "Cargo.toml"})).unwrap_err();
    assert!(relative.1["reason"].as_str().unwrap().contains("must be absolute"), "{relative:?}");
    let invalid = server.call("Add", json!({"disk": ""})).unwrap_err();
    assert_eq!(invalid.0, "org.varlink.service.InvalidParameter");
    let nowhere = Command::new(PROGRAM).args(["status", "--socket", "/x"]).output().unwrap();
    assert_eq!(
        failure(&nowhere),
        (Some(1), "storagetm: no storagetm serve listens at /x\n".to_owned())
    );
}

#[test]
fn events_begin_with_what_is_lent_now() {
    let mut server = Server::start(&[]);
    let mut command = Command::new(PROGRAM);
    command.args(["status", "--follow", "--socket"]).arg(&server.socket);
    let mut follower = Running::start(&mut command);
    let names = |events: Vec<Value>| -> Vec<String> {
        events.iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(follower.until("ready")), ["listening", "lent", "ready"]);
    image(&server.folder, "second.img");
    text(&server.run(&["add", "second.img"]));
    assert_eq!(follower.event()["name"], "second");
    server.running.signal(Signal::TERM);
    assert_eq!(names(follower.until("stopped")).last().unwrap(), "stopped");
    assert!(server.running.end().success());
    assert!(follower.end().success());
    assert!(!server.socket.exists());
}

#[test]
fn calls_that_arrive_together_are_answered_at_once() {
    let server = Server::start(&[]);
    let mut client = UnixStream::connect(&server.socket).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let (begun, count) = (Instant::now(), 200);
    let call = format!("{{\"method\":\"{INTERFACE}.List\"}}\0");
    client.write_all(call.repeat(count).as_bytes()).unwrap();
    let (mut piece, mut answered) = ([0; 4096], 0);
    while answered < count {
        let bytes = client.read(&mut piece).unwrap();
        assert_ne!(bytes, 0);
        answered += piece[..bytes].iter().filter(|byte| **byte == 0).count();
    }
    // Nothing else happens here that the server would wake up for, but the look at the file's size every two seconds.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn options_of_other_disks_are_not_for_those_that_are_added() {
    let Some(device) = Loop::new("options_of_other_disks_are_not_for_those_that_are_added") else {
        return;
    };
    let server = Server::start(&["--allow-in-use"]);
    let exclusively = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL;
    let _holder = rustix::fs::open(&device.0, exclusively, rustix::fs::Mode::empty()).unwrap();
    let refused = failure(&server.run(&["add", device.0.to_str().unwrap()]));
    assert!(refused.0 == Some(1) && refused.1.contains("in use"), "{refused:?}");
}

#[test]
fn server_that_does_not_answer_does_not_hold_up_status() {
    let server = Server::start(&[]);
    server.running.signal(Signal::STOP);
    let silent = failure(&server.run(&["status"]));
    server.running.signal(Signal::CONT);
    assert!(silent.0 == Some(1) && silent.1.contains("does not answer"), "{silent:?}");
    text(&server.run(&["status"]));
}

#[test]
fn socket_is_for_the_user_who_serves_only() {
    let server = Server::start(&[]);
    assert_eq!(fs::metadata(&server.socket).unwrap().permissions().mode() & 0o777, 0o600);
    if !rustix::process::geteuid().is_root() {
        println!("skip socket_is_for_the_user_who_serves_only: only root can become another user");
        return;
    }
    // With the rights of the file, which are not relied on alone.
    fs::set_permissions(&server.socket, fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(&server.folder.0, fs::Permissions::from_mode(0o755)).unwrap();
    let program = server.folder.0.join("storagetm");
    fs::copy(PROGRAM, &program).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program);
    let output = command.args(["status", "--socket"]).arg(&server.socket).output().unwrap();
    let (status, message) = failure(&output);
    assert!(status == Some(1) && message.contains("closed the connection"), "{message}");
}

#[test]
fn hostile_clients_do_not_disturb_others() {
    let server = Server::start(&[]);
    let mut disk = server.nbd("first").unwrap();
    for bytes in [&b"\0"[..], b"{\"method\":\"\"}\0", &[b'['; 70_000], &[b'x'; 100_000]] {
        let mut client = UnixStream::connect(&server.socket).unwrap();
        let _ = client.write_all(bytes);
    }
    // Calls that are never read, and clients that never call.
    let mut greedy = UnixStream::connect(&server.socket).unwrap();
    greedy.set_nonblocking(true).unwrap();
    let call = format!("{{\"method\":\"{INTERFACE}.Status\"}}\0");
    while greedy.write_all(call.as_bytes()).is_ok() {}
    let silent: Vec<UnixStream> =
        (0..40).map(|_| UnixStream::connect(&server.socket).unwrap()).collect();
    disk.read(0, 512).unwrap().unwrap();
    drop((silent, greedy));
    // The places of these are free once their end is seen.
    let list = || server.client().call(&format!("{INTERFACE}.List"), json!({})).ok();
    assert_eq!(find(list).unwrap()["exports"][0]["name"], "first");
}
