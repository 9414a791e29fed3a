//! The client side of NBD as a state machine: bytes and requests in, bytes and completed requests
//! out. It validates everything that the server sends.
//!
//! A [`Client`] is one connection. It negotiates as its [`Options`] require until [`Step::Opened`],
//! [`Step::Listed`] or [`Step::Refused`], and then accepts [`Request`]s.

mod coverage;
mod info;
mod negotiation;
mod request;
mod slots;
mod transmit;
mod violation;

use std::collections::VecDeque;

use export::{Buffer, Extent, Segment};

pub use info::{ExportInfo, Headers, ListEntry, Reason, Refusal};
pub use request::{Request, SubmitError};
pub use violation::Violation;

use negotiation::Negotiation;
use slots::Slots;
use transmit::ReplyState;

/// What to negotiate on a connection.
#[derive(Debug, Clone)]
pub struct Options {
    /// The export name; empty for the server's default export.
    pub export: String,
    /// What the connection is for.
    pub purpose: Purpose,
    /// The state in which the connection starts.
    pub start: Start,
    /// Requests extended headers.
    pub extended: bool,
    /// Requests structured replies if extended headers are refused.
    pub structured: bool,
    /// Requests `base:allocation`, if replies are structured or extended.
    pub extents: bool,
    /// Maximum number of requests in flight: 1 to 4096.
    pub depth: u16,
}

impl Options {
    /// Options to use the export of that name without TLS, with all extensions and 64 requests in
    /// flight.
    #[must_use]
    pub fn new(export: &str) -> Self {
        Self {
            export: export.to_owned(),
            purpose: Purpose::Go,
            start: Start::Cleartext,
            extended: true,
            structured: true,
            extents: true,
            depth: 64,
        }
    }

    /// Options to list the server's exports without TLS.
    #[must_use]
    pub fn list() -> Self {
        Self { purpose: Purpose::List, ..Self::new("") }
    }
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Use the export.
    Go,
    /// Query the export only.
    Info,
    /// List the exports only.
    List,
}

/// The state in which a connection starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Before the server's hello; the connection continues without TLS.
    Cleartext,
    /// Before the server's hello; TLS is required: see [`Step::StartTls`].
    StartTls,
    /// Inside TLS, after another [`Client`] negotiated STARTTLS on the same connection.
    InTls,
}

/// What the driver of a [`Client`] has to do, or an event.
#[derive(Debug)]
pub enum Step {
    /// Send this segment after all previous ones.
    Send(Segment),
    /// The server accepted STARTTLS: perform the TLS handshake, then call
    /// [`Client::tls_established`] and continue inside TLS. Discard what was received in the clear.
    StartTls,
    /// The export is open: with [`Purpose::Go`], requests may be submitted.
    Opened(Box<ExportInfo>),
    /// The list of exports.
    Listed(Vec<ListEntry>),
    /// The server refused the negotiation; [`Step::Close`] follows.
    Refused(Refusal),
    /// A request completed.
    Done(Done),
    /// Send the remaining segments, then close the connection. Last step: requests in flight do not
    /// complete.
    Close(End),
}

/// A completed request.
#[derive(Debug)]
pub struct Done {
    /// The tag passed to [`Client::submit`].
    pub tag: u32,
    /// The result.
    pub result: Result<(), Error>,
    /// The buffer of a [`Request::Read`]; filled completely on success.
    pub buffer: Option<Buffer>,
    /// The result of [`Request::Extents`], from its offset on: on success at least one, but
    /// possibly not the whole range.
    pub extents: Vec<Extent>,
}

/// An error reply of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Error {
    /// One of [`crate::wire::errno`] or another value; not zero.
    pub errno: u32,
    /// Offset of the failure on the export, if the server sent it.
    pub offset: Option<u64>,
}

/// Why the client closed the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its purpose is fulfilled or was refused.
    Finished,
    /// The server violated the protocol.
    Violation(Violation),
}

/// The client side of one connection.
#[derive(Debug)]
pub struct Client {
    options: Options,
    phase: Phase,
    out: VecDeque<Step>,
    negotiation: Negotiation,
    info: Box<ExportInfo>,
    slots: Slots,
    state: ReplyState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waits for the server's hello.
    Hello,
    /// Waits for the reply to this option.
    AwaitReply(u32),
    /// Waits for the reply to `NBD_OPT_EXPORT_NAME`, which has no error form.
    AwaitExport,
    /// The driver performs the TLS handshake.
    TlsHandshake,
    Transmission,
    Closed,
}

/// Range of [`Options::depth`].
const DEPTH: std::ops::RangeInclusive<u16> = 1..=4096;

impl Client {
    /// Maximum number of bytes that [`Client::receive`] leaves unconsumed.
    pub const MAX_UNCONSUMED: usize = negotiation::MAX_UNCONSUMED;

    /// Creates the client of a new connection, or of one inside TLS with [`Start::InTls`].
    #[must_use]
    pub fn new(options: Options) -> Self {
        let depth = options.depth.clamp(*DEPTH.start(), *DEPTH.end());
        let mut client = Self {
            phase: Phase::Hello,
            out: VecDeque::new(),
            negotiation: Negotiation::default(),
            info: Box::default(),
            slots: Slots::new(depth),
            state: ReplyState::Header,
            options,
        };
        client.begin();
        client
    }

    /// Processes received bytes and returns how many were consumed. The rest, at most
    /// [`Client::MAX_UNCONSUMED`] bytes, must be passed again together with what follows.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while self.phase != Phase::Closed {
            let left = bytes.get(taken..).unwrap_or_default();
            if left.is_empty() {
                break;
            }
            match self.receive_one(left) {
                Ok(Some(n)) => taken += n,
                Ok(None) => break,
                Err(violation) => self.close(End::Violation(violation)),
            }
        }
        if self.phase == Phase::Closed { bytes.len() } else { taken }
    }

    /// Processes one message from the start of `bytes`, which is not empty. Returns `None` if it is
    /// incomplete.
    fn receive_one(&mut self, bytes: &[u8]) -> Result<Option<usize>, Violation> {
        match self.phase {
            Phase::Hello => self.hello(bytes),
            Phase::AwaitReply(option) => self.reply(option, bytes),
            Phase::AwaitExport => self.export_name_reply(bytes),
            Phase::TlsHandshake => Err(Violation::BytesBeforeTls),
            Phase::Transmission => self.transmission(bytes),
            Phase::Closed => Ok(None),
        }
    }

    /// Returns the next step, or `None` when all are done.
    pub fn poll(&mut self) -> Option<Step> {
        self.out.pop_front()
    }

    /// Disconnects. Requests in flight do not complete.
    pub fn disconnect(&mut self) {
        match self.phase {
            Phase::Transmission => self.send_disc(),
            Phase::AwaitReply(_) => self.send_abort(),
            Phase::Closed => return,
            Phase::Hello | Phase::AwaitExport | Phase::TlsHandshake => {}
        }
        self.close(End::Finished);
    }

    fn send(&mut self, segment: Segment) {
        self.out.push_back(Step::Send(segment));
    }

    fn close(&mut self, end: End) {
        self.phase = Phase::Closed;
        self.out.push_back(Step::Close(end));
    }
}
