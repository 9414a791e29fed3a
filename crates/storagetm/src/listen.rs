//! Where to listen: what `--listen` and `--open` say, the addresses without them, and the rules that nothing beyond this
//! machine and its cables is listened on unasked, and that hosts elsewhere must show a key. It knows no socket.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

use export::Door;
use linux::net::{Address, Scope, scope_of};

use crate::failure::Failure;

/// The port for disks and their discovery (IANA: nvme).
pub(crate) const DISKS: u16 = 4420;
/// The port for discovery alone (IANA: nvme-disc).
pub(crate) const DISCOVERY: u16 = 8009;

/// What `--listen` says: `[PROTOCOL:]ADDRESS[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The address.
    pub ip: IpAddr,
    /// The interface that an IPv6 address is said to be on: `[fe80::1%eth0]`.
    pub interface: Option<String>,
    /// The port, if one was given.
    pub port: Option<u16>,
}

impl FromStr for Listen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = without_protocol(text)?;
        let (host, port) = split(text)?;
        let port = port.map(|port| port.parse().map_err(|_| "a port is a number up to 65535"));
        let (host, interface) = match host.split_once('%') {
            Some((host, name)) => (host, Some(name.to_owned())),
            None => (host, None),
        };
        let ip: IpAddr = host.parse().map_err(|_| FORM)?;
        let has_zone = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        if interface.is_some() && !has_zone {
            return Err("only a link-local IPv6 address has an interface, as in [fe80::1%eth0]");
        }
        Ok(Self { ip, interface, port: port.transpose()? })
    }
}

const FORM: &str = "an address looks like 192.168.1.5, 127.0.0.1:4420, [fe80::1%eth0] or [::]:4420";

/// Takes the protocol off the front.
fn without_protocol(text: &str) -> Result<&str, &'static str> {
    match text.split_once(':') {
        Some(("nvme", rest)) => Ok(rest),
        Some((word, _)) if word.starts_with(|c: char| c.is_ascii_alphabetic()) && !is_v6(text) => {
            Err("the only protocol is nvme, as in nvme:127.0.0.1:4420")
        }
        _ => Ok(text),
    }
}

fn is_v6(text: &str) -> bool {
    text.parse::<Ipv6Addr>().is_ok()
}

/// The address without brackets, and the port's text.
fn split(text: &str) -> Result<(&str, Option<&str>), &'static str> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or(FORM)?;
        let is_six = is_v6(host.split('%').next().unwrap_or_default());
        return match rest.strip_prefix(':') {
            Some(port) if is_six => Ok((host, Some(port))),
            None if is_six && rest.is_empty() => Ok((host, None)),
            _ => Err(FORM),
        };
    }
    match text.split_once(':') {
        None => Ok((text, None)),
        Some((_, rest)) if rest.contains(':') => {
            Err("an IPv6 address stands in brackets, as in [::1]:4420")
        }
        Some((host, port)) => Ok((host, Some(port))),
    }
}

/// What a port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Serves {
    /// Discovery and disks.
    All,
    /// Discovery; the disks are at [`DISKS`].
    Discovery,
}

/// Something to be listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listener {
    /// The address, with its scope, and the port; 0 is any free one.
    pub socket: SocketAddr,
    /// The interface, for a link-local IPv6 address.
    pub interface: Option<String>,
    /// What for.
    pub serves: Serves,
    /// What hosts must show there.
    pub door: Door,
}

impl Listener {
    fn new(ip: IpAddr, interface: Option<(&str, u32)>, port: u16, serves: Serves) -> Self {
        let socket = match (ip, interface) {
            (IpAddr::V6(ip), Some((_, scope))) => SocketAddrV6::new(ip, port, 0, scope).into(),
            (ip, _) => SocketAddr::new(ip, port),
        };
        // This machine itself needs no key to what it lends.
        let door = if scope_of(ip) == Scope::Loopback { Door::Open } else { Door::Keyed };
        Self { socket, interface: interface.map(|(name, _)| name.to_owned()), serves, door }
    }

    /// The two standard ports of an address.
    fn standard(ip: IpAddr, interface: Option<(&str, u32)>) -> [Self; 2] {
        [
            Self::new(ip, interface, DISKS, Serves::All),
            Self::new(ip, interface, DISCOVERY, Serves::Discovery),
        ]
    }

    /// The same with its door open if `open`.
    pub(crate) fn opened(self, open: bool) -> Self {
        Self { door: if open { Door::Open } else { self.door }, ..self }
    }

    /// The address without its port, an IPv6 link-local one with its interface.
    pub(crate) fn host(&self) -> String {
        match &self.interface {
            Some(interface) => format!("{}%{interface}", self.socket.ip()),
            None => self.socket.ip().to_string(),
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", self.host(), self.socket.port())
    }
}

/// Where to listen, and whether that changes with the machine's addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// There, and nowhere else.
    Fixed(Vec<Listener>),
    /// On all addresses of this machine, IPv4 and IPv6 as far as the kernel has them.
    Everywhere,
    /// On the loopback and link-local addresses that there are.
    Nearby,
    /// At those, from when they are there.
    Awaited(Vec<Listen>),
}

/// What `--listen` and `--open` ask for. At boot the network is not up yet: then addresses are `awaited`.
///
/// # Errors
/// A link-local address that no interface has.
pub(crate) fn plan(
    given: &[Listen],
    open: bool,
    awaited: bool,
    machine: &[Address],
) -> Result<Plan, Failure> {
    if given.is_empty() {
        return Ok(if open { Plan::Everywhere } else { Plan::Nearby });
    }
    if awaited {
        return Ok(Plan::Awaited(given.to_vec()));
    }
    Ok(Plan::Fixed(each_once(resolve_all(given, machine)?)))
}

/// The listeners without those for a socket that was given before; any free port is another one each time.
fn each_once(listeners: impl IntoIterator<Item = Listener>) -> Vec<Listener> {
    let mut once: Vec<Listener> = Vec::new();
    for listener in listeners {
        let is_it = |known: &Listener| known.socket == listener.socket;
        if listener.socket.port() == 0 || !once.iter().any(is_it) {
            once.push(listener);
        }
    }
    once
}

fn resolve_all(given: &[Listen], machine: &[Address]) -> Result<Vec<Listener>, Failure> {
    let resolved: Result<Vec<_>, _> = given.iter().map(|listen| resolve(listen, machine)).collect();
    Ok(resolved?.into_iter().flatten().collect())
}

fn resolve(listen: &Listen, machine: &[Address]) -> Result<Vec<Listener>, Failure> {
    let found = interface(listen, machine)?;
    let interface = found.as_ref().map(|(name, scope)| (name.as_str(), *scope));
    Ok(match listen.port {
        Some(port) => vec![Listener::new(listen.ip, interface, port, Serves::All)],
        None => Listener::standard(listen.ip, interface).into(),
    })
}

/// The interface of a link-local IPv6 address: the one named, or the one that has it.
fn interface(listen: &Listen, machine: &[Address]) -> Result<Option<(String, u32)>, Failure> {
    let IpAddr::V6(ip) = listen.ip else { return Ok(None) };
    if !ip.is_unicast_link_local() {
        return Ok(None);
    }
    let named = |address: &&Address| match &listen.interface {
        Some(name) => address.interface == *name,
        None => address.ip == listen.ip,
    };
    match machine.iter().find(named) {
        Some(address) => Ok(Some((address.interface.clone(), address.scope_id))),
        None => Err(Failure::new(format!(
            "cannot listen on {ip}{}: no network interface of this machine has it",
            listen.interface.as_ref().map(|name| format!("%{name}")).unwrap_or_default()
        ))),
    }
}

impl Plan {
    /// What to listen on while the machine has these addresses.
    pub(crate) fn listeners(&self, machine: &[Address]) -> Vec<Listener> {
        match self {
            Self::Fixed(fixed) => fixed.clone(),
            Self::Everywhere => [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
                .into_iter()
                .flat_map(|ip| Listener::standard(ip, None))
                .collect(),
            Self::Nearby => machine.iter().filter(is_near).flat_map(standard_at).collect(),
            Self::Awaited(given) => {
                let here = given.iter().filter(|listen| listen.is_at(machine));
                each_once(here.filter_map(|listen| resolve(listen, machine).ok()).flatten())
            }
        }
    }
}

impl Listen {
    /// Whether the machine has the address by now.
    pub(crate) fn is_at(&self, machine: &[Address]) -> bool {
        let named = |address: &Address| {
            self.interface.as_ref().is_none_or(|name| address.interface == *name)
        };
        let has = |address: &Address| address.ip == self.ip && named(address);
        self.ip.is_unspecified() || machine.iter().any(|address| has(address) && !address.tentative)
    }
}

/// An address that may be listened on unasked, and that somebody can reach.
fn is_near(address: &&Address) -> bool {
    match scope_of(address.ip) {
        Scope::Loopback => true,
        Scope::Link => address.is_usable(),
        Scope::Global => false,
    }
}

fn standard_at(address: &Address) -> [Listener; 2] {
    Listener::standard(address.ip, scope(address))
}

/// The interface that goes with an address, if the address alone does not tell.
fn scope(address: &Address) -> Option<(&str, u32)> {
    match address.ip {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            Some((address.interface.as_str(), address.scope_id))
        }
        _ => None,
    }
}

/// Where hosts reach the disks through `listeners`, the nearest last; all addresses of the machine for one that listens
/// on all, without the loopback ones unless there are no others.
pub(crate) fn endpoints(
    listeners: &[Listener],
    machine: &[Address],
) -> Vec<console::attach::Endpoint> {
    let disks = listeners.iter().filter(|listener| listener.serves == Serves::All);
    let mut found: Vec<_> = disks.flat_map(|listener| reached(listener, machine)).collect();
    found.sort_by_key(|at| (scope_of(at.address), at.address.is_ipv6()));
    found.dedup();
    found
}

fn reached(listener: &Listener, machine: &[Address]) -> Vec<console::attach::Endpoint> {
    let port = listener.socket.port();
    let keyed = listener.door == Door::Keyed;
    let ip = listener.socket.ip();
    if !ip.is_unspecified() {
        let interface = listener.interface.clone();
        return vec![console::attach::Endpoint { address: ip, interface, port, keyed }];
    }
    let of_family = |address: &&Address| address.ip.is_ipv6() == ip.is_ipv6();
    let far = |address: &&Address| address.scope != Scope::Loopback && address.is_usable();
    let mut these: Vec<&Address> = machine.iter().filter(of_family).filter(far).collect();
    if these.is_empty() {
        these = machine.iter().filter(of_family).collect();
    }
    let endpoint = |address: &&Address| console::attach::Endpoint {
        address: address.ip,
        interface: scope(address).map(|(name, _)| name.to_owned()),
        port,
        keyed,
    };
    these.iter().map(endpoint).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    fn listen(text: &str) -> Listen {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn address(ip: &str, interface: &str, scope_id: u32) -> Address {
        let ip: IpAddr = ip.parse().unwrap();
        Address {
            ip,
            interface: interface.to_owned(),
            scope_id,
            scope: scope_of(ip),
            tentative: false,
            deprecated: false,
            running: true,
        }
    }

    fn machine() -> Vec<Address> {
        vec![
            address("192.168.1.5", "eth0", 2),
            address("169.254.7.9", "thunderbolt0", 3),
            address("127.0.0.1", "lo", 1),
            address("2001:db8::5", "eth0", 2),
            address("fe80::1", "eth0", 2),
            address("::1", "lo", 1),
        ]
    }

    fn said(listeners: &[Listener]) -> Vec<String> {
        listeners.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_awaited_address_is_listened_on_from_when_it_is_there() {
        let given = [listen("192.168.1.5"), listen("[fe80::1%eth0]:4000"), listen("[::1]:0")];
        let plan = plan(&given, true, true, &[]).unwrap();
        assert_eq!(plan.listeners(&[]), []);
        let found = said(&plan.listeners(&machine()));
        let wanted = ["192.168.1.5 port 4420", "192.168.1.5 port 8009", "fe80::1%eth0 port 4000"];
        assert_eq!(found[..3], wanted);
    }

    #[test]
    fn addresses_in_every_form() {
        for (text, ip, interface, port) in [
            ("192.168.1.5", "192.168.1.5", None, None),
            ("127.0.0.1:0", "127.0.0.1", None, Some(0)),
            ("nvme:127.0.0.1:4421", "127.0.0.1", None, Some(4421)),
            ("nvme:127.0.0.1", "127.0.0.1", None, None),
            ("[::]", "::", None, None),
            ("[::1]:4420", "::1", None, Some(4420)),
            ("nvme:[::1]:4420", "::1", None, Some(4420)),
            ("[fe80::1%eth0]:1", "fe80::1", Some("eth0"), Some(1)),
        ] {
            let wanted =
                Listen { ip: ip.parse().unwrap(), interface: interface.map(str::to_owned), port };
            assert_eq!(listen(text), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_said() {
        for (text, part) in [
            ("", "looks like"),
            ("here", "looks like"),
            ("1.2.3", "looks like"),
            ("127.0.0.1:", "port"),
            ("127.0.0.1:65536", "port"),
            ("::1", "brackets"),
            ("::1:4420", "brackets"),
            ("[127.0.0.1]:1", "looks like"),
            ("[::1", "looks like"),
            ("[::1]4420", "looks like"),
            ("nbd:127.0.0.1:1", "protocol"),
            ("localhost:4420", "protocol"),
            ("nvme:", "looks like"),
            ("127.0.0.1%lo", "interface"),
            ("[::1%lo]:1", "interface"),
        ] {
            let error = text.parse::<Listen>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn only_this_machine_itself_needs_no_key_unless_the_door_is_open() {
        let door = |text| {
            let listeners =
                plan(&[listen(text)], false, false, &machine()).unwrap().listeners(&machine());
            assert!(listeners.iter().all(|at| at.clone().opened(true).door == Door::Open));
            assert!(listeners.iter().all(|at| at.clone().opened(false).door == at.door));
            listeners[0].door
        };
        for far in ["0.0.0.0", "[::]:4420", "192.168.1.5", "[2001:db8::5]", "[::ffff:10.0.0.1]"] {
            assert_eq!(door(far), Door::Keyed, "{far}");
        }
        for cable in ["169.254.7.9", "[fe80::1]"] {
            assert_eq!(door(cable), Door::Keyed, "{cable}");
        }
        for near in ["127.0.0.1", "127.1.2.3:1", "[::1]"] {
            assert_eq!(door(near), Door::Open, "{near}");
        }
    }

    #[test]
    fn unasked_it_listens_on_loopback_and_link_local_addresses_at_the_standard_ports() {
        let listeners = plan(&[], false, false, &machine()).unwrap().listeners(&machine());
        let wanted = [
            "169.254.7.9 port 4420",
            "169.254.7.9 port 8009",
            "127.0.0.1 port 4420",
            "127.0.0.1 port 8009",
            "fe80::1%eth0 port 4420",
            "fe80::1%eth0 port 8009",
            "::1 port 4420",
            "::1 port 8009",
        ];
        assert_eq!(said(&listeners), wanted);
        let tentative = Address { tentative: true, ..address("fe80::2", "eth1", 4) };
        let unplugged = Address { running: false, ..address("fe80::3", "eth2", 5) };
        assert!(
            plan(&[], false, false, &[]).unwrap().listeners(&[tentative, unplugged]).is_empty()
        );
    }

    #[test]
    fn open_without_an_address_means_everywhere() {
        let listeners = plan(&[], true, false, &machine()).unwrap().listeners(&machine());
        let wanted = ["0.0.0.0 port 4420", "0.0.0.0 port 8009", ":: port 4420", ":: port 8009"];
        assert_eq!(said(&listeners), wanted);
    }

    #[test]
    fn a_port_that_is_given_serves_both_discovery_and_disks() {
        let plan =
            plan(&[listen("127.0.0.1:5000"), listen("127.0.0.1:5000")], false, false, &[]).unwrap();
        let listeners = plan.listeners(&[]);
        assert_eq!(said(&listeners), ["127.0.0.1 port 5000"]);
        assert_eq!(listeners[0].serves, Serves::All);
    }

    #[test]
    fn a_link_local_address_is_bound_with_its_scope() {
        for text in ["[fe80::1]:1", "[fe80::1%eth0]:1"] {
            let listeners = plan(&[listen(text)], false, false, &machine()).unwrap().listeners(&[]);
            assert_eq!(listeners[0].socket.to_string(), "[fe80::1%2]:1");
        }
        let failure = plan(&[listen("[fe80::9]")], false, false, &machine()).unwrap_err();
        assert_eq!(failure.status(), 1);
        assert!(failure.to_string().contains("no network interface"), "{failure}");
    }

    #[test]
    fn lines_to_be_typed_name_the_addresses_that_others_reach() {
        let everywhere = Plan::Everywhere.listeners(&[]);
        let ends: Vec<String> =
            endpoints(&everywhere, &machine()).iter().map(ToString::to_string).collect();
        let wanted =
            ["192.168.1.5:4420", "[2001:db8::5]:4420", "169.254.7.9:4420", "[fe80::1%eth0]:4420"];
        assert_eq!(ends, wanted);
        let alone = endpoints(&everywhere, &[address("127.0.0.1", "lo", 1)]);
        assert_eq!(alone.len(), 1);
        assert_eq!(alone[0].to_string(), "127.0.0.1:4420");
    }
}
