//! The discovery log page (NVMe Base 2.0 §5.16.1.23). Entries name the local address that the
//! host has connected to, because that one is reachable for it.

use std::net::{IpAddr, SocketAddr};

use zerocopy::IntoBytes;

use crate::auth::credential::TLS_PSK;
use crate::nqn;
use crate::target::Port;
use crate::target::context::Context;
use crate::wire::fabrics::DISCOVERY_NQN;
use crate::wire::log::{DiscoveryEntry, DiscoveryHeader, adrfam, eflags, sectype, subtype, treq};

/// Returns the log for this peer and its `host`: header, entry of this discovery subsystem, one entry
/// for each export that it may see.
pub(super) fn log(cx: &Context, host: &str) -> Vec<u8> {
    let catalogue = cx.target().catalogue();
    let generation = catalogue.generation();
    let visible = catalogue.visible(&cx.caller(host));
    let security = security(cx, host);
    let here = cx.peer().local();
    let port = here.map_or(0, |here| here.port());
    let disks_at = match cx.port() {
        Port::Any => port,
        Port::Discovery { disks_at } => disks_at,
    };
    let own = entry(subtype::CURRENT_DISCOVERY, here, port, DISCOVERY_NQN);
    let disks = visible
        .iter()
        .filter_map(|export| entry(subtype::NVM, here, disks_at, &nqn::of(&export.id)));
    let secured = |entry: DiscoveryEntry| entry.secured(security.0, security.1);
    let entries: Vec<DiscoveryEntry> = own.into_iter().chain(disks).map(secured).collect();
    let mut log = DiscoveryHeader::emit(generation, entries.len() as u64).as_bytes().to_vec();
    log.extend_from_slice(entries.as_bytes());
    log
}

/// Returns TREQ and SECTYPE of the entries. A host without a TLS key gets "not specified": libnvme
/// up to 1.13 requires a key even if the entry says that TLS is not required.
fn security(cx: &Context, host: &str) -> (u8, u8) {
    match cx.policy_host(host) {
        Some(host) if host.credential(TLS_PSK).is_some() => (treq::REQUIRED, sectype::TLS_1_3),
        _ => (treq::NOT_SPECIFIED, sectype::NONE),
    }
}

fn entry(subtype: u8, here: Option<SocketAddr>, port: u16, nqn: &str) -> Option<DiscoveryEntry> {
    let (family, address) = match here?.ip().to_canonical() {
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
    fn ipv4_mapped_address_is_reported_as_ipv4() {
        let here = "[::ffff:192.0.2.1]:8009".parse().ok();
        let entry = entry(subtype::NVM, here, 4420, "nqn.x").unwrap();
        assert_eq!(entry.adrfam, adrfam::IPV4);
        assert!(entry.traddr.starts_with(b"192.0.2.1 "));
        assert!(entry.trsvcid.starts_with(b"4420 "));
    }
}
