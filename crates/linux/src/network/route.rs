//! Changes of interfaces, addresses, routes and rules by routing messages.

use super::ether::Mac;
use super::upper::BondSetting;
use crate::netlink::{command, put};
use std::io;
use std::net::{IpAddr, Ipv4Addr};

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;

const REPLACE: u16 = 0x100;
/// Fail if it is there.
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 0x1;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_BOND_PRIMARY: u16 = 11;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_TABLE: u16 = 15;
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;

const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RT_TABLE_UNSPEC: u8 = 0;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
/// The router is on this link, whatever the prefix.
const RTNH_F_ONLINK: u32 = 4;
const FR_ACT_TO_TBL: u8 = 1;

/// The metric of our default routes: those set by others take precedence.
const METRIC: u32 = 1024;
/// Precedes the kernel's rules for its main table (32766).
const RULE_PRIORITY: u32 = 1000;
/// The base of routing table numbers for link-local addresses; the interface index is added.
const TABLES: u32 = 0x5354_0000;

/// `struct ifinfomsg`, with the flag "up" as the only change.
fn link(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    for word in [index, flags, change] {
        body.extend_from_slice(&word.to_ne_bytes());
    }
    body
}

/// Sets an interface up.
pub(super) fn set_up(index: u32) -> io::Result<()> {
    command(NEW_LINK, 0, &link(index, IFF_UP, IFF_UP))?;
    // Since 6.9 the kernel acts on a new carrier at once if the link is queried, and else once a
    // second. The reply is not needed: the change is broadcast.
    let _ = command(GET_LINK, 0, &link(index, 0, 0));
    Ok(())
}

/// Sets an interface down.
pub(super) fn set_down(index: u32) -> io::Result<()> {
    command(NEW_LINK, 0, &link(index, 0, IFF_UP))
}

/// Makes an interface a port of a bond.
pub(super) fn set_master(index: u32, bond: u32) -> io::Result<()> {
    let mut body = link(index, 0, 0);
    put(&mut body, IFLA_MASTER, &bond.to_ne_bytes());
    command(NEW_LINK, 0, &body)
}

/// Makes a port the preferred one of its bond.
pub(super) fn set_primary(bond: u32, port: u32) -> io::Result<()> {
    let mut body = link(bond, 0, 0);
    put_kind(&mut body, b"bond", &[(IFLA_BOND_PRIMARY, port.to_ne_bytes().to_vec())]);
    command(NEW_LINK, 0, &body)
}

/// Makes a VLAN of an interface.
pub(super) fn add_vlan(name: &str, id: u16, lower: u32) -> io::Result<()> {
    let mut body = link(0, 0, 0);
    put(&mut body, IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
    put(&mut body, IFLA_LINK, &lower.to_ne_bytes());
    put_kind(&mut body, b"vlan", &[(IFLA_VLAN_ID, id.to_ne_bytes().to_vec())]);
    command(NEW_LINK, CREATE | EXCLUSIVE, &body)
}

/// Makes a bond without ports.
pub(super) fn add_bond(name: &str, settings: &[BondSetting], mtu: Option<u32>) -> io::Result<()> {
    let mut body = link(0, 0, 0);
    put(&mut body, IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
    if let Some(mtu) = mtu {
        put(&mut body, IFLA_MTU, &mtu.to_ne_bytes());
    }
    let settings: Vec<_> = settings.iter().map(|it| (it.attribute, it.value.bytes())).collect();
    put_kind(&mut body, b"bond", &settings);
    command(NEW_LINK, CREATE | EXCLUSIVE, &body)
}

/// Appends the kind of an interface, and its settings.
fn put_kind(body: &mut Vec<u8>, kind: &[u8], settings: &[(u16, Vec<u8>)]) {
    let (mut info, mut data) = (Vec::new(), Vec::new());
    for (attribute, value) in settings {
        put(&mut data, *attribute, value);
    }
    put(&mut info, IFLA_INFO_KIND, kind);
    put(&mut info, IFLA_INFO_DATA, &data);
    put(body, IFLA_LINKINFO, &info);
}

/// Sets the MTU, in bytes.
pub(super) fn set_mtu(index: u32, mtu: u32) -> io::Result<()> {
    let mut body = link(index, 0, 0);
    put(&mut body, IFLA_MTU, &mtu.to_ne_bytes());
    command(NEW_LINK, 0, &body)
}

/// Sets the MAC address; most drivers require the interface to be down.
pub(super) fn set_mac(index: u32, mac: Mac) -> io::Result<()> {
    let mut body = link(index, 0, 0);
    put(&mut body, IFLA_ADDRESS, &mac.0);
    command(NEW_LINK, 0, &body)
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) index: u32,
    pub(super) address: IpAddr,
    pub(super) prefix: u8,
    pub(super) peer: Option<IpAddr>,
}

impl Assignment {
    /// Assigns the address to the interface, which may have it already.
    pub(super) fn add(&self) -> io::Result<()> {
        command(NEW_ADDRESS, CREATE | REPLACE, &self.body())
    }

    /// Removes the address.
    pub(super) fn delete(&self) -> io::Result<()> {
        command(DELETE_ADDRESS, 0, &self.body())
    }

    /// `struct ifaddrmsg` and attributes.
    fn body(&self) -> Vec<u8> {
        let link_local = matches!(self.address, IpAddr::V4(address) if address.is_link_local());
        let scope = if link_local { RT_SCOPE_LINK } else { RT_SCOPE_UNIVERSE };
        let mut body = vec![family(self.address), self.prefix, 0, scope];
        body.extend_from_slice(&self.index.to_ne_bytes());
        put(&mut body, IFA_LOCAL, &octets(self.address));
        put(&mut body, IFA_ADDRESS, &octets(self.peer.unwrap_or(self.address)));
        if let (IpAddr::V4(address), None, ..=30) = (self.address, self.peer, self.prefix) {
            let hosts = u32::MAX.checked_shr(self.prefix.into()).unwrap_or_default();
            let broadcast = Ipv4Addr::from_bits(address.to_bits() | hosts);
            put(&mut body, IFA_BROADCAST, &broadcast.octets());
        }
        body
    }
}

/// Adds a default route over a router on the link.
pub(super) fn add_default_route(index: u32, router: IpAddr) -> io::Result<()> {
    command(NEW_ROUTE, CREATE | REPLACE, &default_route(index, router))
}

/// Removes the default route.
pub(super) fn delete_default_route(index: u32, router: IpAddr) -> io::Result<()> {
    command(DELETE_ROUTE, 0, &default_route(index, router))
}

fn default_route(index: u32, router: IpAddr) -> Vec<u8> {
    let mut body = route(family(router), 0, RT_TABLE_MAIN, RT_SCOPE_UNIVERSE, RTNH_F_ONLINK);
    put(&mut body, RTA_GATEWAY, &octets(router));
    put(&mut body, RTA_OIF, &index.to_ne_bytes());
    put(&mut body, RTA_PRIORITY, &METRIC.saturating_add(index).to_ne_bytes());
    body
}

/// `struct rtmsg`.
fn route(family: u8, prefix: u8, table: u8, scope: u8, flags: u32) -> Vec<u8> {
    let mut body = vec![family, prefix, 0, 0, table, RTPROT_STATIC, scope, RTN_UNICAST];
    body.extend_from_slice(&flags.to_ne_bytes());
    body
}

/// Adds a rule and a route so that replies from a link-local address leave by its own interface.
///
/// With two cables there are two routes to 169.254.0.0/16, and the kernel would use the first for
/// both.
pub(super) fn keep_on_link(index: u32, address: Ipv4Addr) -> io::Result<()> {
    let table = TABLES.saturating_add(index).to_ne_bytes();
    let mut body = route(AF_INET, 16, RT_TABLE_UNSPEC, RT_SCOPE_LINK, 0);
    put(&mut body, RTA_DST, &[169, 254, 0, 0]);
    put(&mut body, RTA_OIF, &index.to_ne_bytes());
    put(&mut body, RTA_TABLE, &table);
    command(NEW_ROUTE, CREATE | REPLACE, &body)?;
    command(NEW_RULE, CREATE, &rule(index, address))
}

/// Removes the rule of [`keep_on_link`]; the route disappears with the last address.
pub(super) fn remove_link_rule(index: u32, address: Ipv4Addr) -> io::Result<()> {
    command(DELETE_RULE, 0, &rule(index, address))
}

/// `struct fib_rule_hdr` and attributes.
fn rule(index: u32, address: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![AF_INET, 0, 32, 0, RT_TABLE_UNSPEC, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
    put(&mut body, FRA_SRC, &address.octets());
    put(&mut body, FRA_PRIORITY, &RULE_PRIORITY.to_ne_bytes());
    put(&mut body, FRA_TABLE, &TABLES.saturating_add(index).to_ne_bytes());
    body
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Attributes;

    fn find(body: &[u8], wanted: u16) -> Option<Vec<u8>> {
        Attributes(&body[8..]).find_map(|(kind, value)| (kind == wanted).then(|| value.to_vec()))
    }

    #[test]
    fn address_has_its_broadcast_address_and_scope() {
        let ours = Assignment { index: 2, address: [10, 0, 0, 5].into(), prefix: 20, peer: None };
        let body = ours.body();
        assert_eq!(body[..8], [2, 20, 0, RT_SCOPE_UNIVERSE, 2, 0, 0, 0]);
        assert_eq!(find(&body, IFA_LOCAL), Some(vec![10, 0, 0, 5]));
        assert_eq!(find(&body, IFA_BROADCAST), Some(vec![10, 0, 15, 255]));
        let narrow = Assignment { prefix: 31, ..ours }.body();
        assert_eq!(find(&narrow, IFA_BROADCAST), None);
        let peer = Assignment { peer: Some([10, 9, 9, 9].into()), ..ours }.body();
        assert_eq!(
            (find(&peer, IFA_ADDRESS), find(&peer, IFA_BROADCAST)),
            (Some(vec![10, 9, 9, 9]), None)
        );
        let link_local = Assignment { address: [169, 254, 7, 9].into(), prefix: 16, ..ours }.body();
        assert_eq!(link_local[3], RT_SCOPE_LINK);
    }

    #[test]
    fn kind_of_an_interface_is_nested_with_its_settings() {
        let mut body = Vec::new();
        put_kind(&mut body, b"vlan", &[(IFLA_VLAN_ID, vec![5, 0])]);
        let wanted: [&[u8]; 5] = [
            &[24, 0, 18, 0],
            &[8, 0, 1, 0, b'v', b'l', b'a', b'n'],
            &[12, 0, 2, 0],
            &[6, 0, 1, 0],
            &[5, 0, 0, 0],
        ];
        assert_eq!(body, wanted.concat());
    }

    #[test]
    fn invalid_interface_is_an_error() {
        let nobody = i32::MAX.unsigned_abs();
        let address =
            Assignment { index: nobody, address: [10, 0, 0, 5].into(), prefix: 24, peer: None };
        assert!(address.add().is_err() && address.delete().is_err());
        assert!(set_up(nobody).is_err());
        assert!(set_mtu(nobody, 1500).is_err());
        assert!(set_down(nobody).is_err() && set_master(nobody, 1).is_err());
        assert!(add_default_route(nobody, [10, 0, 0, 1].into()).is_err());
    }
}
