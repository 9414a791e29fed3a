//! The lines to be typed on the other machine: those that attach a disk, for `nvme-cli`, and the one that lets that machine
//! in, for storagetm itself. It knows no socket.

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

impl Endpoint {
    /// The address as `nvme` takes it: `fe80::1%eth0` has its scope.
    pub fn host(&self) -> String {
        match &self.interface {
            Some(interface) => format!("{}%{interface}", self.address),
            None => self.address.to_string(),
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
    fn a_word_is_quoted_only_if_the_shell_needs_it() {
        assert_eq!(quoted("nqn.2024-01.com.example:disk.sda"), "nqn.2024-01.com.example:disk.sda");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(""), "''");
    }
}
