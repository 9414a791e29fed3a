//! The kernel's network interfaces, and which of them are wired.

use super::ether::Mac;
use crate::netlink::{Attributes, dump};
use crate::tree::Tree;
use std::io;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_PERM_ADDRESS: u16 = 54;
const IFLA_INFO_KIND: u16 = 1;
/// The two upper bits of an attribute's type are flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

const ARPHRD_ETHER: u16 = 1;
#[cfg(test)]
const ARPHRD_PPP: u16 = 512;
const ARPHRD_LOOPBACK: u16 = 772;
const IFF_UP: u32 = 0x1;
const IFF_RUNNING: u32 = 0x40;
const IFF_NOARP: u32 = 0x80;

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Option<Mac>,
    /// The MAC address that it was made with: a port of a bond gets that of the bond.
    pub(super) own_mac: Option<Mac>,
    pub(super) up: bool,
    /// Administratively and operationally up (IFF_UP and IFF_RUNNING, RFC 2863).
    pub(super) running: bool,
    pub(super) loopback: bool,
    /// Ethernet, or a device that looks like it (Thunderbolt, USB).
    pub(super) ethernet: bool,
    /// A bridge, bond, VLAN, tunnel or veth.
    pub(super) is_virtual: bool,
    /// The index of the bridge or bond whose port it is.
    pub(super) master: Option<u32>,
}

impl Link {
    /// Returns whether the interface is Ethernet that is neither virtual nor wireless.
    pub(super) fn is_wired(&self, tree: &Tree) -> bool {
        let is_alone = !self.is_virtual && self.master.is_none();
        self.ethernet && is_alone && !is_wireless(tree, &self.name)
    }
}

/// Returns whether the DEVTYPE in the uevent is that of a wireless device: `wlan`, `wwan` or
/// `bluetooth`.
fn is_wireless(tree: &Tree, name: &str) -> bool {
    let uevent = tree.text(format!("sys/class/net/{name}/uevent")).unwrap_or_default();
    let devtype = uevent.lines().find_map(|line| line.strip_prefix("DEVTYPE="));
    matches!(devtype, Some("wlan" | "wwan" | "bluetooth"))
}

/// Returns all interfaces.
///
/// # Errors
/// Fails if the netlink socket does.
pub(super) fn links() -> io::Result<Vec<Link>> {
    let links = dump(RTM_GETLINK, RTM_NEWLINK, &[0; 16])?;
    Ok(links.iter().filter_map(|link| parse(link)).collect())
}

/// Parses an RTM_NEWLINK message: `struct ifinfomsg` (16 bytes), then attributes.
fn parse(message: &[u8]) -> Option<Link> {
    let hardware_type = u16::from_ne_bytes(*message.get(2..)?.first_chunk()?);
    let index = u32::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    let flags = u32::from_ne_bytes(*message.get(8..)?.first_chunk()?);
    let list = message.get(16..)?;
    let name = attribute(list, IFLA_IFNAME)?;
    let address = |kind| attribute(list, kind).and_then(|mac| mac.try_into().ok()).map(Mac);
    let mac = address(IFLA_ADDRESS);
    let is_virtual = attribute(list, IFLA_LINKINFO)
        .is_some_and(|info| attribute(info, IFLA_INFO_KIND).is_some());
    Some(Link {
        index,
        name: String::from_utf8_lossy(name).trim_end_matches('\0').to_owned(),
        mac,
        up: flags & IFF_UP != 0,
        running: flags & (IFF_UP | IFF_RUNNING) == IFF_UP | IFF_RUNNING,
        loopback: hardware_type == ARPHRD_LOOPBACK,
        ethernet: hardware_type == ARPHRD_ETHER && flags & IFF_NOARP == 0 && mac.is_some(),
        own_mac: address(IFLA_PERM_ADDRESS).or(mac),
        is_virtual,
        master: attribute(list, IFLA_MASTER)
            .and_then(|index| index.try_into().ok())
            .map(u32::from_ne_bytes),
    })
}

fn attribute(list: &[u8], wanted: u16) -> Option<&[u8]> {
    Attributes(list)
        .find_map(|(attribute, value)| (attribute & NLA_TYPE_MASK == wanted).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::put;
    use crate::tree::fake::Fake;

    fn message(hardware_type: u16, flags: u32, extra: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0, 0];
        bytes.extend_from_slice(&hardware_type.to_ne_bytes());
        bytes.extend_from_slice(&2u32.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        put(&mut bytes, IFLA_IFNAME, b"eth0\0");
        put(&mut bytes, IFLA_ADDRESS, &[0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        for (attribute, value) in extra {
            put(&mut bytes, *attribute, value);
        }
        bytes
    }

    #[test]
    fn ethernet_with_carrier_is_wired_and_running() {
        let link = parse(&message(ARPHRD_ETHER, IFF_UP | IFF_RUNNING, &[])).unwrap();
        assert_eq!((link.index, link.name.as_str()), (2, "eth0"));
        assert_eq!(link.mac.unwrap().to_string(), "52:54:00:12:34:56");
        let fake = Fake::new();
        assert!(link.running && link.up && !link.loopback && link.is_wired(&fake.tree()));
        fake.file("sys/class/net/eth0/uevent", "DEVTYPE=wlan\nINTERFACE=eth0\n");
        assert!(!link.is_wired(&fake.tree()));
        assert!(!parse(&message(ARPHRD_ETHER, IFF_RUNNING, &[])).unwrap().running);
    }

    #[test]
    fn virtual_interfaces_and_their_ports_are_not_wired() {
        let mut info = Vec::new();
        put(&mut info, IFLA_INFO_KIND, b"veth\0");
        for extra in [
            (IFLA_LINKINFO, &info[..]),
            (IFLA_LINKINFO | 0x8000, &info),
            (IFLA_MASTER, &[9, 0, 0, 0]),
        ] {
            let link = parse(&message(ARPHRD_ETHER, IFF_UP, &[extra])).unwrap();
            assert!(link.is_virtual != link.master.is_some());
            assert!(!link.is_wired(&Fake::new().tree()));
        }
        let port = [(IFLA_MASTER, &[9, 0, 0, 0][..]), (IFLA_PERM_ADDRESS, &[2, 0, 0, 0, 0, 7])];
        let port = parse(&message(ARPHRD_ETHER, IFF_UP, &port)).unwrap();
        assert_eq!((port.master, port.own_mac), (Some(9), Some(Mac([2, 0, 0, 0, 0, 7]))));
        assert!(!parse(&message(ARPHRD_PPP, IFF_UP, &[])).unwrap().ethernet);
        assert!(!parse(&message(ARPHRD_ETHER, IFF_NOARP, &[])).unwrap().ethernet);
    }

    #[test]
    fn truncated_message_is_rejected() {
        let bytes = message(ARPHRD_ETHER, IFF_UP, &[]);
        for cut in 0..25 {
            assert_eq!(parse(&bytes[..cut]), None, "{cut} bytes");
        }
    }

    #[test]
    fn this_machine_has_a_loopback_interface() {
        let found = links().unwrap();
        assert!(found.iter().any(|link| link.loopback && link.name == "lo" && !link.ethernet));
    }
}
