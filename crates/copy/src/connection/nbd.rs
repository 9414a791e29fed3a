//! Connections to exports of NBD servers.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use client::{Deadline, Dial, Driver};
use export::{Buffer, Pool};
use nbd::client::{
    self as protocol, Client, End, ExportInfo, ListEntry, Options, Purpose, Reason, Refusal,
    Request as NbdRequest, Start, Step, SubmitError, Violation,
};
use nbd::wire::errno;
use nbd::wire::request::flags;

use super::{
    Completion, Connection, ConnectionLost, Interest, RESPONSE_TIMEOUT, Request, RequestError,
    strip_control,
};
use crate::endpoint::{Disk, Endpoint, EndpointError};

/// Maximum time to open an export.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum requests in flight on one connection.
const DEPTH: u16 = 64;

/// Maximum length of NBD_CMD_WRITE_ZEROES with NBD_CMD_FLAG_FAST_ZERO, in bytes.
const MAX_FAST_ZERO: u64 = 1 << 30;

/// Maximum length of NBD_CMD_WRITE_ZEROES without that flag, in bytes: the server may have to write
/// the zeros.
const MAX_SLOW_ZERO: u64 = 32 << 20;

/// Maximum connections to one server.
const MAX_CONNECTIONS: usize = 16;

/// An export of an NBD server.
#[derive(Clone)]
pub struct NbdEndpoint {
    name: String,
    export: String,
    dial: Dial,
    tls: bool,
    timeout: Duration,
    violation: Arc<OnceLock<Violation>>,
    /// Whether the export was opened before. If so, that it is missing is a temporary error.
    was_opened: Arc<AtomicBool>,
}

impl std::fmt::Debug for NbdEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NbdEndpoint({})", self.name)
    }
}

impl NbdEndpoint {
    /// The export with this name, or the server's default if it is empty. `name` is shown to the
    /// user, such as `nbd://host/export`; `dial` connects to the server.
    #[must_use]
    pub fn new(name: &str, export: &str, dial: Dial) -> Self {
        let (name, export) = (name.to_owned(), export.to_owned());
        Self {
            name,
            export,
            dial,
            tls: false,
            timeout: RESPONSE_TIMEOUT,
            violation: Arc::default(),
            was_opened: Arc::default(),
        }
    }

    /// Declares that `dial` has negotiated TLS with [`client::start_tls`] and completed the handshake.
    #[must_use]
    pub fn with_tls(self) -> Self {
        Self { tls: true, ..self }
    }

    /// Sets how long a server may leave all requests unanswered: 180 seconds by default. While the export is
    /// opened, at most 30 seconds.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The exports of the server.
    ///
    /// # Errors
    /// Fails if the server cannot be reached or does not list its exports.
    pub fn list(&self) -> Result<Vec<ListEntry>, EndpointError> {
        let (driver, step) = self.connect(Purpose::List)?;
        drop(driver);
        match step {
            Step::Listed(listed) => Ok(listed),
            Step::Refused(refusal) => Err(self.refusal_error(&refusal)),
            _ => Err(EndpointError::Permanent(format!(
                "{}: the server did not list its exports",
                self.name
            ))),
        }
    }

    /// Information on the export, without opening it.
    ///
    /// # Errors
    /// Fails as [`Endpoint::open`] does.
    pub fn export_info(&self) -> Result<ExportInfo, EndpointError> {
        let (driver, step) = self.connect(Purpose::Info)?;
        drop(driver);
        match step {
            Step::Opened(info) => Ok(*info),
            Step::Refused(refusal) => Err(self.refusal_error(&refusal)),
            _ => Err(EndpointError::Permanent(format!(
                "{}: the server did not describe the export",
                self.name
            ))),
        }
    }

    /// Connects, and returns the first step that is not `Send`.
    fn connect(&self, purpose: Purpose) -> Result<(Driver<Client>, Step), EndpointError> {
        let start = if self.tls { Start::InTls } else { Start::Cleartext };
        let options = Options { purpose, start, depth: DEPTH, ..Options::new(&self.export) };
        let transport = (self.dial)()?;
        let mut driver = Driver::new(transport, Client::new(options))
            .map_err(|error| self.temporary_error(&error))?;
        let deadline = Deadline::after(self.timeout.min(CONNECT_TIMEOUT));
        match driver.wait_for_step(deadline).map_err(|error| self.temporary_error(&error))? {
            Step::Close(End::Violation(violation)) => Err(self.protocol_violation(violation)),
            step => Ok((driver, step)),
        }
    }

    fn temporary_error(&self, error: &io::Error) -> EndpointError {
        EndpointError::Temporary(format!("{}: {error}", self.name))
    }

    fn protocol_violation(&self, violation: Violation) -> EndpointError {
        let violation = *self.violation.get_or_init(|| violation);
        EndpointError::Violation(format!("{}: {violation}", self.name))
    }

    fn refusal_error(&self, refusal: &Refusal) -> EndpointError {
        let sentence = match refusal.reason {
            Reason::Unknown => format!("{}: {refusal}{}", self.name, self.other_exports()),
            Reason::TlsRequired => format!("{}: {refusal}: use nbds:// with a key", self.name),
            _ => format!("{}: {refusal}", self.name),
        };
        match refusal.reason {
            Reason::Shutdown => EndpointError::Temporary(sentence),
            Reason::Unknown if self.was_opened.load(Ordering::Relaxed) => {
                EndpointError::Temporary(sentence)
            }
            _ => EndpointError::Permanent(sentence),
        }
    }

    /// A hint with the other exports of the server, if it lists them.
    fn other_exports(&self) -> String {
        let listed = match self.connect(Purpose::List) {
            Ok((_, Step::Listed(listed))) => listed,
            _ => Vec::new(),
        };
        let names: Vec<_> =
            listed.iter().map(|export| strip_control(&export.name)).take(20).collect();
        match names.is_empty() {
            true => String::new(),
            false => {
                let more = listed.len() - names.len();
                let more = if more == 0 { String::new() } else { format!(" and {more} others") };
                format!("; its disks: {}{more}", names.join(", "))
            }
        }
    }

    fn disk(&self, info: &ExportInfo) -> Disk {
        let known = if self.export.is_empty() { &info.name } else { &self.export };
        let block = if info.bytes.is_multiple_of(512) { 512 } else { 1 };
        let shared = info.can(flags::CAN_MULTI_CONN);
        Disk {
            name: self.name.clone(),
            bytes: info.bytes,
            block: info.minimum.max(block),
            // A minimum below 512 bytes is not the block size of a disk.
            sector: (info.minimum >= 512).then_some(info.minimum),
            writable: info.is_writable(),
            reports_extents: info.extents,
            max_zero: max_zero(info),
            max_transfer: info.maximum.min(u32::try_from(Pool::MAX_BUFFER).unwrap_or(u32::MAX)),
            max_connections: if shared { MAX_CONNECTIONS } else { 1 },
            remote: true,
            in_memory: false,
            blank: false,
            identity: identity(info, known),
        }
    }
}

/// The identity of the disk: its UUID if the server reports one, else its name, which is not unique
/// over time.
fn identity(info: &ExportInfo, name: &str) -> String {
    match info.uuid {
        Some(uuid) => format!("nbd uuid {:032x}", u128::from_be_bytes(uuid)),
        None => format!("nbd {}", strip_control(name)),
    }
}

/// Maximum length of one request for zeros, in bytes.
fn max_zero(info: &ExportInfo) -> u64 {
    let minimum = u64::from(info.minimum);
    match (info.can(flags::SEND_WRITE_ZEROES), info.can(flags::SEND_FAST_ZERO)) {
        (false, _) => 0,
        (true, true) => MAX_FAST_ZERO / minimum * minimum,
        (true, false) => MAX_SLOW_ZERO / minimum * minimum,
    }
}

impl Endpoint for NbdEndpoint {
    fn open(&self) -> Result<(Disk, Box<dyn Connection>), EndpointError> {
        if let Some(violation) = self.violation.get() {
            return Err(self.protocol_violation(*violation));
        }
        let (driver, step) = self.connect(Purpose::Go)?;
        match step {
            Step::Opened(info) => {
                let disk = self.disk(&info);
                self.was_opened.store(true, Ordering::Relaxed);
                let (violation, timeout) = (self.violation.clone(), self.timeout);
                Ok((disk, Box::new(NbdConnection::new(driver, *info, violation, timeout))))
            }
            Step::Refused(refusal) => {
                // Disconnects first: some servers accept one client, and the message may need
                // another connection.
                drop(driver);
                Err(self.refusal_error(&refusal))
            }
            _ => Err(EndpointError::Permanent(format!(
                "{}: the server did not open the export",
                self.name
            ))),
        }
    }
}

/// One connection to an export.
struct NbdConnection {
    driver: Driver<Client>,
    info: ExportInfo,
    violation: Arc<OnceLock<Violation>>,
    /// Buffers of writes in flight, and of answered writes that are not completely sent yet, by tag.
    writes: Vec<(u32, Rc<Buffer>)>,
    /// Results of the answered writes that are not completely sent yet, by tag.
    answered: Vec<(u32, Result<(), RequestError>)>,
    /// Tags of requests with a fallback: if a `Zero` fails, the caller writes zeros; if an `Extents`
    /// fails, it treats the range as data.
    optional: Vec<u32>,
    completions: VecDeque<Completion>,
    /// When the connection last became busy.
    busy_since: Instant,
    /// How long the server may leave all requests unanswered.
    timeout: Duration,
}

impl NbdConnection {
    fn new(
        driver: Driver<Client>,
        info: ExportInfo,
        violation: Arc<OnceLock<Violation>>,
        timeout: Duration,
    ) -> Self {
        Self {
            driver,
            info,
            violation,
            writes: Vec::new(),
            answered: Vec::new(),
            optional: Vec::new(),
            completions: VecDeque::new(),
            busy_since: Instant::now(),
            timeout,
        }
    }

    /// Translates a request and registers its tag. Returns `None` if the server need not do anything.
    fn translate(&mut self, tag: u32, request: Request) -> Option<NbdRequest> {
        Some(match request {
            Request::Read { offset, buffer } => NbdRequest::Read { offset, buffer },
            Request::Write { offset, buffer, part } => {
                let (buffer, start, len) = (Rc::new(buffer), part.start, part.len());
                self.writes.push((tag, buffer.clone()));
                NbdRequest::Write { offset, buffer, start, len, durable: false }
            }
            Request::Zero { offset, len } => {
                let fast = self.info.can(flags::SEND_FAST_ZERO);
                self.optional.push(tag);
                NbdRequest::Zero { offset, len, no_hole: false, fast, durable: false }
            }
            // A server without this command has no volatile cache (NBD, Ordering of messages and
            // writes).
            Request::Flush if !self.info.can(flags::SEND_FLUSH) => return None,
            Request::Flush => NbdRequest::Flush,
            Request::Extents { offset, len } => {
                let max_len = u64::from(u32::MAX) / u64::from(self.info.minimum.max(1));
                let max_len = max_len * u64::from(self.info.minimum.max(1));
                self.optional.push(tag);
                NbdRequest::Extents { offset, len: len.min(max_len) }
            }
        })
    }

    /// Completes a request that the export does not support, or for which there was no slot.
    fn reject(&mut self, tag: u32, error: SubmitError) {
        let (request, error) = match error {
            SubmitError::Unsupported(request @ NbdRequest::Write { .. })
                if !self.info.is_writable() =>
            {
                (request, RequestError::ReadOnly)
            }
            SubmitError::Unsupported(request) => (request, RequestError::OutOfRange),
            SubmitError::Full(request) | SubmitError::NotOpen(request) => {
                (request, RequestError::Refused)
            }
        };
        let error = if self.take_optional(tag) { RequestError::Unsupported } else { error };
        let buffer = match request {
            NbdRequest::Read { buffer, .. } => Some(buffer),
            NbdRequest::Write { .. } => return self.answered.push((tag, Err(error))),
            _ => None,
        };
        self.completions.push_back(Completion::new(tag, Err(error), buffer));
    }

    /// Removes a request from the optional ones. Returns whether it was one.
    fn take_optional(&mut self, tag: u32) -> bool {
        let index = self.optional.iter().position(|other| *other == tag);
        index.map(|index| self.optional.swap_remove(index)).is_some()
    }

    fn process_steps(&mut self) -> Result<(), ConnectionLost> {
        while let Some(step) = self.driver.poll() {
            match step {
                Step::Done(done) => self.handle_done(done)?,
                Step::Close(End::Violation(violation)) => {
                    let violation = *self.violation.get_or_init(|| violation);
                    return Err(ConnectionLost::violation(violation));
                }
                _ => return Err(ConnectionLost::new("the connection was closed")),
            }
        }
        Ok(())
    }

    fn handle_done(&mut self, done: protocol::Done) -> Result<(), ConnectionLost> {
        let protocol::Done { tag, result, buffer, extents } = done;
        // NBD, Terminating the transmission phase: the client must disconnect.
        if result.is_err_and(|error| error.errno == errno::ESHUTDOWN) {
            return Err(ConnectionLost::new("the server is shutting down"));
        }
        let optional = self.take_optional(tag);
        let result = result.map_err(|error| request_error(error.errno, optional));
        match self.writes.iter().any(|(other, _)| *other == tag) {
            true => self.answered.push((tag, result)),
            false => self.completions.push_back(Completion { tag, result, buffer, extents }),
        }
        Ok(())
    }

    /// Completes answered writes whose buffers have been sent.
    fn complete_answered_writes(&mut self) {
        let answered = std::mem::take(&mut self.answered);
        for (tag, result) in answered {
            let Some(index) = self.writes.iter().position(|(other, _)| *other == tag) else {
                continue;
            };
            let (_, buffer) = self.writes.swap_remove(index);
            match Rc::try_unwrap(buffer) {
                Ok(buffer) => {
                    self.completions.push_back(Completion::new(tag, result, Some(buffer)))
                }
                Err(buffer) => {
                    self.writes.push((tag, buffer));
                    self.answered.push((tag, result));
                }
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.driver.session().in_flight() != 0 || !self.answered.is_empty()
    }
}

/// Maps an error of the server (NBD, Error values).
fn request_error(errno: u32, optional: bool) -> RequestError {
    match errno {
        errno::EIO => RequestError::Media,
        errno::EINVAL if optional => RequestError::Unsupported,
        errno::ENOSPC => RequestError::NoSpace,
        errno::EPERM => RequestError::ReadOnly,
        errno::ENOTSUP | errno::EOVERFLOW => RequestError::Unsupported,
        errno::EINVAL => RequestError::OutOfRange,
        _ => RequestError::Refused,
    }
}

impl Connection for NbdConnection {
    fn submit(&mut self, tag: u32, request: Request) {
        if !self.is_busy() {
            self.busy_since = Instant::now();
        }
        let Some(request) = self.translate(tag, request) else {
            return self.completions.push_back(Completion::new(tag, Ok(()), None));
        };
        if let Err(error) = self.driver.session_mut().submit(request, tag) {
            self.reject(tag, error);
        }
    }

    fn free_slots(&self) -> usize {
        self.driver.session().free_slots().saturating_sub(self.answered.len())
    }

    fn advance(&mut self) -> Result<(), ConnectionLost> {
        self.process_steps()?;
        self.driver.exchange().map_err(ConnectionLost::new)?;
        self.process_steps()?;
        self.complete_answered_writes();
        match self.deadline() {
            Some(deadline) if deadline <= Instant::now() => {
                Err(ConnectionLost::silent(self.timeout))
            }
            _ => Ok(()),
        }
    }

    fn next_completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    fn interest(&self) -> Interest<'_> {
        use std::os::fd::AsFd;
        match self.is_busy() {
            true => Interest::Fd(self.driver.as_fd(), self.driver.poll_flags()),
            false => Interest::None,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.is_busy().then(|| self.driver.last_received().max(self.busy_since) + self.timeout)
    }
}
