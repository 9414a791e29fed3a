//! A disk of a target, used by any protocol, one request at a time.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Dial, Transport, ignoring_subsystem};
use copy::{
    Connection, ConnectionLost, Disk, Endpoint, EndpointError, Interest, IscsiEndpoint,
    NbdEndpoint, NvmeEndpoint, NvmeHost, Request, RequestError, read_sync,
};
use export::{Account, Pool};
use rustix::event::{PollFd, Timespec, poll};
use serde_json::Value;

use crate::process::LONG;

/// The protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Nvme,
    Nbd,
    Iscsi,
}

pub(crate) const WAYS: [Way; 3] = [Way::Nvme, Way::Nbd, Way::Iscsi];

/// Options of `serve` with a listener of each protocol.
pub(crate) const LISTEN: [&str; 9] = [
    "--no-announce",
    "--protocol",
    "nvme,nbd,iscsi",
    "--listen",
    "nvme:127.0.0.1:0",
    "--listen",
    "nbd:127.0.0.1:0",
    "--listen",
    "iscsi:127.0.0.1:0",
];

/// A disk that is lent, as the events up to `ready` name it.
#[derive(Debug, Clone)]
pub(crate) struct Lent {
    ports: [u16; 3],
    nqn: String,
    name: String,
    iqn: String,
}

impl Lent {
    /// Returns all disks that are lent, in the order of their events.
    pub(crate) fn all(events: &[Value]) -> Vec<Self> {
        let text = |event: &Value, field: &str| event[field].as_str().unwrap().to_owned();
        let port = |protocol: &str| {
            let is_it = |it: &&Value| it["event"] == "listening" && it["protocol"] == protocol;
            let port = events.iter().find(is_it).unwrap()["port"].as_u64().unwrap();
            u16::try_from(port).unwrap()
        };
        let ports = ["nvme-tcp", "nbd", "iscsi"].map(port);
        let lent = events.iter().filter(|event| event["event"] == "lent");
        let named = |event: &Value| Self {
            ports,
            nqn: text(event, "nqn"),
            name: text(event, "name"),
            iqn: text(event, "iqn"),
        };
        lent.map(named).collect()
    }

    /// Opens the disk.
    pub(crate) fn open(&self, way: Way) -> Result<RemoteDisk, EndpointError> {
        let [nvme, nbd, iscsi] = self.ports.map(dial);
        let (disk, connection) = match way {
            Way::Nvme => {
                let nqn = "nqn.2014-08.org.nvmexpress:uuid:disks".to_owned();
                let host = NvmeHost { nqn, id: [3; 16], credentials: None };
                NvmeEndpoint::new("nvme", &self.nqn, host, ignoring_subsystem(nvme)).open()
            }
            Way::Nbd => NbdEndpoint::new("nbd", &self.name, nbd).open(),
            Way::Iscsi => {
                let initiator = "iqn.2026-01.org.example:disks";
                IscsiEndpoint::new("iscsi", initiator, &self.iqn, 0, iscsi).open()
            }
        }?;
        Ok(RemoteDisk { disk, connection, memory: Pool::new(8 << 20).open() })
    }
}

fn dial(port: u16) -> Dial {
    Arc::new(move || {
        let socket = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)));
        let socket = socket.map_err(|error| EndpointError::Temporary(error.to_string()))?;
        Ok(Box::new(socket) as Box<dyn Transport>)
    })
}

/// A connection to a disk.
pub(crate) struct RemoteDisk {
    pub(crate) disk: Disk,
    connection: Box<dyn Connection>,
    memory: Account,
}

/// The outer result is that of the connection, the inner one that of the request.
pub(crate) type Answer<T> = Result<Result<T, RequestError>, ConnectionLost>;

impl RemoteDisk {
    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Answer<Vec<u8>> {
        let read = read_sync(&mut *self.connection, offset, len)?;
        Ok(read.map(|buffer| buffer.bytes()[..len].to_vec()))
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Answer<()> {
        let mut buffer = self.memory.take(data.len()).unwrap();
        buffer.bytes_mut()[..data.len()].copy_from_slice(data);
        self.run(Request::Write { offset, buffer, part: 0..data.len() })
    }

    pub(crate) fn flush(&mut self) -> Answer<()> {
        self.run(Request::Flush)
    }

    fn run(&mut self, request: Request) -> Answer<()> {
        self.connection.submit(0, request);
        let end = Instant::now() + LONG;
        loop {
            self.connection.advance()?;
            if let Some(completion) = self.connection.next_completion() {
                return Ok(completion.result);
            }
            assert!(Instant::now() < end, "no answer");
            if let Interest::Fd(fd, flags) = self.connection.interest() {
                let timeout = Timespec::try_from(Duration::from_millis(100)).unwrap();
                let _ = poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&timeout));
            }
        }
    }
}
