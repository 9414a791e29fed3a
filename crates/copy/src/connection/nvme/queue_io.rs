//! Drives one NVMe queue over its connection.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use export::{Account, DirectRecv};
use nvme::host::{CloseReason, Completion, Credentials, Options, Payload, Queue, Step};
use nvme::status::Status;
use nvme::tcp::Violation;
use nvme::wire::Sqe;
use nvme::wire::fabrics::ConnectData;

use crate::ConnectionLost;
use crate::transport::{BufferedTransport, Protocol, Transport};

/// A queue and its connection.
pub(super) struct QueueIo {
    pub(super) transport: BufferedTransport,
    pub(super) queue: Queue,
}

/// Why a command has no completion.
#[derive(Debug)]
pub(super) enum Error {
    /// The connection failed.
    Io(io::Error),
    /// The target refused Connect.
    Refused(Status),
    /// The target requires authentication, and this host has no credentials.
    AuthRequired,
    /// The queue was closed.
    Closed(CloseReason),
    /// No memory, or no free entry.
    Full,
}

impl Error {
    /// Whether the target closed the connection without an answer, as one that requires TLS does.
    pub(super) fn is_disconnected(&self) -> bool {
        use io::ErrorKind::{ConnectionReset, UnexpectedEof};
        matches!(self, Self::Io(error) if matches!(error.kind(), ConnectionReset | UnexpectedEof))
    }

    /// Whether the error is permanent. A target that accepted this host `before` may do so again.
    pub(super) fn is_final(&self, before: bool) -> bool {
        match self {
            Self::Io(_) | Self::Full => false,
            Self::Refused(status) => !before && status.code() != Status::CONNECT_CONTROLLER_BUSY,
            Self::AuthRequired | Self::Closed(_) => true,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Refused(status) if status.code() == Status::AUTHENTICATION_REQUIRED => {
                f.write_str("authentication failed: check the key")
            }
            Self::Refused(status) => write!(f, "the target refused this host: {status}"),
            Self::AuthRequired => {
                f.write_str("the target requires authentication, and no key is given")
            }
            Self::Closed(end) => f.write_str(&why(*end)),
            Self::Full => f.write_str("no free command slot"),
        }
    }
}

/// Why a queue was closed, for people.
fn why(end: CloseReason) -> String {
    match end {
        CloseReason::Violation(violation) => {
            format!("the target violated NVMe/TCP ({})", violation.name())
        }
        CloseReason::Terminated { fes, fei } => {
            format!("the target reported a protocol error (FES {fes:#x}, FEI {fei:#x})")
        }
    }
}

/// The loss of the association when a queue is closed. A wrong header digest is an error of the
/// network and not of the target.
pub(super) fn lost(end: CloseReason) -> ConnectionLost {
    match end {
        CloseReason::Violation(violation) if violation != Violation::HeaderDigestWrong => {
            ConnectionLost::violation(why(end))
        }
        _ => ConnectionLost::new(why(end)),
    }
}

impl Protocol for Queue {
    fn receive(&mut self, bytes: &[u8]) -> usize {
        self.receive(bytes)
    }

    fn direct_recv(&mut self) -> Option<DirectRecv> {
        self.direct_recv()
    }

    fn direct_received(&mut self, direct_recv: DirectRecv, got: usize) {
        self.direct_received(direct_recv, got);
    }
}

impl QueueIo {
    /// Connects a queue. Also returns the identifier of its controller.
    pub(super) fn open(
        transport: Box<dyn Transport>,
        options: Options,
        data: ConnectData,
        credentials: Option<Arc<Credentials>>,
        deadline: Instant,
    ) -> Result<(Self, u16), Error> {
        let proves = credentials.is_some();
        let queue = match credentials {
            None => Queue::new(options, data),
            Some(credentials) => Queue::with_credentials(options, data, credentials),
        };
        let mut io =
            Self { transport: BufferedTransport::new(transport).map_err(Error::Io)?, queue };
        match io.wait_for_step(deadline)? {
            Step::Connected(response) if response.authentication_required && !proves => {
                Err(Error::AuthRequired)
            }
            Step::Connected(response) => Ok((io, response.cntlid)),
            Step::Refused(status, _) => Err(Error::Refused(status)),
            Step::Close(end) => Err(Error::Closed(end)),
            _ => Err(Error::Full),
        }
    }

    /// The next step that is not `Send`.
    pub(super) fn poll(&mut self) -> Option<Step> {
        loop {
            match self.queue.poll()? {
                Step::Send(segment) => self.transport.push(segment),
                step => return Some(step),
            }
        }
    }

    /// Sends and receives without blocking.
    pub(super) fn advance(&mut self) -> io::Result<()> {
        self.transport.exchange(&mut self.queue).map(drop)
    }

    fn wait_for_step(&mut self, deadline: Instant) -> Result<Step, Error> {
        loop {
            if let Some(step) = self.poll() {
                return Ok(step);
            }
            if !self.transport.exchange(&mut self.queue).map_err(Error::Io)? {
                self.transport.wait(deadline).map_err(Error::Io)?;
            }
        }
    }

    /// Sends a command that returns `len` bytes of data, and waits for its completion.
    pub(super) fn execute(
        &mut self,
        sqe: Sqe,
        len: usize,
        memory: &Account,
        deadline: Instant,
    ) -> Result<Completion, Error> {
        let payload = match len {
            0 => Payload::None,
            len => Payload::Receive(memory.take(len).ok_or(Error::Full)?),
        };
        self.queue.submit(sqe, payload, 0).map_err(|_| Error::Full)?;
        match self.wait_for_step(deadline)? {
            Step::Completed(done) => Ok(done),
            Step::Close(end) => Err(Error::Closed(end)),
            _ => Err(Error::Full),
        }
    }
}
