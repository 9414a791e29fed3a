//! Disks by HTTP/1.1 (RFC 9110, RFC 9112), read-only, as a sans-I/O state machine.
//!
//! A [`Session`] is one connection and implements [`export::Session`]. It answers GET and HEAD of
//! `/NAME.raw`, the bytes of the disk of that name, whole or one range of them; of `/`, a page with
//! the disks for people; and of `/disks.json`, the same for programs. Requests are answered one after
//! the other.
//!
//! | module | is |
//! |---|---|
//! | `request` | parsing of request heads, and the violations of their rules |
//! | `host` | the `Host` field: names under which a web page of others must not reach this machine |
//! | `range`, `version` | ranges; entity tags and conditions |
//! | `page` | the page, the list in JSON, the style sheet |
//! | `response` | response heads and error texts; the status of each fault |
//! | `transfer` | the part of a disk that is being sent |
//! | `session` | the state machine |
#![forbid(unsafe_code)]

mod host;
mod page;
mod range;
mod request;
mod response;
mod session;
mod transfer;
mod version;

use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Account, Catalogue, Peer};

pub use request::Violation;
pub use session::Session;

/// The port that is listened on: that of `http-alt` in the registry of IANA. Port 80 needs root, and
/// other programs have it.
pub const PORT: u16 = 8080;

/// Maximum length of a request head in bytes.
pub const MAX_HEAD: usize = 8 << 10;

/// Maximum number of fields in a request head.
const MAX_FIELDS: usize = 64;

/// How long a request head may take, from the start of the connection or from its first byte.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection without a request keeps a disk in use.
const DETACH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection is kept without a request, or without a buffer becoming free because the peer
/// receives: of 256 KiB at most ([`PIECE`]). Progress is looked at once in this time, so a connection is
/// closed after up to twice of it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Length of a disk read in bytes. The first and the last one may be shorter.
const PIECE: u64 = 256 << 10;

/// Maximum number of pieces that are being read or wait for an earlier one.
const MAX_PIECES: usize = 4;

/// No more is read while so many bytes of this connection wait to be sent.
const MAX_MEMORY: usize = 2 << 20;

/// What all connections share.
#[derive(Debug)]
pub struct Server {
    catalogue: Arc<Catalogue>,
    /// The name of this machine, for the page.
    machine: String,
    versions: version::Versions,
}

impl Server {
    /// Creates a server of the exports in `catalogue`, on the machine of this name. `nonce` is a random
    /// number: entity tags of servers with different ones differ. When the catalogue changes, sessions
    /// must be notified with [`export::Notice::StateChanged`].
    pub fn new(catalogue: Arc<Catalogue>, machine: &str, nonce: u64) -> Arc<Self> {
        let versions = version::Versions::new(nonce);
        Arc::new(Self { catalogue, machine: machine.to_owned(), versions })
    }

    /// Creates the session of a new connection. Responses use memory of `account`.
    pub fn session(self: &Arc<Self>, peer: Peer, account: Account, now: Instant) -> Session {
        Session::new(self.clone(), peer, account, now)
    }
}
