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
};
use crate::endpoint::{Disk, Endpoint, EndpointError};

/// Maximum time to open an export.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum requests in flight on one connection.
const DEPTH: u16 = 64;

/// Maximum bytes of one request for zeros to a server that fails it if it is not faster than
/// writing.
const FAST_ZEROES: u64 = 1 << 30;

/// The same for other servers: as many as they can write in a moment.
const SLOW_ZEROES: u64 = 32 << 20;

/// Maximum connections to one server.
const MAX_CONNECTIONS: usize = 16;

/// An export of an NBD server.
#[derive(Clone)]
pub struct NbdEndpoint {
    name: String,
    export: String,
    dial: Dial,
    secured: bool,
    violation: Arc<OnceLock<Violation>>,
    /// Whether it was opened before: then a missing export may come back, and is a temporary error.
    opened: Arc<AtomicBool>,
}

impl std::fmt::Debug for NbdEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NbdEndpoint({})", self.name)
    }
}

impl NbdEndpoint {
    /// The export with this name, or the server's default if it is empty. `name` is shown to
    /// people, such as `nbd://host/export`; `dial` connects to the server.
    #[must_use]
    pub fn new(name: &str, export: &str, dial: Dial) -> Self {
        let (name, export) = (name.to_owned(), export.to_owned());
        Self {
            name,
            export,
            dial,
            secured: false,
            violation: Arc::default(),
            opened: Arc::default(),
        }
    }

    /// Declares that `dial` has negotiated TLS with [`start_tls`] and completed the handshake.
    #[must_use]
    pub fn secured(self) -> Self {
        Self { secured: true, ..self }
    }

    /// The exports of the server.
    ///
    /// # Errors
    /// Fails if the server cannot be reached or does not list its exports.
    pub fn list(&self) -> Result<Vec<ListEntry>, EndpointError> {
        let (io, step) = self.connect(Purpose::List)?;
        drop(io);
        match step {
            Step::Listed(listed) => Ok(listed),
            Step::Refused(refusal) => Err(self.refused(&refusal)),
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
        let (io, step) = self.connect(Purpose::Info)?;
        drop(io);
        match step {
            Step::Opened(opened) => Ok(*opened),
            Step::Refused(refusal) => Err(self.refused(&refusal)),
            _ => Err(EndpointError::Permanent(format!(
                "{}: the server did not describe the export",
                self.name
            ))),
        }
    }

    /// Connects, and returns the first step that is not `Send`.
    fn connect(&self, purpose: Purpose) -> Result<(Driver<Client>, Step), EndpointError> {
        let start = if self.secured { Start::InTls } else { Start::Cleartext };
        let options = Options { purpose, start, depth: DEPTH, ..Options::new(&self.export) };
        let transport = (self.dial)()?;
        let mut io = Driver::new(transport, Client::new(options))
            .map_err(|error| self.unreachable(&error))?;
        let deadline = Deadline::after(CONNECT_TIMEOUT);
        match io.wait_for_step(deadline).map_err(|error| self.unreachable(&error))? {
            Step::Close(End::Violation(violation)) => Err(self.protocol_violation(violation)),
            step => Ok((io, step)),
        }
    }

    fn unreachable(&self, error: &io::Error) -> EndpointError {
        EndpointError::Temporary(format!("{}: {error}", self.name))
    }

    fn protocol_violation(&self, violation: Violation) -> EndpointError {
        let violation = *self.violation.get_or_init(|| violation);
        EndpointError::Violation(format!("{}: {violation}", self.name))
    }

    fn refused(&self, refusal: &Refusal) -> EndpointError {
        let sentence = match refusal.reason {
            Reason::Unknown => format!("{}: {refusal}{}", self.name, self.other_exports()),
            Reason::TlsRequired => format!("{}: {refusal}: use nbds:// with a key", self.name),
            _ => format!("{}: {refusal}", self.name),
        };
        match refusal.reason {
            Reason::Shutdown => EndpointError::Temporary(sentence),
            Reason::Unknown if self.opened.load(Ordering::Relaxed) => {
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
        let names: Vec<_> = listed.iter().map(|export| printable(&export.name)).take(20).collect();
        match names.is_empty() {
            true => String::new(),
            false => format!(": name one of {}", names.join(", ")),
        }
    }

    fn disk(&self, opened: &ExportInfo) -> Disk {
        let known = if self.export.is_empty() { &opened.name } else { &self.export };
        let block = if opened.bytes.is_multiple_of(512) { 512 } else { 1 };
        let shared = opened.can(flags::CAN_MULTI_CONN);
        Disk {
            name: self.name.clone(),
            bytes: opened.bytes,
            block: opened.minimum.max(block),
            // A minimum below 512 bytes is not the block size of a disk.
            sector: (opened.minimum >= 512).then_some(opened.minimum),
            writable: opened.is_writable(),
            reports_extents: opened.extents,
            max_zero: max_zero(opened),
            max_transfer: opened.maximum.min(u32::try_from(Pool::MAX_BUFFER).unwrap_or(u32::MAX)),
            max_connections: if shared { MAX_CONNECTIONS } else { 1 },
            remote: true,
            blank: false,
            identity: identity(opened, known),
        }
    }
}

/// The identity of the disk: its UUID if the server reports one, else its name, which another disk
/// may have later.
fn identity(opened: &ExportInfo, name: &str) -> String {
    match opened.uuid {
        Some(uuid) => format!("nbd uuid {:032x}", u128::from_be_bytes(uuid)),
        None => format!("nbd {}", printable(name)),
    }
}

/// Maximum bytes of one request for zeros.
fn max_zero(opened: &ExportInfo) -> u64 {
    let minimum = u64::from(opened.minimum);
    match (opened.can(flags::SEND_WRITE_ZEROES), opened.can(flags::SEND_FAST_ZERO)) {
        (false, _) => 0,
        (true, true) => FAST_ZEROES / minimum * minimum,
        (true, false) => SLOW_ZEROES / minimum * minimum,
    }
}

/// A name without control characters.
fn printable(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).collect()
}

impl Endpoint for NbdEndpoint {
    fn open(&self) -> Result<(Disk, Box<dyn Connection>), EndpointError> {
        if let Some(violation) = self.violation.get() {
            return Err(self.protocol_violation(*violation));
        }
        let (io, step) = self.connect(Purpose::Go)?;
        match step {
            Step::Opened(opened) => {
                let disk = self.disk(&opened);
                self.opened.store(true, Ordering::Relaxed);
                Ok((disk, Box::new(NbdConnection::new(io, *opened, self.violation.clone()))))
            }
            Step::Refused(refusal) => {
                // Disconnects first: some servers accept one client, and the message may need
                // another connection.
                drop(io);
                Err(self.refused(&refusal))
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
    io: Driver<Client>,
    opened: ExportInfo,
    violation: Arc<OnceLock<Violation>>,
    /// Buffers of writes in flight, and of answered writes that are not completely sent yet.
    writes: Vec<(u32, Rc<Buffer>)>,
    answered: Vec<(u32, Result<(), RequestError>)>,
    /// Requests in flight that the caller can do without: if one fails, it writes zeros, or treats
    /// all as data.
    optional: Vec<u32>,
    completion: VecDeque<Completion>,
    /// When the first of the requests in flight was submitted.
    first_submitted: Instant,
}

impl NbdConnection {
    fn new(io: Driver<Client>, opened: ExportInfo, violation: Arc<OnceLock<Violation>>) -> Self {
        Self {
            io,
            opened,
            violation,
            writes: Vec::new(),
            answered: Vec::new(),
            optional: Vec::new(),
            completion: VecDeque::new(),
            first_submitted: Instant::now(),
        }
    }

    fn request(&mut self, tag: u32, request: Request) -> Option<NbdRequest> {
        Some(match request {
            Request::Read { offset, buffer } => NbdRequest::Read { offset, buffer },
            Request::Write { offset, buffer, part } => {
                let (buffer, start, len) = (Rc::new(buffer), part.start, part.len());
                self.writes.push((tag, buffer.clone()));
                NbdRequest::Write { offset, buffer, start, len, durable: false }
            }
            Request::Zero { offset, len } => {
                let fast = self.opened.can(flags::SEND_FAST_ZERO);
                self.optional.push(tag);
                NbdRequest::Zero { offset, len, no_hole: false, fast, durable: false }
            }
            // A server without this command has no volatile cache (NBD, Ordering of messages and
            // writes).
            Request::Flush if !self.opened.can(flags::SEND_FLUSH) => return None,
            Request::Flush => NbdRequest::Flush,
            Request::Extents { offset, len } => {
                let most = u64::from(u32::MAX) / u64::from(self.opened.minimum.max(1));
                let most = most * u64::from(self.opened.minimum.max(1));
                self.optional.push(tag);
                NbdRequest::Extents { offset, len: len.min(most) }
            }
        })
    }

    fn completion(
        tag: u32,
        result: Result<(), RequestError>,
        buffer: Option<Buffer>,
    ) -> Completion {
        Completion { tag, result, buffer, extents: Vec::new() }
    }

    /// Completes a request that the export does not support, or for which there was no slot.
    fn reject(&mut self, tag: u32, request: SubmitError) {
        let (request, failed) = match request {
            SubmitError::Unsupported(request @ NbdRequest::Write { .. })
                if !self.opened.is_writable() =>
            {
                (request, RequestError::ReadOnly)
            }
            SubmitError::Unsupported(request) => (request, RequestError::OutOfRange),
            SubmitError::Full(request) | SubmitError::NotOpen(request) => {
                (request, RequestError::Refused)
            }
        };
        let failed = if self.is_optional(tag) { RequestError::Unsupported } else { failed };
        let buffer = match request {
            NbdRequest::Read { buffer, .. } => Some(buffer),
            NbdRequest::Write { .. } => return self.answered.push((tag, Err(failed))),
            _ => None,
        };
        self.completion.push_back(Self::completion(tag, Err(failed), buffer));
    }

    /// Whether the completed request is an optional one; removes it.
    fn is_optional(&mut self, tag: u32) -> bool {
        let at = self.optional.iter().position(|of| *of == tag);
        at.map(|at| self.optional.swap_remove(at)).is_some()
    }

    fn process_steps(&mut self) -> Result<(), ConnectionLost> {
        while let Some(step) = self.io.poll() {
            match step {
                Step::Done(done) => self.done(done)?,
                Step::Close(End::Violation(violation)) => {
                    let violation = *self.violation.get_or_init(|| violation);
                    return Err(ConnectionLost::violation(violation));
                }
                _ => return Err(ConnectionLost::new("the connection was closed")),
            }
        }
        Ok(())
    }

    fn done(&mut self, done: protocol::Done) -> Result<(), ConnectionLost> {
        let protocol::Done { tag, result, buffer, extents } = done;
        // NBD, Terminating the transmission phase: the client must disconnect.
        if result.is_err_and(|error| error.errno == errno::ESHUTDOWN) {
            return Err(ConnectionLost::new("the server is shutting down"));
        }
        let optional = self.is_optional(tag);
        let result = result.map_err(|error| failed(error.errno, optional));
        match self.writes.iter().any(|(of, _)| *of == tag) {
            true => self.answered.push((tag, result)),
            false => self.completion.push_back(Completion { tag, result, buffer, extents }),
        }
        Ok(())
    }

    /// Completes answered writes whose buffers have been sent.
    fn complete_answered_writes(&mut self) {
        let answered = std::mem::take(&mut self.answered);
        for (tag, result) in answered {
            let Some(at) = self.writes.iter().position(|(of, _)| *of == tag) else { continue };
            let (_, memory) = self.writes.swap_remove(at);
            match Rc::try_unwrap(memory) {
                Ok(buffer) => {
                    self.completion.push_back(Self::completion(tag, result, Some(buffer)))
                }
                Err(memory) => {
                    self.writes.push((tag, memory));
                    self.answered.push((tag, result));
                }
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.io.session().in_flight() != 0 || !self.answered.is_empty()
    }
}

/// Maps an error of the server (NBD, Error values).
fn failed(errno: u32, optional: bool) -> RequestError {
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
            self.first_submitted = Instant::now();
        }
        let Some(request) = self.request(tag, request) else {
            return self.completion.push_back(Self::completion(tag, Ok(()), None));
        };
        if let Err(request) = self.io.session_mut().submit(request, tag) {
            self.reject(tag, request);
        }
    }

    fn free_slots(&self) -> usize {
        self.io.session().free_slots().saturating_sub(self.answered.len())
    }

    fn advance(&mut self) -> Result<(), ConnectionLost> {
        self.process_steps()?;
        self.io.exchange().map_err(ConnectionLost::new)?;
        self.process_steps()?;
        self.complete_answered_writes();
        match self.deadline() {
            Some(deadline) if deadline <= Instant::now() => Err(ConnectionLost::new(format!(
                "no answer in {} seconds",
                RESPONSE_TIMEOUT.as_secs()
            ))),
            _ => Ok(()),
        }
    }

    fn next_completion(&mut self) -> Option<Completion> {
        self.completion.pop_front()
    }

    fn interest(&self) -> Interest<'_> {
        use std::os::fd::AsFd;
        match self.is_busy() {
            true => Interest::Fd(self.io.as_fd(), self.io.poll_flags()),
            false => Interest::None,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.is_busy().then(|| self.io.last_received().max(self.first_submitted) + RESPONSE_TIMEOUT)
    }
}
