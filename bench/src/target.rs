//! The target process under measurement.

use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{processor, serve};

/// A running target; killed on drop.
#[derive(Debug)]
pub(crate) struct Target {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) nqn: String,
}

impl Target {
    /// Starts the engine with `disk` (`null`, `memory` or a path), all threads on `processor`.
    pub(crate) fn start(disk: &str, processor: usize) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", disk, "--processor", &processor.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().context("no output of the target")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        let port = line.trim().parse().context("the target did not say its port")?;
        Ok(Self { child, address: (Ipv4Addr::LOCALHOST, port).into(), nqn: serve::NQN.to_owned() })
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
        Ok(Self { child, address: (Ipv4Addr::LOCALHOST, port).into(), nqn })
    }

    /// Returns its CPU time.
    pub(crate) fn used(&self) -> Result<Duration> {
        processor::time_of(self.child.id())
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
}
