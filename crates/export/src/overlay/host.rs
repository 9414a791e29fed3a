//! The hosts whose changes an overlay keeps.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Caller, Host, Transport};

/// The first bytes of the header.
const MAGIC: &[u8; 8] = b"STMOVER1";

/// Longest text of a host in bytes. Host names of all protocols are shorter.
pub(super) const MAX_TEXT: usize = 512;

/// The host that a state of an overlay belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OverlayHost {
    /// All hosts.
    All,
    /// The host of the policy with this [`Host::id`], whose keys were proven.
    Keyed(String),
    /// A host without a key that identifies itself by this name.
    Named(String),
    /// A host without a key, in a protocol without names: its address, `unix` or `usb`.
    Address(String),
}

impl OverlayHost {
    /// Returns the host of a caller, which has proven that it is `host`.
    pub(crate) fn of(caller: &Caller<'_>, host: Option<&Host>) -> Self {
        match (host, caller.host, caller.peer.transport) {
            (Some(host), ..) => Self::Keyed(host.id.clone()),
            (None, "", Transport::Ip { remote, .. }) => {
                // A link-local address is valid on its interface only.
                let (ip, scope) = match remote {
                    std::net::SocketAddr::V6(at) => (remote.ip().to_canonical(), at.scope_id()),
                    std::net::SocketAddr::V4(_) => (remote.ip(), 0),
                };
                Self::Address(if scope == 0 { ip.to_string() } else { format!("{ip}%{scope}") })
            }
            (None, "", transport) => Self::Address(transport.to_string()),
            (None, name, _) => Self::Named(name.to_owned()),
        }
    }

    /// Returns whether it has proven its keys.
    pub fn has_key(&self) -> bool {
        matches!(self, Self::Keyed(_))
    }

    /// Returns the name or the address of the host; empty for all hosts.
    pub fn text(&self) -> &str {
        match self {
            Self::All => "",
            Self::Keyed(text) | Self::Named(text) | Self::Address(text) => text,
        }
    }

    /// Returns the header of the file with the map, which names the host.
    pub fn header(&self) -> Vec<u8> {
        let kind = match self {
            Self::All => 0,
            Self::Keyed(_) => 1,
            Self::Named(_) => 2,
            Self::Address(_) => 3,
        };
        let text = self.text().as_bytes();
        let len = u16::try_from(text.len()).unwrap_or(u16::MAX);
        [&MAGIC[..], &[kind], &len.to_le_bytes(), text].concat()
    }

    /// Returns the host that a header names; `None` if there is no header.
    pub fn parse_header(header: &[u8]) -> Option<Self> {
        let (&[kind, low, high], text) = header.strip_prefix(MAGIC)?.split_first_chunk()?;
        let text = text.get(..u16::from_le_bytes([low, high]).into())?;
        let text = String::from_utf8(text.to_vec()).ok().filter(|text| text.len() <= MAX_TEXT)?;
        match kind {
            0 => Some(Self::All),
            1 => Some(Self::Keyed(text)),
            2 => Some(Self::Named(text)),
            3 => Some(Self::Address(text)),
            _ => None,
        }
    }
}

impl fmt::Display for OverlayHost {
    /// Writes the name or the address of the host, or `all hosts`. A name that was not proven is marked:
    /// a host with a key may have the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all hosts"),
            Self::Keyed(text) => f.write_str(text),
            Self::Named(text) | Self::Address(text) => write!(f, "{text} (no key)"),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn name_that_was_not_proven_is_marked() {
        let name = || "nqn.a".to_owned();
        let hosts = [OverlayHost::Keyed(name()), OverlayHost::Named(name())];
        assert_eq!(hosts.map(|host| host.to_string()), ["nqn.a", "nqn.a (no key)"]);
    }

    #[test]
    fn header_names_the_host() {
        let long = OverlayHost::Named("x".repeat(MAX_TEXT));
        for host in [
            OverlayHost::All,
            OverlayHost::Named("nqn.a".into()),
            OverlayHost::Keyed("nqn.a".into()),
            OverlayHost::Address("::1".into()),
            long,
        ] {
            let mut header = host.header();
            header.resize(4096, 0);
            assert_eq!(OverlayHost::parse_header(&header), Some(host));
        }
        let header = OverlayHost::Named("nqn.a".into()).header();
        assert_eq!(OverlayHost::parse_header(&header[..header.len() - 1]), None);
        assert_eq!(OverlayHost::parse_header(&[0; 4096]), None);
    }
}
