//! The target process under measurement.

use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{processor, serve};

/// A disk of a target that is running.
#[derive(Debug, Clone)]
pub(crate) struct Attachable {
    pub(crate) address: SocketAddr,
    /// NQN of the subsystem, or IQN and LUN: `IQN/LUN`.
    pub(crate) name: String,
    pid: u32,
}

impl Attachable {
    /// Returns the CPU time of the target.
    pub(crate) fn used(&self) -> Result<Duration> {
        processor::time_of(self.pid)
    }

    /// Stops the process until the result is dropped.
    pub(crate) fn pause(&self) -> Result<processor::Paused> {
        processor::Paused::new(self.pid)
    }
}

impl FromStr for Attachable {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once(',').zip(text.rsplit_once(','));
        let ((address, _), (rest, pid)) = parts.context("it is ADDRESS:PORT,NAME,PID")?;
        let name = rest.split_once(',').context("it is ADDRESS:PORT,NAME,PID")?.1.to_owned();
        Ok(Self { address: address.parse()?, name, pid: pid.parse()? })
    }
}

/// A target of our own; killed on drop.
#[derive(Debug)]
pub(crate) struct Target {
    child: Child,
    pub(crate) disk: Attachable,
}

impl Target {
    /// Starts the engine with `disk` (`null`, `memory` or a path), all threads on `processor`. It
    /// serves NVMe/TCP or iSCSI.
    pub(crate) fn start(disk: &str, processor: usize, iscsi: bool) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", disk, "--processor", &processor.to_string()])
            .args(iscsi.then_some("--iscsi"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().context("no output of the target")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        let port = line.trim().parse().context("the target did not say its port")?;
        let name = if iscsi { serve::iscsi_name() } else { serve::NQN.to_owned() };
        Ok(Self::new(child, port, name))
    }

    /// Starts the program itself with the image at `disk`.
    pub(crate) fn start_program(program: &Path, disk: &str, processor: usize) -> Result<Self> {
        let mut child = Command::new("taskset")
            .args(["-c", &processor.to_string()])
            .arg(program)
            .args(["serve", "--json", "--listen", "127.0.0.1:0", "--writable", disk])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {} by taskset", program.display()))?;
        let out = child.stdout.take().context("no output of the target")?;
        let mut out = BufReader::new(out);
        let (port, nqn) = read_events(&mut out)?;
        // Its output must be read, or it would exit because of a closed pipe.
        thread::spawn(move || io::copy(&mut out, &mut io::sink()));
        Ok(Self::new(child, port, nqn))
    }

    fn new(child: Child, port: u16, name: String) -> Self {
        let (address, pid) = ((Ipv4Addr::LOCALHOST, port).into(), child.id());
        Self { child, disk: Attachable { address, name, pid } }
    }
}

/// Reads the port and the NQN from the program's events up to `ready`.
fn read_events(out: impl BufRead) -> Result<(u16, String)> {
    let (mut port, mut nqn) = (None, None);
    for line in out.lines() {
        let event: Value = serde_json::from_str(&line?).context("an event is no JSON")?;
        match event["event"].as_str() {
            Some("listening") => port = event["port"].as_u64().and_then(|n| n.try_into().ok()),
            Some("lent") => nqn = event["nqn"].as_str().map(str::to_owned),
            Some("ready") => return port.zip(nqn).context("no port or NQN before `ready`"),
            _ => {}
        }
    }
    bail!("the target ended before it was ready")
}

impl Drop for Target {
    fn drop(&mut self) {
        // Fails only if it has exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn port_and_nqn_are_read_from_the_events() {
        let events = "{\"event\":\"listening\",\"port\":4420}\n{\"event\":\"lent\",\"nqn\":\"n\"}\n\
                      {\"event\":\"ready\"}\n";
        assert_eq!(read_events(events.as_bytes()).unwrap(), (4420, "n".to_owned()));
        assert!(read_events(&b"{\"event\":\"ready\"}\n"[..]).is_err());
    }

    #[test]
    fn running_target_is_named_by_address_name_and_process() {
        let disk: Attachable = "127.0.0.1:4420,nqn.2014-08.org.example:a,b,77".parse().unwrap();
        assert_eq!(
            (disk.address.port(), &disk.name[..], disk.pid),
            (4420, "nqn.2014-08.org.example:a,b", 77)
        );
        assert!("127.0.0.1:4420,77".parse::<Attachable>().is_err());
    }
}
