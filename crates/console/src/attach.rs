//! The lines to be typed on the other machine: those for storagetm, for `nvme-cli` and for NBD clients.

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

/// The port that storagetm takes where none is named.
const PORT: u16 = 4420;

/// The port that NBD clients take where none is named.
const NBD_PORT: u16 = 10809;

/// Stands for the name of the other machine's network interface, which only that machine knows.
pub const INTERFACE: &str = "INTERFACE";

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

    /// The same with [`INTERFACE`] in place of an interface of this machine.
    #[must_use]
    pub fn from_elsewhere(&self) -> Self {
        match self {
            Self::Net(at) => Self::Net(at.from_elsewhere()),
            Self::Path(path) => Self::Path(path.clone()),
        }
    }

    /// The line by which nbdcopy copies the disk of that name into a file, if none needs a key.
    pub fn copy(&self, name: &str) -> Option<String> {
        let to = file_name(name, "img");
        (!self.is_keyed()).then(|| format!("nbdcopy {} {to}", quoted(&self.uri(name))))
    }

    /// The line by which qemu-img does the same.
    pub fn convert(&self, name: &str) -> Option<String> {
        let to = file_name(name, "qcow2");
        let line = || format!("qemu-img convert -f raw -O qcow2 {} {to}", quoted(&self.uri(name)));
        (!self.is_keyed()).then(line)
    }

    /// The address of the disk of that name for clients that show the key of HOST, which is in FILE.
    pub fn uri_with_key(&self, name: &str) -> Option<String> {
        let uri = self.is_keyed().then(|| self.uri(name))?;
        let uri = uri.replacen("://", "://HOST@", 1);
        Some(quoted(&format!("{uri}?tls-psk-file=FILE")))
    }

    fn is_keyed(&self) -> bool {
        self.endpoint().is_some_and(|at| at.keyed)
    }

    /// The address, if it is one of a network.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Self::Net(endpoint) => Some(endpoint),
            Self::Path(_) => None,
        }
    }
}

/// The file to copy a disk of that name to, in the working directory. Not `NAME.img`: typed on this machine, that may be
/// the image itself, which nbdcopy overwrites without a question.
fn file_name(name: &str, ending: &str) -> String {
    let name = name.replace('/', "_");
    quoted(&format!("{}-copy.{ending}", name.trim_start_matches('-')))
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

    /// The same as the other machine has to write it: an interface of this one means nothing there.
    #[must_use]
    pub fn from_elsewhere(&self) -> Self {
        let interface = self.interface.as_ref().map(|_| INTERFACE.to_owned());
        Self { interface, ..self.clone() }
    }

    /// The line that lets the other machine in, by the code on the screen.
    pub fn pair(&self) -> String {
        format!("storagetm pair {}", quoted(&self.machine()))
    }

    /// The line by which storagetm attaches the disk of that name.
    pub fn attach_disk(&self, name: &str) -> String {
        format!("storagetm attach {}", quoted(&format!("{}/{name}", self.machine())))
    }

    /// The line by which storagetm copies the disk of that name into a file.
    pub fn copy(&self, name: &str) -> String {
        let port = if self.port == PORT { String::new() } else { format!(":{}", self.port) };
        let uri = format!("nvme://{}{port}/{}", self.uri_host(), escaped(name, ""));
        format!("storagetm copy {} {}", quoted(&uri), file_name(name, "img"))
    }

    /// The machine as storagetm takes it.
    pub fn machine(&self) -> String {
        match (self.address, self.port) {
            (_, PORT) => self.host(),
            (IpAddr::V4(_), port) => format!("{}:{port}", self.host()),
            (IpAddr::V6(_), port) => format!("[{}]:{port}", self.host()),
        }
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
    fn nbd_lines_are_for_nbdcopy_and_qemu_img_and_need_no_key() {
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

    /// Options that nvme-cli 2.3, 2.13 and 3 have in common; `--tls` is there from 2.9 on.
    #[test]
    fn lines_of_nvme_have_options_of_all_versions_alone() {
        let here = Endpoint { keyed: true, ..endpoint("fe80::1", Some("eth0")) };
        let known =
            ["-t", "-a", "-s", "-n", "--host-iface", "--hdr-digest", "--data-digest", "--tls"];
        for line in [here.attach_all(true), here.attach("nqn.x", true)] {
            let mut options = line.split(' ').filter(|word| word.starts_with('-'));
            assert!(options.all(|option| known.contains(&option)), "{line}");
        }
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
