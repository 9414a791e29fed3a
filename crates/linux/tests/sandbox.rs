//! X45: what a sandboxed process cannot do. Each attempt runs in its own process, which may be
//! killed: this test program, started again.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::File;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output};
use std::thread;

use linux::sandbox::{drop_privileges, protect_memory, restrict_files, restrict_syscalls};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, mkdirat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{DumpableBehavior, PidfdFlags, Signal, Uid};

/// Names the attempt of this process.
const ATTEMPT: &str = "LINUX_TEST_ATTEMPT";

/// Prefix of an attempt with the system call filter alone: Landlock would hide what the filter
/// allows.
const CALLS_ALONE: &str = "calls alone: ";

/// SIGSYS.
const KILLED: i32 = 31;

/// Runs an attempt in a process of its own.
fn run(attempt: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "attempt", "--nocapture", "--test-threads=1"])
        .env(ATTEMPT, attempt)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn is_denied(attempt: &str) {
    let output = run(attempt);
    assert!(output.status.success(), "{attempt}: {:?} {}", output.status, text(&output));
}

fn is_fatal(attempt: &str) {
    let output = run(attempt);
    assert_eq!(output.status.signal(), Some(KILLED), "{attempt}: {}", text(&output));
}

/// Entry point of the attempts; does nothing as a test.
#[test]
fn attempt() {
    let Ok(attempt) = std::env::var(ATTEMPT) else { return };
    if let Some(attempt) = attempt.strip_prefix(CALLS_ALONE) {
        return calls_alone(attempt);
    }
    if attempt == "hide memory" {
        protect_memory().unwrap();
        let behavior = rustix::process::dumpable_behavior().unwrap();
        return assert_eq!(behavior, DumpableBehavior::NotDumpable);
    }
    let parent = rustix::process::getppid().unwrap();
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    if attempt != "files alone" {
        assert_eq!(drop_privileges(parent).unwrap(), Vec::<String>::new());
    }
    let files = restrict_files();
    if attempt == "files alone" {
        return files_alone(&files);
    }
    assert_eq!(restrict_syscalls(), Vec::<String>::new());
    // Still allowed: threads, open descriptors, memory.
    thread::spawn(move || TcpStream::from(socket).set_nodelay(true)).join().unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    try_to(&attempt, address);
}

fn try_to(what: &str, address: std::net::SocketAddr) {
    let denied = |result: io::Result<()>| {
        let error = result.expect_err(what);
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{what}: {error}");
    };
    let known = |result: Result<(), Errno>| denied(result.map_err(io::Error::from));
    let socket = |family| rustix::net::socket(family, SocketType::RAW, None).map(drop);
    let this = rustix::process::getpid();
    match what {
        "open" => denied(File::open("/proc/self/status").map(drop)),
        "create" => denied(File::create("/tmp/storagetm-test").map(drop)),
        "make a folder" => known(mkdirat(CWD, "storagetm-test", Mode::RWXU)),
        "connect" => denied(TcpStream::connect(address).map(drop)),
        "listen" => denied(TcpListener::bind("127.0.0.1:0").map(drop)),
        "netlink" => known(socket(AddressFamily::NETLINK)),
        "packet" => known(socket(AddressFamily::PACKET)),
        "unix" => known(socket(AddressFamily::UNIX)),
        "ioctl" => known(rustix::io::ioctl_fionread(io::stdin()).map(drop)),
        "signal" => known(rustix::process::kill_process(this, Signal::CONT)),
        "memory file" => known(rustix::fs::memfd_create("x", MemfdFlags::empty()).map(drop)),
        "spawn" => denied(Command::new("/bin/true").spawn().map(drop)),
        "execute" => denied(Err(Command::new("/bin/true").exec())),
        "mount" => known(mount("none", "/tmp", "tmpfs", MountFlags::empty(), None)),
        "change root" => known(rustix::process::chroot("/tmp")),
        "trace" => known(rustix::process::pidfd_open(this, PidfdFlags::empty()).map(drop)),
        "another user" => known(rustix::thread::set_thread_uid(Uid::ROOT)),
        other => unreachable!("{other}"),
    }
}

/// Without Landlock and with the original user: the filter must hold on its own.
fn calls_alone(attempt: &str) {
    let socket = || rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let (ours, listener) = (socket(), TcpListener::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let folder = std::env::temp_dir();
    assert_eq!(restrict_syscalls(), Vec::<String>::new());
    let error: Errno = match attempt {
        "open" => rustix::fs::open("/proc/self/status", OFlags::RDONLY, Mode::empty()).unwrap_err(),
        "open beneath" => {
            let (mode, resolve) = (Mode::empty(), rustix::fs::ResolveFlags::empty());
            let opened =
                rustix::fs::openat2(CWD, "/proc/self/status", OFlags::RDONLY, mode, resolve);
            opened.unwrap_err()
        }
        "open a folder" => rustix::fs::open(&folder, OFlags::PATH, Mode::empty()).unwrap_err(),
        "socket" => rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap_err(),
        "pair of sockets" => {
            let flags = rustix::net::SocketFlags::empty();
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
                .unwrap_err()
        }
        "connect" => rustix::net::connect(&ours, &address).unwrap_err(),
        "bind" => rustix::net::bind(&ours, &any).unwrap_err(),
        "listen" => rustix::net::listen(&ours, 1).unwrap_err(),
        other => {
            try_to(other, address);
            Errno::PERM
        }
    };
    assert_eq!(error, Errno::PERM, "{attempt}");
}

/// Without the filter: Landlock must hold on its own.
fn files_alone(left: &[String]) {
    if !left.is_empty() {
        println!("skip Landlock: {left:?}");
        return;
    }
    assert_eq!(File::open("/").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    assert!(Command::new("/bin/true").spawn().is_err());
    // Since Linux 6.7.
    if let Err(error) = TcpListener::bind("127.0.0.1:0") {
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}

#[test]
fn x45_nothing_new_is_opened() {
    for what in ["open", "create", "make a folder", "connect", "listen", "memory file"] {
        is_denied(what);
    }
}

/// Each of them by the system call filter alone.
#[test]
fn x45_filter_alone_denies_new_descriptors() {
    for what in [
        "open",
        "open beneath",
        "open a folder",
        "socket",
        "pair of sockets",
        "connect",
        "bind",
        "listen",
        "create",
        "make a folder",
        "memory file",
        "netlink",
        "unix",
        "ioctl",
        "signal",
        "spawn",
    ] {
        is_denied(&format!("{CALLS_ALONE}{what}"));
    }
}

#[test]
fn hidden_memory_is_in_no_core_dump() {
    is_denied("hide memory");
}

#[test]
fn x45_no_other_kind_of_socket_is_opened() {
    ["netlink", "packet", "unix"].into_iter().for_each(is_denied);
}

#[test]
fn x45_only_open_descriptors_reach_others() {
    ["ioctl", "signal", "spawn"].into_iter().for_each(is_denied);
}

#[test]
fn x45_dangerous_calls_kill_the_process() {
    ["execute", "mount", "change root", "trace", "another user"].into_iter().for_each(is_fatal);
}

#[test]
fn x45_landlock_alone_denies_files() {
    is_denied("files alone");
}
