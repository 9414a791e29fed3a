//! The client side of NBD, as pure as the server: bytes and requests in, bytes and ended requests out. It knows no socket, no
//! disk and no clock, and trusts the server no more than a server trusts a client.
//!
//! One [`Client`] is one connection: it opens itself as its [`Options`] say, until [`Step::Opened`], [`Step::Listed`] or
//! [`Step::Refused`], and then takes [`Request`]s.

mod coverage;
mod haggle;
mod opened;
mod request;
mod slots;
mod transmit;
mod violation;

use std::collections::VecDeque;

use export::{Buffer, Extent, Segment};

pub use opened::{Headers, Listing, Opened, Reason, Refusal};
pub use request::{NotNow, Request};
pub use violation::Violation;

use haggle::Haggle;
use slots::Slots;
use transmit::Stage;

/// How a connection is to be opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// The export's name; empty for the one that the server chooses.
    pub export: String,
    /// What the connection is for.
    pub purpose: Purpose,
    /// Where it begins.
    pub start: Start,
    /// Ask for requests and replies with 64-bit lengths.
    pub extended: bool,
    /// Ask for structured replies, if there are no extended ones.
    pub structured: bool,
    /// Ask for what is data and what is not, if replies have structure.
    pub extents: bool,
    /// Requests that can be under way at once: 1 to 4096.
    pub depth: u16,
}

impl Options {
    /// All that can be had of the export of that name, in the clear, with 64 requests at once.
    #[must_use]
    pub fn new(export: &str) -> Self {
        Self {
            export: export.to_owned(),
            purpose: Purpose::Go,
            start: Start::Clear,
            extended: true,
            structured: true,
            extents: true,
            depth: 64,
        }
    }

    /// The same for a list of what the server has.
    #[must_use]
    pub fn list() -> Self {
        Self { purpose: Purpose::List, ..Self::new("") }
    }
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To use the export.
    Go,
    /// Only to see what the export is like.
    Look,
    /// Only to see which exports there are.
    List,
}

/// Where a connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the server's hello, and it goes on in the clear.
    Clear,
    /// With the server's hello in the clear, then TLS or nothing: see [`Step::Secure`].
    Secure,
    /// In TLS, behind a hello and an agreement on TLS that another [`Client`] has brought about.
    Secured,
}

/// What whoever drives a [`Client`] is to do or to know.
#[derive(Debug)]
pub enum Step {
    /// Send this, after what was to be sent before.
    Send(Segment),
    /// The server agrees on TLS: make the handshake, then call [`Client::secured`] and go on in it. What the server sent in
    /// the clear ends here.
    Secure,
    /// The export is there: with [`Purpose::Go`] requests may be submitted.
    Opened(Box<Opened>),
    /// The exports that the server tells of.
    Listed(Vec<Listing>),
    /// The server does not want to; [`Step::Close`] follows.
    Refused(Refusal),
    /// A request ended.
    Done(Done),
    /// Send what is still to be sent, then close the connection. Nothing follows; requests under way have no answer.
    Close(End),
}

/// A request that ended.
#[derive(Debug)]
pub struct Done {
    /// What the submitter calls it.
    pub tag: u32,
    /// How it ended.
    pub result: Result<(), Error>,
    /// The buffer of a [`Request::Read`]; after success, filled in all its length.
    pub buffer: Option<Buffer>,
    /// What a [`Request::Extents`] learned, from its offset on: at least one after success, perhaps not up to its end.
    pub extents: Vec<Extent>,
}

/// How the server failed a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Error {
    /// One of [`crate::wire::errno`], or a number that the server made up; not zero.
    pub errno: u32,
    /// Where on the export it failed, if the server told.
    pub offset: Option<u64>,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All that it was for is done, or cannot be done.
    Finished,
    /// The server broke a rule.
    Violation(Violation),
}

/// One connection, as the client sees it.
#[derive(Debug)]
pub struct Client {
    options: Options,
    phase: Phase,
    out: VecDeque<Step>,
    haggle: Haggle,
    opened: Box<Opened>,
    slots: Slots,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The server's hello is to come.
    Hello,
    /// The answer to this option is to come.
    Asked(u32),
    /// The answer to the option that has no error is to come.
    Chosen,
    /// Whoever drives makes the TLS handshake.
    Securing,
    Live,
    Closed,
}

/// Requests that can be under way at once, at least and at most.
const DEPTH: std::ops::RangeInclusive<u16> = 1..=4096;

impl Client {
    /// Bytes that [`Client::receive`] leaves at most, for more to come behind them.
    pub const LONGEST: usize = haggle::LONGEST;

    /// A connection that has just been made, or secured.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let depth = options.depth.clamp(*DEPTH.start(), *DEPTH.end());
        let mut client = Self {
            phase: Phase::Hello,
            out: VecDeque::new(),
            haggle: Haggle::default(),
            opened: Box::default(),
            slots: Slots::new(depth),
            stage: Stage::Header,
            options,
        };
        client.begin();
        client
    }

    /// Bytes came. Takes as many as it can and tells how many that is; the rest, [`Client::LONGEST`] at most, is offered
    /// again with what comes after it.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while self.phase != Phase::Closed {
            let left = bytes.get(taken..).unwrap_or_default();
            if left.is_empty() {
                break;
            }
            match self.piece(left) {
                Ok(Some(n)) => taken += n,
                Ok(None) => break,
                Err(violation) => self.close(End::Violation(violation)),
            }
        }
        if self.phase == Phase::Closed { bytes.len() } else { taken }
    }

    /// Takes one piece of `bytes`, which are not empty; nothing if it is not whole.
    fn piece(&mut self, bytes: &[u8]) -> Result<Option<usize>, Violation> {
        match self.phase {
            Phase::Hello => self.hello(bytes),
            Phase::Asked(option) => self.reply(option, bytes),
            Phase::Chosen => self.chosen(bytes),
            Phase::Securing => Err(Violation::BytesBeforeSecured),
            Phase::Live => self.transmission(bytes),
            Phase::Closed => Ok(None),
        }
    }

    /// What to do next, until there is nothing.
    pub fn poll(&mut self) -> Option<Step> {
        self.out.pop_front()
    }

    /// Says goodbye. Requests under way have no answer.
    pub fn disconnect(&mut self) {
        match self.phase {
            Phase::Live => self.send_disc(),
            Phase::Asked(_) => self.send_abort(),
            Phase::Closed => return,
            Phase::Hello | Phase::Chosen | Phase::Securing => {}
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
