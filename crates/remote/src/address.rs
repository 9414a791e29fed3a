//! The address of a target as the user types it, its resolution and the TCP connection to it.

use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;
use std::{fmt, io};

use socket2::{Domain, Protocol, Socket, Type};

use linux::host_port::{HostPort, HostPortError};
use linux::net::{Address, Scope};

use failure::Failure;
use nvme::PORT as NVME_PORT;
use protocol::endpoint::NetAddr;

/// Connection timeout of one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The address of a target: a host name or IP address, an interface, a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetAddr {
    host: String,
    interface: Option<String>,
    port: u16,
}

const FORM: &str = "a machine is 192.168.1.5, name.local or fe80::1%eth0, with a port 192.168.1.5:4420 or [fe80::1%eth0]:4420";

impl TargetAddr {
    /// Parses `HOST`, `HOST:PORT`, `[HOST]` or `[HOST]:PORT`; a host may end in `%INTERFACE`.
    /// `interface` is used if the host names none.
    ///
    /// # Errors
    /// Fails with a message for the user if the text has none of these forms.
    pub fn parse(text: &str, interface: Option<&str>) -> Result<Self, String> {
        let parsed = HostPort::parse(text).map_err(|error| match error {
            HostPortError::Port => error.to_string(),
            _ => FORM.to_owned(),
        })?;
        let zone = parsed.zone.or_else(|| interface.map(str::to_owned));
        Self::new(HostPort { zone, ..parsed }, NVME_PORT)
    }

    /// The target at a host; the port is `usual` if it has none.
    ///
    /// # Errors
    /// Fails with a message for the user if a link-local address has no zone, or if the port is 0.
    pub(crate) fn new(at: HostPort, usual: u16) -> Result<Self, String> {
        let HostPort { host, zone: interface, port, .. } = at;
        let port = port.unwrap_or(usual);
        if port == 0 {
            return Err(HostPortError::Port.to_string());
        }
        if is_link_local_6(&host) && interface.is_none() {
            return Err(format!(
                "{host} is a link-local address: say behind which interface, as in {host}%eth0"
            ));
        }
        Ok(Self { host, interface, port })
    }

    /// The target at an IP address; `interface` is kept for link-local addresses only.
    pub fn at(address: IpAddr, interface: Option<&str>, port: u16) -> Self {
        let near = linux::net::scope_of(address) == Scope::Link;
        let interface = interface.filter(|_| near).map(str::to_owned);
        Self { host: address.to_string(), interface, port }
    }

    /// Returns the same address with another port.
    pub fn with_port(&self, port: u16) -> Self {
        Self { port, ..self.clone() }
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The host name or IP address, with `%INTERFACE` if there is one.
    pub fn host(&self) -> String {
        let zone = self.interface.as_ref().map(|name| format!("%{name}")).unwrap_or_default();
        format!("{}{zone}", self.host)
    }

    /// The host name or IP address, without the interface.
    pub fn name(&self) -> &str {
        &self.host
    }

    /// The interface, if one is named.
    pub fn interface(&self) -> Option<&str> {
        self.interface.as_deref()
    }

    /// The IP address, if the host is one and not a name.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Formats it as in a URI, with the port unless it is the `usual` one.
    pub(crate) fn authority(&self, usual: u16) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host()) } else { self.host() };
        if self.port == usual { host } else { format!("{host}:{}", self.port) }
    }

    /// Returns whether this is a loopback address or `localhost`. Other names may resolve
    /// differently each time.
    pub fn is_loopback(&self) -> bool {
        self.ip().map_or_else(|| self.is_localhost(), is_loopback)
    }

    /// Connects to the first of its addresses that accepts the connection.
    ///
    /// # Errors
    /// Fails if none does.
    pub fn connect(&self) -> Result<TcpStream, Failure> {
        if let Some(zone) = &self.interface {
            self.check_interface(zone, &linux::net::addresses().unwrap_or_default())?;
        }
        let addresses = self.addresses().map_err(|error| self.unreachable(&error))?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no address is known for it");
        for address in addresses {
            match self.connect_to(address) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(self.unreachable(&last))
    }

    /// Checks that the zone is an interface of this machine: users copy addresses from the target's
    /// screen, which names the target's interfaces.
    fn check_interface(&self, zone: &str, own: &[Address]) -> Result<(), Failure> {
        if own.is_empty() || own.iter().any(|address| address.interface == zone) {
            return Ok(());
        }
        let near = |address: &&Address| address.scope == Scope::Link && address.running;
        let mut names: Vec<&str> =
            own.iter().filter(near).map(|address| address.interface.as_str()).collect();
        names.dedup();
        let hint = match names.as_slice() {
            [] => "none of its interfaces is connected just now".to_owned(),
            names => {
                let tried = names.iter().map(|name| format!("{}%{name}", self.host));
                format!("try {}", tried.collect::<Vec<_>>().join(" or "))
            }
        };
        Err(Failure::new(format!(
            "{self} cannot be reached: this machine has no interface {zone} with an address, and what stands behind % is its own \
             interface, not that of the other machine; {hint}"
        )))
    }

    /// Returns whether the name is reserved for loopback addresses (RFC 6761 §6.3).
    fn is_localhost(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
    }

    /// Resolves the host name; of `localhost` only to loopback addresses.
    ///
    /// # Errors
    /// Fails if the name cannot be resolved.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let zone = self.interface.as_ref().filter(|_| is_link_local_6(&self.host));
        let host = match zone {
            Some(interface) => format!("{}%{interface}", self.host),
            None => self.host.clone(),
        };
        let all = (host, self.port).to_socket_addrs()?;
        Ok(all.filter(|it| !self.is_localhost() || is_loopback(it.ip())).collect())
    }

    fn connect_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if let Some(interface) = &self.interface {
            socket.bind_device(Some(interface.as_bytes()))?;
        }
        socket.connect_timeout(&address.into(), CONNECT_TIMEOUT)?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket.into())
    }

    fn unreachable(&self, error: &io::Error) -> Failure {
        Failure::new(format!(
            "{self} cannot be reached: {error}; are its address and port those on its screen?"
        ))
    }

    /// The endpoint for the `nvme` command lines, with the address that the connection reached.
    pub fn endpoint(&self, reached: SocketAddr) -> NetAddr {
        let ip = reached.ip();
        let local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        let interface = self.interface.clone().filter(|_| local);
        NetAddr { ip, interface, port: reached.port() }
    }
}

impl fmt::Display for TargetAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            NVME_PORT => f.write_str(&self.host()),
            _ => f.write_str(&self.authority(NVME_PORT)),
        }
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn is_link_local_6(host: &str) -> bool {
    host.parse().is_ok_and(|ip: std::net::Ipv6Addr| ip.is_unicast_link_local())
}

#[cfg(test)]
mod test {
    use super::*;
    use protocol::nvme;

    #[test]
    fn all_forms_of_addresses_are_parsed() {
        for (text, expected) in [
            ("192.168.1.5", "192.168.1.5"),
            ("192.168.1.5:4420", "192.168.1.5"),
            ("name.local:8009", "name.local:8009"),
            ("::1", "::1"),
            ("[::1]:1", "[::1]:1"),
            ("fe80::1%eth0", "fe80::1%eth0"),
            ("[fe80::1%eth0]", "fe80::1%eth0"),
            ("[fe80::1%eth0]:99", "[fe80::1%eth0]:99"),
        ] {
            assert_eq!(TargetAddr::parse(text, None).unwrap().to_string(), expected, "{text}");
        }
        assert_eq!(TargetAddr::parse("fe80::1", Some("eth1")).unwrap().to_string(), "fe80::1%eth1");
        assert_eq!(
            TargetAddr::parse("fe80::1%eth0", Some("eth1")).unwrap().to_string(),
            "fe80::1%eth0"
        );
    }

    #[test]
    fn only_loopback_addresses_and_localhost_are_this_machine() {
        let parse = |text: &str| TargetAddr::parse(text, None).unwrap();
        for (text, expected) in [
            ("127.0.0.1", true),
            ("[::1]:4420", true),
            ("::ffff:127.0.0.1", true),
            ("LocalHost", true),
            ("192.0.2.1", false),
            // These resolve to loopback addresses now, but may resolve differently later.
            ("127.1", false),
            ("localhost.", false),
        ] {
            assert_eq!(parse(text).is_loopback(), expected, "{text}");
        }
        let addresses = parse("localhost").addresses().unwrap_or_default();
        assert!(addresses.iter().all(|it| it.ip().is_loopback()), "{addresses:?}");
    }

    #[test]
    fn malformed_target_address_is_refused() {
        for wrong in [
            "",
            ":1",
            "host:",
            "host:0",
            "host:65536",
            "host:x",
            "[::1",
            "[::1]x",
            "fe80::1",
            "fe80::1%",
            "a b",
            "a\u{1b}[2J",
            "a/b",
            "%eth0",
            "a%b%c",
        ] {
            assert!(TargetAddr::parse(wrong, None).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn interface_is_shown_for_link_local_address_only() {
        let addr = TargetAddr::parse("169.254.1.1%eth0", None).unwrap();
        let there = addr.endpoint("169.254.1.1:4420".parse().unwrap());
        assert_eq!(
            nvme::attach_all(&there, true, false),
            "nvme connect-all -t tcp -a 169.254.1.1 -s 4420 --host-iface eth0 --tls"
        );
        let there = addr.endpoint("10.0.0.1:4420".parse().unwrap());
        assert_eq!(there.interface, None);
    }

    #[test]
    fn interface_of_the_other_machine_is_explained() {
        let address = |interface: &str, ip: &str, running| Address {
            ip: ip.parse().unwrap(),
            interface: interface.to_owned(),
            scope_id: 2,
            scope: linux::net::scope_of(ip.parse().unwrap()),
            tentative: false,
            deprecated: false,
            running,
        };
        let own = [
            address("lo", "127.0.0.1", true),
            address("eth0", "10.0.0.1", true),
            address("eth0", "fe80::1", true),
            address("eth1", "fe80::2", false),
            address("wlan0", "fe80::3", true),
        ];
        let addr = |text: &str| TargetAddr::parse(text, None).unwrap();
        let check = |text: &str, own: &[Address]| {
            let addr = addr(text);
            addr.check_interface(addr.interface.as_deref().unwrap(), own)
        };
        assert!(check("fe80::9%eth0", &own).is_ok());
        let message = check("fe80::9%enp3s0", &own).unwrap_err().to_string();
        assert!(message.ends_with("try fe80::9%eth0 or fe80::9%wlan0"), "{message}");
        let message = check("fe80::9%enp3s0", &own[..2]).unwrap_err().to_string();
        assert!(message.ends_with("none of its interfaces is connected just now"), "{message}");
    }

    #[test]
    fn unreachable_machine_is_reported() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let addr = TargetAddr::parse(&nobody.to_string(), None).unwrap();
        assert!(addr.connect().unwrap_err().to_string().contains("cannot be reached"));
    }
}
