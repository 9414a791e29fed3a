//! The network settings that this machine has now, as `ip=` parameters for its next kernel.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use super::ether::Mac;
use super::link::{self, Link};
use super::place::{Place, wired};
use crate::net::{self, Address, Assigned, Gateway, Scope};
use crate::tree::Tree;

/// Which addresses a machine keeps over a restart into target mode.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkSettings {
    /// Routable addresses that are assigned again.
    pub kept: Vec<Kept>,
    /// The parameters that make the VLANs and bonds which have such addresses.
    pub uppers: Vec<String>,
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
    /// The parameter names a network card by its MAC address: its name may be another one.
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
        let links = link::links()?;
        Ok(Self::of(tree, &links, &net::assigned()?, &net::gateways()?, &net::hostname()))
    }

    fn of(
        tree: &Tree,
        links: &[Link],
        all: &[Assigned],
        gateways: &[Gateway],
        hostname: &str,
    ) -> Self {
        let mut settings = Self::default();
        let mut routes: Vec<Gateway> = [false, true]
            .into_iter()
            .filter_map(|v6| best(gateways.iter().filter(|it| it.address.is_ipv6() == v6)))
            .collect();
        let usable = all.iter().filter(|it| it.address.is_usable() && !it.temporary);
        for it in usable.filter(|it| it.address.scope == Scope::Global) {
            let Address { ip, interface, scope_id, .. } = &it.address;
            let (ip, interface) = (*ip, interface.clone());
            match settings.add_place(Place::of(tree, links, &interface)) {
                Ok(place) => {
                    let is_its = |route: &mut Gateway| {
                        let is_near = route.address.is_ipv6() || contains(it, route.address);
                        let is_v6 = route.address.is_ipv6();
                        is_near && route.interface == *scope_id && is_v6 == ip.is_ipv6()
                    };
                    let gateway = routes.extract_if(.., is_its).next().map(|route| route.address);
                    let parameter = parameter(it, gateway, hostname, &place);
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

    /// Adds the parameters of what an address is on, unless they contradict others.
    fn add_place(&mut self, place: Result<Place, &'static str>) -> Result<Place, &'static str> {
        let place = place?;
        let name = |parameter: &str| parameter.split(':').next().map(str::to_owned);
        for new in &place.uppers {
            match self.uppers.iter().find(|old| name(old) == name(new)) {
                None => self.uppers.push(new.clone()),
                Some(old) if old == new => {}
                Some(_) => return Err("another VLAN has the same number"),
            }
        }
        Ok(place)
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

/// Returns `ip=ADDRESS::GATEWAY:PREFIX:HOSTNAME:INTERFACE:METHOD::MAC` (dracut.cmdline(7)). A leased
/// IPv4 address is assigned at once, and DHCP is asked besides.
fn parameter(it: &Assigned, gateway: Option<IpAddr>, hostname: &str, place: &Place) -> String {
    let ip = it.address.ip;
    let gateway = gateway.map(bracketed).unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    let hostname = if hostname.chars().all(is_plain) { hostname } else { "" };
    let method = if it.leased && ip.is_ipv4() { "dhcp" } else { "none" };
    let (ip, interface) = (bracketed(ip), &place.interface);
    let mac = place.mac.map(|mac| format!("::{mac}")).unwrap_or_default();
    format!("ip={ip}::{gateway}:{}:{hostname}:{interface}:{method}{mac}", it.prefix)
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
    use super::super::NetworkParameters;
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

    /// A port of a bond, made with the MAC address that ends so.
    fn port(name: &str, last: u8) -> Link {
        Link {
            index: 2,
            name: name.to_owned(),
            mac: Some(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56])),
            own_mac: Some(Mac([0x52, 0x54, 0, 0x12, 0x34, last])),
            up: true,
            running: true,
            loopback: false,
            ethernet: true,
            is_virtual: false,
            master: Some(4),
        }
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
        let settings = NetworkSettings::of(&machine().tree(), &[], &all, &gateways, "desk");
        let parameters: Vec<&str> = settings.kept.iter().map(|it| it.parameter.as_str()).collect();
        assert_eq!(
            parameters,
            [
                "ip=192.0.2.5::192.0.2.1:24:desk:52-54-00-12-34-56:dhcp",
                "ip=192.0.2.6:::24:desk:52-54-00-12-34-56:none",
                "ip=[2001:db8::5]::[fe80::9]:64:desk:52-54-00-12-34-56:none",
            ]
        );
        let (understood, ignored) = NetworkParameters::parse(&parameters.join(" "));
        assert_eq!((understood.ip.len(), ignored), (3, vec![]));
        assert!(understood.may_be_routable());
        assert_eq!(settings.nearby[0].1.to_string(), "fe80::5054:ff:fe12:3456");
        assert_eq!(settings.nearby.len(), 1, "without the wireless card");
    }

    #[test]
    fn addresses_that_will_not_be_there_are_lost() {
        let fake = machine();
        let links = [];
        let all =
            [assigned("192.0.2.5", "br0", 24, false), assigned("192.0.2.6", "wlan0", 24, false)];
        let settings = NetworkSettings::of(&fake.tree(), &links, &all, &[], "desk");
        assert!(settings.kept.is_empty());
        assert!(settings.lost[0].reason.contains("bridge"), "{:?}", settings.lost);
        assert!(settings.lost[1].reason.contains("wireless"), "{:?}", settings.lost);
        fake.file("sys/class/net/lan0/addr_assign_type", "3\n");
        let all = [assigned("192.0.2.5", "lan0", 24, false)];
        let settings = NetworkSettings::of(&fake.tree(), &links, &all, &[], "a b");
        assert!(settings.lost[0].reason.contains("by software"), "{:?}", settings.lost);
        assert!(settings.nearby.is_empty());
    }

    #[test]
    fn vlan_on_a_bond_comes_back_with_its_settings() {
        let fake = machine();
        fake.file("sys/class/net/bond0/address", "52:54:00:12:34:56\n");
        fake.file("sys/class/net/bond0/addr_assign_type", "3\n");
        fake.file("sys/class/net/bond0/bonding/slaves", "lan0 lan1\n");
        for (option, text) in [
            ("mode", "active-backup 1"),
            ("miimon", "100"),
            ("lacp_rate", "slow 0"),
            ("primary", "lan1"),
            ("updelay", "0"),
        ] {
            fake.file(&format!("sys/class/net/bond0/bonding/{option}"), format!("{text}\n"));
        }
        let mut links = [port("lan0", 0x56), port("lan1", 0x57)];
        for (port, last) in [("lan0", "56"), ("lan1", "57")] {
            let path = format!("sys/class/net/{port}/bonding_slave/perm_hwaddr");
            fake.file(&path, format!("52:54:00:12:34:{last}\n"));
        }
        fake.link("sys/class/net/lan1/device", "sys/devices/pci0000:00/0000:00:05.0");
        let vlan = "dmz  VID: 5\t REORDER_HDR: 1  dev->priv_flags: 1021\n\nDevice: bond0\n";
        fake.file("proc/net/vlan/dmz", vlan);
        let all =
            [assigned("192.0.2.5", "bond0", 24, false), assigned("198.51.100.5", "dmz", 24, true)];
        let settings = NetworkSettings::of(&fake.tree(), &links, &all, &[], "desk");
        let ports = "52-54-00-12-34-56,52-54-00-12-34-57";
        let bond =
            format!("bond=bond0:{ports}:mode=active-backup,miimon=100,primary=52-54-00-12-34-57");
        assert_eq!(settings.uppers, [bond, "vlan=vlan5:bond0".to_owned()]);
        let parameters: Vec<&str> = settings.kept.iter().map(|it| it.parameter.as_str()).collect();
        let wanted = [
            "ip=192.0.2.5:::24:desk:bond0:none::52:54:00:12:34:56",
            "ip=198.51.100.5:::24:desk:vlan5:dhcp",
        ];
        assert_eq!(parameters, wanted);
        let line = format!("{} {}", settings.uppers.join(" "), parameters.join(" "));
        let (understood, ignored) = NetworkParameters::parse(&line);
        assert_eq!((understood.ip.len(), understood.uppers.len(), ignored), (2, 2, vec![]));
        // A MAC address that somebody has set before the card became a port is gone then.
        links[1].own_mac = Some(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x99]));
        let settings = NetworkSettings::of(&fake.tree(), &links, &all, &[], "desk");
        let reasons: Vec<&str> = settings.lost.iter().map(|lost| lost.reason).collect();
        assert_eq!(reasons, ["its hardware address was set by software"; 2]);
        // A bond of interfaces that are no cards does not come back, nor a second VLAN of the number.
        fake.file("sys/class/net/bond0/bonding/slaves", "lan0 br0\n");
        fake.file("proc/net/vlan/lab", vlan.replace("bond0", "lan0"));
        fake.file("proc/net/vlan/lan0.5", vlan.replace("bond0", "lan0"));
        fake.file("proc/net/vlan/vlan5", vlan.replace("bond0", "lan1"));
        let names = ["bond0", "dmz", "lab", "lan0.5", "vlan5"];
        let all = names.map(|name| assigned("192.0.2.5", name, 24, false));
        let settings = NetworkSettings::of(&fake.tree(), &links, &all, &[], "desk");
        let lost: Vec<&str> = settings.lost.iter().map(|lost| lost.interface.as_str()).collect();
        assert_eq!(lost, ["bond0", "dmz", "vlan5"], "{settings:?}");
    }

    #[test]
    fn temporary_and_unusable_addresses_are_left_out() {
        let temporary = Assigned { temporary: true, ..assigned("2001:db8::7", "lan0", 64, true) };
        let mut down = assigned("192.0.2.5", "lan0", 24, false);
        down.address.running = false;
        let settings = NetworkSettings::of(&machine().tree(), &[], &[temporary, down], &[], "desk");
        assert!(settings.kept.is_empty() && settings.lost.is_empty());
    }
}
