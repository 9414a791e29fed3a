//! The addresses and the host name of this machine, and notification of changes of addresses and
//! links.

use crate::netlink::{Attributes, Received, Socket, dump};
use crate::tree::Tree;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;
/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

const IFLA_IFNAME: u16 = 3;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// Of IPv6 addresses only.
const IFA_F_TEMPORARY: u32 = 0x01;
const IFA_F_PERMANENT: u32 = 0x80;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_DEPRECATED: u32 = 0x20;
const IFA_F_TENTATIVE: u32 = 0x40;
const IFF_UP_AND_RUNNING: u32 = 0x1 | 0x40;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RT_TABLE_MAIN: u8 = 254;
const RTN_UNICAST: u8 = 1;
const RT_SCOPE_LINK: u8 = 253;
const RT_SCOPE_HOST: u8 = 254;

/// The scope of an address, the widest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Routable.
    Global,
    /// Link-local: 169.254.0.0/16, fe80::/10.
    Link,
    /// Loopback.
    Loopback,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub ip: IpAddr,
    pub interface: String,
    /// The interface index, which is the scope id of IPv6 link-local addresses.
    pub scope_id: u32,
    pub scope: Scope,
    /// Duplicate address detection is not complete, or has failed: it cannot be bound.
    pub tentative: bool,
    /// Not to be used for new connections.
    pub deprecated: bool,
    /// The interface is up and has a carrier.
    pub running: bool,
}

impl Address {
    /// Returns whether other machines can connect to it now.
    pub fn is_usable(&self) -> bool {
        self.running && !self.tentative && !self.deprecated
    }
}

/// Prints the address, an IPv6 link-local one with its zone (`fe80::1%eth0`, RFC 4007 §11).
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            IpAddr::V6(ip) if ip.is_unicast_link_local() => write!(f, "{ip}%{}", self.interface),
            ip => write!(f, "{ip}"),
        }
    }
}

/// Returns all addresses: IPv4 first, then by scope and interface.
///
/// # Errors
/// Fails if the kernel's routing socket does.
pub fn addresses() -> io::Result<Vec<Address>> {
    Ok(assigned()?.into_iter().map(|it| it.address).collect())
}

fn order(address: &Address) -> (bool, Scope, u32, IpAddr) {
    (address.ip.is_ipv6(), address.scope, address.scope_id, address.ip)
}

fn links() -> io::Result<HashMap<u32, Link>> {
    let links = dump(GET_LINK, NEW_LINK, &[0; 16])?;
    Ok(links.iter().filter_map(|link| parse_link(link)).collect())
}

/// An address with the settings that it was assigned with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    pub address: Address,
    /// The prefix length of its network.
    pub prefix: u8,
    /// It expires unless it is renewed: by DHCP, or an IPv6 router.
    pub leased: bool,
    /// A temporary IPv6 address (RFC 8981).
    pub temporary: bool,
}

/// Returns all addresses with their settings, in the order of [`addresses`].
///
/// # Errors
/// Fails if the kernel's routing socket does.
pub fn assigned() -> io::Result<Vec<Assigned>> {
    let links = links()?;
    let found = dump(GET_ADDRESS, NEW_ADDRESS, &[0; 8])?;
    let mut found: Vec<Assigned> =
        found.iter().filter_map(|message| parse_assigned(message, &links)).collect();
    found.sort_by_key(|it| order(&it.address));
    Ok(found)
}

/// A default route by a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gateway {
    pub address: IpAddr,
    /// The interface index.
    pub interface: u32,
    /// The metric; the kernel uses the route with the lowest.
    pub metric: u32,
}

/// Returns the default routes by a router.
///
/// # Errors
/// Fails if the kernel's routing socket does.
pub fn gateways() -> io::Result<Vec<Gateway>> {
    let found = dump(GET_ROUTE, NEW_ROUTE, &[0; 12])?;
    Ok(found.iter().filter_map(|route| parse_gateway(route)).collect())
}

/// Returns the scope that follows from an address itself.
pub fn scope_of(ip: IpAddr) -> Scope {
    let (loopback, link) = match ip.to_canonical() {
        IpAddr::V4(ip) => (ip.is_loopback(), ip.is_link_local()),
        IpAddr::V6(ip) => (ip.is_loopback(), ip.is_unicast_link_local()),
    };
    match (loopback, link) {
        (true, _) => Scope::Loopback,
        (_, true) => Scope::Link,
        _ => Scope::Global,
    }
}

/// Returns the host name, or `unnamed` if none is set.
pub fn hostname() -> String {
    named(&rustix::system::uname().nodename().to_string_lossy())
}

/// The kernel's host name is `(none)` if none is set.
fn named(name: &str) -> String {
    let name = if matches!(name, "" | "(none)") { "unnamed" } else { name };
    name.to_owned()
}

/// A socket that is notified of changes of addresses and links.
#[derive(Debug)]
pub struct Changes {
    socket: Socket,
}

impl Changes {
    /// Opens the socket. Read the addresses after this, so that no change is missed.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::listening(None, GROUPS)? })
    }

    /// Reads all pending messages. Returns whether there were any. Does not block.
    pub fn receive(&mut self) -> io::Result<bool> {
        let mut changed = false;
        while self.socket.receive()? != Received::Nothing {
            changed = true;
        }
        Ok(changed)
    }
}

impl AsFd for Changes {
    /// Becomes readable when something changed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Link {
    name: String,
    running: bool,
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// `struct ifinfomsg` (16 bytes) and attributes.
fn parse_link(message: &[u8]) -> Option<(u32, Link)> {
    let index = word(message, 4)?;
    let flags = word(message, 8)?;
    let (_, name) = Attributes(message.get(16..)?).find(|(kind, _)| *kind == IFLA_IFNAME)?;
    let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
    let running = flags & IFF_UP_AND_RUNNING == IFF_UP_AND_RUNNING;
    Some((index, Link { name, running }))
}

/// `struct ifaddrmsg` (8 bytes) and attributes.
fn parse_assigned(message: &[u8], links: &HashMap<u32, Link>) -> Option<Assigned> {
    let scope_id = word(message, 4)?;
    let short_flags = u32::from(*message.get(2)?);
    let list = message.get(8..)?;
    let attribute =
        |wanted| Attributes(list).find_map(|(kind, value)| (kind == wanted).then_some(value));
    let flags = attribute(IFA_FLAGS).and_then(|value| word(value, 0)).unwrap_or(short_flags);
    // On a point-to-point link IFA_ADDRESS is the peer's address.
    let ip = parse_ip(attribute(IFA_LOCAL).or_else(|| attribute(IFA_ADDRESS))?)?;
    let link = links.get(&scope_id)?;
    let address = Address {
        ip,
        interface: link.name.clone(),
        scope_id,
        scope: scope(ip, *message.get(3)?),
        tentative: flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED) != 0,
        deprecated: flags & IFA_F_DEPRECATED != 0,
        running: link.running,
    };
    Some(Assigned {
        address,
        prefix: *message.get(1)?,
        leased: flags & IFA_F_PERMANENT == 0,
        temporary: ip.is_ipv6() && flags & IFA_F_TEMPORARY != 0,
    })
}

/// `struct rtmsg` (12 bytes) and attributes.
fn parse_gateway(message: &[u8]) -> Option<Gateway> {
    let [_, destination, _, _, table, _, _, kind, ..] = *message else { return None };
    let list = message.get(12..)?;
    let attribute =
        |wanted| Attributes(list).find_map(|(kind, value)| (kind == wanted).then_some(value));
    let is_default = destination == 0 && table == RT_TABLE_MAIN && kind == RTN_UNICAST;
    Some(Gateway {
        address: parse_ip(attribute(RTA_GATEWAY).filter(|_| is_default)?)?,
        interface: word(attribute(RTA_OIF)?, 0)?,
        metric: attribute(RTA_PRIORITY).and_then(|value| word(value, 0)).unwrap_or(0),
    })
}

fn parse_ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes).into()),
        16 => bytes.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes).into()),
        _ => None,
    }
}

/// Returns the narrower of the address's own scope and the kernel's.
fn scope(ip: IpAddr, kernel: u8) -> Scope {
    let told = match kernel {
        RT_SCOPE_HOST => Scope::Loopback,
        RT_SCOPE_LINK => Scope::Link,
        _ => Scope::Global,
    };
    told.max(scope_of(ip))
}

/// The network interface of a device, on whatever bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    pub name: String,
    /// Whether it is up and has a carrier.
    pub carrier: bool,
}

/// Returns the network interfaces that belong to a device.
pub fn cards(tree: &Tree) -> Vec<Card> {
    let interfaces = tree.names("sys/class/net").into_iter();
    let of_device =
        interfaces.filter(|name| tree.resolve(format!("sys/class/net/{name}/device")).is_some());
    // The file cannot be read while the interface is down.
    let carrier = |name: &str| tree.flag(format!("sys/class/net/{name}/carrier"));
    of_device.map(|name| Card { carrier: carrier(&name), name }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    #[test]
    fn cards_are_interfaces_of_devices() {
        let fake = Fake::new();
        fake.file("sys/class/net/lo/carrier", "1\n").file("sys/class/net/eth0/carrier", "1\n");
        fake.link("sys/class/net/eth0/device", "sys/devices/pci0000:00/0000:00:03.0");
        fake.link("sys/class/net/eth1/device", "sys/devices/pci0000:00/0000:00:04.0");
        let found: Vec<_> =
            cards(&fake.tree()).into_iter().map(|card| (card.name, card.carrier)).collect();
        assert_eq!(found, [("eth0".to_owned(), true), ("eth1".to_owned(), false)]);
    }

    fn parse_address(message: &[u8], links: &HashMap<u32, Link>) -> Option<Address> {
        parse_assigned(message, links).map(|it| it.address)
    }

    #[test]
    fn leased_and_temporary_addresses_are_recognized() {
        let ip: [(u16, &[u8]); 1] = [(IFA_LOCAL, &[10, 0, 0, 9])];
        let lasting = parse_assigned(&message(2, 0x81, 0, &ip), &links(true)).unwrap();
        assert_eq!((lasting.prefix, lasting.leased, lasting.temporary), (64, false, false));
        let ip: [(u16, &[u8]); 1] = [(IFA_ADDRESS, &[0x20; 16])];
        let temporary = parse_assigned(&message(10, 0x01, 0, &ip), &links(true)).unwrap();
        assert!(temporary.leased && temporary.temporary);
    }

    #[test]
    fn default_route_by_a_router_is_a_gateway() {
        let route = |destination| {
            let mut bytes = vec![2, destination, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
            for (kind, value) in [(5u16, [10, 0, 0, 1]), (4, 2u32.to_ne_bytes())] {
                crate::netlink::put(&mut bytes, kind, &value);
            }
            bytes
        };
        let gateway = Gateway { address: [10, 0, 0, 1].into(), interface: 2, metric: 0 };
        assert_eq!(parse_gateway(&route(0)), Some(gateway));
        assert_eq!(parse_gateway(&route(24)), None, "a route to one network");
        let whole = route(0);
        assert!((0..whole.len()).all(|cut| parse_gateway(&whole[..cut]).is_none()));
    }

    fn links(running: bool) -> HashMap<u32, Link> {
        HashMap::from([(2, Link { name: "eth0".into(), running })])
    }

    fn message(family: u8, flags: u8, scope: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![family, 64, flags, scope];
        bytes.extend_from_slice(&2u32.to_ne_bytes());
        for (kind, value) in attributes {
            bytes.extend_from_slice(&u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(value);
        }
        bytes
    }

    #[test]
    fn missing_host_name_is_unnamed() {
        assert_eq!((named("(none)"), named("desk")), ("unnamed".to_owned(), "desk".to_owned()));
    }

    #[test]
    fn a_link_local_address_is_printed_with_its_zone() {
        let ip = Ipv6Addr::from([0xfe80, 0, 0, 0, 0, 0, 0, 1]).octets();
        let bytes = message(10, 0x80, RT_SCOPE_LINK, &[(IFA_ADDRESS, &ip)]);
        let address = parse_address(&bytes, &links(true)).unwrap();
        assert_eq!(address.to_string(), "fe80::1%eth0");
        assert_eq!((address.scope, address.scope_id), (Scope::Link, 2));
        assert!(address.is_usable());
        assert!(!parse_address(&bytes, &links(false)).unwrap().is_usable());
    }

    #[test]
    fn ifa_flags_and_ifa_local_take_precedence() {
        let flags = IFA_F_TENTATIVE.to_ne_bytes();
        let list: [(u16, &[u8]); 3] =
            [(IFA_ADDRESS, &[10, 0, 0, 9]), (IFA_LOCAL, &[10, 0, 0, 1]), (IFA_FLAGS, &flags)];
        let address = parse_address(&message(2, 0, 0, &list), &links(true)).unwrap();
        assert_eq!(address.to_string(), "10.0.0.1");
        assert_eq!(address.scope, Scope::Global);
        assert!(address.tentative && !address.is_usable());
    }

    #[test]
    fn scope_is_the_narrower_of_address_and_kernel() {
        assert_eq!(scope([169, 254, 1, 1].into(), 0), Scope::Link);
        assert_eq!(scope([127, 0, 0, 1].into(), 0), Scope::Loopback);
        assert_eq!(scope([192, 168, 1, 1].into(), RT_SCOPE_HOST), Scope::Loopback);
        assert_eq!(scope_of("::ffff:127.0.0.1".parse().unwrap()), Scope::Loopback);
        assert_eq!(scope_of("2001:db8::1".parse().unwrap()), Scope::Global);
    }

    #[test]
    fn truncated_message_is_rejected() {
        let whole = message(2, 0, 0, &[(IFA_LOCAL, &[10, 0, 0, 1])]);
        for cut in 0..whole.len() {
            assert_eq!(parse_address(&whole[..cut], &links(true)), None, "{cut} bytes");
        }
    }

    #[test]
    fn this_machine_has_a_loopback_address_and_a_name() {
        let loopback = Ipv4Addr::LOCALHOST;
        let found = addresses().unwrap();
        let address = found.iter().find(|address| address.ip == loopback).unwrap();
        assert_eq!((address.scope, address.interface.as_str()), (Scope::Loopback, "lo"));
        assert!(!hostname().is_empty());
        assert!(!Changes::open().unwrap().receive().unwrap());
    }
}
