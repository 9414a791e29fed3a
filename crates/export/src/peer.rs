//! The peer of a connection: its address and what it has proven. Claims of the peer are not part
//! of it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::KeyId;

/// Whether a listener requires authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Auth {
    /// Every peer has access.
    None,
    /// Only hosts of the [`Policy`](crate::Policy) that have proven their keys have access.
    Required,
}

/// The two ends of a connection, and how it is protected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// How the peer is connected.
    pub transport: Transport,
    /// What the listener requires.
    pub auth: Auth,
    /// The TLS channel; `None` for a connection in clear text.
    pub channel: Option<Arc<Channel>>,
}

/// How a peer is connected, and its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// TCP.
    Ip {
        /// The peer's address.
        remote: SocketAddr,
        /// The local address that it connected to.
        local: SocketAddr,
    },
    /// A Unix socket: a peer on this machine.
    Unix,
    /// A USB cable: the host at its other end.
    Usb,
}

impl fmt::Display for Transport {
    /// Writes the peer's address, `unix` or `usb`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip { remote, .. } => remote.fmt(f),
            Self::Unix => f.write_str("unix"),
            Self::Usb => f.write_str("usb"),
        }
    }
}

/// The part of an address that one host cannot vary: an IPv4 address, an IPv6 /64 prefix, or a
/// link-local IPv6 address with its interface. All Unix sockets are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network(Option<(IpAddr, u32)>);

impl Network {
    /// The network of peers that are connected to a Unix socket.
    pub const LOCAL: Self = Self(None);

    /// Returns the network of a peer's address.
    pub fn of(remote: SocketAddr) -> Self {
        Self(Some(match (remote.ip().to_canonical(), remote) {
            (IpAddr::V6(ip), SocketAddr::V6(at)) if ip.is_unicast_link_local() => {
                (ip.into(), at.scope_id())
            }
            (IpAddr::V6(ip), _) => {
                let [a, b, c, d, ..] = ip.segments();
                (IpAddr::from([a, b, c, d, 0, 0, 0, 0]), 0)
            }
            (ip, _) => (ip, 0),
        }))
    }
}

/// What a peer's use of memory and connections is charged to: the host whose key it has proven,
/// else its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tenant {
    /// The host with this key.
    Host(KeyId),
    /// All peers of this network without a key.
    Network(Network),
}

impl Peer {
    /// Returns a peer that is connected over TCP, in clear text.
    pub fn ip(remote: SocketAddr, local: SocketAddr, auth: Auth) -> Self {
        Self { transport: Transport::Ip { remote, local }, auth, channel: None }
    }

    /// Returns a peer that is connected to a Unix socket, in clear text.
    pub fn unix(auth: Auth) -> Self {
        Self { transport: Transport::Unix, auth, channel: None }
    }

    /// Returns the host at the other end of a USB cable.
    pub fn usb() -> Self {
        Self { transport: Transport::Usb, auth: Auth::None, channel: None }
    }

    /// Returns the peer's address; `None` if it is not connected over a network.
    pub fn remote(&self) -> Option<SocketAddr> {
        match self.transport {
            Transport::Ip { remote, .. } => Some(remote),
            Transport::Unix | Transport::Usb => None,
        }
    }

    /// Returns the local address that the peer connected to; `None` if it is not connected over a
    /// network.
    pub fn local(&self) -> Option<SocketAddr> {
        match self.transport {
            Transport::Ip { local, .. } => Some(local),
            Transport::Unix | Transport::Usb => None,
        }
    }

    /// Returns the peer's network.
    pub fn network(&self) -> Network {
        self.remote().map_or(Network::LOCAL, Network::of)
    }

    /// Returns what the peer's use of memory and connections is charged to.
    pub fn tenant(&self) -> Tenant {
        let key = self.channel.as_ref().and_then(|channel| channel.key);
        key.map_or_else(|| Tenant::Network(self.network()), Tenant::Host)
    }
}

/// An established TLS 1.3 channel with mutual authentication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    /// The host's key from which the channel's PSK was derived; `None` if it was established with
    /// certificates or, for pairing, with a PSK that is public.
    pub key: Option<KeyId>,
    /// Whether the peer presented a certificate of the trusted certification authority.
    pub certified: bool,
    /// The peer's PSK identity or the name in its certificate; else empty.
    pub identity: String,
    /// Name of the cipher suite.
    pub cipher: String,
    /// Channel binding: exported keying material, unique to this channel (RFC 8446 §7.5).
    pub binding: [u8; 32],
}
