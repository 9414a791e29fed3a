//! The storagetm under test as a process of the host.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::events::Events;

pub(super) const LOOPBACK: &str = "127.0.0.1";

/// A running storagetm; killed on drop.
#[derive(Debug)]
pub(super) struct Target {
    program: PathBuf,
    disks: Vec<String>,
    address: &'static str,
    log: PathBuf,
    child: Child,
    lines: Receiver<String>,
    events: Events,
}

impl Target {
    /// Serves disks on a free port of the loopback, and waits until it is ready. `disks` are
    /// arguments: paths, with `--writable` before writable ones.
    pub(super) fn start(program: &Path, disks: Vec<String>, log: PathBuf) -> Result<Self> {
        Self::start_at(program, disks, (LOOPBACK, 0), log)
    }

    /// As [`Self::start`], on this address and port; on a free one, if the port is 0.
    pub(super) fn start_at(
        program: &Path,
        disks: Vec<String>,
        (address, port): (&'static str, u64),
        log: PathBuf,
    ) -> Result<Self> {
        let (child, lines) = spawn(program, &disks, (address, port), &log)?;
        let program = program.to_owned();
        let events = Events::default();
        let mut target = Self { program, disks, address, log, child, lines, events };
        target.until_ready()?;
        Ok(target)
    }

    /// Kills it, and starts it again on the same port after a while.
    pub(super) fn crash_and_restart(&mut self, pause: Duration) -> Result<()> {
        let port = self.port()?;
        self.child.kill()?;
        self.child.wait()?;
        thread::sleep(pause);
        (self.child, self.lines) =
            spawn(&self.program, &self.disks, (self.address, port), &self.log)?;
        self.events = Events::default();
        self.until_ready()
    }

    /// Terminates it and returns its exit status.
    ///
    /// # Errors
    /// Fails after the timeout.
    pub(super) fn terminate(&mut self, patience: Duration) -> Result<ExitStatus> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("storagetm still ran {} s after SIGTERM", patience.as_secs())
    }

    /// Returns its output up to now.
    pub(super) fn events(&mut self) -> Result<&Events> {
        while let Ok(line) = self.lines.try_recv() {
            self.events.receive(&line)?;
        }
        Ok(&self.events)
    }

    /// Returns the port that it listens on.
    pub(super) fn port(&self) -> Result<u64> {
        self.events.port().context("storagetm told no port")
    }

    fn until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(90);
        while !self.events.has("ready") {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let context = || format!("storagetm is not ready: see {}", self.log.display());
            self.events.receive(&line.with_context(context)?)?;
        }
        ensure!(self.events.port().is_some(), "storagetm is ready and told no port");
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Both fail only if it has exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(
    program: &Path,
    disks: &[String],
    (address, port): (&str, u64),
    log: &Path,
) -> Result<(Child, Receiver<String>)> {
    let mut child = Command::new(program)
        .args(["serve", "--json", "--listen", &format!("{address}:{port}")])
        .args(disks)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::options().create(true).append(true).open(log)?)
        .spawn()
        .with_context(|| format!("{} cannot be started", program.display()))?;
    let output = BufReader::new(child.stdout.take().context("storagetm has no output")?);
    let (sender, lines) = channel();
    thread::spawn(move || {
        output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    Ok((child, lines))
}
