//! Determines the services to announce for the listening endpoints of this machine.

use std::collections::BTreeMap;
use std::net::IpAddr;

use linux::net::{Address, Scope, scope_of};

use super::messages::Service;
use protocol::Protocol;

/// Longest instance name in bytes (RFC 6763 §4.1.1), less room for a port.
const MAX_INSTANCE_NAME: usize = 56;

/// An endpoint that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// Service type.
    pub kind: Protocol,
    /// An address of this machine, or the unspecified address.
    pub address: IpAddr,
    /// The TCP port.
    pub port: u16,
    /// Whether a key is needed.
    pub keyed: bool,
}

/// Returns the services to announce while the machine has these addresses; with `loopback`,
/// including loopback endpoints.
///
/// If any endpoint needs a key, the name of the machine is not revealed: the name is made from
/// `nonce`.
pub fn services(
    machine: &str,
    nonce: [u8; 4],
    endpoints: &[LocalEndpoint],
    addresses: &[Address],
    loopback: bool,
) -> Vec<Service> {
    let mut reached = resolve(endpoints, addresses);
    reached.retain(|(_, at)| loopback || scope_of(at.ip) != Scope::Loopback);
    let digits = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let secret = reached.iter().any(|(endpoint, _)| endpoint.keyed);
    let host = format!("storagetm-{}", digits(&nonce));
    let name =
        if secret { format!("storagetm-{}", digits(&nonce[..2])) } else { truncate(machine) };
    let mut services: BTreeMap<(Protocol, u16), Service> = BTreeMap::new();
    for (endpoint, at) in reached {
        let service = services.entry((endpoint.kind, endpoint.port)).or_insert_with(|| Service {
            kind: endpoint.kind,
            name: name.clone(),
            host: host.clone(),
            port: endpoint.port,
            addresses: Vec::new(),
            interfaces: Vec::new(),
            keyed: false,
        });
        service.keyed |= endpoint.keyed;
        add(&mut service.addresses, at.ip);
        add(&mut service.interfaces, at.interface.clone());
    }
    with_unique_names(services.into_values().collect())
}

/// Each endpoint with each of its addresses.
fn resolve<'a>(
    endpoints: &'a [LocalEndpoint],
    addresses: &'a [Address],
) -> Vec<(&'a LocalEndpoint, &'a Address)> {
    let usable = |at: &&Address| at.is_usable() || scope_of(at.ip) == Scope::Loopback;
    let here = |endpoint: &LocalEndpoint, at: &Address| match endpoint.address.is_unspecified() {
        true => endpoint.address.is_ipv4() == at.ip.is_ipv4(),
        false => endpoint.address == at.ip,
    };
    let of = |endpoint: &'a LocalEndpoint| {
        addresses
            .iter()
            .filter(usable)
            .filter(move |at| here(endpoint, at))
            .map(move |at| (endpoint, at))
    };
    endpoints.iter().flat_map(of).collect()
}

fn add<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

/// Appends the port to the name of further services of one type: instance names must be unique.
fn with_unique_names(mut services: Vec<Service>) -> Vec<Service> {
    let mut last = None;
    for service in &mut services {
        if last.replace(service.kind) == Some(service.kind) {
            service.name = format!("{} {}", service.name, service.port);
        }
    }
    services
}

/// Truncates a name to the length of an instance name.
fn truncate(name: &str) -> String {
    let fits = |end: &usize| name.is_char_boundary(*end);
    let end = (0..=MAX_INSTANCE_NAME.min(name.len())).rev().find(fits).unwrap_or(0);
    name[..end].to_owned()
}

#[cfg(test)]
mod test {
    use super::*;

    fn address(ip: &str, interface: &str) -> Address {
        let ip: IpAddr = ip.parse().unwrap();
        let scope = scope_of(ip);
        Address {
            ip,
            interface: interface.to_owned(),
            scope_id: 2,
            scope,
            tentative: false,
            deprecated: false,
            running: true,
        }
    }

    fn machine() -> Vec<Address> {
        vec![
            address("192.168.1.5", "eth0"),
            address("fe80::1", "eth0"),
            address("127.0.0.1", "lo"),
            Address { running: false, ..address("169.254.1.1", "eth1") },
        ]
    }

    fn endpoint(kind: Protocol, address: &str, port: u16, keyed: bool) -> LocalEndpoint {
        LocalEndpoint { kind, address: address.parse().unwrap(), port, keyed }
    }

    fn of(endpoints: &[LocalEndpoint]) -> Vec<Service> {
        services("Anna's laptop", [0xab, 0xcd, 1, 2], endpoints, &machine(), false)
    }

    /// X01: with a key, neither the name of the machine nor of a disk is announced.
    #[test]
    fn x01_keyed_machine_is_announced_without_its_name() {
        let keyed = of(&[
            endpoint(Protocol::Nvme, "fe80::1", 8009, true),
            endpoint(Protocol::Nbd, "fe80::1", 10809, true),
            endpoint(Protocol::Nvme, "127.0.0.1", 8009, false),
        ]);
        assert_eq!(keyed.len(), 2);
        for service in &keyed {
            assert_eq!((service.name.as_str(), service.keyed), ("storagetm-abcd", true));
            assert_eq!(service.host, "storagetm-abcd0102");
            assert!(!serde_json::to_string(service).unwrap().contains("Anna"));
        }
        let mixed = of(&[
            endpoint(Protocol::Nvme, "fe80::1", 8009, true),
            endpoint(Protocol::Nbd, "192.168.1.5", 10809, false),
        ]);
        assert!(mixed.iter().all(|service| service.name == "storagetm-abcd"));
    }

    #[test]
    fn open_machine_is_announced_by_its_name() {
        let open = of(&[
            endpoint(Protocol::Nvme, "0.0.0.0", 8009, false),
            endpoint(Protocol::Nvme, "::", 8009, false),
            endpoint(Protocol::Nbd, "0.0.0.0", 10809, false),
        ]);
        assert_eq!(open.len(), 2);
        assert_eq!(open[0].name, "Anna's laptop");
        assert_eq!(open[0].addresses.len(), 2, "neither the loopback nor the one without a cable");
        assert_eq!(open[0].interfaces, ["eth0"]);
        assert!(!open[0].host.contains("Anna"));
    }

    #[test]
    fn second_port_is_named_and_loopback_not_announced() {
        let two = [
            endpoint(Protocol::Nvme, "127.0.0.1", 4420, false),
            endpoint(Protocol::Nvme, "127.0.0.1", 5000, false),
        ];
        assert_eq!(of(&two), []);
        let two = services("Anna's laptop", [0; 4], &two, &machine(), true);
        let names: Vec<&str> = two.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["Anna's laptop", "Anna's laptop 5000"]);
        assert_eq!(of(&[endpoint(Protocol::Nvme, "10.0.0.1", 4420, false)]), []);
        assert_eq!(truncate(&"\u{e9}".repeat(40)).len(), 56);
        assert_eq!(truncate(&format!("a{}", "\u{e9}".repeat(40))).len(), 55);
    }
}
