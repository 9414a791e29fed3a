//! Who is at the other end of a connection. It knows addresses and nothing that the peer merely claims.

use std::net::SocketAddr;

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Where the peer connects from.
    pub remote: SocketAddr,
    /// The address of ours that it connected to.
    pub local: SocketAddr,
}
