//! TLS 1.3 with external PSKs (RFC 8446 §2.2) or with certificates of a configured certification
//! authority. The system's trust store is never used.

mod certificates;
pub(crate) mod hello;
mod outbox;
mod peer_name;
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
use zeroize::Zeroizing;

pub use certificates::{Certificates, Trust};
pub use stream::{Stream, connect, connect_certified, traffic_keys};

pub(crate) use records::Records;
pub(crate) use s2n::{Established, Handshake, HandshakeError, Progress};
pub(crate) use session::TlsSession;

/// Hash algorithm of a PSK, which restricts the cipher suites it can be used with (RFC 8446
/// §4.2.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hash {
    /// For TLS_AES_128_GCM_SHA256.
    Sha256,
    /// For TLS_AES_256_GCM_SHA384.
    Sha384,
}

/// A pre-shared key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Psk {
    /// PSK identity.
    pub identity: String,
    /// The key: at least 16 bytes.
    pub secret: Secret,
    /// Its hash algorithm.
    pub hash: Hash,
    /// Identifies the host's keys in the policy; `None` for a key that is public.
    pub key: Option<KeyId>,
}

/// The cipher of a connection (RFC 8446 §B.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// AEAD_AES_128_GCM.
    Aes128Gcm,
    /// AEAD_AES_256_GCM.
    Aes256Gcm,
    /// AEAD_CHACHA20_POLY1305.
    ChaCha20Poly1305,
}

/// The key and the IV of one direction (RFC 8446 §7.3), for its first record.
#[allow(missing_debug_implementations, reason = "a key is not printed")]
pub struct TrafficKey {
    pub cipher: Cipher,
    pub key: Zeroizing<Vec<u8>>,
    pub iv: [u8; 12],
}

/// Returns the PSKs that a listener accepts now. Called once per handshake, on the handshake
/// thread. Of several with the same identity the first counts.
pub type Keys = Arc<dyn Fn() -> Vec<Psk> + Send + Sync>;

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha256 => "SHA-256",
            Self::Sha384 => "SHA-384",
        })
    }
}

/// Initializes the TLS library (random numbers, tables), for a process that is about to drop
/// privileges. Otherwise this happens with the first connection.
///
/// # Errors
/// Fails if the TLS library cannot be used.
pub fn prepare() -> io::Result<()> {
    s2n::prepare()
}
