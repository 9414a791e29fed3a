//! The NBD servers that are compared: how each is started on one CPU, and its CPU time.

use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::processor;

/// The export name everywhere; ours is the name of its file.
pub(crate) const NAME: &str = "disk";

/// A program that serves NBD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Storagetm,
    QemuThreads,
    QemuRing,
    Nbdkit,
    NbdServer,
}

impl Peer {
    /// Ours first.
    pub(super) const ALL: [Self; 5] =
        [Self::Storagetm, Self::QemuThreads, Self::QemuRing, Self::Nbdkit, Self::NbdServer];

    /// Returns whether it is installed.
    pub(super) fn is_installed(&self) -> bool {
        *self == Self::Storagetm || is_installed(self.program())
    }

    fn program(self) -> &'static str {
        match self {
            Self::Storagetm => "storagetm",
            Self::QemuThreads | Self::QemuRing => "qemu-nbd",
            Self::Nbdkit => "nbdkit",
            Self::NbdServer => "nbd-server",
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::QemuThreads => "qemu-nbd, threads",
            Self::QemuRing => "qemu-nbd, io_uring",
            other => other.program(),
        })
    }
}

/// The timeout for the start of a server.
const PATIENCE: Duration = Duration::from_secs(10);

/// Returns whether a program is in the PATH.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// A running server; killed on drop.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// The serving process, if it is not the one that was started, which has exited then.
    daemon: Option<Daemon>,
    pub(crate) address: SocketAddr,
}

/// nbd-server, which daemonizes.
#[derive(Debug)]
struct Daemon {
    pid: Pid,
    folder: PathBuf,
}

impl Server {
    /// Serves the file `image`, writable, all threads on `processor`; with direct I/O if `direct`
    /// and supported.
    pub(crate) fn start(
        peer: Peer,
        program: &Path,
        image: &Path,
        direct: bool,
        processor: Option<usize>,
    ) -> Result<Self> {
        let port = free_port()?;
        let image = image.to_str().context("the path of the image is not UTF-8")?;
        let mut line = match peer {
            Peer::Storagetm => storagetm(program, image, port)?,
            Peer::QemuThreads => qemu_nbd("threads", direct, image, port),
            Peer::QemuRing => qemu_nbd("io_uring", direct, image, port),
            Peer::Nbdkit => words(&["nbdkit", "-f", "-i", "127.0.0.1", "-p", &port.to_string()]),
            Peer::NbdServer => nbd_server(image, port)?,
        };
        if peer == Peer::Nbdkit {
            line.extend(words(&["file", image]));
        }
        let mut child = spawn(&line, peer, processor)?;
        let daemon = (peer == Peer::NbdServer).then(|| Daemon::of(&mut child, port)).transpose()?;
        let mut server = Self { child, daemon, address: (Ipv4Addr::LOCALHOST, port).into() };
        server.until_ready(peer == Peer::Storagetm)?;
        Ok(server)
    }

    /// Returns the address for clients that take one.
    pub(crate) fn uri(&self) -> String {
        format!("nbd://{}/{NAME}", self.address)
    }

    /// Returns the CPU time of it and its descendants.
    pub(crate) fn used(&self) -> Result<Duration> {
        let pid =
            self.daemon.as_ref().map(|daemon| daemon.pid.as_raw_nonzero().get().unsigned_abs());
        processor::time_of_family(pid.unwrap_or_else(|| self.child.id()))
    }

    fn until_ready(&mut self, tells: bool) -> Result<()> {
        if tells {
            let out = self.child.stdout.take().context("no output of the server")?;
            let mut out = BufReader::new(out);
            until_told(&mut out)?;
            // Its output must be read, or it would exit because of a closed pipe.
            thread::spawn(move || io::copy(&mut out, &mut io::sink()));
        }
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(self.address).is_err() {
            let ended = if self.daemon.is_none() { self.child.try_wait()? } else { None };
            if let Some(status) = ended {
                bail!("the server ended: {status}");
            }
            if Instant::now() > deadline {
                bail!("the server does not listen");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // These fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    /// Waits until nbd-server has daemonized, and reads its process identifier.
    fn of(child: &mut Child, port: u16) -> Result<Self> {
        let status = child.wait()?;
        ensure!(status.success(), "nbd-server ended: {status}");
        let folder = folder_of(port);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(folder.join("pid")).unwrap_or_default();
            if let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) {
                return Ok(Self { pid, folder });
            }
            ensure!(Instant::now() < deadline, "nbd-server told no process");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // These fail only if it has ended already.
        let _ = kill_process(self.pid, Signal::KILL);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn spawn(line: &[String], peer: Peer, processor: Option<usize>) -> Result<Child> {
    let [program, arguments @ ..] = line else { bail!("nothing to start") };
    let mut command = Command::new(if processor.is_some() { "taskset" } else { program });
    if let Some(at) = processor {
        command.args(["-c", &at.to_string(), program]);
    }
    let output = if peer == Peer::Storagetm { Stdio::piped() } else { Stdio::null() };
    command.args(arguments).stdin(Stdio::null()).stdout(output).stderr(Stdio::null());
    command.spawn().with_context(|| format!("cannot start {peer}"))
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn storagetm(program: &Path, image: &str, port: u16) -> Result<Vec<String>> {
    let program = program.to_str().context("the path of the program is not UTF-8")?;
    let at = format!("nbd:127.0.0.1:{port}");
    let line = [program, "serve", "--json", "--threads", "1", "--protocol", "nbd", "--listen", &at];
    Ok([words(&line), words(&["--writable", image])].concat())
}

fn qemu_nbd(way: &str, direct: bool, image: &str, port: u16) -> Vec<String> {
    let cache = if direct { "--cache=none" } else { "--cache=writeback" };
    let line = ["qemu-nbd", "-t", "-e", "16", "-f", "raw", "-x", NAME, "--discard=unmap", cache];
    let place = ["-b", "127.0.0.1", "-p", &port.to_string(), &format!("--aio={way}"), image];
    [words(&line), words(&place)].concat()
}

fn folder_of(port: u16) -> PathBuf {
    std::env::temp_dir().join(format!("storagetm-bench-nbd-{port}"))
}

fn nbd_server(image: &str, port: u16) -> Result<Vec<String>> {
    let folder = folder_of(port);
    fs::create_dir_all(&folder)?;
    let (settings, pid) = (folder.join("settings"), folder.join("pid"));
    let text = format!(
        "[generic]\nlistenaddr = 127.0.0.1\nport = {port}\nallowlist = true\n\
         [{NAME}]\nexportname = {image}\nflush = true\nfua = true\ntrim = true\n"
    );
    fs::write(&settings, text)?;
    let path = |path: &Path| path.display().to_string();
    Ok(words(&["nbd-server", "-C", &path(&settings), "-p", &path(&pid)]))
}

/// Reads the program's events up to `ready`.
fn until_told(out: impl BufRead) -> Result<()> {
    for line in out.lines() {
        let event: Value = serde_json::from_str(&line?).context("an event is no JSON")?;
        if event["event"] == "ready" {
            return Ok(());
        }
    }
    bail!("the server ended before it was ready")
}
