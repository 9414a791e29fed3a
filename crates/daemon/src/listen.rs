//! Plans where to listen: by `--listen`, `--protocol` and `--open`. By default only on loopback and
//! link-local addresses; hosts on other machines must have a key.

mod option;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;

use export::Auth;
use linux::net::{Address, Scope, scope_of};
use serde::{Deserialize, Serialize};

use failure::Failure;
pub(crate) use option::known_protocols;
pub use option::{ListenAddr, ListenOption};
use protocol::endpoint::{Endpoint, EndpointAddr, NetAddr};
use protocol::{PROTOCOLS, Protocol, Role, Row};

/// The protocols to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocols {
    served: Vec<Protocol>,
    /// Whether the user named them.
    named: bool,
}

impl Protocols {
    /// The named protocols; if none is named, all that are not served on request only.
    pub fn of(named: &[Protocol]) -> Self {
        let is_served = |row: &&Row| match named {
            [] => !row.on_request,
            named => named.contains(&row.protocol),
        };
        let served = PROTOCOLS.iter().filter(is_served).map(|row| row.protocol).collect();
        Self { served, named: !named.is_empty() }
    }

    /// NVMe/TCP and NBD, neither of which the user named.
    #[cfg(test)]
    pub(crate) fn nvme_and_nbd() -> Self {
        Self { served: vec![Protocol::Nvme, Protocol::Nbd], named: false }
    }

    pub fn has(&self, protocol: Protocol) -> bool {
        self.served.contains(&protocol)
    }

    /// Checks that the protocol of `what` is served.
    ///
    /// # Errors
    /// Fails if the user named only others.
    pub fn require(&self, protocol: Protocol, what: &str) -> Result<(), Failure> {
        if self.has(protocol) {
            return Ok(());
        }
        let name = protocol.row().option;
        Err(Failure::usage(format!("{what} needs {name} among those of --protocol")))
    }

    /// The protocol of an inherited socket that does not show which one it is for: that of Unix
    /// sockets, whose clients start servers themselves; else the least preferred of those that are
    /// served by default, if there is one.
    fn of_unnamed_socket(&self) -> Protocol {
        let by_unix = self.served.iter().find(|protocol| protocol.row().unix);
        let by_default = || self.served.iter().rfind(|protocol| !protocol.row().on_request);
        let any = || self.served.last();
        by_unix.or_else(by_default).or_else(any).copied().unwrap_or(PROTOCOLS[0].protocol)
    }

    /// The protocol for a port that is given without one.
    fn first(&self) -> Protocol {
        self.served.first().copied().unwrap_or(PROTOCOLS[0].protocol)
    }
}

/// What a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub protocol: Protocol,
    pub role: Role,
}

impl Service {
    pub fn disks(protocol: Protocol) -> Self {
        Self { protocol, role: Role::Disks }
    }

    pub fn discovery(protocol: Protocol) -> Self {
        Self { protocol, role: Role::Discovery }
    }

    /// The protocol of Unix sockets.
    pub fn unix() -> Self {
        Self::disks(Protocol::on_unix())
    }
}

/// Address of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindAddr {
    /// An IP address with scope, and a port; 0 for any free one.
    Net(SocketAddr),
    /// A Unix socket. Empty for an abstract or unnamed one.
    Path(PathBuf),
}

/// A planned or open listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its address.
    pub addr: BindAddr,
    /// Interface of a link-local IPv6 address.
    pub interface: Option<String>,
    /// What it serves.
    pub serves: Service,
    /// What hosts must present.
    pub auth: Auth,
    /// Whether the user did not ask for it: skipped if the port is in use.
    pub optional: bool,
}

impl Listener {
    fn new(ip: IpAddr, interface: Option<(&str, u32)>, port: u16, serves: Service) -> Self {
        let socket = match (ip, interface) {
            (IpAddr::V6(ip), Some((_, scope))) => SocketAddrV6::new(ip, port, 0, scope).into(),
            (ip, _) => SocketAddr::new(ip, port),
        };
        let interface = interface.map(|(name, _)| name.to_owned());
        Self { interface, ..Self::at(BindAddr::Net(socket), serves) }
    }

    fn at(addr: BindAddr, serves: Service) -> Self {
        // No key is needed on this machine itself.
        let is_here = match &addr {
            BindAddr::Net(socket) => scope_of(socket.ip()) == Scope::Loopback,
            BindAddr::Path(_) => true,
        };
        let auth = if is_here { Auth::None } else { Auth::Required };
        Self { addr, interface: None, serves, auth, optional: false }
    }

    /// A socket passed by the service manager. The protocol follows from its name, else from its
    /// address.
    ///
    /// # Errors
    /// Fails if it is for a protocol that is not served.
    pub fn inherited(addr: BindAddr, name: &str, protocols: &Protocols) -> Result<Self, Failure> {
        let serves = match &addr {
            BindAddr::Path(_) => {
                let serves = Service::unix();
                protocols.require(serves.protocol, "a Unix socket passed to this program")?;
                serves
            }
            BindAddr::Net(socket) => match named_service(name) {
                Some(serves) => {
                    let what = format!("the socket {name} passed to this program");
                    protocols.require(serves.protocol, &what)?;
                    serves
                }
                None => service_at(socket.port())
                    .filter(|serves| protocols.has(serves.protocol))
                    .unwrap_or_else(|| Service::disks(protocols.of_unnamed_socket())),
            },
        };
        Ok(Self::at(addr, serves))
    }

    /// Listeners on the standard ports of an address.
    fn standard(ip: IpAddr, interface: Option<(&str, u32)>, protocols: &Protocols) -> Vec<Self> {
        let rows = PROTOCOLS.iter().filter(|row| protocols.has(row.protocol));
        let of_row = |row: &'static Row| {
            row.ports.iter().map(move |port| {
                let service = Service { protocol: row.protocol, role: port.role };
                let optional = row.optional && !protocols.named;
                Self { optional, ..Self::new(ip, interface, port.number, service) }
            })
        };
        rows.flat_map(of_row).collect()
    }

    /// Requires no key if `open`.
    pub fn with_open_access(self, open: bool) -> Self {
        Self { auth: if open { Auth::None } else { self.auth }, ..self }
    }

    /// Returns whether a host can be admitted: it needs no key, or can show one or a code.
    pub fn admits_hosts(&self) -> bool {
        self.auth == Auth::None || self.serves.protocol.admits_hosts()
    }

    /// The path, or the address without port; a link-local IPv6 address with its interface.
    pub fn host(&self) -> String {
        match (&self.addr, &self.interface) {
            (BindAddr::Net(socket), Some(interface)) => format!("{}%{interface}", socket.ip()),
            (BindAddr::Net(socket), None) => socket.ip().to_string(),
            (BindAddr::Path(path), _) => path.display().to_string(),
        }
    }

    /// The socket address, unless it is a Unix socket.
    pub fn socket(&self) -> Option<SocketAddr> {
        match self.addr {
            BindAddr::Net(socket) => Some(socket),
            BindAddr::Path(_) => None,
        }
    }

    /// Returns whether connections to `local` are accepted by this listener.
    pub fn accepts(&self, local: SocketAddr) -> bool {
        self.socket().is_some_and(|own| {
            let any = own.ip().is_unspecified() || own.ip() == local.ip();
            any && own.port() == local.port()
        })
    }
}

/// The service that the name of an inherited socket begins with.
fn named_service(name: &str) -> Option<Service> {
    let named = PROTOCOLS.iter().filter(|row| name.starts_with(row.option));
    // `https` begins with another name.
    let row = named.max_by_key(|row| row.option.len())?;
    Some(Service::disks(row.protocol))
}

/// The service of a standard port.
fn service_at(port: u16) -> Option<Service> {
    PROTOCOLS.iter().find_map(|row| {
        let standard = row.ports.iter().find(|standard| standard.number == port)?;
        Some(Service { protocol: row.protocol, role: standard.role })
    })
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.socket() {
            Some(socket) => write!(f, "{} port {}", self.host(), socket.port()),
            None => f.write_str(&self.host()),
        }
    }
}

/// Where to listen, and whether that follows the machine's addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Only on these.
    Fixed(Vec<Listener>),
    /// On the wildcard addresses, IPv4 and IPv6.
    Everywhere(Protocols),
    /// On present loopback and link-local addresses.
    Nearby(Protocols),
    /// On each present address.
    Present(Protocols),
    /// On the given addresses as they appear.
    Awaited(Vec<ListenOption>, Protocols),
}

/// Addresses to listen on if none is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultScope {
    /// Loopback and link-local addresses.
    Nearby,
    /// All present addresses: requested when the machine was booted.
    Present,
    /// The wildcard addresses.
    Everywhere,
}

/// Plans where to listen: on the `given` addresses, else by `reach`. If `awaited`, addresses may
/// appear later, as the network is not up yet at boot.
///
/// # Errors
/// Fails if no interface has a link-local address, or if a protocol is given that is not served.
pub fn plan(
    given: &[ListenOption],
    protocols: Protocols,
    reach: DefaultScope,
    awaited: bool,
    machine: &[Address],
) -> Result<Plan, Failure> {
    if given.is_empty() {
        return Ok(match reach {
            DefaultScope::Nearby => Plan::Nearby(protocols),
            DefaultScope::Present => Plan::Present(protocols),
            DefaultScope::Everywhere => Plan::Everywhere(protocols),
        });
    }
    given.iter().try_for_each(|listen| check_served(listen, &protocols))?;
    if awaited {
        return Ok(Plan::Awaited(given.to_vec(), protocols));
    }
    let resolved: Result<Vec<_>, _> =
        given.iter().map(|listen| resolve(listen, &protocols, machine)).collect();
    Ok(Plan::Fixed(deduplicated(resolved?.into_iter().flatten())))
}

fn check_served(listen: &ListenOption, protocols: &Protocols) -> Result<(), Failure> {
    let Some(protocol) = listen.protocol else { return Ok(()) };
    let row = protocol.row();
    let unix = if row.unix { " or unix:…" } else { "" };
    protocols.require(protocol, &format!("--listen {}:…{unix}", row.option))
}

/// Removes duplicates, except for port 0. A listener is optional only if all its duplicates are.
fn deduplicated(listeners: impl IntoIterator<Item = Listener>) -> Vec<Listener> {
    let mut once: Vec<Listener> = Vec::new();
    for listener in listeners {
        let protocol = listener.serves.protocol;
        let is_it =
            |known: &Listener| known.addr == listener.addr && known.serves.protocol == protocol;
        let is_any = listener.socket().is_some_and(|socket| socket.port() == 0);
        match once.iter_mut().find(|known| !is_any && is_it(known)) {
            Some(known) => known.optional &= listener.optional,
            None => once.push(listener),
        }
    }
    once
}

fn resolve(
    listen: &ListenOption,
    protocols: &Protocols,
    machine: &[Address],
) -> Result<Vec<Listener>, Failure> {
    let (ip, named, port) = match &listen.addr {
        ListenAddr::Path(path) => {
            return Ok(vec![Listener::at(BindAddr::Path(path.clone()), Service::unix())]);
        }
        ListenAddr::Address { ip, interface, port } => (*ip, interface.as_deref(), *port),
    };
    let found = interface(ip, named, machine)?;
    let interface = found.as_ref().map(|(name, scope)| (name.as_str(), *scope));
    Ok(match port {
        Some(port) => {
            let served = listen.protocols(protocols).into_iter().map(Service::disks);
            served.map(|serves| Listener::new(ip, interface, port, serves)).collect()
        }
        None => match listen.protocol {
            Some(protocol) => Listener::standard(ip, interface, &Protocols::of(&[protocol])),
            None => Listener::standard(ip, interface, protocols),
        },
    })
}

/// The interface of a link-local IPv6 address: the named one, or the one that has the address.
fn interface(
    ip: IpAddr,
    named: Option<&str>,
    machine: &[Address],
) -> Result<Option<(String, u32)>, Failure> {
    let is_nearby = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    if !is_nearby {
        return Ok(None);
    }
    let is_it = |address: &&Address| match named {
        Some(name) => address.interface == name,
        None => address.ip == ip,
    };
    match machine.iter().find(is_it) {
        Some(address) => Ok(Some((address.interface.clone(), address.scope_id))),
        None => Err(Failure::new(format!(
            "cannot listen on {ip}{}: no network interface of this machine has it",
            named.map(|name| format!("%{name}")).unwrap_or_default()
        ))),
    }
}

impl Plan {
    /// The protocols for addresses other than loopback, also those that the machine does not have yet.
    /// Without those of given addresses that are fixed.
    pub(crate) fn network_protocols(&self) -> Vec<Protocol> {
        match self {
            Self::Fixed(_) => Vec::new(),
            Self::Everywhere(all) | Self::Nearby(all) | Self::Present(all) => all.served.clone(),
            Self::Awaited(given, all) => {
                let is_far = |ip: IpAddr| scope_of(ip) != Scope::Loopback;
                let far = given.iter().filter(|listen| listen.ip().is_some_and(is_far));
                let mut served: Vec<_> = far.flat_map(|listen| listen.protocols(all)).collect();
                served.sort_unstable();
                served.dedup();
                served
            }
        }
    }

    /// What to listen on while the machine has these addresses.
    pub fn listeners(&self, machine: &[Address]) -> Vec<Listener> {
        match self {
            Self::Fixed(fixed) => fixed.clone(),
            Self::Everywhere(protocols) => {
                [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
                    .into_iter()
                    .flat_map(|ip| Listener::standard(ip, None, protocols))
                    .collect()
            }
            Self::Nearby(protocols) => {
                let near = machine.iter().filter(is_nearby);
                near.flat_map(|at| Listener::standard(at.ip, scope(at), protocols)).collect()
            }
            Self::Present(protocols) => {
                let usable = machine.iter().filter(|at| is_nearby(at) || at.is_usable());
                usable.flat_map(|at| Listener::standard(at.ip, scope(at), protocols)).collect()
            }
            Self::Awaited(given, protocols) => {
                let here = given.iter().filter(|listen| listen.is_at(machine));
                let resolved = here.filter_map(|listen| resolve(listen, protocols, machine).ok());
                deduplicated(resolved.flatten())
            }
        }
    }
}

/// Whether the address is listened on by default and is usable.
fn is_nearby(address: &&Address) -> bool {
    match scope_of(address.ip) {
        Scope::Loopback => true,
        Scope::Link => address.is_usable(),
        Scope::Global => false,
    }
}

/// The interface of a link-local IPv6 address.
fn scope(address: &Address) -> Option<(&str, u32)> {
    match address.ip {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            Some((address.interface.as_str(), address.scope_id))
        }
        _ => None,
    }
}

/// Endpoints of the `listeners` that serve disks, in the order of the table; Unix sockets after
/// network addresses. A wildcard listener has all addresses of the machine; loopback addresses only
/// if the machine has no others.
pub fn endpoints<'a>(
    listeners: impl Iterator<Item = &'a Listener>,
    machine: &[Address],
) -> Vec<Endpoint> {
    let disks = listeners.filter(|listener| listener.serves.role == Role::Disks);
    let mut endpoints: Vec<Endpoint> =
        disks.flat_map(|listener| listener.endpoints(machine)).collect();
    endpoints.sort_by_key(|at| {
        let place = at.net().map(|at| (scope_of(at.ip), at.ip.is_ipv6()));
        (at.protocol, place.is_none(), place)
    });
    endpoints.dedup();
    endpoints
}

impl Listener {
    fn endpoints(&self, machine: &[Address]) -> Vec<Endpoint> {
        let (protocol, keyed) = (self.serves.protocol, self.auth == Auth::Required);
        let endpoint = |addr| Endpoint { protocol, addr, keyed, pin: None };
        match &self.addr {
            BindAddr::Net(socket) => {
                let reached = self.reached(*socket, machine).into_iter();
                reached.map(|net| endpoint(EndpointAddr::Net(net))).collect()
            }
            BindAddr::Path(path) if path.as_os_str().is_empty() => Vec::new(),
            BindAddr::Path(path) => {
                vec![endpoint(EndpointAddr::Path(path.to_string_lossy().into_owned()))]
            }
        }
    }

    /// The addresses at which a listener at `socket` is reached.
    fn reached(&self, socket: SocketAddr, machine: &[Address]) -> Vec<NetAddr> {
        let (ip, port) = (socket.ip(), socket.port());
        if !ip.is_unspecified() {
            return vec![NetAddr { ip, interface: self.interface.clone(), port }];
        }
        let of_family = |address: &&Address| address.ip.is_ipv6() == ip.is_ipv6();
        let far = |address: &&Address| address.scope != Scope::Loopback && address.is_usable();
        let mut these: Vec<&Address> = machine.iter().filter(of_family).filter(far).collect();
        if these.is_empty() {
            let near = |address: &&Address| address.scope == Scope::Loopback;
            these = machine.iter().filter(of_family).filter(near).collect();
        }
        let interface = |address: &Address| scope(address).map(|(name, _)| name.to_owned());
        let net =
            |address: &&Address| NetAddr { ip: address.ip, interface: interface(address), port };
        these.iter().map(net).collect()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn listen(text: &str) -> ListenOption {
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

    fn nvme() -> Protocols {
        Protocols::of(&[Protocol::Nvme])
    }

    fn both() -> Protocols {
        Protocols::nvme_and_nbd()
    }

    fn texts(listeners: &[Listener]) -> Vec<String> {
        listeners.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_asked_for_at_boot_are_listened_on_with_keys() {
        let plan = plan(&[], nvme(), DefaultScope::Present, true, &[]).unwrap();
        let found = plan.listeners(&machine());
        let at = |ip: &str| found.iter().find(|at| at.host() == ip).map(|at| at.auth);
        for far in ["192.168.1.5", "2001:db8::5", "169.254.7.9", "fe80::1%eth0"] {
            assert_eq!(at(far), Some(Auth::Required), "{far}");
        }
        assert_eq!(at("127.0.0.1"), Some(Auth::None));
        let away = Address { tentative: true, ..address("192.168.1.5", "eth0", 2) };
        assert_eq!(plan.listeners(&[away]), []);
    }

    #[test]
    fn awaited_address_is_listened_on_when_present() {
        let given = [listen("192.168.1.5"), listen("[fe80::1%eth0]:4000"), listen("[::1]:0")];
        let plan = plan(&given, both(), DefaultScope::Everywhere, true, &[]).unwrap();
        assert_eq!(plan.listeners(&[]), []);
        let found = texts(&plan.listeners(&machine()));
        let wanted = [
            "192.168.1.5 port 4420",
            "192.168.1.5 port 8009",
            "192.168.1.5 port 10809",
            "fe80::1%eth0 port 4000",
        ];
        assert_eq!(found[..4], wanted);
    }

    #[test]
    fn each_protocol_has_a_port_of_its_own_at_port_zero() {
        let served = |text: &str, protocols| {
            let plan = plan(&[listen(text)], protocols, DefaultScope::Nearby, false, &machine());
            let found = plan.unwrap().listeners(&machine());
            found.iter().map(|it| (it.to_string(), it.serves)).collect::<Vec<_>>()
        };
        let at = |port: u16, protocol| (format!("127.0.0.1 port {port}"), Service::disks(protocol));
        let all = [at(0, Protocol::Nvme), at(0, Protocol::Nbd)];
        let named = Protocols::of(&[Protocol::Nvme, Protocol::Nbd]);
        assert_eq!(served("127.0.0.1:0", named), all);
        assert_eq!(served("127.0.0.1:0", both()), all, "the user named none");
        assert_eq!(served("nbd:127.0.0.1:0", both()), all[1..]);
        assert_eq!(served("127.0.0.1:0", nvme()), all[..1]);
        assert_eq!(served("127.0.0.1:4000", both()), [at(4000, Protocol::Nvme)]);
    }

    #[test]
    fn only_loopback_needs_no_key_unless_open() {
        let auth = |text| {
            let listeners = plan(&[listen(text)], nvme(), DefaultScope::Nearby, false, &machine())
                .unwrap()
                .listeners(&machine());
            assert!(
                listeners.iter().all(|at| at.clone().with_open_access(true).auth == Auth::None)
            );
            assert!(listeners.iter().all(|at| at.clone().with_open_access(false).auth == at.auth));
            listeners[0].auth
        };
        for far in ["0.0.0.0", "[::]:4420", "192.168.1.5", "[2001:db8::5]"] {
            assert_eq!(auth(far), Auth::Required, "{far}");
        }
        for cable in ["169.254.7.9", "[fe80::1]"] {
            assert_eq!(auth(cable), Auth::Required, "{cable}");
        }
        for near in ["127.0.0.1", "127.1.2.3:1", "[::1]"] {
            assert_eq!(auth(near), Auth::None, "{near}");
        }
    }

    #[test]
    fn default_is_loopback_and_link_local_on_standard_ports() {
        let listeners = plan(&[], nvme(), DefaultScope::Nearby, false, &machine())
            .unwrap()
            .listeners(&machine());
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
        assert_eq!(texts(&listeners), wanted);
        let tentative = Address { tentative: true, ..address("fe80::2", "eth1", 4) };
        let unplugged = Address { running: false, ..address("fe80::3", "eth2", 5) };
        assert!(
            plan(&[], nvme(), DefaultScope::Nearby, false, &[])
                .unwrap()
                .listeners(&[tentative, unplugged])
                .is_empty()
        );
    }

    #[test]
    fn open_without_address_listens_on_wildcard() {
        let listeners = plan(&[], nvme(), DefaultScope::Everywhere, false, &machine())
            .unwrap()
            .listeners(&machine());
        let wanted = ["0.0.0.0 port 4420", "0.0.0.0 port 8009", ":: port 4420", ":: port 8009"];
        assert_eq!(texts(&listeners), wanted);
    }

    #[test]
    fn given_port_serves_discovery_and_disks() {
        let plan = plan(
            &[listen("127.0.0.1:5000"), listen("127.0.0.1:5000")],
            both(),
            DefaultScope::Nearby,
            false,
            &[],
        )
        .unwrap();
        let listeners = plan.listeners(&[]);
        assert_eq!(texts(&listeners), ["127.0.0.1 port 5000"]);
        assert_eq!(listeners[0].serves, Service::disks(Protocol::Nvme));
    }

    #[test]
    fn link_local_address_is_bound_with_its_scope() {
        for text in ["[fe80::1]:1", "[fe80::1%eth0]:1"] {
            let listeners = plan(&[listen(text)], nvme(), DefaultScope::Nearby, false, &machine())
                .unwrap()
                .listeners(&[]);
            assert_eq!(listeners[0].socket().unwrap().to_string(), "[fe80::1%2]:1");
        }
        let failure = plan(&[listen("[fe80::9]")], nvme(), DefaultScope::Nearby, false, &machine())
            .unwrap_err();
        assert_eq!(failure.status(), 1);
        assert!(failure.to_string().contains("no network interface"), "{failure}");
    }

    #[test]
    fn endpoints_are_reachable_addresses() {
        let everywhere = Plan::Everywhere(both()).listeners(&[]);
        let ends = |machine: &[Address]| -> Vec<String> {
            let endpoints = endpoints(everywhere.iter(), machine);
            endpoints.iter().filter_map(Endpoint::net).map(ToString::to_string).collect()
        };
        let wanted = ["192.168.1.5:PORT", "[2001:db8::5]:PORT", "169.254.7.9:PORT"];
        let wanted = [&wanted[..], &["[fe80::1%eth0]:PORT"]].concat();
        let on = |port: &str| wanted.iter().map(|at| at.replace("PORT", port)).collect::<Vec<_>>();
        assert_eq!(ends(&machine()), [on("4420"), on("10809")].concat());
        let alone = [address("127.0.0.1", "lo", 1)];
        assert_eq!(ends(&alone), ["127.0.0.1:4420", "127.0.0.1:10809"]);
    }

    #[test]
    fn address_is_no_endpoint_before_duplicate_detection_ends() {
        let everywhere = Plan::Everywhere(nvme()).listeners(&[]);
        let tentative = Address { tentative: true, ..address("fe80::2", "eth1", 4) };
        let unplugged = Address { running: false, ..address("fe80::3", "eth2", 5) };
        let found = endpoints(everywhere.iter(), &[address("::1", "lo", 1), tentative, unplugged]);
        let found: Vec<String> =
            found.iter().filter_map(Endpoint::net).map(ToString::to_string).collect();
        assert_eq!(found, ["[::1]:4420"]);
    }

    #[test]
    fn each_port_has_one_protocol() {
        let at = |text: &str, protocols| {
            let plan =
                plan(&[listen(text)], protocols, DefaultScope::Nearby, false, &machine()).unwrap();
            plan.listeners(&[])
                .into_iter()
                .map(|at| (at.to_string(), at.serves))
                .collect::<Vec<_>>()
        };
        let nbd = || Protocols::of(&[Protocol::Nbd]);
        let one = |text: &str, serves| vec![(text.to_owned(), serves)];
        assert_eq!(at("127.0.0.1", both()).len(), 3);
        assert_eq!(
            at("127.0.0.1", nbd()),
            one("127.0.0.1 port 10809", Service::disks(Protocol::Nbd))
        );
        assert_eq!(
            at("nbd:127.0.0.1", both()),
            one("127.0.0.1 port 10809", Service::disks(Protocol::Nbd))
        );
        assert_eq!(
            at("127.0.0.1:0", nvme()),
            one("127.0.0.1 port 0", Service::disks(Protocol::Nvme))
        );
        assert_eq!(
            at("127.0.0.1:0", nbd()),
            one("127.0.0.1 port 0", Service::disks(Protocol::Nbd))
        );
        assert_eq!(
            at("nbd:127.0.0.1:7", both()),
            one("127.0.0.1 port 7", Service::disks(Protocol::Nbd))
        );
        assert_eq!(at("unix:/run/x", both()), one("/run/x", Service::disks(Protocol::Nbd)));
        for (text, protocols) in [("nvme:[::1]", nbd()), ("unix:/run/x", nvme())] {
            let failure =
                plan(&[listen(text)], protocols, DefaultScope::Nearby, false, &[]).unwrap_err();
            assert_eq!(failure.status(), 2, "{failure}");
        }
    }

    #[test]
    fn unrequested_listeners_are_optional() {
        let optional = |given: &[ListenOption], protocols| {
            let plan = plan(given, protocols, DefaultScope::Nearby, false, &machine()).unwrap();
            let listeners = plan.listeners(&machine());
            listeners.iter().filter(|at| at.optional).map(|at| at.serves).collect::<Vec<_>>()
        };
        assert_eq!(optional(&[], both()), [Service::disks(Protocol::Nbd); 4]);
        assert_eq!(optional(&[listen("127.0.0.1")], both()), [Service::disks(Protocol::Nbd)]);
        assert_eq!(optional(&[listen("nbd:127.0.0.1")], both()), []);
        assert_eq!(optional(&[], Protocols::of(&[Protocol::Nvme, Protocol::Nbd])), []);
    }

    #[test]
    fn named_listener_that_equals_an_optional_one_is_required() {
        for given in [["127.0.0.1", "nbd:127.0.0.1"], ["nbd:127.0.0.1:10809", "127.0.0.1"]] {
            let plan =
                plan(&given.map(listen), both(), DefaultScope::Nearby, false, &machine()).unwrap();
            let listeners = plan.listeners(&machine());
            assert_eq!(listeners.len(), 3, "{listeners:?}");
            assert!(listeners.iter().all(|at| !at.optional), "{listeners:?}");
        }
    }

    #[test]
    fn inherited_socket_protocol_follows_name_or_address() {
        let net = |text: &str| BindAddr::Net(text.parse().unwrap());
        for (addr, name, serves, auth) in [
            (BindAddr::Path("/run/x".into()), "unknown", Service::disks(Protocol::Nbd), Auth::None),
            (BindAddr::Path("/run/x".into()), "nvme", Service::disks(Protocol::Nbd), Auth::None),
            (net("127.0.0.1:4420"), "", Service::disks(Protocol::Nvme), Auth::None),
            (
                net("0.0.0.0:8009"),
                "storagetm.socket",
                Service::discovery(Protocol::Nvme),
                Auth::Required,
            ),
            (net("[::]:10809"), "", Service::disks(Protocol::Nbd), Auth::Required),
            (net("[::1]:77"), "", Service::disks(Protocol::Nbd), Auth::None),
            (net("[::1]:77"), "nvme-disks", Service::disks(Protocol::Nvme), Auth::None),
            (net("127.0.0.1:4420"), "nbd", Service::disks(Protocol::Nbd), Auth::None),
        ] {
            let listener = Listener::inherited(addr, name, &both()).unwrap();
            assert_eq!((listener.serves, listener.auth), (serves, auth), "{listener} {name}");
        }
    }

    #[test]
    fn inherited_socket_serves_a_protocol_of_the_options_only() {
        let net = |text: &str| BindAddr::Net(text.parse().unwrap());
        for port in ["[::1]:77", "[::1]:10809"] {
            let listener = Listener::inherited(net(port), "", &nvme()).unwrap();
            assert_eq!(listener.serves, Service::disks(Protocol::Nvme), "{port}");
        }
        // HTTP is served where it is named only.
        let service = |port, named: &[Protocol]| {
            Listener::inherited(net(port), "", &Protocols::of(named)).unwrap().serves.protocol
        };
        let both = [Protocol::Nvme, Protocol::Http];
        assert_eq!(service("[::1]:77", &both), Protocol::Nvme);
        assert_eq!(service("[::1]:8080", &both), Protocol::Http);
        assert_eq!(service("[::1]:77", &[Protocol::Http]), Protocol::Http);
        for (addr, name) in [(BindAddr::Path("/run/x".into()), ""), (net("[::1]:77"), "nbd")] {
            let failure = Listener::inherited(addr, name, &nvme()).unwrap_err();
            assert_eq!(failure.status(), 2);
            assert!(failure.to_string().contains("nbd among those of --protocol"), "{failure}");
        }
    }

    #[test]
    fn endpoints_have_addresses_and_paths_by_protocol() {
        let given = ["unix:/run/x", "nbd:127.0.0.1:1", "nvme:127.0.0.1:2"].map(listen);
        let listeners =
            plan(&given, both(), DefaultScope::Nearby, false, &[]).unwrap().listeners(&[]);
        let places: Vec<_> =
            endpoints(listeners.iter(), &[]).into_iter().map(|at| (at.protocol, at.addr)).collect();
        let net = |port| {
            let ip = Ipv4Addr::LOCALHOST.into();
            EndpointAddr::Net(NetAddr { ip, interface: None, port })
        };
        let wanted = [
            (Protocol::Nvme, net(2)),
            (Protocol::Nbd, net(1)),
            (Protocol::Nbd, EndpointAddr::Path("/run/x".to_owned())),
        ];
        assert_eq!(places, wanted);
        let local = "127.0.0.1:2".parse().unwrap();
        let found: Vec<bool> = listeners.iter().map(|at| at.accepts(local)).collect();
        assert_eq!(found, [false, false, true]);
    }
}
