//! Command lines to run on the other machine: for storagetm, nvme-cli and NBD clients.

use std::fmt;
use std::net::IpAddr;

/// An address at which disks are served.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// An address of this machine.
    pub address: IpAddr,
    /// The interface of a link-local IPv6 address.
    pub interface: Option<String>,
    /// The TCP port.
    pub port: u16,
    /// Whether TLS with a key is required.
    pub keyed: bool,
}

/// Default port of NVMe/TCP.
const PORT: u16 = 4420;

/// Default port of NBD.
const NBD_PORT: u16 = 10809;

/// Placeholder for the other machine's network interface.
pub const INTERFACE: &str = "INTERFACE";

/// Where NBD clients reach the disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nbd {
    /// A TCP endpoint.
    Net(Endpoint),
    /// The path of a Unix socket.
    Path(String),
}

impl Nbd {
    /// Returns the NBD URI of the disk: `nbd://127.0.0.1/sda`.
    pub fn uri(&self, name: &str) -> String {
        let name = percent_encoded(name, "");
        match self {
            Self::Net(at) => {
                let scheme = if at.keyed { "nbds" } else { "nbd" };
                let port =
                    if at.port == NBD_PORT { String::new() } else { format!(":{}", at.port) };
                format!("{scheme}://{}{port}/{name}", at.uri_host())
            }
            Self::Path(path) => format!("nbd+unix:///{name}?socket={}", percent_encoded(path, "/")),
        }
    }

    /// Returns a copy for use on another machine: with [`INTERFACE`] in place of an interface of
    /// this one.
    #[must_use]
    pub fn as_seen_remotely(&self) -> Self {
        match self {
            Self::Net(at) => Self::Net(at.as_seen_remotely()),
            Self::Path(path) => Self::Path(path.clone()),
        }
    }

    /// Returns the nbdcopy command that copies the disk to a file; `None` if a key is required.
    pub fn copy(&self, name: &str) -> Option<String> {
        let to = file_name(name, "img");
        (!self.requires_key()).then(|| format!("nbdcopy {} {to}", quoted(&self.uri(name))))
    }

    /// Returns the qemu-img command that does the same.
    pub fn convert(&self, name: &str) -> Option<String> {
        let to = file_name(name, "qcow2");
        let line = || format!("qemu-img convert -f raw -O qcow2 {} {to}", quoted(&self.uri(name)));
        (!self.requires_key()).then(line)
    }

    /// Returns the NBD URI of the disk with placeholders for host name and key file; `None` if no
    /// key is required.
    pub fn uri_with_key(&self, name: &str) -> Option<String> {
        let uri = self.requires_key().then(|| self.uri(name))?;
        let uri = uri.replacen("://", "://HOST@", 1);
        Some(quoted(&format!("{uri}?tls-psk-file=FILE")))
    }

    fn requires_key(&self) -> bool {
        self.endpoint().is_some_and(|at| at.keyed)
    }

    /// Returns the TCP endpoint, if it is one.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Self::Net(endpoint) => Some(endpoint),
            Self::Path(_) => None,
        }
    }
}

/// Returns the file to copy a disk to, in the working directory. Not `NAME.img`: on this machine,
/// that may be the served image itself, which nbdcopy would overwrite.
fn file_name(name: &str, ending: &str) -> String {
    let name = name.replace('/', "_");
    quoted(&format!("{}-copy.{ending}", name.trim_start_matches('-')))
}

/// Percent-encodes text for a URI (RFC 3986 §2.1), except unreserved characters and those in
/// `more`.
fn percent_encoded(text: &str, more: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c) || more.contains(c);
    let one = |byte: u8| match char::from(byte) {
        c if plain(c) => c.to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

impl Endpoint {
    /// Returns the address as accepted by `nvme`, with zone: `fe80::1%eth0`.
    pub fn host(&self) -> String {
        match &self.interface {
            Some(interface) => format!("{}%{interface}", self.address),
            None => self.address.to_string(),
        }
    }

    /// Returns the host part of a URI, with zone (RFC 6874).
    fn uri_host(&self) -> String {
        match (self.address, &self.interface) {
            (IpAddr::V4(ip), _) => ip.to_string(),
            (IpAddr::V6(ip), None) => format!("[{ip}]"),
            (IpAddr::V6(ip), Some(interface)) => {
                format!("[{ip}%25{}]", percent_encoded(interface, ""))
            }
        }
    }

    /// Returns the nvme-cli command that attaches all disks.
    pub fn attach_all(&self, digests: bool) -> String {
        self.line("connect-all", None, digests)
    }

    /// Returns the nvme-cli command that attaches the disk with that NQN.
    pub fn attach(&self, nqn: &str, digests: bool) -> String {
        self.line("connect", Some(nqn), digests)
    }

    /// Returns a copy for use on another machine, where an interface name of this one is not valid.
    #[must_use]
    pub fn as_seen_remotely(&self) -> Self {
        let interface = self.interface.as_ref().map(|_| INTERFACE.to_owned());
        Self { interface, ..self.clone() }
    }

    /// Returns the command that pairs the other machine by the code.
    pub fn pair(&self) -> String {
        format!("storagetm pair {}", quoted(&self.machine()))
    }

    /// Returns the storagetm command that attaches the disk.
    pub fn attach_disk(&self, name: &str) -> String {
        format!("storagetm attach {}", quoted(&format!("{}/{name}", self.machine())))
    }

    /// Returns the storagetm command that copies the disk to a file.
    pub fn copy(&self, name: &str) -> String {
        let port = if self.port == PORT { String::new() } else { format!(":{}", self.port) };
        let uri = format!("nvme://{}{port}/{}", self.uri_host(), percent_encoded(name, ""));
        format!("storagetm copy {} {}", quoted(&uri), file_name(name, "img"))
    }

    /// Returns the address as accepted by storagetm.
    pub fn machine(&self) -> String {
        match (self.address, self.port) {
            (_, PORT) => self.host(),
            (IpAddr::V4(_), port) => format!("{}:{port}", self.host()),
            (IpAddr::V6(_), port) => format!("[{}]:{port}", self.host()),
        }
    }

    /// The interface is passed as an option: a discovery log page entry has no room for the zone of
    /// a link-local address, and `connect-all` uses the addresses from the entries.
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

/// Quotes a word for a shell, if necessary.
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
    fn keyed_endpoint_uses_tls_and_has_a_pair_command() {
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
    fn nvme_cli_commands() {
        let here = endpoint("192.168.1.5", None);
        assert_eq!(here.attach_all(false), "nvme connect-all -t tcp -a 192.168.1.5 -s 4420");
        assert_eq!(
            here.attach("nqn.2014-08.org.nvmexpress:uuid:1", true),
            "nvme connect -t tcp -a 192.168.1.5 -s 4420 -n nqn.2014-08.org.nvmexpress:uuid:1 \
             --hdr-digest --data-digest"
        );
    }

    #[test]
    fn link_local_address_has_its_zone() {
        let here = endpoint("fe80::1", Some("eth0"));
        assert_eq!(
            here.attach_all(false),
            "nvme connect-all -t tcp -a fe80::1 -s 4420 --host-iface eth0"
        );
        assert_eq!(here.to_string(), "[fe80::1%eth0]:4420");
    }

    #[test]
    fn nbd_commands_need_no_key() {
        let at = Nbd::Net(Endpoint { port: 10809, ..endpoint("10.0.0.1", None) });
        assert_eq!(at.copy("sda").unwrap(), "nbdcopy nbd://10.0.0.1/sda sda-copy.img");
        let line = "qemu-img convert -f raw -O qcow2 nbd://10.0.0.1/sda sda-copy.qcow2";
        assert_eq!(at.convert("sda").unwrap(), line);
        assert_eq!(
            at.copy("-r/a b").unwrap(),
            "nbdcopy nbd://10.0.0.1/-r%2Fa%20b 'r_a b-copy.img'"
        );
        assert_eq!(at.uri_with_key("sda"), None);
        let keyed = Endpoint { keyed: true, port: 10809, ..endpoint("10.0.0.1", None) };
        let keyed = Nbd::Net(keyed);
        assert_eq!((keyed.copy("sda"), keyed.convert("sda")), (None, None));
        let wanted = "'nbds://HOST@10.0.0.1/sda?tls-psk-file=FILE'";
        assert_eq!(keyed.uri_with_key("sda").unwrap(), wanted);
    }

    /// The common options of nvme-cli 2.3, 2.13 and 3; `--tls` exists since 2.9.
    #[test]
    fn nvme_commands_use_options_of_all_versions_only() {
        let here = Endpoint { keyed: true, ..endpoint("fe80::1", Some("eth0")) };
        let known =
            ["-t", "-a", "-s", "-n", "--host-iface", "--hdr-digest", "--data-digest", "--tls"];
        for line in [here.attach_all(true), here.attach("nqn.x", true)] {
            let mut options = line.split(' ').filter(|word| word.starts_with('-'));
            assert!(options.all(|option| known.contains(&option)), "{line}");
        }
    }

    #[test]
    fn nbd_uris_are_encoded() {
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
    fn words_are_quoted_only_if_needed() {
        assert_eq!(quoted("nqn.2024-01.com.example:disk.sda"), "nqn.2024-01.com.example:disk.sda");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(""), "''");
    }
}
