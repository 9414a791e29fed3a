//! Security of a listener, and the classification of connections by their first byte.

use std::fmt;
use std::sync::Arc;

use export::{Auth, Event, Peer};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::link::Link;
use crate::tls::{Certificates, Keys};
use crate::{MakeSession, Sink};

/// A condition that is evaluated for each connection.
pub type Predicate = Arc<dyn Fn() -> bool + Send + Sync>;

/// Content type of a TLS handshake record (RFC 8446 §5.1). None of our cleartext protocols begins
/// with this byte.
const HANDSHAKE_RECORD: u8 = 0x16;

/// A cleartext negotiation in which this end sends first, before the session or TLS starts (NBD
/// with STARTTLS). Called once without bytes, for the greeting, and then with all received bytes
/// that it has not consumed.
pub type Negotiator = Box<dyn FnMut(&[u8]) -> NegotiationStep + Send>;

/// Makes the negotiator of a connection. Called once per connection, on the handshake thread.
pub type MakeNegotiator = Arc<dyn Fn(&Peer) -> Negotiator + Send + Sync>;

/// The result of a call of a [`Negotiator`].
pub struct NegotiationStep {
    /// Number of bytes consumed. The rest is passed again, followed by newer bytes.
    pub consumed: usize,
    /// Data to send.
    pub reply: Vec<u8>,
    /// What follows when that is sent.
    pub next: NextStep,
}

/// How a connection continues after a step of its [`Negotiator`].
pub enum NextStep {
    /// Call the negotiator again when more bytes have arrived.
    Wait,
    /// Start the listener's session in clear text, with the bytes that were not consumed. Refused
    /// if the listener requires TLS.
    Plain,
    /// Start a TLS handshake, and then a session of this maker. If bytes have already arrived, the
    /// connection is refused: cleartext data must not be injected into the TLS session.
    Secure(MakeSession),
    /// Refuse the peer and report this reason, a phrase.
    Refuse(&'static str),
    /// Close the connection.
    Close,
}

impl fmt::Debug for NegotiationStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "NegotiationStep({} consumed, {} to send, {:?})",
            self.consumed,
            self.reply.len(),
            self.next
        )
    }
}

impl fmt::Debug for NextStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wait => f.write_str("Wait"),
            Self::Plain => f.write_str("Plain"),
            Self::Secure(_) => f.write_str("Secure"),
            Self::Refuse(reason) => write!(f, "Refuse({reason:?})"),
            Self::Close => f.write_str("Close"),
        }
    }
}

/// Security settings of a listener.
#[derive(Clone)]
pub struct Security {
    /// Whether authentication is required.
    pub auth: Auth,
    /// The PSKs for TLS; `None` to disable TLS with PSKs.
    pub keys: Option<Keys>,
    /// Whether clear text is accepted now: no authentication is required, or the peer can authenticate
    /// within the protocol.
    pub plain: Predicate,
    /// Makes the negotiator of a connection; `None` if the peer sends first.
    pub negotiation: Option<MakeNegotiator>,
    /// Certificates for peers that use TLS without a PSK; `None` to refuse them.
    pub certificates: Option<Certificates>,
}

impl Security {
    /// Returns settings without authentication and without TLS.
    pub fn open() -> Self {
        let plain = Arc::new(|| true);
        Self { auth: Auth::None, keys: None, plain, negotiation: None, certificates: None }
    }

    /// Returns settings that require TLS with one of `keys`.
    pub fn keyed(keys: Keys) -> Self {
        Self { auth: Auth::Required, keys: Some(keys), plain: Arc::new(|| false), ..Self::open() }
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (auth, keys) = (self.auth, self.keys.is_some());
        let (greets, certified) = (self.negotiation.is_some(), self.certificates.is_some());
        write!(f, "Security({auth:?}, keys: {keys}, greets: {greets}, certified: {certified})")
    }
}

/// Settings of a listener, and the maker of its sessions.
pub(crate) struct ListenerConfig {
    pub(crate) security: Security,
    pub(crate) open: MakeSession,
}

/// What the first byte of a connection shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detected {
    /// No byte has arrived yet.
    Unknown,
    /// This end sends first.
    ServerFirst,
    /// Clear text, which is accepted.
    Plain,
    /// TLS.
    Tls,
    /// Clear text, which is refused.
    Refused,
    /// The peer has closed the connection.
    Closed,
}

impl ListenerConfig {
    /// Classifies a connection by its first byte, without removing it from the socket.
    pub(crate) fn detect(&self, link: &Link) -> Detected {
        if self.security.negotiation.is_some() {
            return Detected::ServerFirst;
        }
        let mut first = [0; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(link, &mut first, flags) {
            Ok((0, _)) => Detected::Closed,
            Ok(_) if first == [HANDSHAKE_RECORD] && self.accepts_tls() => Detected::Tls,
            Ok(_) if self.allows_plain() => Detected::Plain,
            Ok(_) => Detected::Refused,
            Err(Errno::AGAIN | Errno::INTR) => Detected::Unknown,
            Err(_) => Detected::Closed,
        }
    }

    fn accepts_tls(&self) -> bool {
        self.security.keys.is_some() || self.security.certificates.is_some()
    }

    /// Returns whether clear text is accepted now.
    pub(crate) fn allows_plain(&self) -> bool {
        (self.security.plain)()
    }
}

/// Reason for a refused peer: clear text where TLS is required.
pub(crate) const PLAIN_REFUSED: &str = "TLS is required here";

/// Reason for a refused peer: a loopback address reached over another interface.
pub(crate) const NOT_LOCAL: &str = "connected to a loopback address from another machine";

/// Reason for a refused peer: limit on connections.
pub(crate) const TOO_MANY: &str = "too many connections";

/// Reports a peer that was refused before it could identify itself.
pub(crate) fn refuse(sink: &Sink, peer: Peer, reason: &'static str) {
    sink(Event::Refused { peer, host: String::new(), wanted: String::new(), reason });
}
