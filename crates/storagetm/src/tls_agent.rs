//! `storagetm tls-agent`: does the TLS handshakes of the kernel's NVMe/TCP connections to paired machines where tlshd
//! does not run. `storagetm attach` starts it
//! ([decision 39](../../../docs/decisions/039-handshakes-without-tlshd.md)).

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use failure::Failure;
use ipc::spawn::executable;
use keys::store::Store;
use linux::fabrics::controllers;
use linux::notify::Notifier;
use linux::tree::Tree;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::options::attach::TlsAgent;

/// The unit that runs the agent where systemd runs.
const UNIT: &str = "storagetm-tls-agent";
/// What the agent prints when it does handshakes.
const READY: &str = "TLS handshakes are done for the kernel, with the keys of paired machines.";
/// Longest wait for an agent that was started.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Time without a connection after which the agent ends, with `--until-detached`.
const IDLE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Does handshakes until the process is ended, or until all disks are detached.
///
/// # Errors
/// Fails if the kernel does not ask for handshakes (before Linux 6.5), or this user is not root.
pub(crate) fn serve(options: &TlsAgent) -> Result<(), Failure> {
    // In a session of its own no terminal ends it. Fails for the leader of a process group, which a terminal started.
    let _ = rustix::process::setsid();
    let tree = Tree::machine();
    let keys = Store::locate(options.keys.as_deref())?;
    remote::handshake::serve(&tree, keys).map_err(|error| {
        Failure::new(format!("TLS handshakes cannot be done for the kernel: {error}"))
    })?;
    if let Ok(notifier) = Notifier::open() {
        let _ = notifier.ready();
    }
    let _ = writeln!(io::stdout(), "{READY}");
    let mut connected = Instant::now();
    loop {
        thread::sleep(POLL_INTERVAL);
        if !options.until_detached || !controllers(&tree).is_empty() {
            connected = Instant::now();
        } else if connected.elapsed() >= IDLE {
            return Ok(());
        }
    }
}

/// Starts an agent that goes on when this program has ended, until all disks are detached. Returns when it does
/// handshakes.
///
/// # Errors
/// Fails with the reason if it cannot be started.
pub(crate) fn start(tree: &Tree, keys: Option<&Path>) -> Result<(), Failure> {
    let keys = std::path::absolute(Store::locate(keys)?).map_err(Failure::new)?;
    if tree.path("run/systemd/system").is_dir() && start_unit(&keys) {
        return Ok(());
    }
    start_process(&keys)
        .map_err(|error| Failure::new(format!("storagetm tls-agent cannot be started: {error}")))
}

fn arguments(keys: &Path) -> [PathBuf; 4] {
    ["tls-agent".into(), "--until-detached".into(), "--keys".into(), keys.to_owned()]
}

/// Starts the agent as a transient unit, so that it outlives the session or service that attaches. Returns whether
/// it runs.
fn start_unit(keys: &Path) -> bool {
    let Ok(program) = env::current_exe() else { return false };
    let mut command = Command::new("systemd-run");
    command
        .args(["--quiet", "--collect", "--service-type=notify", "--unit", UNIT])
        .arg("--description=TLS handshakes of attached disks (storagetm)")
        .args(["--property=LimitCORE=0", "--property=OOMScoreAdjust=-900", "--"])
        .arg(program)
        .args(arguments(keys))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Starts the agent as a process of its own.
fn start_process(keys: &Path) -> io::Result<()> {
    linux::sandbox::set_cloexec_on_all();
    let (output, input) = io::pipe()?;
    let mut command = Command::new(executable());
    command
        .arg0("storagetm")
        .args(arguments(keys))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input);
    let mut child = command.spawn()?;
    // It has the only ends to write to.
    drop(command);
    let timeout = Timespec::try_from(START_TIMEOUT).ok();
    let mut said = String::new();
    if poll(&mut [PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN)], timeout.as_ref())? > 0 {
        BufReader::new(output).read_line(&mut said)?;
    }
    if said.trim_end() == READY {
        return Ok(());
    }
    let _ = child.kill();
    let status = child.wait()?;
    let failure = said.trim_end().trim_start_matches("storagetm: ");
    Err(io::Error::other(match failure.is_empty() {
        true => format!("it ended ({status})"),
        false => failure.to_owned(),
    }))
}
