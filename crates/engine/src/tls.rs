//! TLS 1.3 with keys that both ends know beforehand (RFC 8446, external PSKs), or with certificates of an authority that is
//! named; never with those that the system trusts. It knows no protocol above it, and nothing of where keys are kept.

mod certificates;
mod handshaker;
mod hello;
pub(crate) mod limit;
mod outbox;
mod record;
mod records;
mod s2n;
mod session;
mod stream;
mod suite;

use std::fmt;
use std::io;
use std::sync::Arc;

use export::{KeyId, Secret};

pub use certificates::{Certificates, Trust};
pub use stream::{Stream, connect, connect_certified};

pub(crate) use handshaker::{Handshaker, Incoming, ReportLimit};

/// The hash that belongs to a key, and so the cipher suites that it is used with (RFC 8446 §4.2.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hash {
    /// For TLS_AES_128_GCM_SHA256.
    Sha256,
    /// For TLS_AES_256_GCM_SHA384.
    Sha384,
}

/// A key that both ends know, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Psk {
    /// The name under which a peer presents it.
    pub identity: String,
    /// The key itself: 16 bytes at least.
    pub secret: Secret,
    /// The hash that belongs to it.
    pub hash: Hash,
    /// The owner's name for the keys of the host that it is of; none for a key that everybody knows.
    pub key: Option<KeyId>,
}

/// Gives the keys that open a auth just now. Called once for each handshake, on the thread for handshakes. Of several with
/// one name the first counts.
pub type Keys = Arc<dyn Fn() -> Vec<Psk> + Send + Sync>;

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha256 => "SHA-256",
            Self::Sha384 => "SHA-384",
        })
    }
}

/// Loads all that TLS needs of the system (random numbers, the library's tables): for a process that is about to give its
/// rights up. Without this it happens with the first connection.
///
/// # Errors
/// TLS cannot be spoken here.
pub fn prepare() -> io::Result<()> {
    s2n::prepare()
}
