//! What a peer must show at an address, and the way in that its first byte asks for. It knows no driver and no cipher.

use std::fmt;
use std::sync::Arc;

use export::{Door, Event, Peer};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::link::Link;
use crate::tls::Keys;
use crate::{Open, Sink};

/// Tells whether something is so just now.
pub type Question = Arc<dyn Fn() -> bool + Send + Sync>;

/// The first byte of a TLS record that holds a ClientHello (RFC 8446 §5.1). No protocol that is spoken in the clear here
/// begins with it.
const HANDSHAKE_RECORD: u8 = 0x16;

/// Who is let in at a listening socket, and how.
#[derive(Clone)]
pub struct Security {
    /// What a peer must show there.
    pub door: Door,
    /// The keys with which a channel may be made there; nothing if TLS is not spoken at all.
    pub keys: Option<Keys>,
    /// Whether who speaks in the clear is let in now at a [`Door::Keyed`]: because it can prove in the protocol who it is.
    pub plain: Question,
}

impl Security {
    /// Nothing is asked, and no TLS is spoken.
    pub fn open() -> Self {
        Self { door: Door::Open, keys: None, plain: Arc::new(|| true) }
    }

    /// Asks for a channel that is made with one of `keys`, and lets nobody in without.
    pub fn keyed(keys: Keys) -> Self {
        Self { door: Door::Keyed, keys: Some(keys), plain: Arc::new(|| false) }
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Security({:?}, keys: {})", self.door, self.keys.is_some())
    }
}

/// A listening socket's rules, and the sessions that it leads to.
pub(crate) struct Entrance {
    pub(crate) security: Security,
    pub(crate) open: Open,
}

/// The way in that a peer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// It has said nothing yet.
    Unknown,
    /// It speaks in the clear, and may.
    Plain,
    /// It speaks TLS.
    Secured,
    /// It speaks in the clear, and must not.
    Refused,
    /// It is gone.
    Gone,
}

impl Entrance {
    /// Which way the peer goes, by its first byte; that stays to be received.
    pub(crate) fn way(&self, link: &Link) -> Way {
        let mut first = [0; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(link, &mut first, flags) {
            Ok((0, _)) => Way::Gone,
            Ok(_) if first == [HANDSHAKE_RECORD] && self.security.keys.is_some() => Way::Secured,
            Ok(_) if self.lets_plain_in() => Way::Plain,
            Ok(_) => Way::Refused,
            Err(Errno::AGAIN | Errno::INTR) => Way::Unknown,
            Err(_) => Way::Gone,
        }
    }

    fn lets_plain_in(&self) -> bool {
        self.security.door == Door::Open || (self.security.plain)()
    }
}

/// Reports that a peer was refused before it could say who it is.
pub(crate) fn refuse(sink: &Sink, peer: Peer, why: &'static str) {
    sink(Event::Refused { peer, host: String::new(), wanted: String::new(), why });
}
