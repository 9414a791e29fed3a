//! The network settings that this machine has now, as `ip=` parameters for its next kernel.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use super::ether::Mac;
use crate::net::{self, Address, Assigned, Gateway, Scope};
use crate::tree::Tree;

/// The value of `addr_assign_type` of an interface whose MAC address was set by software.
const SET_BY_SOFTWARE: &str = "3";

/// Which addresses a machine keeps over a restart into target mode.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkSettings {
    /// Routable addresses that are assigned again.
    pub kept: Vec<Kept>,
    /// Routable addresses that are not.
    pub lost: Vec<Lost>,
    /// The IPv6 link-local addresses that the wired interfaces with a carrier will have.
    pub nearby: Vec<(String, Ipv6Addr)>,
}

/// An address, and the kernel parameter that assigns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub ip: IpAddr,
    pub interface: String,
    /// The parameter names the interface by its MAC address: its name may be another one.
    pub parameter: String,
}

/// An address that no `ip=` parameter can assign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    pub ip: IpAddr,
    pub interface: String,
    pub reason: &'static str,
}

impl NetworkSettings {
    /// Reads them from the kernel.
    ///
    /// # Errors
    /// Fails if the kernel's routing socket does.
    pub fn read(tree: &Tree) -> io::Result<Self> {
        Ok(Self::of(tree, &net::assigned()?, &net::gateways()?, &net::hostname()))
    }

    fn of(tree: &Tree, all: &[Assigned], gateways: &[Gateway], hostname: &str) -> Self {
        let mut settings = Self::default();
        let mut routes: Vec<Gateway> = [false, true]
            .into_iter()
            .filter_map(|v6| best(gateways.iter().filter(|it| it.address.is_ipv6() == v6)))
            .collect();
        let usable = all.iter().filter(|it| it.address.is_usable() && !it.temporary);
        for it in usable.filter(|it| it.address.scope == Scope::Global) {
            let Address { ip, interface, scope_id, .. } = &it.address;
            let (ip, interface) = (*ip, interface.clone());
            match wired(tree, &interface) {
                Ok(mac) => {
                    let is_its = |route: &mut Gateway| {
                        let is_near = route.address.is_ipv6() || contains(it, route.address);
                        let is_v6 = route.address.is_ipv6();
                        is_near && route.interface == *scope_id && is_v6 == ip.is_ipv6()
                    };
                    let gateway = routes.extract_if(.., is_its).next().map(|route| route.address);
                    let parameter = parameter(it, gateway, hostname, mac);
                    settings.kept.push(Kept { ip, interface, parameter });
                }
                Err(reason) => settings.lost.push(Lost { ip, interface, reason }),
            }
        }
        let cards = net::cards(tree).into_iter().filter(|card| card.carrier);
        let nearby =
            cards.filter_map(|card| Some((card.name.clone(), wired(tree, &card.name).ok()?)));
        settings.nearby = nearby.map(|(name, mac)| (name, link_local(mac))).collect();
        settings
    }
}

/// Returns whether the IPv4 address is in the network of the assigned one.
fn contains(assigned: &Assigned, address: IpAddr) -> bool {
    let (IpAddr::V4(own), IpAddr::V4(other)) = (assigned.address.ip, address) else { return false };
    let bits = u32::from(own) ^ u32::from(other);
    bits.checked_shr(32_u32.saturating_sub(assigned.prefix.into())).unwrap_or(0) == 0
}

fn best<'a>(routes: impl Iterator<Item = &'a Gateway>) -> Option<Gateway> {
    routes.min_by_key(|route| route.metric).copied()
}

/// Returns the MAC address of a wired network card, or why target mode cannot use the interface as
/// it is now.
fn wired(tree: &Tree, interface: &str) -> Result<Mac, &'static str> {
    let folder = format!("sys/class/net/{interface}");
    let has = |name: &str| tree.path(format!("{folder}/{name}")).exists();
    if has("wireless") || has("phy80211") {
        return Err("it is wireless");
    }
    if !has("device") {
        return Err("it is not a network card itself (a bridge, bond, VLAN or tunnel)");
    }
    let attribute = |name: &str| tree.attribute(format!("{folder}/{name}"));
    if attribute("addr_assign_type").as_deref() == Some(SET_BY_SOFTWARE) {
        return Err("its hardware address was set by software");
    }
    let mac = attribute("address").and_then(|text| Mac::parse(&text));
    mac.filter(|mac| mac.is_unicast()).ok_or("it has no hardware address")
}

/// Returns `ip=ADDRESS::GATEWAY:PREFIX:HOSTNAME:MAC:METHOD` (dracut.cmdline(7)). A leased IPv4
/// address is assigned at once, and DHCP is asked besides.
fn parameter(it: &Assigned, gateway: Option<IpAddr>, hostname: &str, mac: Mac) -> String {
    let ip = it.address.ip;
    let gateway = gateway.map(bracketed).unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    let hostname = if hostname.chars().all(is_plain) { hostname } else { "" };
    let method = if it.leased && ip.is_ipv4() { "dhcp" } else { "none" };
    let (ip, mac) = (bracketed(ip), mac.to_string().replace(':', "-"));
    format!("ip={ip}::{gateway}:{}:{hostname}:{mac}:{method}", it.prefix)
}

fn bracketed(ip: IpAddr) -> String {
    if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() }
}

/// Returns the address that the kernel makes of a MAC address (RFC 4291 appendix A).
fn link_local(Mac([a, b, c, d, e, f]): Mac) -> Ipv6Addr {
    let [high, low] = [[a ^ 2, b], [c, 0xff]].map(u16::from_be_bytes);
    let [third, last] = [[0xfe, d], [e, f]].map(u16::from_be_bytes);
    Ipv6Addr::new(0xfe80, 0, 0, 0, high, low, third, last)
}

#[cfg(test)]
mod tests {
    use super::super::IpParameter;
    use super::*;
    use crate::net::scope_of;
    use crate::tree::fake::Fake;

    /// A machine with a card `lan0`, a wireless one `wlan0` and a bridge `br0`.
    fn machine() -> Fake {
        let fake = Fake::new();
        for (name, device) in [("lan0", "3"), ("wlan0", "4")] {
            fake.file(&format!("sys/class/net/{name}/address"), "52:54:00:12:34:56\n");
            fake.file(&format!("sys/class/net/{name}/carrier"), "1\n");
            let device = format!("sys/devices/pci0000:00/0000:00:0{device}.0");
            fake.link(&format!("sys/class/net/{name}/device"), &device);
        }
        fake.file("sys/class/net/wlan0/phy80211/name", "phy0\n");
        fake.file("sys/class/net/br0/address", "52:54:00:12:34:57\n");
        fake
    }

    fn assigned(ip: &str, interface: &str, prefix: u8, leased: bool) -> Assigned {
        let ip: IpAddr = ip.parse().unwrap();
        let address = Address {
            ip,
            interface: interface.to_owned(),
            scope_id: 2,
            scope: scope_of(ip),
            tentative: false,
            deprecated: false,
            running: true,
        };
        Assigned { address, prefix, leased, temporary: false }
    }

    #[test]
    fn present_addresses_become_ip_parameters() {
        let gateway = |address: &str, metric| Gateway {
            address: address.parse().unwrap(),
            interface: 2,
            metric,
        };
        let all = [
            assigned("192.0.2.5", "lan0", 24, true),
            assigned("192.0.2.6", "lan0", 24, false),
            assigned("2001:db8::5", "lan0", 64, true),
            assigned("fe80::1", "lan0", 64, false),
        ];
        let gateways = [gateway("192.0.2.2", 100), gateway("192.0.2.1", 0), gateway("fe80::9", 5)];
        let settings = NetworkSettings::of(&machine().tree(), &all, &gateways, "desk");
        let parameters: Vec<&str> = settings.kept.iter().map(|it| it.parameter.as_str()).collect();
        assert_eq!(
            parameters,
            [
                "ip=192.0.2.5::192.0.2.1:24:desk:52-54-00-12-34-56:dhcp",
                "ip=192.0.2.6:::24:desk:52-54-00-12-34-56:none",
                "ip=[2001:db8::5]::[fe80::9]:64:desk:52-54-00-12-34-56:none",
            ]
        );
        let (understood, ignored) = IpParameter::parse_all(&parameters.join(" "));
        assert_eq!((understood.len(), ignored), (3, vec![]));
        assert!(understood.iter().all(IpParameter::may_be_routable));
        assert_eq!(settings.nearby[0].1.to_string(), "fe80::5054:ff:fe12:3456");
        assert_eq!(settings.nearby.len(), 1, "without the wireless card");
    }

    #[test]
    fn addresses_that_will_not_be_there_are_lost() {
        let fake = machine();
        let all =
            [assigned("192.0.2.5", "br0", 24, false), assigned("192.0.2.6", "wlan0", 24, false)];
        let settings = NetworkSettings::of(&fake.tree(), &all, &[], "desk");
        assert!(settings.kept.is_empty());
        assert!(settings.lost[0].reason.contains("bridge"), "{:?}", settings.lost);
        assert!(settings.lost[1].reason.contains("wireless"), "{:?}", settings.lost);
        fake.file("sys/class/net/lan0/addr_assign_type", "3\n");
        let all = [assigned("192.0.2.5", "lan0", 24, false)];
        let settings = NetworkSettings::of(&fake.tree(), &all, &[], "a b");
        assert!(settings.lost[0].reason.contains("by software"), "{:?}", settings.lost);
        assert!(settings.nearby.is_empty());
    }

    #[test]
    fn temporary_and_unusable_addresses_are_left_out() {
        let temporary = Assigned { temporary: true, ..assigned("2001:db8::7", "lan0", 64, true) };
        let mut down = assigned("192.0.2.5", "lan0", 24, false);
        down.address.running = false;
        let settings = NetworkSettings::of(&machine().tree(), &[temporary, down], &[], "desk");
        assert!(settings.kept.is_empty() && settings.lost.is_empty());
    }
}
