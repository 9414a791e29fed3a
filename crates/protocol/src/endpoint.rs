//! Where disks are served: endpoints of this machine, as text for commands and URIs.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::Protocol;

/// Placeholder for the other machine's network interface.
pub const INTERFACE: &str = "INTERFACE";

/// An address at which a protocol serves disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The protocol.
    pub protocol: Protocol,
    /// The address.
    pub addr: EndpointAddr,
    /// Whether hosts need a key.
    pub keyed: bool,
    /// SHA-256 of the public key of this machine's certificate in base64, where clients should know it.
    pub pin: Option<Arc<str>>,
}

/// Address of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointAddr {
    /// A TCP endpoint.
    Net(NetAddr),
    /// The path of a Unix socket.
    Path(String),
}

/// A TCP endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetAddr {
    /// An address of this machine.
    pub ip: IpAddr,
    /// The interface of a link-local IPv6 address.
    pub interface: Option<String>,
    /// The TCP port.
    pub port: u16,
}

impl Endpoint {
    /// Returns the TCP endpoint, if it is one.
    pub fn net(&self) -> Option<&NetAddr> {
        match &self.addr {
            EndpointAddr::Net(net) => Some(net),
            EndpointAddr::Path(_) => None,
        }
    }

    /// Returns a copy for use on another machine, where an interface name of this one is not valid.
    #[must_use]
    pub fn as_seen_remotely(&self) -> Self {
        let addr = match self.addr.clone() {
            EndpointAddr::Net(NetAddr { ip, interface, port }) => {
                let interface = interface.map(|_| INTERFACE.to_owned());
                EndpointAddr::Net(NetAddr { ip, interface, port })
            }
            path @ EndpointAddr::Path(_) => path,
        };
        Self { addr, ..self.clone() }
    }
}

impl EndpointAddr {
    /// Returns whether both are the same address, whatever the port.
    pub fn has_same_host(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Net(one), Self::Net(other)) => {
                one.ip == other.ip && one.interface == other.interface
            }
            _ => self == other,
        }
    }
}

impl NetAddr {
    /// Returns the address with its zone: `fe80::1%eth0`.
    pub fn host(&self) -> String {
        match &self.interface {
            Some(interface) => format!("{}%{interface}", self.ip),
            None => self.ip.to_string(),
        }
    }

    /// Returns the host part of a URI, with zone (RFC 6874), and the port unless it is the `usual`
    /// one.
    pub(crate) fn authority(&self, usual: u16) -> String {
        let host = match (self.ip, &self.interface) {
            (IpAddr::V4(ip), _) => ip.to_string(),
            (IpAddr::V6(ip), None) => format!("[{ip}]"),
            (IpAddr::V6(ip), Some(interface)) => {
                format!("[{ip}%25{}]", percent_encoded(interface, ""))
            }
        };
        if self.port == usual { host } else { format!("{host}:{}", self.port) }
    }
}

impl fmt::Display for NetAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            IpAddr::V4(_) => write!(f, "{}:{}", self.host(), self.port),
            IpAddr::V6(_) => write!(f, "[{}]:{}", self.host(), self.port),
        }
    }
}

/// Percent-encodes text for a URI (RFC 3986 §2.1), except unreserved characters and those in
/// `more`.
pub(crate) fn percent_encoded(text: &str, more: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c) || more.contains(c);
    let one = |byte: u8| match char::from(byte) {
        c if plain(c) => c.to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}
