//! The lines to be typed on the other machine: those that attach a disk, for `nvme-cli`, the addresses that NBD clients
//! take, and the line that lets that machine in, for storagetm itself. It knows no socket.

use std::fmt;
use std::net::IpAddr;

/// Where a host reaches the disks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// An address of this machine.
    pub address: IpAddr,
    /// For a link-local IPv6 address: the interface behind which it is.
    pub interface: Option<String>,
    /// The TCP port.
    pub port: u16,
    /// Whether hosts must show a key there, and speak TLS.
    pub keyed: bool,
}

/// The port that need not be named to those who want to be let in.
const PORT: u16 = 4420;

/// The port that need not be named to NBD clients.
const NBD_PORT: u16 = 10809;

/// Where NBD clients reach the disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nbd {
    /// At an address of this machine.
    Net(Endpoint),
    /// At the path of a Unix socket.
    Path(String),
}

impl Nbd {
    /// The address of the disk of that name, as NBD clients take it (the NBD URI specification): `nbd://127.0.0.1/sda`.
    pub fn uri(&self, name: &str) -> String {
        let name = escaped(name, "");
        match self {
            Self::Net(at) => {
                let scheme = if at.keyed { "nbds" } else { "nbd" };
                let port =
                    if at.port == NBD_PORT { String::new() } else { format!(":{}", at.port) };
                format!("{scheme}://{}{port}/{name}", at.uri_host())
            }
            Self::Path(path) => format!("nbd+unix:///{name}?socket={}", escaped(path, "/")),
        }
    }

    /// The address, if it is one of a network.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Self::Net(endpoint) => Some(endpoint),
            Self::Path(_) => None,
        }
    }
}

/// Text as a part of a URI (RFC 3986 §2.1): all but the unreserved characters, and those of `more`, are escaped.
fn escaped(text: &str, more: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c) || more.contains(c);
    let one = |byte: u8| match char::from(byte) {
        c if plain(c) => c.to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

impl Endpoint {
    /// The address as `nvme` takes it: `fe80::1%eth0` has its scope.
    pub fn host(&self) -> String {
        match &self.interface {
            Some(interface) => format!("{}%{interface}", self.address),
            None => self.address.to_string(),
        }
    }

    /// The address as it stands in a URI, a link-local one with its interface (RFC 6874).
    fn uri_host(&self) -> String {
        match (self.address, &self.interface) {
            (IpAddr::V4(ip), _) => ip.to_string(),
            (IpAddr::V6(ip), None) => format!("[{ip}]"),
            (IpAddr::V6(ip), Some(interface)) => format!("[{ip}%25{}]", escaped(interface, "")),
        }
    }

    /// The line that attaches all disks that are reached here.
    pub fn attach_all(&self, digests: bool) -> String {
        self.line("connect-all", None, digests)
    }

    /// The line that attaches the disk of that NVMe Qualified Name.
    pub fn attach(&self, nqn: &str, digests: bool) -> String {
        self.line("connect", Some(nqn), digests)
    }

    /// The line that lets the other machine in, by the code on the screen.
    pub fn pair(&self) -> String {
        let host = match (self.address, self.port) {
            (_, PORT) => self.host(),
            (IpAddr::V4(_), port) => format!("{}:{port}", self.host()),
            (IpAddr::V6(_), port) => format!("[{}]:{port}", self.host()),
        };
        format!("storagetm pair {}", quoted(&host))
    }

    /// The interface stands as an option: what a host is told of the disks behind a link-local address has no room
    /// for it, and `connect-all` goes on with what it was told.
    fn line(&self, verb: &str, nqn: Option<&str>, digests: bool) -> String {
        let host = quoted(&self.address.to_string());
        let interface = self.interface.as_deref().map(quoted);
        let interface = interface.map(|name| format!(" --host-iface {name}")).unwrap_or_default();
        let nqn = nqn.map(|nqn| format!(" -n {}", quoted(nqn))).unwrap_or_default();
        let digests = if digests { " --hdr-digest --data-digest" } else { "" };
        let tls = if self.keyed { " --tls" } else { "" };
        format!("nvme {verb} -t tcp -a {host} -s {}{nqn}{interface}{digests}{tls}", self.port)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(_) => write!(f, "{}:{}", self.host(), self.port),
            IpAddr::V6(_) => write!(f, "[{}]:{}", self.host(), self.port),
        }
    }
}

/// The word in quotes if a shell would otherwise take it for something else.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._:/@%+=,-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod test {
    use super::*;

    fn endpoint(address: &str, interface: Option<&str>) -> Endpoint {
        let interface = interface.map(str::to_owned);
        Endpoint { address: address.parse().unwrap(), interface, port: 4420, keyed: false }
    }

    #[test]
    fn where_a_key_is_needed_the_lines_say_so_and_there_is_one_to_get_it() {
        let here = Endpoint { keyed: true, ..endpoint("fe80::1", Some("eth0")) };
        assert_eq!(
            here.attach_all(false),
            "nvme connect-all -t tcp -a fe80::1 -s 4420 --host-iface eth0 --tls"
        );
        assert_eq!(here.pair(), "storagetm pair fe80::1%eth0");
        assert_eq!(Endpoint { port: 1, ..here }.pair(), "storagetm pair '[fe80::1%eth0]:1'");
        let there = Endpoint { port: 1, ..endpoint("10.0.0.1", None) };
        assert_eq!(there.pair(), "storagetm pair 10.0.0.1:1");
    }

    #[test]
    fn the_lines_are_those_that_nvme_cli_takes() {
        let here = endpoint("192.168.1.5", None);
        assert_eq!(here.attach_all(false), "nvme connect-all -t tcp -a 192.168.1.5 -s 4420");
        assert_eq!(
            here.attach("nqn.2014-08.org.nvmexpress:uuid:1", true),
            "nvme connect -t tcp -a 192.168.1.5 -s 4420 -n nqn.2014-08.org.nvmexpress:uuid:1 \
             --hdr-digest --data-digest"
        );
    }

    #[test]
    fn a_link_local_address_has_its_scope() {
        let here = endpoint("fe80::1", Some("eth0"));
        assert_eq!(
            here.attach_all(false),
            "nvme connect-all -t tcp -a fe80::1 -s 4420 --host-iface eth0"
        );
        assert_eq!(here.to_string(), "[fe80::1%eth0]:4420");
    }

    #[test]
    fn nbd_clients_get_a_uri() {
        let net = |at: Endpoint| Nbd::Net(at).uri("my disk/é");
        let at = |address, interface, port, keyed| Endpoint {
            port,
            keyed,
            ..endpoint(address, interface)
        };
        let name = "my%20disk%2F%C3%A9";
        assert_eq!(net(at("10.0.0.1", None, 10809, false)), format!("nbd://10.0.0.1/{name}"));
        assert_eq!(net(at("::1", None, 1, false)), format!("nbd://[::1]:1/{name}"));
        let near = at("fe80::1", Some("eth0"), 10809, true);
        assert_eq!(net(near), format!("nbds://[fe80::1%25eth0]/{name}"));
        let path = Nbd::Path("/run/a b?c".to_owned());
        assert_eq!(path.uri("sda"), "nbd+unix:///sda?socket=/run/a%20b%3Fc");
    }

    #[test]
    fn a_word_is_quoted_only_if_the_shell_needs_it() {
        assert_eq!(quoted("nqn.2024-01.com.example:disk.sda"), "nqn.2024-01.com.example:disk.sda");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(""), "''");
    }
}
