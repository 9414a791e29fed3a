//! Who is at the other end of a connection. It knows addresses and what was proven, and nothing that the peer merely
//! claims.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::KeyId;

/// What a peer must show at the address that it came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// Nothing: whoever comes may have what is lent.
    None,
    /// A key that the owner gave it.
    Required,
}

/// The two ends of a connection, and what protects it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where the peer connects from; [`Peer::LOCAL`] for one that came by no network: a Unix socket, or a descriptor that
    /// this program was started with.
    pub remote: SocketAddr,
    /// The address of ours that it connected to.
    pub local: SocketAddr,
    /// What it must show there.
    pub auth: Auth,
    /// The secured channel that it speaks in; none if in the clear.
    pub channel: Option<Arc<Channel>>,
}

/// A network address, as far as one host may have many: of an IPv6 one the network, unless it is link-local.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network(IpAddr, u32);

impl Network {
    /// That of a peer's address.
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

/// The host for which a peer's share of this machine's resources is counted: the one whose key it has shown, else whatever
/// is at its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tenant {
    /// The host with that key.
    Host(KeyId),
    /// Without a key.
    Network(Network),
}

impl Peer {
    /// The tenant that its share of memory and connections is charged to.
    pub fn tenant(&self) -> Tenant {
        let key = self.channel.as_ref().and_then(|channel| channel.key);
        key.map_or_else(|| Tenant::Network(Network::of(self.remote)), Tenant::Host)
    }

    /// The address of a peer on this machine that came by no network.
    pub const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
}

/// A channel that nobody else reads or changes (TLS 1.3), and whose ends have proven to each other that they know a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// The owner's key that it was made with, or from; none for a key that everybody knows, as for pairing.
    pub key: Option<KeyId>,
    /// Whether it was made with certificates instead, and the peer has shown one of the authority that the owner trusts.
    pub certified: bool,
    /// The name under which the peer presented itself: a PSK identity, or that in its certificate; else empty.
    pub identity: String,
    /// The cipher suite's name.
    pub cipher: String,
    /// A value that both ends of this channel know, and no other channel has (RFC 8446 §7.5).
    pub binding: [u8; 32],
}
