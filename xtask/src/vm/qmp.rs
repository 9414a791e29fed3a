//! A client of QMP: adds and removes disks, presses buttons, reads counters.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cargo::text;

/// A connection to a machine.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to the socket of a machine started with `-qmp unix:PATH,server=on,wait=off`.
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("qemu's control socket")?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        qmp.line()?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Adds an image as a SCSI disk.
    pub(super) fn plug(&mut self, image: &Path, serial: &str) -> Result<()> {
        let file = json!({"driver": "file", "filename": image});
        let node = json!({"driver": "raw", "node-name": serial, "file": file});
        self.execute("blockdev-add", &node)?;
        let device = json!({"driver": "scsi-hd", "id": serial, "drive": serial, "serial": serial});
        self.execute("device_add", &device).map(drop)
    }

    /// Removes an added disk.
    pub(super) fn unplug(&mut self, serial: &str) -> Result<()> {
        self.execute("device_del", &json!({"id": serial})).map(drop)
    }

    /// Presses the power button.
    pub(super) fn press_power(&mut self) -> Result<()> {
        self.execute("system_powerdown", &json!({})).map(drop)
    }

    /// Presses keys of the keyboard together, by qemu's names.
    pub(super) fn press(&mut self, keys: &[&str]) -> Result<()> {
        let key = |name| json!({"type": "qcode", "data": name});
        let keys: Vec<Value> = keys.iter().map(key).collect();
        self.execute("send-key", &json!({"keys": keys})).map(drop)
    }

    /// Saves a screenshot as PNG.
    pub(super) fn screenshot(&mut self, to: &Path) -> Result<()> {
        self.execute("screendump", &json!({"filename": to, "format": "png"})).map(drop)
    }

    /// Returns the number of changes of any disk since power on (writes, discards, zeroes), as
    /// counted by qemu outside of the machine.
    pub(super) fn changes(&mut self) -> Result<u64> {
        let answer = self.execute("query-blockstats", &json!({}))?;
        let count = |device: &Value| -> u64 {
            let of = |name: &str| device.get("stats")?.get(name)?.as_u64();
            ["wr_operations", "unmap_operations"].iter().filter_map(|name| of(name)).sum()
        };
        Ok(answer.as_array().context("qemu counted nothing")?.iter().map(count).sum())
    }

    /// Waits until the machine shuts down, and returns qemu's reason: `guest-shutdown` or
    /// `guest-reset`.
    pub(super) fn ending(&mut self, patience: Duration) -> Result<String> {
        self.stream.get_ref().set_read_timeout(Some(patience))?;
        loop {
            let event = self.line().context("the machine did not end in time")?;
            if text(&event, "event") == "SHUTDOWN" {
                let data = event.get("data").context("an end without a reason")?;
                return Ok(text(data, "reason").to_owned());
            }
        }
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.stream.get_mut(), "{request}")?;
        loop {
            let answer = self.line()?;
            if let Some(error) = answer.get("error") {
                bail!("qemu refused {command}: {error}");
            }
            if let Some(result) = answer.get("return") {
                return Ok(result.clone());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.stream.read_line(&mut line).context("qemu did not answer")?;
        Ok(serde_json::from_str(&line)?)
    }
}
