//! The peer of a connection: its address and what it has proven. Claims of the peer are not part
//! of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::KeyId;

/// Whether a listener requires authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// Every peer has access.
    None,
    /// Only hosts of the [`Policy`](crate::Policy) that have proven their keys have access.
    Required,
}

/// The two ends of a connection, and how it is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The peer's address; [`Peer::LOCAL`] for a Unix socket or an inherited descriptor.
    pub remote: SocketAddr,
    /// The local address that the peer connected to.
    pub local: SocketAddr,
    /// What the listener requires.
    pub auth: Auth,
    /// The TLS channel; `None` for a connection in clear text.
    pub channel: Option<Arc<Channel>>,
}

/// The part of an address that one host cannot vary: an IPv4 address, an IPv6 /64 prefix, or a
/// link-local IPv6 address with its interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network(IpAddr, u32);

impl Network {
    /// Returns the network of a peer's address.
    pub fn of(remote: SocketAddr) -> Self {
        match (remote.ip().to_canonical(), remote) {
            (IpAddr::V6(ip), SocketAddr::V6(at)) if ip.is_unicast_link_local() => {
                Self(ip.into(), at.scope_id())
            }
            (IpAddr::V6(ip), _) => {
                let [a, b, c, d, ..] = ip.segments();
                Self(IpAddr::from([a, b, c, d, 0, 0, 0, 0]), 0)
            }
            (ip, _) => Self(ip, 0),
        }
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
    /// Returns what the peer's use of memory and connections is charged to.
    pub fn tenant(&self) -> Tenant {
        let key = self.channel.as_ref().and_then(|channel| channel.key);
        key.map_or_else(|| Tenant::Network(Network::of(self.remote)), Tenant::Host)
    }

    /// The address of a peer on this machine that did not connect over a network.
    pub const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
}

/// An established TLS 1.3 channel with mutual authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
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
