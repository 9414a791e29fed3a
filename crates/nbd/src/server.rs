//! The server side of NBD.
//!
//! A [`Session`] is one connection, from the hello to the last reply; a [`Greeter`] is its start in
//! the clear where TLS may follow. A session is in one of two phases: `negotiation` processes client
//! flags and options (with `offer`, the description of an export), and creates the `attachment` to
//! the chosen export; `transmission` executes requests in pieces. Its parts are `slots` (requests in
//! flight), `payload` (data of writes), `read_memory` (memory in turn) and `streamed_reads`.
//! `reply` and `status` encode replies, `outbox` keeps them for the driver, and `authorizer` checks
//! access. The [`Server`] holds what connections share.

mod attachment;
mod authorizer;
mod command;
mod fault;
mod greeter;
mod negotiation;
mod offer;
mod outbox;
mod payload;
mod read_memory;
mod reply;
mod session;
mod slots;
mod status;
mod streamed_reads;
mod transmission;
mod violation;

use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Account, Catalogue, Peer};

pub use greeter::{Greeter, Next, Reaction, greet};
pub use session::Session;
pub use violation::Violation;

/// Maximum payload of a request or a reply in bytes, as advertised in the block sizes.
pub const MAX_PAYLOAD: u32 = 32 << 20;

/// Maximum number of requests in flight per connection. Reception stops at the limit.
pub const MAX_IN_FLIGHT: u8 = 128;

/// Timeout of the negotiation.
const NEGOTIATION_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum number of options per connection. A client that queries every listed export sends
/// several for each.
const MAX_OPTIONS: u32 = 1024;

/// Maximum length of option data in bytes: a name and many queries.
const MAX_OPTION_DATA: u32 = 16 << 10;

/// Maximum length of an invalid option or payload that is skipped, in bytes. The connection is
/// closed if it is longer.
const MAX_SKIP: u64 = 64 << 20;

/// Maximum length of a piece in bytes. Longer requests are split.
const PIECE: u64 = 256 << 10;

/// Maximum length of a piece that transfers no data, in bytes.
const PIECE_WITHOUT_DATA: u64 = 1 << 30;

/// Maximum number of pieces of one request in flight.
const MAX_PIECES_IN_FLIGHT: u16 = 4;

/// Reception stops while this many bytes wait to be sent.
const MAX_SEND_BACKLOG: usize = 256 << 10;

/// Maximum memory of read data that waits to be sent, in bytes.
const MAX_READ_MEMORY: usize = 4 << 20;

/// Minimum number of outstanding payload bytes for a direct receive.
const MIN_DIRECT_RECV: usize = 8192;

/// State shared by all connections.
#[derive(Debug)]
pub struct Server {
    catalogue: Arc<Catalogue>,
}

/// The state in which a session starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Before the hello.
    Hello,
    /// After the hello, before the client flags.
    HelloSent,
    /// Inside TLS, before the first option.
    InTls {
        /// Whether the client sent [`crate::wire::handshake::C_NO_ZEROES`].
        no_zeroes: bool,
    },
}

impl Server {
    /// Creates a server of the exports in `catalogue`. When that changes, sessions must be notified
    /// with [`export::Notice::StateChanged`].
    pub fn new(catalogue: Arc<Catalogue>) -> Arc<Self> {
        Arc::new(Self { catalogue })
    }

    /// Creates the session of a new connection. Payloads use memory of `account` and its siblings.
    pub fn session(
        self: &Arc<Self>,
        peer: Peer,
        start: Start,
        account: Account,
        now: Instant,
    ) -> Session {
        Session::new(self.catalogue.clone(), peer, start, account, now)
    }
}
