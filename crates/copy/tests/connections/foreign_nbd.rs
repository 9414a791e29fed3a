//! Connections to other projects' NBD servers. Tests of a server that is not installed are skipped.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Dial, Transport, start_tls};
use copy::{Endpoint, EndpointError, NbdEndpoint, Request, RequestError};
use export::Extent;

use crate::driver::{Driven, pattern, random_requests_match_model};
use crate::machine::{BYTES, eventually};

/// A directory for a socket and a disk image.
struct TestDir(PathBuf);

impl TestDir {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("connection-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }

    /// A file with data in its first and last quarter, and its contents.
    fn image(&self) -> (PathBuf, Vec<u8>) {
        let path = self.0.join("disk.img");
        let file = File::create(&path).unwrap();
        file.set_len(BYTES as u64).unwrap();
        let mut bytes = vec![0; BYTES];
        for start in [0, BYTES / 4 * 3] {
            let data = pattern(start as u64, BYTES / 4);
            file.write_all_at(&data, start as u64).unwrap();
            bytes[start..start + data.len()].copy_from_slice(&data);
        }
        (path, bytes)
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server process.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts a server that listens at `socket`; `None` if it is not installed.
    fn start(socket: &Path, program: &str, options: &[&str]) -> Option<Self> {
        if programs::lacks(&format!("a connection to {program}"), &[program]) {
            return None;
        }
        let _ = std::fs::remove_file(socket);
        let child = programs::command(program)
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut server = Self { child, socket: socket.to_owned() };
        eventually(|| server.is_listening().then_some(()));
        Some(server)
    }

    fn is_listening(&mut self) -> bool {
        assert_eq!(self.child.try_wait().unwrap(), None, "the server ended at once");
        // Checked without connecting: some servers accept a single client.
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
        let path = self.socket.to_str().unwrap();
        // The fourth column has the flags; this one marks a listening socket.
        let listens = |line: &str| line.split_whitespace().nth(3) == Some("00010000");
        sockets.lines().any(|line| line.ends_with(path) && listens(line))
    }

    fn nbdkit(dir: &TestDir, options: &[&str]) -> Option<Self> {
        let socket = dir.socket();
        let mut all = vec!["-f", "-U", socket.to_str().unwrap()];
        all.extend_from_slice(options);
        Self::start(&socket, "nbdkit", &all)
    }

    fn qemu(dir: &TestDir, options: &[&str]) -> Option<Self> {
        let socket = dir.socket();
        let mut all = vec!["-t", "-f", "raw", "-k", socket.to_str().unwrap()];
        all.extend_from_slice(options);
        Self::start(&socket, "qemu-nbd", &all)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn dial(socket: &Path) -> Dial {
    let socket = socket.to_owned();
    Arc::new(move || {
        let stream = UnixStream::connect(&socket);
        let stream = stream.map_err(|error| EndpointError::Temporary(error.to_string()))?;
        Ok(Box::new(stream) as Box<dyn Transport>)
    })
}

fn endpoint(dir: &TestDir, export: &str) -> NbdEndpoint {
    NbdEndpoint::new("nbd://there", export, dial(&dir.socket()))
}

fn connection(dir: &TestDir, export: &str) -> Driven {
    Driven::new(endpoint(dir, export).open().unwrap().1)
}

fn refused(dir: &TestDir, export: &str) -> String {
    match endpoint(dir, export).open().err() {
        Some(EndpointError::Permanent(sentence) | EndpointError::Violation(sentence)) => sentence,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nbdkit_random_requests_match_model() {
    let manners: [&[&str]; 3] = [&[], &["--no-sr"], &["--mask-handshake=1"]];
    for (at, manner) in manners.into_iter().enumerate() {
        let dir = TestDir::new(&format!("nbdkit{at}"));
        let (path, bytes) = dir.image();
        let options = [manner, &["file", path.to_str().unwrap()]].concat();
        let Some(_server) = Server::nbdkit(&dir, &options) else { return };
        random_requests_match_model(endpoint(&dir, "").open().unwrap().1, bytes, at as u64 + 1);
    }
}

#[test]
fn qemu_nbd_random_requests_match_model() {
    let dir = TestDir::new("qemu");
    let (path, bytes) = dir.image();
    let options = ["-x", "disk", "--discard=unmap", path.to_str().unwrap()];
    let Some(_server) = Server::qemu(&dir, &options) else { return };
    random_requests_match_model(endpoint(&dir, "disk").open().unwrap().1, bytes, 3);
}

/// A server without structured replies, block status and fast zeros.
#[test]
fn nbd_server_random_requests_match_model() {
    let dir = TestDir::new("nbd-server");
    let (path, bytes) = dir.image();
    let (socket, configuration) = (dir.socket(), dir.0.join("configuration"));
    let text = format!(
        "[generic]\nunixsock = {}\nallowlist = true\n[disk]\nexportname = {}\nflush = true\n\
         fua = true\ntrim = true\n",
        socket.display(),
        path.display()
    );
    std::fs::write(&configuration, text).unwrap();
    let options = ["-d", "-C", configuration.to_str().unwrap()];
    let Some(_server) = Server::start(&socket, "nbd-server", &options) else { return };
    let (disk, connection) = endpoint(&dir, "disk").open().unwrap();
    assert_eq!((disk.bytes, disk.reports_extents), (BYTES as u64, false));
    let mut driven = Driven::new(connection);
    for offset in (0..BYTES).step_by(1 << 18) {
        let bytes = &bytes[offset..offset + (1 << 18)];
        assert!(driven.read(offset as u64, 1 << 18).unwrap() == bytes);
    }
    let data = pattern(9, 4096);
    driven.write(8192, &data).unwrap();
    driven.flush().unwrap();
    assert!(driven.read(8192, 4096).unwrap() == data);
}

#[test]
fn extents_are_reported() {
    for qemu in [false, true] {
        let dir = TestDir::new(&format!("extents{qemu}"));
        let (path, _) = dir.image();
        let path = path.to_str().unwrap();
        let server = match qemu {
            true => Server::qemu(&dir, &["-r", path]),
            false => Server::nbdkit(&dir, &["file", path]),
        };
        let Some(_server) = server else { continue };
        let (disk, connection) = endpoint(&dir, "").open().unwrap();
        assert!(disk.reports_extents);
        let quarter = BYTES as u64 / 4;
        let told = Driven::new(connection).extents(0, BYTES as u64).unwrap();
        let sum: u64 = told.iter().map(|extent| extent.len).sum();
        assert!(sum <= BYTES as u64 && sum >= 3 * quarter, "{told:?}");
        assert_eq!(told[..2], [Extent::data(quarter), Extent::hole(2 * quarter)], "{told:?}");
    }
}

#[test]
fn errors_are_mapped() {
    let cases = [
        ("error-pread=EIO", "error-pread-rate=100%", RequestError::Media),
        ("error-pwrite=ENOSPC", "error-pwrite-rate=100%", RequestError::NoSpace),
        ("error-zero=EINVAL", "error-zero-rate=100%", RequestError::Unsupported),
    ];
    for (at, (what, how_often, expected)) in cases.into_iter().enumerate() {
        let dir = TestDir::new(&format!("errors{at}"));
        let options = ["--filter=error", "memory", "8M", what, how_often];
        let Some(_server) = Server::nbdkit(&dir, &options) else { return };
        let mut driven = connection(&dir, "");
        let (read, write) = (driven.read(0, 4096).map(|_| ()), driven.write(0, &[7; 4096]));
        let results = [read, write, driven.zero(0, 4096)];
        for (which, result) in results.into_iter().enumerate() {
            assert_eq!(result, if which == at { Err(expected) } else { Ok(()) }, "{what} {which}");
        }
    }
}

/// NBD, Terminating the transmission phase.
#[test]
fn server_shutdown_disconnects() {
    let dir = TestDir::new("shutdown");
    let options = ["--filter=error", "memory", "8M", "error-pread=ESHUTDOWN", "error-rate=100%"];
    let Some(_server) = Server::nbdkit(&dir, &options) else { return };
    let mut driven = connection(&dir, "");
    let buffer = driven.buffer(4096);
    driven.submit(Request::Read { offset: 0, buffer });
    let lost = driven.wait(1).map(|completions| completions.len()).unwrap_err();
    assert!(lost.reason.contains("shutting down"), "{}", lost.reason);
}

#[test]
fn read_only_export_is_not_written() {
    let dir = TestDir::new("read-only");
    let Some(_server) = Server::nbdkit(&dir, &["-r", "memory", "8M"]) else { return };
    let (disk, connection) = endpoint(&dir, "").open().unwrap();
    assert!(!disk.writable);
    let mut driven = Driven::new(connection);
    assert_eq!(driven.write(0, &[1; 512]), Err(RequestError::ReadOnly));
    assert_eq!(driven.read(0, 512), Ok(vec![0; 512]));
}

/// R24: the server is killed in the middle of a read, and restarted.
#[test]
fn r24_connection_lost_in_a_read_is_reopened() {
    let dir = TestDir::new("killed");
    let options = ["--filter=delay", "memory", "8M", "rdelay=10"];
    let Some(server) = Server::nbdkit(&dir, &options) else { return };
    let endpoint = endpoint(&dir, "");
    let (before, connection) = endpoint.open().unwrap();
    let mut driven = Driven::new(connection);
    let buffer = driven.buffer(4096);
    driven.submit(Request::Read { offset: 0, buffer });
    driven.connection.advance().unwrap();
    drop(server);
    assert!(driven.wait(1).is_err());
    assert!(matches!(endpoint.open().err(), Some(EndpointError::Temporary(_))));
    let Some(_server) = Server::nbdkit(&dir, &["memory", "8M"]) else { return };
    let (after, connection) = endpoint.open().unwrap();
    assert_eq!((&after.identity, after.bytes), (&before.identity, before.bytes));
    assert_eq!(Driven::new(connection).read(0, 4096), Ok(vec![0; 4096]));
}

#[test]
fn incompatible_server_is_refused_by_name() {
    let dir = TestDir::new("oldstyle");
    let Some(_server) = Server::nbdkit(&dir, &["-o", "memory", "8M"]) else { return };
    assert!(refused(&dir, "").contains("(Oldstyle)"));
}

#[test]
fn exports_are_listed_for_a_wrong_name() {
    let dir = TestDir::new("list");
    let (path, _) = dir.image();
    let options = ["-x", "some disk", "-D", "of a test", path.to_str().unwrap()];
    let Some(_server) = Server::qemu(&dir, &options) else { return };
    let listed = endpoint(&dir, "").list().unwrap();
    assert_eq!(
        (listed[0].name.as_str(), listed[0].description.as_str()),
        ("some disk", "of a test")
    );
    let sentence = refused(&dir, "none");
    assert!(sentence.contains("its disks: some disk"), "{sentence}");
    assert_eq!(endpoint(&dir, "some disk").export_info().unwrap().bytes, BYTES as u64);
}

#[test]
fn tls_is_negotiated_or_refused() {
    let dir = TestDir::new("tls");
    let keys = dir.0.join("keys");
    std::fs::write(&keys, format!("me:{}\n", "5a".repeat(32))).unwrap();
    let keys = format!("--tls-psk={}", keys.display());
    let options = ["--tls=require", &keys, "memory", "8M"];
    let Some(server) = Server::nbdkit(&dir, &options) else { return };
    let connect = || UnixStream::connect(dir.socket()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    start_tls(&mut connect(), "nbds://there", deadline).unwrap();
    let sentence = refused(&dir, "");
    assert!(sentence.contains("requires TLS"), "{sentence}");
    drop(server);
    let Some(_server) = Server::nbdkit(&dir, &["memory", "8M"]) else { return };
    let Err(EndpointError::Permanent(sentence)) =
        start_tls(&mut connect(), "nbds://there", deadline)
    else {
        panic!("it was not refused");
    };
    assert!(sentence.contains("does not offer TLS"), "{sentence}");
}
