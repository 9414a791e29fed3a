//! What a peer must show at an address, and the way in that its first byte asks for. It knows no driver and no cipher.

use std::fmt;
use std::sync::Arc;

use export::{Auth, Event, Peer};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::link::Link;
use crate::tls::{Certificates, Keys};
use crate::{MakeSession, Sink};

/// Tells whether something is so just now.
pub type Predicate = Arc<dyn Fn() -> bool + Send + Sync>;

/// The first byte of a TLS record that holds a ClientHello (RFC 8446 §5.1). No protocol that is spoken in the clear here
/// begins with it.
const HANDSHAKE_RECORD: u8 = 0x16;

/// Speaks first on a connection, in the clear, until it is known how that goes on. Called once without bytes, to say hello,
/// and then with all that have come and that it has not taken.
pub type Negotiator = Box<dyn FnMut(&[u8]) -> NegotiationStep + Send>;

/// Makes the negotiation of a peer. Called once for each, on the thread for handshakes.
pub type MakeNegotiator = Arc<dyn Fn(&Peer) -> Negotiator + Send + Sync>;

/// What a [`Negotiator`] makes of what it was called with.
pub struct NegotiationStep {
    /// How many of the bytes, from the first on, are done with. The others are offered again, with what came after them.
    pub consumed: usize,
    /// What is to be said now.
    pub reply: Vec<u8>,
    /// How it goes on when that is said.
    pub next: NextStep,
}

/// How a connection goes on after what its [`Negotiator`] said.
pub enum NextStep {
    /// With more of the same, once more has come.
    Wait,
    /// In the clear: a driver's session takes over, of the socket's own [`MakeSession`], and is given what was not taken. Where a
    /// key is needed the peer is refused instead.
    Plain,
    /// With a TLS handshake, and then with a session of this maker. Bytes that have come already are nobody's: the peer is
    /// refused.
    Secure(MakeSession),
    /// Not at all, for a reason that is reported: a piece of a sentence.
    Refuse(&'static str),
    /// Not at all.
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
            Self::Refuse(why) => write!(f, "Refuse({why:?})"),
            Self::Close => f.write_str("Close"),
        }
    }
}

/// Who is let in at a listening socket, and how.
#[derive(Clone)]
pub struct Security {
    /// What a peer must show there.
    pub auth: Auth,
    /// The keys with which a channel may be made there; nothing if TLS is not spoken at all.
    pub keys: Option<Keys>,
    /// Whether who speaks in the clear is let in now at a [`Auth::Required`]: because it can prove in the protocol who it is.
    pub plain: Predicate,
    /// Makes what speaks first there, for each peer; nothing if the peer speaks first.
    pub negotiation: Option<MakeNegotiator>,
    /// What this end shows to a peer that speaks TLS without a key, if it may do so.
    pub certificates: Option<Certificates>,
}

impl Security {
    /// Nothing is asked, and no TLS is spoken.
    pub fn open() -> Self {
        let plain = Arc::new(|| true);
        Self { auth: Auth::None, keys: None, plain, negotiation: None, certificates: None }
    }

    /// Asks for a channel that is made with one of `keys`, and lets nobody in without.
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

/// A listening socket's rules, and the sessions that it leads to.
pub(crate) struct ListenerConfig {
    pub(crate) security: Security,
    pub(crate) open: MakeSession,
}

/// The way in that a peer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detected {
    /// It has said nothing yet.
    Unknown,
    /// It waits to be spoken to.
    ServerFirst,
    /// It speaks in the clear, and may.
    Plain,
    /// It speaks TLS.
    Tls,
    /// It speaks in the clear, and must not.
    Refused,
    /// It is gone.
    Closed,
}

impl ListenerConfig {
    /// Which way the peer goes: by its first byte, which stays to be received, unless this end speaks first.
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

    /// Whether who speaks in the clear is let in now.
    pub(crate) fn allows_plain(&self) -> bool {
        self.security.auth == Auth::None || (self.security.plain)()
    }
}

/// Why a peer was refused that must not speak in the clear, for people.
pub(crate) const PLAIN_REFUSED: &str = "TLS is required here";

/// Why a peer was refused that reached a loopback address by another interface, for people.
pub(crate) const NOT_LOCAL: &str = "connected to a loopback address from another machine";

/// Why a peer was refused whose host has too many connections, for people.
pub(crate) const TOO_MANY: &str = "too many connections";

/// Reports that a peer was refused before it could say who it is.
pub(crate) fn refuse(sink: &Sink, peer: Peer, why: &'static str) {
    sink(Event::Refused { peer, host: String::new(), wanted: String::new(), why });
}
