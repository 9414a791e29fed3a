//! The host of an NVMe/TCP queue.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Account, Buffer, DirectRecv, Pool};
use nvme::host::{
    CloseReason, Completion, Controller, Credentials, InitError, Options, Payload, Queue, Step,
};
use nvme::status::Status;
use nvme::tcp::Violation;
use nvme::wire::Sqe;
use nvme::wire::fabrics::ConnectData;

use crate::driver::{Deadline, Driver};
use crate::session::{ClientSession, Output};
use crate::transport::Transport;

/// Interval of polling for a ready controller.
const READY_POLL: Duration = Duration::from_millis(50);

/// Memory to initialize a controller, in bytes.
const MEMORY: usize = 1 << 20;

/// Why a command has no completion, or a controller cannot be used.
#[derive(Debug)]
pub enum QueueError {
    /// The connection failed.
    Io(io::Error),
    /// The target refused Connect.
    Refused(Status),
    /// The target requires authentication, and this host has no credentials.
    AuthRequired,
    /// The queue was closed.
    Closed(CloseReason),
    /// No memory, no free entry, or the target is not connected.
    Full,
    /// The controller cannot be initialized.
    Init(InitError),
    /// The controller does not become ready in the time in its capabilities (CAP.TO).
    NotReady,
}

impl QueueError {
    /// Whether the target closed the connection without an answer, as one that requires TLS does.
    pub fn is_disconnected(&self) -> bool {
        use io::ErrorKind::{ConnectionReset, UnexpectedEof};
        matches!(self, Self::Io(error) if matches!(error.kind(), ConnectionReset | UnexpectedEof))
    }

    /// Whether the target violated the protocol. A wrong header digest is an error of the network
    /// and not of the target.
    pub fn is_violation(&self) -> bool {
        matches!(self, Self::Closed(CloseReason::Violation(violation))
            if *violation != Violation::HeaderDigestWrong)
    }

    /// Whether the error is permanent. A target that accepted this host `before` may do so again.
    pub fn is_final(&self, before: bool) -> bool {
        match self {
            Self::Io(_) | Self::Full | Self::NotReady => false,
            Self::Init(_) => !before,
            Self::Refused(status) => !before && status.code() != Status::CONNECT_CONTROLLER_BUSY,
            Self::AuthRequired | Self::Closed(_) => true,
        }
    }
}

impl fmt::Display for QueueError {
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
            Self::Closed(CloseReason::Violation(violation)) => {
                write!(f, "the target violated NVMe/TCP ({})", violation.name())
            }
            Self::Closed(CloseReason::Terminated { fes, fei }) => {
                write!(f, "the target reported a protocol error (FES {fes:#x}, FEI {fei:#x})")
            }
            Self::Full => {
                f.write_str("no memory or no room in the queue for another command to the target")
            }
            Self::Init(error) => error.fmt(f),
            Self::NotReady => {
                f.write_str("the target is not ready after the time that it announces for that")
            }
        }
    }
}

impl From<io::Error> for QueueError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl ClientSession for Queue {
    type Step = Step;

    fn receive(&mut self, bytes: &[u8]) -> usize {
        self.receive(bytes)
    }

    fn poll(&mut self) -> Option<Output<Step>> {
        self.poll().map(|step| match step {
            Step::Send(segment) => Output::Send(segment),
            step => Output::Step(step),
        })
    }

    fn direct_recv(&mut self) -> Option<DirectRecv> {
        self.direct_recv()
    }

    fn direct_received(&mut self, direct_recv: DirectRecv, len: usize) {
        self.direct_received(direct_recv, len);
    }
}

impl Driver<Queue> {
    /// Connects a queue. Also returns the identifier of its controller.
    ///
    /// # Errors
    /// Fails if the connection is lost, or if the target refuses this host.
    pub fn connect(
        transport: Box<dyn Transport>,
        options: Options,
        data: ConnectData,
        credentials: Option<Arc<Credentials>>,
        deadline: Deadline,
    ) -> Result<(Self, u16), QueueError> {
        let authenticates = credentials.is_some();
        let queue = match credentials {
            None => Queue::new(options, data),
            Some(credentials) => Queue::with_credentials(options, data, credentials),
        };
        let mut driver = Self::new(transport, queue)?;
        match driver.wait_for_step(deadline)? {
            Step::Connected(response) if response.authentication_required && !authenticates => {
                Err(QueueError::AuthRequired)
            }
            Step::Connected(response) => Ok((driver, response.cntlid)),
            Step::Refused(status, _) => Err(QueueError::Refused(status)),
            Step::Close(end) => Err(QueueError::Closed(end)),
            _ => Err(QueueError::Full),
        }
    }

    /// Initializes the controller of an Admin queue, which `cntlid` identifies. One that is not ready yet is polled, for the
    /// time in its capabilities (CAP.TO).
    ///
    /// # Errors
    /// Fails if the connection is lost, or if the controller cannot be used.
    pub fn initialize(
        &mut self,
        cntlid: u16,
        deadline: Deadline,
    ) -> Result<Controller, QueueError> {
        let mut controller = Controller::new(cntlid, 1);
        let (mut enabled, memory) = (None, Pool::new(MEMORY).open());
        while let Some(command) = controller.next_command() {
            let done = self.execute(command.sqe, command.len, &memory, deadline)?;
            let data = done.buffer.as_ref().map_or(&[][..], Buffer::bytes);
            let completed = controller.complete(done.status, done.result, data);
            completed.map_err(QueueError::Init)?;
            if controller.is_enabling() {
                let since: Instant = *enabled.get_or_insert_with(Instant::now);
                if since.elapsed() >= controller.ready_within() || deadline.has_passed() {
                    return Err(QueueError::NotReady);
                }
                std::thread::sleep(READY_POLL);
            }
        }
        Ok(controller)
    }

    /// Sends a command that returns `len` bytes of data, and waits for its completion.
    ///
    /// # Errors
    /// Fails if the connection is lost or the queue is closed.
    pub fn execute(
        &mut self,
        sqe: Sqe,
        len: usize,
        memory: &Account,
        deadline: Deadline,
    ) -> Result<Completion, QueueError> {
        let payload = match len {
            0 => Payload::None,
            len => Payload::Receive(memory.take(len).ok_or(QueueError::Full)?),
        };
        self.session_mut().submit(sqe, payload, 0).map_err(|_| QueueError::Full)?;
        match self.wait_for_step(deadline)? {
            Step::Completed(done) => Ok(done),
            Step::Close(end) => Err(QueueError::Closed(end)),
            _ => Err(QueueError::Full),
        }
    }
}
