//! Queries a target for the disks it exports to this host: the discovery log, then the controller
//! of each disk. Answers are untrusted and bounded in number and time.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::tls::{self, Psk};
use nvme::command::AdminCommand;
use nvme::host::{Controller, Credentials, Namespace};
use nvme::wire::fabrics::DISCOVERY_NQN;
use nvme::wire::identify::NSATTR_WRITE_PROTECTED;
use nvme::wire::log::{DiscoveryEntry, DiscoveryHeader, lid, sectype, subtype};
use nvme::wire::text::{parse_ascii, parse_nqn};
use zerocopy::FromBytes;

use super::admin_queue::{AdminQueue, Stream};
use super::host_identity::HostIdentity;
use crate::address::TargetAddr;
use keys::key::Key;
use keys::record::{Allowed, check_nqn};

/// Timeout of one read or write, and of the whole query.
const IO_TIMEOUT: Duration = Duration::from_secs(3);
const TOTAL_TIMEOUT: Duration = Duration::from_secs(15);
/// Most disks of one target that are reported.
const MAX_DISKS: usize = 64;
/// Discovery log entries fetched by one command.
const ENTRIES_PER_READ: usize = 16;
const ENTRY_LEN: usize = size_of::<DiscoveryEntry>();

/// A disk exported by a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// NQN of its subsystem.
    pub nqn: String,
    /// Address and port to connect to.
    pub at: SocketAddr,
    /// Its name on the target, if its controller was identified and reported one.
    pub name: Option<String>,
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
    let deadline = Instant::now() + TOTAL_TIMEOUT;
    let (stream, reached) = initiator.connect(addr, DISCOVERY_NQN)?;
    let entries = discover(stream, initiator, deadline).map_err(QueryError::Protocol)?;
    let mut disks: Vec<Disk> = Vec::new();
    for entry in entries.iter().filter_map(|entry| disk_of(entry, reached)) {
        if disks.iter().all(|known| known.nqn != entry.nqn) {
            disks.push(entry);
        }
    }
    if identify {
        disks.iter_mut().for_each(|disk| identify_disk(addr, initiator, disk, deadline));
    }
    Ok(disks)
}

impl Initiator<'_> {
    /// Connects and disconnects; succeeds if the target accepts the key.
    pub(super) fn check_key(&self, addr: &TargetAddr) -> Result<(), QueryError> {
        self.connect(addr, DISCOVERY_NQN).map(drop)
    }

    /// Connects to the subsystem `nqn`, by TLS if there is a key. Returns the stream and the peer
    /// address.
    fn connect(
        &self,
        addr: &TargetAddr,
        nqn: &str,
    ) -> Result<(Box<dyn Stream>, SocketAddr), QueryError> {
        let unreachable =
            |error: &dyn std::fmt::Display| QueryError::Unreachable(error.to_string());
        let socket = addr.connect().map_err(|error| unreachable(&error))?;
        let reached = socket.peer_addr().map_err(|error| unreachable(&error))?;
        set_timeouts(&socket).map_err(|error| unreachable(&error))?;
        let Some(key) = self.key else { return Ok((Box::new(socket), reached)) };
        let psk = channel_psk(key, &self.host.nqn, nqn).ok_or(QueryError::KeyRequired)?;
        match tls::connect(socket, psk, Instant::now() + IO_TIMEOUT) {
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
}

fn set_timeouts(socket: &TcpStream) -> std::io::Result<()> {
    socket.set_read_timeout(Some(IO_TIMEOUT))?;
    socket.set_write_timeout(Some(IO_TIMEOUT))
}

/// The TLS PSK for one host and subsystem, in the first of the forms that the specification
/// defines.
fn channel_psk(key: &Key, host: &str, subsystem: &str) -> Option<Psk> {
    let psk = nvme::auth::psk::derive_psks(key.text(), false, host, subsystem)
        .ok()?
        .into_iter()
        .next()?;
    let hash = match psk.hash {
        nvme::auth::Hash::Sha384 => tls::Hash::Sha384,
        _ => tls::Hash::Sha256,
    };
    Some(Psk { identity: psk.identity, secret: psk.secret, hash, key: None })
}

/// Reads the discovery log (NVMe Base 2.0 §5.16.1.23), at most [`MAX_DISKS`] entries.
fn discover(
    stream: Box<dyn Stream>,
    initiator: &Initiator<'_>,
    deadline: Instant,
) -> Result<Vec<DiscoveryEntry>, String> {
    let (mut queue, _) =
        AdminQueue::open(stream, initiator.host, initiator.chap.as_ref(), DISCOVERY_NQN, deadline)?;
    let head = log_page(&mut queue, 0, size_of::<DiscoveryHeader>())?;
    let head = DiscoveryHeader::read_from_prefix(&head).map_err(|_| "its log is cut off")?.0;
    let count = usize::try_from(head.numrec.get()).unwrap_or(MAX_DISKS).min(MAX_DISKS);
    let mut entries = Vec::new();
    let mut offset = size_of::<DiscoveryHeader>();
    while entries.len() < count {
        let batch = ENTRIES_PER_READ.min(count - entries.len());
        let bytes = log_page(&mut queue, offset, batch * ENTRY_LEN)?;
        let before = entries.len();
        let read = bytes.chunks_exact(ENTRY_LEN).map(DiscoveryEntry::read_from_bytes);
        entries.extend(read.filter_map(Result::ok));
        if entries.len() == before {
            return Err("its log is cut off".to_owned());
        }
        offset += batch * ENTRY_LEN;
    }
    Ok(entries)
}

fn log_page(queue: &mut AdminQueue, offset: usize, len: usize) -> Result<Vec<u8>, String> {
    let command = AdminCommand::log_page(lid::DISCOVERY, offset as u64, len as u64).emit();
    let done = queue.command(command, len)?;
    match done.buffer.filter(|_| done.status.is_success()) {
        Some(buffer) => Ok(buffer.bytes().to_vec()),
        None => Err(format!("it does not say which disks it has: {}", done.status)),
    }
}

/// The disk of a log entry. Returns `None` for referrals and for entries with an address other than
/// the one that was queried: a target must not redirect the host to other machines.
fn disk_of(entry: &DiscoveryEntry, reached: SocketAddr) -> Option<Disk> {
    let nqn = parse_nqn(&entry.subnqn).ok()?;
    check_nqn(nqn).ok()?;
    let address: IpAddr = parse_ascii(text(&entry.traddr)).split('%').next()?.parse().ok()?;
    let port: u16 = parse_ascii(text(&entry.trsvcid)).parse().ok()?;
    let is_same_machine =
        address.to_canonical() == reached.ip().to_canonical() || address.is_unspecified();
    let is_disk = entry.trtype == DiscoveryEntry::TRTYPE_TCP && entry.subtype == subtype::NVM;
    let mut at = reached;
    at.set_port(port);
    let disk = || Disk {
        nqn: nqn.to_owned(),
        at,
        name: None,
        model: String::new(),
        serial: String::new(),
        size: None,
    };
    (is_disk && is_same_machine && port != 0 && entry.sectype <= sectype::TLS_1_3).then(disk)
}

/// Cuts the field at the first NUL: some targets pad with NUL instead of blanks.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Identifies the controller of a disk. Leaves `disk` unchanged if that fails.
fn identify_disk(addr: &TargetAddr, initiator: &Initiator<'_>, disk: &mut Disk, deadline: Instant) {
    let addr = addr.with_port(disk.at.port());
    let Ok((stream, _)) = initiator.connect(&addr, &disk.nqn) else { return };
    let Ok((_, controller)) =
        AdminQueue::open(stream, initiator.host, initiator.chap.as_ref(), &disk.nqn, deadline)
    else {
        return;
    };
    if let Some(identify) = controller.identify() {
        disk.name = identify.short_name();
        disk.model = parse_ascii(text(&identify.mn));
        disk.serial = parse_ascii(text(&identify.sn));
    }
    disk.size = size(&controller);
}

/// Total size in bytes of the controller's namespaces, and access to the first.
fn size(controller: &Controller) -> Option<(u64, Allowed)> {
    let bytes = |namespace: &Namespace| {
        namespace.identify.nsze.get().checked_shl(namespace.shift().into()).unwrap_or(u64::MAX)
    };
    let is_read_only = |it: &Namespace| it.identify.nsattr & NSATTR_WRITE_PROTECTED != 0;
    let first = controller.namespaces().first()?;
    let sum = controller.namespaces().iter().map(bytes).fold(0, u64::saturating_add);
    Some((sum, if is_read_only(first) { Allowed::ReadOnly } else { Allowed::Writable }))
}
