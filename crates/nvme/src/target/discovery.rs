//! The discovery log: which disks are lent, and where (NVMe Base 2.0 §5.16.1.23). It knows no connection but the address
//! at which its reader reached us, which is the one that it can use.

use std::net::{IpAddr, SocketAddr};

use zerocopy::IntoBytes;

use super::Port;
use super::queue::Queue;
use crate::wire::fabrics::DISCOVERY_NQN;
use crate::wire::log::{DiscoveryEntry, DiscoveryHeader, adrfam, eflags, sectype, subtype, treq};

impl Queue {
    /// The whole log as this peer may see it: a header, an entry for this discovery service, one for each disk.
    pub(super) fn discovery_log(&self) -> Vec<u8> {
        let generation = self.target.catalogue.generation();
        let host = self.link.as_ref().map_or("", |link| &link.controller.host.nqn);
        let lent = self.target.catalogue.visible(&self.caller(host));
        let security = self.security();
        let here = self.peer.local;
        let disks_at = match self.port {
            Port::Any => here.port(),
            Port::Discovery { disks_at } => disks_at,
        };
        let own = entry(subtype::CURRENT_DISCOVERY, here, here.port(), DISCOVERY_NQN);
        let disks =
            lent.iter().filter_map(|export| entry(subtype::NVM, here, disks_at, &export.nqn));
        let secured = |entry: DiscoveryEntry| entry.secured(security.0, security.1);
        let entries: Vec<DiscoveryEntry> = own.into_iter().chain(disks).map(secured).collect();
        let mut log = DiscoveryHeader::emit(generation, entries.len() as u64).as_bytes().to_vec();
        log.extend_from_slice(entries.as_bytes());
        log
    }

    /// TREQ and SECTYPE: what the reader must do to get at what is in the log. To who has no key for a secured channel
    /// nothing is said of one: libnvme up to 1.13 asks for one even if it is said not to be required, and finds no key.
    fn security(&self) -> (u8, u8) {
        match self.known_host() {
            Some(host) if host.tls.is_some() => (treq::REQUIRED, sectype::TLS_1_3),
            _ => (treq::NOT_SPECIFIED, sectype::NONE),
        }
    }
}

fn entry(subtype: u8, here: SocketAddr, port: u16, nqn: &str) -> Option<DiscoveryEntry> {
    let (family, address) = match here.ip().to_canonical() {
        IpAddr::V4(address) => (adrfam::IPV4, address.to_string()),
        IpAddr::V6(address) => (adrfam::IPV6, address.to_string()),
    };
    let mut entry = DiscoveryEntry::emit(subtype, family, &address, port, nqn).ok()?;
    if subtype == subtype::CURRENT_DISCOVERY {
        entry.eflags.set(eflags::PERSISTENT_CONNECTIONS);
    }
    Some(entry)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_ipv4_address_in_ipv6_form_is_told_as_ipv4() {
        let here = "[::ffff:192.0.2.1]:8009".parse().unwrap();
        let entry = entry(subtype::NVM, here, 4420, "nqn.x").unwrap();
        assert_eq!(entry.adrfam, adrfam::IPV4);
        assert!(entry.traddr.starts_with(b"192.0.2.1 "));
        assert!(entry.trsvcid.starts_with(b"4420 "));
    }
}
