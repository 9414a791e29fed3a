//! The target side of iSCSI.
//!
//! A [`Session`] is one connection, which is one session (MaxConnections is 1), from the first login
//! request to the end. `login` processes the login phase, with `authentication` by CHAP and the
//! `negotiation` of keys; `full_feature` dispatches the requests that follow. `disk` executes SCSI
//! commands: `slots` holds those in progress, `data_out` is the data that an initiator sends,
//! `reading` and `writing` are transfers in pieces, and `memory` gives memory in turn. `receiver`
//! splits the stream into PDUs, `link` encodes and numbers what is sent, and `outbox` keeps it for
//! the driver. The [`Server`] holds what connections share, such as the `registry` of sessions.

mod attachment;
mod authentication;
mod authorizer;
mod data_out;
mod disk;
mod full_feature;
mod link;
mod login;
mod memory;
mod negotiation;
mod outbox;
mod reading;
mod receiver;
mod registry;
mod reply;
mod session;
mod slots;
mod text_exchange;
mod violation;
mod writing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Account, Catalogue, Peer};

use crate::chap::{RandomSource, system_random};
use registry::Registry;

pub use session::Session;
pub use violation::Violation;

/// Maximum number of commands in progress per session, as announced by MaxCmdSN.
pub const MAX_TASKS: u8 = 128;

/// Maximum number of immediate commands in progress per session.
const MAX_IMMEDIATE: u8 = 8;

/// Timeout of the login.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The initiator is pinged when it has sent nothing for this long.
const PING_AFTER: Duration = Duration::from_secs(10);

/// The initiator must answer a ping within this time.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum length of the data of a ping that is returned, in bytes.
const MAX_PING: usize = 8192;

/// Maximum length of a piece in bytes. Longer transfers are split. Unsolicited data fits into the
/// first piece.
const PIECE: u32 = negotiation::MAX_RECV;

/// Maximum number of pieces of one command in flight.
const MAX_PIECES_IN_FLIGHT: u16 = 4;

/// Reception stops while this many bytes wait to be sent.
const MAX_SEND_BACKLOG: usize = 256 << 10;

/// Maximum memory of transfers of one session, in bytes.
const MAX_MEMORY: usize = 4 << 20;

/// Minimum number of outstanding bytes for a direct receive.
const MIN_DIRECT_RECV: usize = 8192;

/// State shared by all connections.
#[derive(Debug)]
pub struct Server {
    catalogue: Arc<Catalogue>,
    random: RandomSource,
    registry: Arc<Registry>,
}

impl Server {
    /// Creates a server of the exports in `catalogue`. When that changes, sessions must be notified
    /// with [`export::Notice::StateChanged`].
    #[must_use]
    pub fn new(catalogue: Arc<Catalogue>) -> Arc<Self> {
        Self::with_random(catalogue, system_random)
    }

    /// As [`Server::new`], with another source of random bytes.
    #[must_use]
    pub fn with_random(catalogue: Arc<Catalogue>, random: RandomSource) -> Arc<Self> {
        Arc::new(Self { catalogue, random, registry: Arc::default() })
    }

    /// Creates the session of a new connection. Data uses memory of `account` and its siblings.
    #[must_use]
    pub fn session(self: &Arc<Self>, peer: Peer, account: Account, now: Instant) -> Session {
        Session::new(self.clone(), peer, account, now)
    }
}
