//! Talks to qemu's machine protocol: disks are plugged and pulled with it.
//! Does not know what the guest makes of it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A conversation with one machine.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to the socket of a machine started with `-qmp unix:PATH,server=on,wait=off`.
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("qemu's control socket")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        qmp.line()?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Plugs an image in as a SCSI disk.
    pub(super) fn plug(&mut self, image: &Path, serial: &str) -> Result<()> {
        let file = json!({"driver": "file", "filename": image});
        let node = json!({"driver": "raw", "node-name": serial, "file": file});
        self.execute("blockdev-add", &node)?;
        let device = json!({"driver": "scsi-hd", "id": serial, "drive": serial, "serial": serial});
        self.execute("device_add", &device)
    }

    /// Pulls a disk that was plugged in.
    pub(super) fn unplug(&mut self, serial: &str) -> Result<()> {
        self.execute("device_del", &json!({"id": serial}))
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Result<()> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.stream.get_mut(), "{request}")?;
        loop {
            let answer = self.line()?;
            if let Some(error) = answer.get("error") {
                bail!("qemu refused {command}: {error}");
            }
            if answer.get("return").is_some() {
                return Ok(());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.stream.read_line(&mut line).context("qemu did not answer")?;
        Ok(serde_json::from_str(&line)?)
    }
}
