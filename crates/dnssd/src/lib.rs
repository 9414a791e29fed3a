//! Announces and finds services by multicast DNS (RFC 6762, RFC 6763). Packets are untrusted, so
//! the responder runs in a process of its own without privileges; this crate is both the handle of
//! that process and the process itself.
//!
//! | file | is |
//! |---|---|
//! | `announce` | the handle on the process |
//! | `service` | from where disks are had to what is announced |
//! | `words` | what both say to each other, a line of JSON each |
//! | `responder` | the process itself |

#![forbid(unsafe_code)]

mod messages;
mod responder;
mod service;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};
use std::{fmt, thread};

use linux::net::Address;
use rustix::fs::{OFlags, fcntl_setfl};

use failure::Failure;
use ipc::spawn::executable;
use messages::{Event, MAX_EVENTS, MAX_LINE, Request};
pub use messages::{FoundService, ScopedAddr, Service};
pub use responder::work;
pub use service::{LocalEndpoint, services};

/// How long the responder may take to send goodbye packets.
const GOODBYE: Duration = Duration::from_secs(1);

/// Receives messages for the user; called on any thread.
pub type Notes = Arc<dyn Fn(String) + Send + Sync>;

/// Announces services. Starts the responder process on the first announcement; dropping this kills
/// it without goodbye packets.
pub struct Announcer {
    port: Option<u16>,
    note: Notes,
    /// Random bytes for names that must not identify the machine.
    nonce: [u8; 4],
    announced: Vec<Service>,
    process: Option<Process>,
    /// Whether the responder failed, which was reported.
    given_up: bool,
}

impl fmt::Debug for Announcer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Announcer").field("announced", &self.announced).finish_non_exhaustive()
    }
}

impl Announcer {
    /// An announcer without services; the first error is passed to `note`. With `port` in place of
    /// 5353, the loopback interface is used, too.
    pub fn new(port: Option<u16>, note: Notes) -> Self {
        let mut nonce = [0; 4];
        let given_up = !nvme::auth::chap::system_random(&mut nonce);
        Self { port, note, nonce, announced: Vec::new(), process: None, given_up }
    }

    /// Replaces the announced services: those of `endpoints`, on this machine called `machine`. The
    /// name is replaced by a random one if a key is needed.
    pub fn announce(&mut self, machine: &str, endpoints: &[LocalEndpoint], addresses: &[Address]) {
        let services = services(machine, self.nonce, endpoints, addresses, self.port.is_some());
        if self.given_up || services == self.announced {
            return;
        }
        self.announced.clone_from(&services);
        if let Err(error) = self.send(services) {
            (self.note)(unavailable(&error));
            (self.given_up, self.process) = (true, None);
        }
    }

    fn send(&mut self, services: Vec<Service>) -> io::Result<()> {
        let process = match &mut self.process {
            Some(process) => process,
            None => self.process.insert(start_responder(self.port, self.note.clone())?),
        };
        process.request(&Request::Announce { services })
    }

    /// Withdraws all services and stops the responder.
    pub fn stop(mut self) {
        let Some(process) = &mut self.process else { return };
        process.requests = None;
        let end = Instant::now() + GOODBYE;
        while matches!(process.child.try_wait(), Ok(None)) && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Starts the responder process and a thread that passes its errors to `note`.
fn start_responder(port: Option<u16>, note: Notes) -> io::Result<Process> {
    let (mut process, output) = Process::start()?;
    process.request(&Request::Start { port })?;
    let pass_on = move || {
        for event in lines(output) {
            if let Event::Note(sentence) = event {
                note(unavailable(&sentence));
            }
        }
    };
    thread::Builder::new().name("announcer".to_owned()).spawn(pass_on)?;
    Ok(process)
}

/// Browses for services for the duration `patience`. With `port` in place of 5353, the loopback
/// interface is used, too.
///
/// # Errors
/// Fails if multicast DNS is not available.
pub fn browse(port: Option<u16>, patience: Duration) -> Result<Vec<FoundService>, Failure> {
    let failed = |error: &dyn fmt::Display| {
        Failure::new(format!("machines nearby cannot be asked for by multicast DNS: {error}"))
    };
    let (mut process, output) = Process::start().map_err(|error| failed(&error))?;
    let requests = [Request::Start { port }, Request::Browse];
    let sent = requests.iter().try_for_each(|request| process.request(request));
    sent.map_err(|error| failed(&error))?;
    let events = spawn_reader(output).map_err(|error| failed(&error))?;
    let (mut found, end) = (Vec::new(), Instant::now() + patience);
    while let Ok(event) = events.recv_timeout(end.saturating_duration_since(Instant::now())) {
        match event {
            Event::Found(one) if one.is_sound() => insert(&mut found, one),
            Event::Found(_) => {}
            Event::Note(sentence) => return Err(failed(&sentence)),
        }
    }
    Ok(found)
}

/// Adds a service, or replaces the one with the same type and name.
fn insert(found: &mut Vec<FoundService>, one: FoundService) {
    let known = found.iter_mut().find(|known| (known.kind, &known.name) == (one.kind, &one.name));
    match known {
        Some(known) => *known = one,
        None => found.push(one),
    }
}

/// Reads events on a thread of its own, so that waiting for them can time out.
fn spawn_reader(output: ChildStdout) -> io::Result<Receiver<Event>> {
    let (send, receive) = sync_channel(MAX_EVENTS);
    let listen = move || {
        let _ = lines(output).try_for_each(|event| send.send(event));
    };
    thread::Builder::new().name("announcer".to_owned()).spawn(listen)?;
    Ok(receive)
}

/// Reads at most [`MAX_EVENTS`] events. Malformed lines are skipped.
fn lines(output: ChildStdout) -> impl Iterator<Item = Event> {
    let mut output = BufReader::new(output);
    let line = move || {
        let mut line = Vec::new();
        let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        let got = output.by_ref().take(limit).read_until(b'\n', &mut line).ok()?;
        (got > 0).then_some(line)
    };
    std::iter::from_fn(line).take(MAX_EVENTS).filter_map(|line| serde_json::from_slice(&line).ok())
}

fn unavailable(error: &dyn fmt::Display) -> String {
    format!("Other machines do not find this one by themselves: {error}.")
}

/// The responder process. Killed when dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    requests: Option<ChildStdin>,
}

impl Process {
    /// Spawns the responder with two pipes, without environment, in a process group of its own.
    fn start() -> io::Result<(Self, ChildStdout)> {
        linux::sandbox::set_cloexec_on_all();
        let mut child = Command::new(executable())
            .arg0("storagetm")
            .arg("announcer")
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (requests, output) = (child.stdin.take(), child.stdout.take());
        let process = Self { child, requests };
        let output = output.ok_or(io::ErrorKind::BrokenPipe)?;
        // Non-blocking: a stalled responder must not block the daemon.
        let requests = process.requests.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        fcntl_setfl(requests, OFlags::NONBLOCK)?;
        Ok((process, output))
    }

    fn request(&mut self, request: &Request) -> io::Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.requests.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.write_all(&line)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if the process has exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
