//! Starts NBD servers of other projects, and the copy as a process.

use std::fs;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Output;

use serde_json::Value;

use crate::foreign::{Background, Folder, program, run, wait_for};
use crate::port::free_port;

const PROGRAM: &str = env!("CARGO_BIN_EXE_storagetm");

/// A server of another project; ended when dropped.
pub(crate) struct Peer {
    running: Option<Background>,
    /// A daemonized process.
    daemon: Option<rustix::process::Pid>,
    pub(crate) uri: String,
}

impl Peer {
    /// Starts Starts nbdkit with these filters, plugin and parameters, at a Unix socket in the
    /// folder.
    pub(crate) fn nbdkit(folder: &Folder, args: &[&str]) -> Self {
        let socket = free_socket(folder);
        Self::at_socket(&socket, "", program("nbdkit").args(["-f", "-U", &socket]).args(args))
    }

    /// Starts Starts qemu-nbd with a raw file.
    pub(crate) fn qemu_nbd(folder: &Folder, image: &str) -> Self {
        let socket = free_socket(folder);
        let args = ["-t", "-e", "8", "-f", "raw", "--discard=unmap", "-x", "disk", "-k", &socket];
        Self::at_socket(&socket, "disk", program("qemu-nbd").args(args).arg(image))
    }

    /// Starts nbd-server with a file, at a free port of the loopback interface.
    pub(crate) fn nbd_server(folder: &Folder, image: &str) -> Self {
        let port = free_port();
        let (settings, pid) = (folder.path("nbd-server.conf"), folder.path("nbd-server.pid"));
        let text = format!(
            "[generic]\nlistenaddr = 127.0.0.1\nport = {port}\n\
             [disk]\nexportname = {image}\nflush = true\nfua = true\ntrim = true\n"
        );
        fs::write(&settings, text).unwrap();
        let ended = run(program("nbd-server").args(["-C", &settings, "-p", &pid]));
        assert!(ended.status.success(), "{ended:?}");
        let daemon = wait_for("the process of nbd-server", || {
            let text = fs::read_to_string(&pid).ok()?;
            rustix::process::Pid::from_raw(text.trim().parse().ok()?)
        });
        wait_for("nbd-server", || TcpStream::connect(("127.0.0.1", port)).ok());
        let uri = format!("nbd://127.0.0.1:{port}/disk");
        Self { running: None, daemon: Some(daemon), uri }
    }

    fn at_socket(socket: &str, name: &str, command: &mut std::process::Command) -> Self {
        let running = Some(Background::start(command));
        wait_for("a server", || UnixStream::connect(socket).ok());
        Self { running, daemon: None, uri: format!("nbd+unix:///{name}?socket={socket}") }
    }

    /// Sends SIGTERM and waits for the end.
    pub(crate) fn end(mut self) {
        let _ = self.running.take().map(Background::end);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(pid) = self.daemon {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Returns the path of a Unix socket without a listener.
fn free_socket(folder: &Folder) -> String {
    let mut paths = (0..).map(|number| folder.path(&format!("socket-{number}")));
    paths.find(|path| fs::symlink_metadata(path).is_err()).unwrap()
}

/// Runs our copy and returns its output.
pub(crate) fn copy(args: &[&str]) -> Output {
    run(program(PROGRAM).arg("copy").args(args).env("HOME", "/nonexistent"))
}

/// Runs our copy, which must exit with `status`. Returns its last event.
#[track_caller]
pub(crate) fn run_expecting(status: i32, args: &[&str]) -> Value {
    let output = copy(&[&["--json"], args].concat());
    let message = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {message}{error}");
    serde_json::from_str(message.lines().last().unwrap_or("null")).unwrap()
}
