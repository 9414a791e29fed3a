//! The opener and the worker: what the sandbox of the worker forbids, and what happens if one of
//! them dies or misbehaves. The numbers of the cases are those of the threat model.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "sandbox/host.rs"]
mod host;
#[path = "serve/process.rs"]
#[allow(dead_code, reason = "each program needs a part of it")]
mod process;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use engine::tls;
use host::{Attached, NQN};
use nvme::auth::chap::{Key, system_random};
use nvme::auth::{Credentials, Group, Hash};
use process::{LONG, PROGRAM, Running, field, find, proc, worker_of};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use testkit::Scratch;

/// Keys that are used only in tests.
const TLS: &str = "NVMeTLSkey-1:01:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwNf9LrZ:";
const CHAP: &str = "DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";

/// A temporary folder; removed when dropped.
struct Folder(Scratch);

impl Folder {
    fn new() -> Self {
        Self(Scratch::new())
    }

    /// Creates an image of 1 MiB in which all bytes are `byte`.
    fn image(&self, name: &str, byte: u8) -> String {
        let path = self.0.0.join(name);
        fs::write(&path, vec![byte; 1 << 20]).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// Starts `storagetm serve --json`.
fn serve(arguments: &[&str]) -> Running {
    Running::serve(&[&["--json"], arguments].concat())
}

/// Returns the worker process.
fn worker_process(running: &Running) -> Pid {
    find(|| worker_of(Pid::from_child(&running.child))).expect("a worker")
}

fn attach(address: SocketAddr, nqn: &str) -> Attached<TcpStream> {
    host::attach(nqn, None, || TcpStream::connect(address).unwrap())
}

#[test]
fn x46_worker_has_no_privileges() {
    let running = serve(&["--demo=64M", "--listen", "127.0.0.1:0"]);
    running.ready();
    let path = proc(worker_process(&running));
    let status = fs::read_to_string(path.join("status")).unwrap();
    let message = |name| field(&status, name).unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(message(set), "0000000000000000", "{set}");
    }
    assert_eq!((message("NoNewPrivs").as_str(), message("Seccomp").as_str()), ("1", "2"));
    // Not dumpable: its `/proc` files belong to root.
    assert_eq!(fs::metadata(path.join("mem")).unwrap().uid(), 0);
    let limits = fs::read_to_string(path.join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"));
    if geteuid().is_root() {
        assert_eq!(message("CapBnd"), "0000000000000000");
        let users: Vec<String> = message("Uid").split_whitespace().map(str::to_owned).collect();
        assert!(users.iter().all(|user| user != "0" && user != "65534"), "{users:?}");
        assert_eq!((message("Uid"), message("Groups").as_str()), (message("Gid"), ""));
        let environment = fs::read(path.join("environ")).unwrap();
        assert!(environment.is_empty());
    }
}

#[test]
fn x47_a_read_only_disk_is_open_for_reading_only() {
    if !geteuid().is_root() {
        println!("skip descriptors of another user's process: it needs root");
        return;
    }
    let folder = Folder::new();
    let (fixed, loose) = (folder.image("fixed.img", 1), folder.image("loose.img", 2));
    let running = serve(&["--listen", "127.0.0.1:0", &fixed, "--writable", &loose]);
    let (address, names) = running.ready();
    let worker = proc(worker_process(&running));
    let mode = |disk: &str| {
        let is_it = |entry: &fs::DirEntry| fs::read_link(entry.path()).unwrap() == Path::new(disk);
        let mut open = fs::read_dir(worker.join("fd")).unwrap().map(Result::unwrap);
        let number = open.find(is_it).unwrap().file_name();
        let info = fs::read_to_string(worker.join("fdinfo").join(number)).unwrap();
        let digits = field(&info, "flags").unwrap();
        u32::from_str_radix(&digits, 8).unwrap() & 3
    };
    assert!(!attach(address, &names[0]).write(9, 0xaa));
    assert!(attach(address, &names[1]).write(9, 0xaa));
    assert_eq!((mode(&fixed), mode(&loose)), (0, 2), "O_RDONLY and O_RDWR");
    assert_eq!(fs::read(&fixed).unwrap(), vec![1; 1 << 20]);
    assert_eq!(fs::read(&loose).unwrap()[9 * 512], 0xaa);
}

#[test]
fn disks_are_read_and_written_by_both_drivers_without_rights() {
    for driver in ["uring", "blocking"] {
        let folder = Folder::new();
        let image = folder.image("disk.img", 3);
        let line = ["--io", driver, "--listen", "127.0.0.1:0", "--writable", &image];
        let mut running = serve(&line);
        let (address, names) = running.ready();
        let mut disk = attach(address, &names[0]);
        assert_eq!(disk.read(0), vec![3; 4096]);
        assert!(disk.write(0, 4));
        assert_eq!(disk.read(0)[..513], [&[4; 512][..], &[3]].concat());
        running.until("attached");
        drop(disk);
        let gone = running.until("detached").pop().unwrap();
        assert_eq!((gone["read"].as_u64(), gone["written"].as_u64()), (Some(8192), Some(512)));
        running.signal(Signal::TERM);
        running.until("stopped");
        assert_eq!(running.end().code(), Some(0));
    }
}

#[test]
fn dead_worker_is_replaced_and_hosts_reattach() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 5);
    let running = serve(&["--listen", "127.0.0.1:0", &image]);
    let (address, names) = running.ready();
    let mut disk = attach(address, &names[0]);
    assert_eq!(disk.read(8), vec![5; 4096]);
    running.until("attached");
    let worker = worker_process(&running);
    kill_process(worker, Signal::KILL).unwrap();
    running.until("detached");
    let message = running.until("note").pop().unwrap();
    assert!(
        message["message"].as_str().unwrap().contains("another one takes its place"),
        "{message}"
    );
    assert_eq!(attach(address, &names[0]).read(8), vec![5; 4096]);
    running.until("attached");
    assert_ne!(worker_process(&running), worker);
}

#[test]
fn repeatedly_dying_worker_ends_the_program() {
    let mut running = serve(&["--demo=64M", "--listen", "127.0.0.1:0"]);
    running.ready();
    let mut last = None;
    for _ in 0..4 {
        let another =
            || worker_of(Pid::from_child(&running.child)).filter(|worker| Some(*worker) != last);
        last = find(another);
        kill_process(last.unwrap(), Signal::KILL).unwrap();
    }
    assert_eq!(running.end().code(), Some(1));
}

#[test]
fn worker_does_not_outlive_its_parent() {
    let mut running = serve(&["--demo=64M", "--listen", "127.0.0.1:0"]);
    running.ready();
    let worker = worker_process(&running);
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    let parent = |path: &Path| {
        let status = fs::read_to_string(path.join("status")).ok()?;
        (field(&status, "State")?.chars().next()? != 'Z').then_some(())
    };
    let gone = find(|| parent(&proc(worker)).is_none().then_some(()));
    assert!(gone.is_some(), "{worker:?} lives");
}

#[test]
fn signals_to_the_process_group_do_not_end_the_worker() {
    let running = serve(&["--demo=64M", "--listen", "127.0.0.1:0"]);
    let (address, names) = running.ready();
    let worker = worker_process(&running);
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        kill_process(worker, signal).unwrap();
    }
    assert_eq!(attach(address, &names[0]).read(0).len(), 4096);
    assert_eq!(worker_process(&running), worker);
}

#[test]
fn manually_started_worker_is_refused() {
    let output = Command::new(PROGRAM).arg("worker").stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("storagetm serve"));
}

/// Environment variable that is set in the run of a test in its own network namespace, where every
/// address is one of this machine.
const ALONE: &str = "STORAGETM_TEST_ALONE";

/// Runs the test of that name again in its own network namespace. Returns whether this is that run.
fn is_alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    if programs::lacks(test, &["unshare", "ip"]) {
        return false;
    }
    let up =
        "PATH=$PATH:/usr/sbin:/sbin && ip link set lo up && exec \"$0\" --exact \"$1\" --nocapture";
    let this = std::env::current_exe().unwrap();
    let run = programs::command("unshare")
        .args(["-n", "sh", "-c", up])
        .arg(this)
        .arg(test)
        .env(ALONE, "1")
        .output();
    match run {
        Ok(output) if output.status.success() => {}
        Ok(output) if geteuid().is_root() => {
            panic!("{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()))
        }
        other => println!("skip {test}: no network namespace can be created: {other:?}"),
    }
    false
}

/// Creates keys of a host in the folder.
fn keep(folder: &Folder, kind: &str, key: &str) -> String {
    let keys = folder.0.0.join("keys").to_str().unwrap().to_owned();
    let name = format!("--{kind}-key");
    for (line, input) in [
        (&["key", "import", kind, "--keys", &keys][..], key),
        (&["host", "add", NQN, "--name", "laptop", &name, kind, "--keys", &keys], ""),
    ] {
        let mut child = Command::new(PROGRAM)
            .args(line)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{line:?}");
    }
    keys
}

#[test]
fn tls_hosts_are_accepted_by_the_unprivileged_worker() {
    if !is_alone("tls_hosts_are_accepted_by_the_unprivileged_worker") {
        return;
    }
    for driver in ["uring", "blocking"] {
        let folder = Folder::new();
        let image = folder.image("disk.img", 6);
        let keys = keep(&folder, "tls", TLS);
        let line = ["--io", driver, "--listen", "0.0.0.0:0", "--keys", &keys, &image];
        let running = serve(&line);
        let (address, names) = running.ready();
        let secret = export::Secret::new(TLS.as_bytes().to_vec());
        let psk = nvme::auth::psk::derive_psks(&secret, false, NQN, &names[0]).unwrap().remove(0);
        let connect = || {
            let hash = tls::Hash::Sha256;
            let (identity, secret) = (psk.identity.clone(), psk.secret.clone());
            let psk = tls::Psk { identity, secret, hash, key: None };
            tls::connect(TcpStream::connect(address).unwrap(), psk, Instant::now() + LONG).unwrap()
        };
        let mut disk = host::attach(&names[0], None, connect);
        assert_eq!(disk.read(8), vec![6; 4096]);
        running.until("attached");
    }
}

#[test]
fn chap_hosts_are_accepted_by_the_unprivileged_worker() {
    if !is_alone("chap_hosts_are_accepted_by_the_unprivileged_worker") {
        return;
    }
    for driver in ["uring", "blocking"] {
        let folder = Folder::new();
        let image = folder.image("disk.img", 7);
        let keys = keep(&folder, "chap", CHAP);
        let line = ["--io", driver, "--listen", "0.0.0.0:0", "--keys", &keys, &image];
        let running = serve(&line);
        let (address, names) = running.ready();
        let credentials = Arc::new(Credentials {
            key: Key::parse(CHAP.as_bytes()).unwrap(),
            controller: None,
            hashes: vec![Hash::Sha256],
            groups: vec![Group::Ffdhe2048],
            concatenate: false,
            random: system_random,
        });
        let connect = || TcpStream::connect(address).unwrap();
        let mut disk = host::attach(&names[0], Some(credentials), connect);
        assert_eq!(disk.read(8), vec![7; 4096]);
        running.until("attached");
    }
}

/// The only client is disconnected if the worker dies: its session cannot be taken over.
#[test]
fn only_client_is_disconnected_with_its_worker() {
    let folder = Folder::new();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(LONG)).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--stdin", &folder.image("disk.img", 1)]);
    let child = command.stdin(OwnedFd::from(theirs)).spawn().unwrap();
    drop(command);
    let mut running = Running::of(child);
    ours.read_exact(&mut [0; 18]).unwrap();
    kill_process(worker_process(&running), Signal::KILL).unwrap();
    assert_eq!(ours.read(&mut [0; 1]).unwrap(), 0, "it is closed");
    assert_eq!(running.end().code(), Some(0));
}
