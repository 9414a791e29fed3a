//! NVMe discovery: which disks a target exports (NVMe Base 2.0 §5.16.1.23).

use std::fmt;

use export::{Account, Buffer, Pool};
use nvme::command::AdminCommand;
use nvme::host::{Controller, Namespace, Queue};
use nvme::status::Status;
use nvme::wire::identify::NSATTR_WRITE_PROTECTED;
use nvme::wire::log::{DiscoveryEntry, DiscoveryHeader, lid, subtype};
use nvme::wire::text::{parse_ascii, parse_nqn};
use zerocopy::FromBytes;

use crate::driver::{Deadline, Driver};
use crate::nvme_session::QueueError;

/// Maximum number of disks of one target that are identified.
pub const MAX_DISKS: usize = 256;

/// Maximum entries of a discovery log: what fits in a buffer.
const MAX_ENTRIES: u64 = 1023;

/// Attempts to read a log that changes meanwhile.
const TRIES: usize = 4;

/// Memory for the log, in bytes.
const MEMORY: usize = 4 << 20;

/// A disk in the discovery log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// NQN of its subsystem.
    pub nqn: String,
    /// Its address; not validated.
    pub address: String,
    /// Its port; not validated.
    pub port: String,
    /// TSAS byte 0: see [`nvme::wire::log::sectype`].
    pub sectype: u8,
}

/// What the controller of a disk reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Description {
    /// Short name at a storagetm target, such as `sda`.
    pub short: Option<String>,
    /// The public key that signs the record of the home directory that it is.
    pub signing_key: Option<[u8; 32]>,
    /// Serial number; may be empty.
    pub serial: String,
    /// Model; may be empty.
    pub model: String,
    /// Total size in bytes of its namespaces; `None` if it has none.
    pub bytes: Option<u64>,
    /// Whether its first namespace is write-protected.
    pub read_only: bool,
}

/// Why there is no discovery log.
#[derive(Debug)]
pub enum DiscoveryError {
    /// The queue failed.
    Queue(QueueError),
    /// The target refused the log.
    Refused(Status),
    /// The log is too short.
    TooShort,
    /// The log changed during each attempt to read it.
    Changing,
}

impl From<QueueError> for DiscoveryError {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

impl fmt::Display for DiscoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(error) => error.fmt(f),
            Self::Refused(status) => write!(f, "the target refused the discovery log: {status}"),
            Self::TooShort => f.write_str("the target's discovery log is too short"),
            Self::Changing => f.write_str("the discovery log keeps changing"),
        }
    }
}

/// Reads the disks in the log of a discovery controller, without duplicates. `cntlid` identifies
/// the controller of the connected Admin queue.
///
/// # Errors
/// Fails if the target does not return a whole log by `deadline`.
pub fn read_log(
    queue: &mut Driver<Queue>,
    cntlid: u16,
    deadline: Deadline,
) -> Result<Vec<LogEntry>, DiscoveryError> {
    let memory = Pool::new(MEMORY).open();
    queue.initialize(cntlid, deadline)?;
    for _ in 0..TRIES {
        let before = header(&log_page(queue, &memory, 1, deadline)?)?;
        let count = before.numrec.get().min(MAX_ENTRIES);
        let whole = log_page(queue, &memory, count + 1, deadline)?;
        if header(&whole)?.genctr == before.genctr {
            return Ok(disks(&whole, count));
        }
    }
    Err(DiscoveryError::Changing)
}

/// Reads the first `records` KiB of the log.
fn log_page(
    queue: &mut Driver<Queue>,
    memory: &Account,
    records: u64,
    deadline: Deadline,
) -> Result<Buffer, DiscoveryError> {
    let len = records.saturating_mul(1024);
    let command = AdminCommand::log_page(lid::DISCOVERY, 0, len).emit();
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let done = queue.execute(command, len, memory, deadline)?;
    if !done.status.is_success() {
        return Err(DiscoveryError::Refused(done.status));
    }
    done.buffer.ok_or(DiscoveryError::TooShort)
}

fn header(log: &Buffer) -> Result<DiscoveryHeader, DiscoveryError> {
    let header = DiscoveryHeader::read_from_prefix(log.bytes());
    header.map(|(header, _)| header).map_err(|_| DiscoveryError::TooShort)
}

fn disks(log: &Buffer, count: u64) -> Vec<LogEntry> {
    let entries = log.bytes().chunks_exact(size_of::<DiscoveryEntry>()).skip(1);
    let entries = entries.take(usize::try_from(count).unwrap_or(usize::MAX));
    let mut disks: Vec<LogEntry> = Vec::new();
    for disk in entries.filter_map(|bytes| disk(DiscoveryEntry::ref_from_bytes(bytes).ok()?)) {
        if disks.iter().all(|known| *known != disk) {
            disks.push(disk);
        }
    }
    disks
}

/// Returns the disk of an entry; `None` for referrals and for other transports.
fn disk(entry: &DiscoveryEntry) -> Option<LogEntry> {
    let is_disk = entry.trtype == DiscoveryEntry::TRTYPE_TCP && entry.subtype == subtype::NVM;
    let nqn = parse_nqn(&entry.subnqn).ok().filter(|_| is_disk)?;
    Some(LogEntry {
        nqn: nqn.to_owned(),
        address: parse_text(&entry.traddr),
        port: parse_text(&entry.trsvcid),
        sectype: entry.sectype,
    })
}

/// Describes the disk of an initialized controller.
pub fn describe(controller: &Controller) -> Description {
    let namespaces = controller.namespaces();
    let bytes = |namespace: &Namespace| {
        let block = 1_u64.checked_shl(namespace.shift().into())?;
        namespace.identify.nsze.get().checked_mul(block)
    };
    let bytes = namespaces.iter().map(|it| bytes(it).unwrap_or(u64::MAX));
    let identify = controller.identify();
    Description {
        short: identify.and_then(|figure| figure.short_name()).filter(|name| !name.is_empty()),
        signing_key: identify.and_then(|figure| figure.signing_key()),
        serial: identify.map(|figure| parse_text(&figure.sn)).unwrap_or_default(),
        model: identify.map(|figure| parse_text(&figure.mn)).unwrap_or_default(),
        bytes: (!namespaces.is_empty()).then(|| bytes.fold(0, u64::saturating_add)),
        read_only: namespaces
            .first()
            .is_some_and(|first| first.identify.nsattr & NSATTR_WRITE_PROTECTED != 0),
    }
}

/// Parses a text field, without control characters. Some targets pad with NUL instead of blanks.
fn parse_text(field: &[u8]) -> String {
    let text = field.split(|byte| *byte == 0).next().unwrap_or_default();
    parse_ascii(text).chars().filter(|c| !c.is_control()).collect()
}
