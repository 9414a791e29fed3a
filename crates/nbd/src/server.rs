//! The server of NBD. It knows exports and peers; no socket, no disk, no clock.
//!
//! A [`Session`] is one connection, from the hello to the last reply; a [`Greeter`] is its beginning in the clear where TLS
//! may follow. `haggle` answers options (with `offer`, what is said of an export, and `standing`, which asks the policy),
//! `transmission` takes requests, `read`, `long`, `write` and `status` carry them out in pieces through `slots`, and
//! `answer` makes replies. What the connections share hangs on the [`Server`].

mod answer;
mod command;
mod fault;
mod greeter;
mod haggle;
mod long;
mod offer;
mod read;
mod session;
mod slots;
mod standing;
mod status;
mod transmission;
mod violation;
mod write;

use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Account, Catalogue, Peer};

pub use greeter::{Greeter, Next, Reaction, greet};
pub use session::Session;
pub use violation::Violation;

/// Bytes of the longest payload of a request or a reply, as the block sizes say it.
pub const MAX_PAYLOAD: u32 = 32 << 20;

/// Requests that a connection may have under way; the next is not read before one has ended.
pub const REQUESTS: u8 = 128;

/// A connection must have chosen an export within this time.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Options that a connection may send: a client that lists all of many exports needs some for each.
const OPTIONS: u32 = 1024;

/// Bytes of data that an option may have: a name and room for many queries.
const OPTION_DATA: u32 = 16 << 10;

/// Bytes that are read and dropped, of an option or a payload that is too long, before the connection is given up instead.
const DRAIN: u64 = 64 << 20;

/// Bytes of a piece: a request for more goes to the disk in several.
const PIECE: u64 = 256 << 10;

/// Bytes of a piece of a request that moves no data.
const STRIDE: u64 = 1 << 30;

/// Pieces of one request that the disk has at once.
const AHEAD: u16 = 4;

/// With this many bytes to be sent it takes no more requests.
const OWED: usize = 256 << 10;

/// Bytes that answers to reads may hold while they wait for the peer to take them.
const HELD: usize = 4 << 20;

/// A payload with less than this still to come is not worth receiving by itself, in bytes.
const LANDING: usize = 8192;

/// What all connections of NBD share.
#[derive(Debug)]
pub struct Server {
    catalogue: Arc<Catalogue>,
}

/// How a connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the hello.
    Hello,
    /// The hello was said; the client's flags are to come.
    HelloSent,
    /// TLS has begun: options are to come.
    InTls {
        /// Whether the client's flags had [`crate::wire::handshake::C_NO_ZEROES`].
        no_zeroes: bool,
    },
}

impl Server {
    /// A server that lends what is in `catalogue`. Tell the sessions [`export::Notice::StateChanged`] when that changes.
    pub fn new(catalogue: Arc<Catalogue>) -> Arc<Self> {
        Arc::new(Self { catalogue })
    }

    /// The session of a new connection. Its payloads are drawn from `account` and siblings of it.
    pub fn session(
        self: &Arc<Self>,
        peer: Peer,
        start: Start,
        account: Account,
        now: Instant,
    ) -> Session {
        Session::new(self.clone(), peer, start, account, now)
    }
}
