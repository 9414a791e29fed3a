//! Parses the value of `--listen`: a protocol, an address and a port, or the path of a Unix socket.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use linux::host_port::{HostPort, HostPortError};
use linux::net::Address;
use protocol::{Protocol, joined, option_names};

use super::Protocols;

/// Value of `--listen`: `[PROTOCOL:]ADDRESS[:PORT]`, or `[nbd:]unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenOption {
    /// The protocol, if one was given.
    pub protocol: Option<Protocol>,
    /// The address.
    pub addr: ListenAddr,
}

/// Address of `--listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddr {
    /// A network address.
    Address {
        /// IP address.
        ip: IpAddr,
        /// Interface of an IPv6 address: `[fe80::1%eth0]`.
        interface: Option<String>,
        /// The port, if one was given.
        port: Option<u16>,
    },
    /// A Unix socket.
    Path(PathBuf),
}

const BRACKETS: &str = "an IPv6 address stands in brackets, as in [::1]:4420 or [fe80::1%eth0]";

const FORM: &str = "an address looks like 192.168.1.5, 127.0.0.1:4420, [fe80::1%eth0], nbd:[::]:10809 or unix:/run/x.sock";

/// Longest path of a Unix socket (unix(7)).
const MAX_PATH: usize = 107;

impl ListenOption {
    /// Returns whether the machine has the address.
    pub fn is_at(&self, machine: &[Address]) -> bool {
        let ListenAddr::Address { ip, interface, .. } = &self.addr else { return true };
        let named =
            |address: &Address| interface.as_ref().is_none_or(|name| address.interface == *name);
        let has = |address: &Address| address.ip == *ip && named(address);
        ip.is_unspecified() || machine.iter().any(|address| has(address) && !address.tentative)
    }

    /// The IP address, unless it is a path.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.addr {
            ListenAddr::Address { ip, .. } => Some(ip),
            ListenAddr::Path(_) => None,
        }
    }

    /// The protocols that are served at it, if `all` are served.
    pub(super) fn protocols(&self, all: &Protocols) -> Vec<Protocol> {
        match (self.protocol, &self.addr) {
            (Some(protocol), _) => vec![protocol],
            // Two protocols cannot have one port. With port 0 each has another.
            (None, ListenAddr::Address { port: Some(1..), .. }) => vec![all.first()],
            (None, _) => all.served.clone(),
        }
    }
}

impl FromStr for ListenOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (protocol, rest) = protocol(text)?;
        let Some(path) = rest.strip_prefix("unix:") else {
            return Ok(Self { protocol, addr: address(rest)? });
        };
        let unix = Protocol::on_unix();
        if protocol.is_some_and(|protocol| protocol != unix) {
            let (label, option) = (unix.row().label, unix.row().option);
            return Err(format!(
                "a Unix socket is for {label} only, as in {option}:unix:/run/x.sock"
            ));
        }
        Ok(Self { protocol: Some(unix), addr: self::path(path)? })
    }
}

/// Splits off the protocol.
fn protocol(text: &str) -> Result<(Option<Protocol>, &str), String> {
    let named = |name: &str| Protocol::from_option(name);
    match text.split_once(':') {
        Some((name, rest)) if named(name).is_some() => Ok((named(name), rest)),
        Some(("unix", _)) => Ok((None, text)),
        Some((word, _)) if word.starts_with(|c: char| c.is_ascii_alphabetic()) && !is_v6(text) => {
            Err(format!("{}, as in nbd:127.0.0.1:10809", known_protocols()))
        }
        _ => Ok((None, text)),
    }
}

/// Returns a sentence that names the protocols as in options.
pub(crate) fn known_protocols() -> String {
    format!("the protocols are {}", joined(option_names(), "and"))
}

fn path(path: &str) -> Result<ListenAddr, &'static str> {
    if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
        return Err("the path of a Unix socket begins with a slash, as in unix:/run/x.sock");
    }
    if path.len() > MAX_PATH {
        return Err("the path of a Unix socket has at most 107 bytes");
    }
    Ok(ListenAddr::Path(path.into()))
}

fn address(text: &str) -> Result<ListenAddr, &'static str> {
    if text.contains('/') {
        return Err(
            "an address has no prefix length here: leave out the slash and what follows it",
        );
    }
    let parsed = HostPort::parse(text).map_err(|error| match error {
        HostPortError::Port => "a port is a number up to 65535",
        _ => FORM,
    })?;
    let HostPort { host, zone: interface, port, in_brackets } = parsed;
    if host.contains(':') && !in_brackets {
        return Err(BRACKETS);
    }
    let ip: IpAddr = host.parse().map_err(|_| FORM)?;
    if in_brackets && ip.is_ipv4() {
        return Err(FORM);
    }
    check_usable(ip)?;
    let has_zone = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    if interface.is_some() && !has_zone {
        return Err("only a link-local IPv6 address has an interface, as in [fe80::1%eth0]");
    }
    Ok(ListenAddr::Address { ip, interface, port })
}

/// Refuses addresses that accept no connections.
fn check_usable(ip: IpAddr) -> Result<(), &'static str> {
    match ip {
        IpAddr::V4(ip) if ip.is_broadcast() => Err(
            "255.255.255.255 is the broadcast address, which takes no connections; use 0.0.0.0 \
                 for all IPv4 addresses of this machine",
        ),
        _ if ip.is_multicast() => {
            Err("this is a multicast address, which takes no connections; use an address of this \
                 machine")
        }
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            Err("this is an IPv4 address in IPv6 form; write it as IPv4, as in 127.0.0.1")
        }
        _ => Ok(()),
    }
}

/// Returns whether it is an IPv6 address, with or without an interface.
fn is_v6(text: &str) -> bool {
    text.split(['%', '/']).next().unwrap_or_default().parse::<Ipv6Addr>().is_ok()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn all_forms_of_listen_addresses_are_parsed() {
        let (nvme, nbd) = (Some(Protocol::Nvme), Some(Protocol::Nbd));
        for (text, protocol, ip, interface, port) in [
            ("192.168.1.5", None, "192.168.1.5", None, None),
            ("127.0.0.1:0", None, "127.0.0.1", None, Some(0)),
            ("nvme:127.0.0.1:4421", nvme, "127.0.0.1", None, Some(4421)),
            ("nvme:127.0.0.1", nvme, "127.0.0.1", None, None),
            ("nbd:127.0.0.1", nbd, "127.0.0.1", None, None),
            ("nbd:[::]:10809", nbd, "::", None, Some(10809)),
            ("[::]", None, "::", None, None),
            ("[::1]:4420", None, "::1", None, Some(4420)),
            ("nvme:[::1]:4420", nvme, "::1", None, Some(4420)),
            ("[fe80::1%eth0]:1", None, "fe80::1", Some("eth0"), Some(1)),
        ] {
            let (ip, interface) = (ip.parse().unwrap(), interface.map(str::to_owned));
            let wanted =
                ListenOption { protocol, addr: ListenAddr::Address { ip, interface, port } };
            assert_eq!(text.parse(), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn path_is_for_nbd() {
        let wanted = ListenOption {
            protocol: Some(Protocol::Nbd),
            addr: ListenAddr::Path("/run/x y".into()),
        };
        for text in ["unix:/run/x y", "nbd:unix:/run/x y"] {
            assert_eq!(text.parse(), Ok(wanted.clone()), "{text}");
        }
    }

    #[test]
    fn malformed_listen_address_is_refused() {
        let long = format!("unix:/{}", "x".repeat(MAX_PATH));
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
            ("smb:127.0.0.1:1", "protocols"),
            ("localhost:4420", "protocols"),
            ("nvme:", "looks like"),
            ("nbd:", "looks like"),
            ("fe80::1%eth0", "brackets"),
            ("fe80::1%eth0:4420", "brackets"),
            ("nvme:fe80::1", "brackets"),
            ("fd00::2/64", "prefix length"),
            ("[fd00::2]/64", "prefix length"),
            ("[fd00::2]:/64", "prefix length"),
            ("192.0.2.1/24", "prefix length"),
            ("255.255.255.255", "broadcast"),
            ("224.0.0.251:5353", "multicast"),
            ("[ff02::1%eth0]", "multicast"),
            ("[::ffff:127.0.0.1]:4420", "as IPv4"),
            ("127.0.0.1%lo", "interface"),
            ("[::1%lo]:1", "interface"),
            ("nvme:unix:/run/x", "NBD only"),
            ("unix:", "slash"),
            ("unix:x.sock", "slash"),
            ("nbd:unix:/run/", "slash"),
            (&long, "107"),
        ] {
            let error = text.parse::<ListenOption>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
