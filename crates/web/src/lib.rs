//! Disks by HTTP/1.1 (RFC 9110, RFC 9112), read-only, as a sans-I/O state machine.
//!
//! Where the listener requires authentication, the connection must be a TLS channel, and each request
//! must have the [`Code`] or the cookie of a session that was begun with it.
//!
//! A [`Session`] is one connection and implements [`export::Session`]. It answers GET and HEAD of
//! `/NAME.raw`, the bytes of the disk of that name, whole or one range of them; of `/NAME.raw.zst`, the
//! same, whole and compressed; of `/`, a page with
//! the disks for people; of `/disks.json`, the same for programs; and of `/NAME/NUMBER/PATH`, a folder or
//! a file in a partition. Requests are answered one after the other.
//!
//! | module | is |
//! |---|---|
//! | `request` | parsing of request heads, and the violations of their rules |
//! | `code`, `access`, `login` | the code; sessions and limits on wrong codes; admission of requests |
//! | `host` | the `Host` field: names under which a web page of others must not reach this machine |
//! | `range`, `version` | ranges; entity tags and conditions |
//! | `page`, `listing` | the page, the list in JSON, the style sheet; the pages of partitions and folders |
//! | `files`, `cache` | the search for files; the parts of a disk that it has read |
//! | `layouts` | where partitions are, and which file systems, as earlier requests have found it |
//! | `response` | response heads and error texts; the status of each fault |
//! | `content` | the response with the bytes of a disk or a file |
//! | `transfer`, `zst` | the part of a disk that is being sent; its compression |
//! | `slots` | limits of compressed downloads and of searches |
//! | `session` | the state machine; the response to a request |
#![forbid(unsafe_code)]

mod access;
mod cache;
mod code;
mod content;
mod files;
mod host;
mod layouts;
mod listing;
mod login;
mod page;
mod range;
mod request;
mod response;
mod session;
mod slots;
mod transfer;
mod version;
mod zst;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use export::{Account, Catalogue, Peer};

pub use access::Random;
pub use code::Code;
pub use request::Violation;
pub use session::Session;

/// The port that is listened on: that of `http-alt` in the registry of IANA. Port 80 needs root, and
/// other programs have it.
pub const PORT: u16 = 8080;

/// The port for HTTPS, as many servers beside 8080 have it. Port 443 needs root.
pub const TLS_PORT: u16 = 8443;

/// Maximum length of a request head in bytes.
pub const MAX_HEAD: usize = 8 << 10;

/// Maximum length of the content of a request: a form with a code.
const MAX_CONTENT: u64 = 1 << 10;

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

/// Returns the time of day.
pub type Clock = fn() -> SystemTime;

/// What all connections share.
#[derive(Debug)]
pub struct Server {
    catalogue: Arc<Catalogue>,
    /// The name of this machine, for the page.
    machine: String,
    versions: version::Versions,
    access: access::Access,
    encoders: zst::Encoders,
    walks: slots::Slots,
    layouts: layouts::Layouts,
    clock: Clock,
}

impl Server {
    /// Creates a server of the exports in `catalogue`, on the machine of this name. `random` fills
    /// entity tags, so that those of other servers differ, and the cookies of sessions; `clock` is for
    /// `Date`. When the catalogue or the code changes, sessions must be notified with
    /// [`export::Notice::StateChanged`].
    pub fn new(
        catalogue: Arc<Catalogue>,
        machine: &str,
        random: Random,
        clock: Clock,
    ) -> Arc<Self> {
        let access = access::Access::new(random);
        let versions = version::Versions::new(u64::from_le_bytes(access.random()));
        let (machine, encoders) = (machine.to_owned(), zst::Encoders::default());
        let walks = slots::Slots::new(files::MAX_WALKS);
        let layouts = layouts::Layouts::default();
        Arc::new(Self { catalogue, machine, versions, access, encoders, walks, layouts, clock })
    }

    /// Replaces the code that admits to reading where authentication is required; without one no client
    /// is admitted there. Ends the sessions that were begun with another one.
    pub fn set_code(&self, code: Code) {
        self.access.set_code(code);
    }

    /// Creates the session of a new connection. Responses use memory of `account`.
    pub fn session(self: &Arc<Self>, peer: Peer, account: Account, now: Instant) -> Session {
        Session::new(self.clone(), peer, account, now)
    }
}
