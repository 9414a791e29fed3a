//! What an address of this machine is on: a network card, a bond or a VLAN, as its next kernel finds
//! or makes it.

use super::ether::Mac;
use super::link::Link;
use super::upper::{bond_options, vlan_id};
use crate::tree::Tree;

/// The value of `addr_assign_type` of an interface whose MAC address was set by software.
const SET_BY_SOFTWARE: &str = "3";
const OTHER_MAC: &str = "its hardware address was set by software";

/// What an address is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// How parameters name the interface.
    pub(super) interface: String,
    /// A MAC address that is to be set.
    pub(super) mac: Option<Mac>,
    /// The parameters that make the interface and those below it, the lowest first.
    pub(super) uppers: Vec<String>,
}

impl Place {
    /// Returns the place of an interface of this machine, or why its next kernel will not have it.
    /// `links` are the interfaces of this machine.
    pub(super) fn of(tree: &Tree, links: &[Link], interface: &str) -> Result<Self, &'static str> {
        match tree.text(format!("proc/net/vlan/{interface}")) {
            Ok(text) => Self::vlan(tree, links, interface, &text),
            Err(_) => Self::card_or_bond(tree, links, interface),
        }
    }

    fn card_or_bond(tree: &Tree, links: &[Link], interface: &str) -> Result<Self, &'static str> {
        let folder = format!("sys/class/net/{interface}/bonding");
        let Some(ports) = tree.attribute(format!("{folder}/slaves")) else {
            let interface = hyphened(wired(tree, interface)?);
            return Ok(Self { interface, mac: None, uppers: Vec::new() });
        };
        let ports = ports.split_whitespace().map(|port| own_mac(tree, links, port));
        let ports = ports.collect::<Result<Vec<_>, _>>()?.join(",");
        let options = bond_options().filter_map(|name| {
            let text = tree.attribute(format!("{folder}/{name}"))?;
            // A name, if the option has names, and a number; 0 is the default.
            let (value, number) = text.split_once(' ').unwrap_or((&text, &text));
            (name == "mode" || number != "0").then(|| format!("{name}={value}"))
        });
        let primary = tree.attribute(format!("{folder}/primary")).filter(|name| !name.is_empty());
        let primary = primary.map(|port| own_mac(tree, links, &port)).transpose()?;
        let options = options.chain(primary.map(|mac| format!("primary={mac}")));
        let options = options.collect::<Vec<_>>().join(",");
        let upper = format!("bond={interface}:{ports}:{options}");
        Ok(Self {
            interface: interface.to_owned(),
            mac: set_mac(tree, interface),
            uppers: vec![upper],
        })
    }

    /// `text` is what the kernel shows of the VLAN in `/proc/net/vlan`.
    fn vlan(
        tree: &Tree,
        links: &[Link],
        interface: &str,
        text: &str,
    ) -> Result<Self, &'static str> {
        const UNKNOWN: &str = "the kernel does not show the number of this VLAN";
        let after = |key: &str| text.split(key).nth(1)?.split_whitespace().next();
        let id = after("VID:").and_then(|id| id.parse::<u16>().ok()).ok_or(UNKNOWN)?;
        let lower = after("Device:").ok_or(UNKNOWN)?;
        if tree.path(format!("proc/net/vlan/{lower}")).exists() {
            return Err("it is a VLAN on a VLAN");
        }
        let Self { interface: lower, mut uppers, .. } = Self::card_or_bond(tree, links, lower)?;
        // The number must be in the name.
        let has_number = vlan_id(interface) == Some(id);
        let name = if has_number { interface.to_owned() } else { format!("vlan{id}") };
        uppers.push(format!("vlan={name}:{lower}"));
        Ok(Self { interface: name, mac: set_mac(tree, interface), uppers })
    }
}

/// Returns the MAC address that a port had before it was one, by which target mode finds it: the
/// one that it was made with. The bond has set the present one, which shows nothing.
fn own_mac(tree: &Tree, links: &[Link], port: &str) -> Result<String, &'static str> {
    let folder = format!("sys/class/net/{port}");
    let mac = tree.attribute(format!("{folder}/bonding_slave/perm_hwaddr"));
    let mac = mac.and_then(|text| Mac::parse(&text)).filter(|mac| mac.is_unicast());
    let mac = mac.filter(|_| tree.path(format!("{folder}/device")).exists());
    let mac = mac.ok_or("a port of the bond is not a network card")?;
    let made_with = links.iter().find(|link| link.name == port).and_then(|link| link.own_mac);
    if made_with == Some(mac) { Ok(hyphened(mac)) } else { Err(OTHER_MAC) }
}

/// Returns the MAC address of an interface if it was set by software.
fn set_mac(tree: &Tree, interface: &str) -> Option<Mac> {
    let attribute = |name: &str| tree.attribute(format!("sys/class/net/{interface}/{name}"));
    let is_set = attribute("addr_assign_type").as_deref() == Some(SET_BY_SOFTWARE);
    attribute("address").and_then(|text| Mac::parse(&text)).filter(|_| is_set)
}

fn hyphened(mac: Mac) -> String {
    mac.to_string().replace(':', "-")
}

/// Returns the MAC address of a wired network card, or why target mode cannot use the interface as
/// it is now.
pub(super) fn wired(tree: &Tree, interface: &str) -> Result<Mac, &'static str> {
    let folder = format!("sys/class/net/{interface}");
    let has = |name: &str| tree.path(format!("{folder}/{name}")).exists();
    if has("wireless") || has("phy80211") {
        return Err("it is wireless");
    }
    if !has("device") {
        return Err(
            "it is not a network card, nor a bond or a VLAN of one (a bridge, team or tunnel)",
        );
    }
    let attribute = |name: &str| tree.attribute(format!("{folder}/{name}"));
    if attribute("addr_assign_type").as_deref() == Some(SET_BY_SOFTWARE) {
        return Err(OTHER_MAC);
    }
    let mac = attribute("address").and_then(|text| Mac::parse(&text));
    mac.filter(|mac| mac.is_unicast()).ok_or("it has no hardware address")
}
