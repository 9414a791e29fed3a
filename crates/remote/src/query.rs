//! Queries a target for the disks it exports to this host: the discovery log, then the controller
//! of each disk. Answers are untrusted and bounded in number and time.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::discovery::{self, DiscoveryError, LogEntry, MAX_DISKS};
use client::{Deadline, Driver, QueueError, Transport};
use nvme::host::{Credentials, Options, Queue};
use nvme::wire::fabrics::{CNTLID_DYNAMIC, ConnectData, DISCOVERY_NQN};
use nvme::wire::log::sectype;

use super::host_identity::HostIdentity;
use crate::address::TargetAddr;
use crate::credentials::nvme_psk;
use crate::dial::{self, TlsAuth};
use keys::key::Key;
use keys::record::{Allowed, check_nqn};

/// Timeout of one answer, and of the whole query.
const IO_TIMEOUT: Duration = Duration::from_secs(3);
const TOTAL_TIMEOUT: Duration = Duration::from_secs(15);

/// A disk exported by a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// NQN of its subsystem.
    pub nqn: String,
    /// Address and port to connect to.
    pub at: SocketAddr,
    /// Its name on the target, if its controller was identified and reported one.
    pub name: Option<String>,
    /// The public key that signs the record of the home directory that it is, if its controller reported one.
    pub signing_key: Option<[u8; 32]>,
    /// Model number; empty if the controller was not identified.
    pub model: String,
    /// Serial number; empty if the controller was not identified.
    pub serial: String,
    /// Size in bytes and access, if the controller was identified.
    pub size: Option<(u64, Allowed)>,
}

/// Reason why a target's disks could not be listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryError {
    /// No connection: the reason as a clause.
    Unreachable(String),
    /// The target requires a key, or rejected the one given.
    KeyRequired,
    /// The target accepts none of this machine's keys, and plaintext is not allowed.
    NoKeyAccepted,
    /// The connection or the protocol failed: the reason as a clause.
    Protocol(String),
}

/// The identity and credentials with which a target is queried.
#[derive(Debug, Clone)]
pub struct Initiator<'a> {
    /// Host NQN and host identifier of this machine.
    pub host: &'a HostIdentity,
    /// TLS key; without one the connection is in plaintext.
    pub key: Option<&'a Key>,
    /// DH-HMAC-CHAP credentials.
    pub chap: Option<Arc<Credentials>>,
}

/// Lists the disks that the target at `addr` exports to `initiator`. With `identify`, connects to
/// the controller of each disk and fills in its name, model, serial number and size.
///
/// # Errors
/// Fails with the reason why the target did not report its disks.
pub fn list_disks(
    addr: &TargetAddr,
    initiator: &Initiator<'_>,
    identify: bool,
) -> Result<Vec<Disk>, QueryError> {
    let deadline = Deadline::after(TOTAL_TIMEOUT).with_answers_within(IO_TIMEOUT);
    let (transport, reached) = initiator.connect(addr, DISCOVERY_NQN)?;
    let log = initiator
        .open(transport, DISCOVERY_NQN, deadline)
        .map_err(DiscoveryError::from)
        .and_then(|(mut queue, cntlid)| discovery::read_log(&mut queue, cntlid, deadline))
        .map_err(|error| QueryError::Protocol(reason(&error)))?;
    let mut disks: Vec<Disk> = Vec::new();
    for disk in log.iter().filter_map(|entry| disk_of(entry, reached)) {
        if disks.len() < MAX_DISKS && disks.iter().all(|known| known.nqn != disk.nqn) {
            disks.push(disk);
        }
    }
    if identify {
        for disk in disks.iter_mut().take_while(|_| !deadline.has_passed()) {
            // A disk that cannot be identified is listed by its NQN.
            let _ = identify_disk(addr, initiator, disk, deadline);
        }
    }
    Ok(disks)
}

impl Initiator<'_> {
    /// Connects and disconnects; succeeds if the target accepts the key.
    pub(super) fn check_key(&self, addr: &TargetAddr) -> Result<(), QueryError> {
        self.connect(addr, DISCOVERY_NQN).map(drop)
    }

    /// Connects to the target for the subsystem `nqn`, by TLS if there is a key. Also returns the
    /// peer address.
    fn connect(
        &self,
        addr: &TargetAddr,
        nqn: &str,
    ) -> Result<(Box<dyn Transport>, SocketAddr), QueryError> {
        let unreachable =
            |error: &dyn std::fmt::Display| QueryError::Unreachable(error.to_string());
        let socket = addr.connect().map_err(|error| unreachable(&error))?;
        let reached = socket.peer_addr().map_err(|error| unreachable(&error))?;
        let Some(key) = self.key else { return Ok((Box::new(socket), reached)) };
        let psk = nvme_psk(key, &self.host.nqn, nqn).map_err(|_| QueryError::KeyRequired)?;
        match dial::start_tls(socket, &TlsAuth::Psk(psk), Instant::now() + IO_TIMEOUT) {
            Ok(channel) => Ok((Box::new(channel), reached)),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                Err(QueryError::KeyRequired)
            }
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                Err(QueryError::Unreachable(format!("{addr}: {error}")))
            }
            Err(error) => Err(QueryError::Protocol(error.to_string())),
        }
    }

    /// Connects an Admin queue to the subsystem `nqn`. Also returns the identifier of its
    /// controller.
    fn open(
        &self,
        transport: Box<dyn Transport>,
        nqn: &str,
        deadline: Deadline,
    ) -> Result<(Driver<Queue>, u16), QueueError> {
        let data = ConnectData::emit(self.host.id, CNTLID_DYNAMIC, nqn, &self.host.nqn);
        let data = data.map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))?;
        Driver::connect(transport, Options::admin(), data, self.chap.clone(), deadline)
    }
}

/// The error as a clause about the target.
fn reason(error: &DiscoveryError) -> String {
    match error {
        DiscoveryError::Queue(QueueError::Io(error)) => match error.kind() {
            ErrorKind::TimedOut => "it does not answer".to_owned(),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                "it closed the connection".to_owned()
            }
            _ => error.to_string(),
        },
        DiscoveryError::Queue(QueueError::Refused(_)) => "access denied to this host".to_owned(),
        _ => error.to_string(),
    }
}

/// The disk of a log entry. Returns `None` for entries with an address other than the one that was
/// queried: a target must not redirect the host to other machines.
fn disk_of(entry: &LogEntry, reached: SocketAddr) -> Option<Disk> {
    check_nqn(&entry.nqn).ok()?;
    let address: IpAddr = entry.address.split('%').next()?.parse().ok()?;
    let port: u16 = entry.port.parse().ok()?;
    let is_same_machine =
        address.to_canonical() == reached.ip().to_canonical() || address.is_unspecified();
    let mut at = reached;
    at.set_port(port);
    let disk = || Disk {
        nqn: entry.nqn.clone(),
        at,
        name: None,
        signing_key: None,
        model: String::new(),
        serial: String::new(),
        size: None,
    };
    (is_same_machine && port != 0 && entry.sectype <= sectype::TLS_1_3).then(disk)
}

/// Identifies the controller of a disk. Leaves `disk` unchanged if that fails.
fn identify_disk(
    addr: &TargetAddr,
    initiator: &Initiator<'_>,
    disk: &mut Disk,
    deadline: Deadline,
) -> Option<()> {
    let addr = addr.with_port(disk.at.port());
    let (transport, _) = initiator.connect(&addr, &disk.nqn).ok()?;
    let (mut queue, cntlid) = initiator.open(transport, &disk.nqn, deadline).ok()?;
    let found = discovery::describe(&queue.initialize(cntlid, deadline).ok()?);
    let access = if found.read_only { Allowed::ReadOnly } else { Allowed::Writable };
    disk.name = found.short;
    disk.signing_key = found.signing_key;
    disk.model = found.model;
    disk.serial = found.serial;
    disk.size = found.bytes.map(|bytes| (bytes, access));
    Some(())
}
