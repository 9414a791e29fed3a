//! Connections to disks of NVMe/TCP targets.
//!
//! Each connection is an association of its own: an Admin queue and one I/O queue. When one is
//! lost, the target waits for the writes of that association before it accepts a new one, so that
//! no stale write overwrites newer data.

mod association;
mod discovery;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Deadline, DialSubsystem, Driver, QueueError};
use export::{Buffer, Pool};
use nvme::command::AdminCommand;
use nvme::host::{Controller, Credentials, Namespace, Options, Queue};
use nvme::status::Status;
use nvme::wire::fabrics::{CNTLID_DYNAMIC, ConnectData};
use nvme::wire::identify::{IdentifyControllerNvm, NSATTR_WRITE_PROTECTED, cns, oncs};
use nvme::wire::text::parse_ascii;
use zerocopy::FromBytes;

use self::association::NvmeAssociation;
use super::{Connection, RESPONSE_TIMEOUT, strip_control};
use crate::endpoint::{Disk, Endpoint, EndpointError};

/// Maximum time to connect to a disk.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Keep-alive timeout (KATO). Long, because a flush of the other end may block the thread of a
/// connection.
const KEEP_ALIVE: Duration = Duration::from_secs(120);

/// Entries of an I/O queue.
const ENTRIES: u16 = 128;

/// Maximum connections to one target.
const MAX_CONNECTIONS: usize = 16;

/// This host, as targets see it.
#[derive(Debug, Clone)]
pub struct NvmeHost {
    /// Its NQN.
    pub nqn: String,
    /// Its host identifier.
    pub id: [u8; 16],
    /// Credentials for DH-HMAC-CHAP, if the target asks for authentication.
    pub credentials: Option<Arc<Credentials>>,
}

/// The disk of a subsystem of an NVMe/TCP target.
#[derive(Clone)]
pub struct NvmeEndpoint {
    name: String,
    wanted_name: String,
    host: NvmeHost,
    dial: DialSubsystem,
    digests: bool,
    keep_alive: Duration,
    timeout: Duration,
    hint: Option<String>,
    /// The NQN of the disk, once it is known.
    nqn: Arc<Mutex<Option<String>>>,
    /// Whether the disk was opened before. If so, that it is missing or refused is a temporary error.
    was_opened: Arc<AtomicBool>,
}

impl std::fmt::Debug for NvmeEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NvmeEndpoint({})", self.name)
    }
}

impl NvmeEndpoint {
    /// Creates the endpoint of a disk. `wanted_name` is its NQN or the end of it, such as a UUID; its
    /// short name at a storagetm target; a serial number or a model; or empty, for the only disk.
    /// `name` is shown to the user, such as `nvme://host/disk`; `dial` connects to the target.
    #[must_use]
    pub fn new(name: &str, wanted_name: &str, host: NvmeHost, dial: DialSubsystem) -> Self {
        let (name, wanted_name) = (name.to_owned(), wanted_name.to_owned());
        Self {
            name,
            wanted_name,
            host,
            dial,
            digests: false,
            keep_alive: KEEP_ALIVE,
            timeout: RESPONSE_TIMEOUT,
            hint: None,
            nqn: Arc::default(),
            was_opened: Arc::default(),
        }
    }

    /// Enables header and data digests.
    #[must_use]
    pub fn with_digests(self) -> Self {
        Self { digests: true, ..self }
    }

    /// Sets a hint for the error of a target that closes the connection before it has answered.
    #[must_use]
    pub fn with_hint(self, hint: Option<String>) -> Self {
        Self { hint, ..self }
    }

    /// Sets the keep-alive timeout of an association, 120 seconds by default.
    #[must_use]
    pub fn with_keep_alive(self, keep_alive: Duration) -> Self {
        Self { keep_alive, ..self }
    }

    /// Sets how long a target may leave all commands unanswered, and is asked again while it is busy: 180 seconds
    /// by default. While the disk is opened, at most 30 seconds.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Returns the NQN of the disk. Requests it from the target the first time.
    ///
    /// # Errors
    /// Fails if the target cannot be reached, has no such disk, or several.
    pub fn nqn(&self) -> Result<String, EndpointError> {
        let nqn = self.nqn.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(nqn) = nqn {
            return Ok(nqn);
        }
        let nqn = self.resolve_nqn()?;
        *self.nqn.lock().unwrap_or_else(PoisonError::into_inner) = Some(nqn.clone());
        Ok(nqn)
    }

    fn options(&self, options: Options) -> Options {
        let digests = self.digests;
        Options { header_digest: digests, data_digest: digests, ..options }
    }

    /// When a connection that is opened now must be complete.
    fn connect_deadline(&self) -> Deadline {
        Deadline::after(self.timeout.min(CONNECT_TIMEOUT))
    }

    /// Connects a queue to a subsystem.
    fn connect(
        &self,
        nqn: &str,
        cntlid: u16,
        options: Options,
    ) -> Result<(Driver<Queue>, u16), EndpointError> {
        let data = ConnectData::emit(self.host.id, cntlid, nqn, &self.host.nqn);
        let data = data.map_err(|error| self.permanent_error(&error))?;
        let transport = (self.dial)(nqn)?;
        let credentials = self.host.credentials.clone();
        let deadline = self.connect_deadline();
        let io = Driver::connect(transport, self.options(options), data, credentials, deadline);
        io.map_err(|error| self.queue_error(&error))
    }

    /// Connects an Admin queue and identifies the controller.
    fn attach(&self, nqn: &str) -> Result<Attached, EndpointError> {
        let keep_alive = u32::try_from(self.keep_alive.as_millis()).unwrap_or(u32::MAX);
        let options = Options { keep_alive, ..Options::admin() };
        let (mut admin, cntlid) = self.connect(nqn, CNTLID_DYNAMIC, options)?;
        let deadline = self.connect_deadline();
        let controller =
            admin.initialize(cntlid, deadline).map_err(|error| self.queue_error(&error))?;
        let memory = Pool::new(1 << 20).open();
        let limits = AdminCommand::identify(cns::CONTROLLER_SPECIFIC, 0);
        let done = admin.execute(limits.emit(), 4096, &memory, deadline);
        let done = done.map_err(|error| self.queue_error(&error))?;
        let limits = limits_in(done.status, done.buffer.as_ref());
        Ok(Attached { admin, cntlid, controller, limits })
    }

    /// The wanted namespace.
    fn namespace<'a>(&self, attached: &'a Attached) -> Result<&'a Namespace, EndpointError> {
        let all = attached.controller.namespaces();
        match all {
            [] => Err(EndpointError::Temporary(format!(
                "{}: the disk is not available now",
                self.name
            ))),
            [only] => Ok(only),
            several => {
                several.iter().find(|namespace| self.matches_wanted(namespace)).ok_or_else(|| {
                    self.permanent_error(&"the subsystem has several disks: name one by its UUID")
                })
            }
        }
    }

    fn matches_wanted(&self, namespace: &Namespace) -> bool {
        let wanted: String = self.wanted_name.chars().filter(|c| *c != '-').collect();
        identifier(namespace).is_some_and(|(_, id)| id.eq_ignore_ascii_case(&wanted))
    }

    fn permanent_error(&self, reason: &dyn std::fmt::Display) -> EndpointError {
        EndpointError::Permanent(format!("{}: {reason}", self.name))
    }

    fn queue_error(&self, error: &QueueError) -> EndpointError {
        if error.is_violation() {
            return EndpointError::Violation(format!("{}: {error}", self.name));
        }
        let was_opened = self.was_opened.load(Ordering::Relaxed);
        let hint = self.hint.as_ref().filter(|_| !was_opened && error.is_disconnected());
        let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
        match error.is_final(was_opened) {
            true => self.permanent_error(&format!("{error}{hint}")),
            false => EndpointError::Temporary(format!("{}: {error}{hint}", self.name)),
        }
    }

    fn disk(
        &self,
        nqn: &str,
        attached: &Attached,
        namespace: &Namespace,
    ) -> Result<Disk, EndpointError> {
        let shift = u32::from(namespace.shift());
        let blocks = namespace.identify.nsze.get();
        let bytes = blocks.checked_mul(1 << shift).filter(|bytes| i64::try_from(*bytes).is_ok());
        let bytes =
            bytes.ok_or_else(|| self.permanent_error(&"the disk reports an invalid size"))?;
        let max_transfer = attached.controller.max_transfer().min(Pool::MAX_BUFFER as u64);
        let max_transfer = u32::try_from(max_transfer).unwrap_or(u32::MAX);
        Ok(Disk {
            name: self.name.clone(),
            bytes,
            block: 1 << shift,
            sector: Some(1 << shift),
            writable: namespace.identify.nsattr & NSATTR_WRITE_PROTECTED == 0,
            reports_extents: false,
            max_zero: attached.max_zero(namespace.shift()),
            max_transfer: max_transfer & !((1 << shift) - 1),
            max_connections: MAX_CONNECTIONS,
            remote: true,
            in_memory: false,
            blank: false,
            identity: identity(nqn, attached, namespace),
        })
    }
}

impl Endpoint for NvmeEndpoint {
    fn open(&self) -> Result<(Disk, Box<dyn Connection>), EndpointError> {
        let nqn = self.nqn()?;
        let attached = self.attach(&nqn)?;
        let namespace = self.namespace(&attached)?;
        let disk = self.disk(&nqn, &attached, namespace)?;
        let (nsid, shift) = (namespace.nsid, namespace.shift());
        let capsule = attached.controller.capsule_data();
        let max_entries = attached.controller.capabilities().mqes().saturating_add(1);
        let max_entries = u16::try_from(max_entries).unwrap_or(u16::MAX);
        let entries = ENTRIES.min(max_entries);
        let options = Options { flow_control: false, ..Options::io(1, entries, capsule) };
        let (io, _) = self.connect(&nqn, attached.cntlid, options)?;
        self.was_opened.store(true, Ordering::Relaxed);
        Ok((
            disk,
            Box::new(NvmeAssociation::new(
                [attached.admin, io],
                entries,
                nsid,
                shift,
                self.keep_alive,
                self.timeout,
            )),
        ))
    }
}

/// A controller with a connected Admin queue.
struct Attached {
    admin: Driver<Queue>,
    cntlid: u16,
    controller: Controller,
    limits: Option<IdentifyControllerNvm>,
}

impl Attached {
    /// Maximum length of one Write Zeroes, in bytes: WZSL, or the maximum transfer if the controller does not
    /// report it (NVM 1.0 §4.1.5.2).
    fn max_zero(&self, shift: u8) -> u64 {
        let oncs = self.controller.identify().map_or(0, |figure| figure.oncs.get());
        if oncs & oncs::WRITE_ZEROES == 0 {
            return 0;
        }
        let limit = match &self.limits {
            None => self.controller.max_transfer(),
            Some(limits) if limits.wzsl == 0 => u64::MAX,
            Some(limits) => 4096_u64.checked_shl(limits.wzsl.into()).unwrap_or(u64::MAX),
        };
        let block = 1_u64 << shift;
        limit.min(block << 16) & !(block - 1)
    }
}

fn limits_in(status: Status, page: Option<&Buffer>) -> Option<IdentifyControllerNvm> {
    let page = page.filter(|_| status.is_success())?;
    IdentifyControllerNvm::read_from_bytes(page.bytes()).ok()
}

/// The globally unique identifier of a namespace, without dashes: UUID, NGUID or EUI-64.
fn identifier(namespace: &Namespace) -> Option<(&'static str, String)> {
    let ids = &namespace.ids;
    let hex = |kind, bytes: Option<&[u8]>| {
        let bytes = bytes.filter(|bytes| bytes.iter().any(|byte| *byte != 0))?;
        Some((kind, bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    };
    hex("uuid", ids.uuid.as_ref().map(|id| &id[..]))
        .or_else(|| hex("nguid", ids.nguid.as_ref().map(|id| &id[..])))
        .or_else(|| hex("eui", ids.eui64.as_ref().map(|id| &id[..])))
}

fn identity(nqn: &str, attached: &Attached, namespace: &Namespace) -> String {
    let mut identity = format!("nvme {nqn}");
    if let Some((kind, id)) = identifier(namespace) {
        identity += &format!(" {kind} {id}");
    }
    let serial =
        attached.controller.identify().map(|figure| strip_control(&parse_ascii(&figure.sn)));
    match serial.as_deref() {
        None | Some("") => identity,
        Some(serial) => format!("{identity} serial {serial}"),
    }
}
