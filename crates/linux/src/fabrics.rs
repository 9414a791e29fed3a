//! The kernel's NVMe/TCP host: connects to and disconnects from remote subsystems. Requests are
//! written to `/dev/nvme-fabrics`; the state is in `/sys/class/nvme`.

mod controller;
mod driver;
mod registry;

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::IpAddr;

use rustix::io::Errno;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::tree::Tree;
pub use controller::{Controller, controllers, disks_of};
pub use driver::load;
pub use registry::register;

const DEVICE: &str = "dev/nvme-fabrics";
/// The maximum length of a request (`nvmf_dev_write`).
const LONGEST: usize = 4096;

/// The parameters of a connection to a subsystem of another machine.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// The target's address.
    pub address: IpAddr,
    pub port: u16,
    /// The interface to use; required for a link-local address.
    pub interface: Option<&'a str>,
    pub subsystem: &'a str,
    /// Host NQN of this machine.
    pub host: &'a str,
    /// Host identifier of this machine: a UUID.
    pub host_id: &'a str,
    /// Use TLS, with a key that is already in the `.nvme` keyring.
    pub tls: bool,
    /// The DH-HMAC-CHAP secret that authenticates this host: `DHHC-1:…`.
    pub chap: Option<&'a [u8]>,
    /// The DH-HMAC-CHAP secret that authenticates the controller.
    pub chap_controller: Option<&'a [u8]>,
    /// Use header and data digests.
    pub digests: bool,
    /// Seconds during which the kernel tries to reconnect (`ctrl_loss_tmo`); -1 for ever.
    pub loss_timeout: i32,
}

/// A connected controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connected {
    /// N of `nvmeN`.
    pub instance: u32,
    /// CNTLID.
    pub controller: u16,
}

/// Why the kernel cannot connect.
#[derive(Debug, Error)]
pub enum FabricsError {
    /// The driver is not loaded.
    #[error("the kernel has no NVMe/TCP host: load its driver with `modprobe nvme-tcp`")]
    Absent,
    /// The caller is not root.
    #[error("only root can attach and detach disks: run this as root")]
    Denied,
    /// A value that would be parsed as several options.
    #[error("{0} is too long, or contains a character that the kernel does not accept")]
    Value(&'static str),
    /// The same subsystem is connected already.
    #[error("it is attached already")]
    Already,
    /// Connection refused.
    #[error(
        "the other machine refuses the connection: is `storagetm serve` running there, and is this its address and port?"
    )]
    Refused,
    /// The address is unreachable.
    #[error("the other machine cannot be reached: {0}")]
    Unreachable(io::Error),
    /// Timed out.
    #[error(
        "the other machine did not answer in time, or what does TLS handshakes on this machine (tlshd, or storagetm \
         tls-agent) did not"
    )]
    TimedOut,
    /// No usable TLS key.
    #[error(
        "the kernel has no key for this disk of this machine, or none that the other machine accepts"
    )]
    Key,
    /// Neither tlshd nor another program does TLS handshakes.
    #[error(
        "no program does TLS handshakes for the kernel here: start tlshd (package ktls-utils) or storagetm tls-agent"
    )]
    Handshake,
    /// The kernel does not support an option.
    #[error("this machine's kernel does not support that: {0}")]
    Option(&'static str),
    /// The target denies access, or does not have the subsystem.
    #[error("access to that disk was denied to this host, or it does not exist")]
    AccessDenied,
    /// Another error.
    #[error("the kernel cannot connect: {0}")]
    Other(io::Error),
}

/// Connects. Blocks until the connection is established or has failed.
///
/// # Errors
/// Fails if the kernel cannot connect; no controller is left behind.
pub fn connect(tree: &Tree, connection: &Connection<'_>) -> Result<Connected, FabricsError> {
    let wanted = connection.options()?;
    let device = OpenOptions::new().read(true).write(true).open(tree.path(DEVICE));
    let mut device = device.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => FabricsError::Absent,
        io::ErrorKind::PermissionDenied => FabricsError::Denied,
        _ => FabricsError::Other(error),
    })?;
    device.write_all(&wanted).map_err(|error| error_of(tree, connection, error))?;
    let mut answer = [0; 256];
    let got = device.read(&mut answer).map_err(FabricsError::Other)?;
    let answer = answer.get(..got).unwrap_or_default();
    parse(answer).ok_or_else(|| FabricsError::Other(io::ErrorKind::InvalidData.into()))
}

impl Connection<'_> {
    /// Returns the request in the kernel's syntax (`nvmf_parse_options`).
    fn options(&self) -> Result<Zeroizing<Vec<u8>>, FabricsError> {
        let mut text = Text(Zeroizing::new(Vec::with_capacity(LONGEST)));
        text.add("transport", b"tcp")?;
        text.show("traddr", &self.address)?;
        text.show("trsvcid", &self.port)?;
        text.add("nqn", self.subsystem.as_bytes())?;
        text.add("hostnqn", self.host.as_bytes())?;
        text.add("hostid", self.host_id.as_bytes())?;
        text.maybe("host_iface", self.interface.map(str::as_bytes))?;
        text.show("ctrl_loss_tmo", &self.loss_timeout)?;
        text.maybe("dhchap_secret", self.chap)?;
        text.maybe("dhchap_ctrl_secret", self.chap_controller)?;
        for (word, wanted) in
            [("tls", self.tls), ("hdr_digest", self.digests), ("data_digest", self.digests)]
        {
            text.flag(word, wanted);
        }
        if text.0.len() > LONGEST {
            Err(FabricsError::Value("what is asked for"))
        } else {
            Ok(text.0)
        }
    }
}

/// Comma-separated options. Values with a comma or a line break are refused: they would be parsed
/// as two.
struct Text(Zeroizing<Vec<u8>>);

impl Text {
    fn show(&mut self, name: &'static str, value: &impl Display) -> Result<(), FabricsError> {
        self.add(name, value.to_string().as_bytes())
    }

    fn maybe(&mut self, name: &'static str, value: Option<&[u8]>) -> Result<(), FabricsError> {
        value.map_or(Ok(()), |value| self.add(name, value))
    }

    fn add(&mut self, name: &'static str, value: &[u8]) -> Result<(), FabricsError> {
        let plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b',';
        // The capacity is reserved in advance, so that no reallocation leaves a copy of a secret
        // behind.
        let room = LONGEST.saturating_sub(self.0.len()).saturating_sub(64);
        if value.is_empty() || value.len() > room || !value.iter().all(plain) {
            return Err(FabricsError::Value(name));
        }
        self.flag(name, true);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        Ok(())
    }

    fn flag(&mut self, word: &'static str, wanted: bool) {
        if !wanted {
            return;
        }
        if !self.0.is_empty() {
            self.0.push(b',');
        }
        self.0.extend_from_slice(word.as_bytes());
    }
}

/// Parses `instance=1,cntlid=2`.
fn parse(answer: &[u8]) -> Option<Connected> {
    let text = std::str::from_utf8(answer).ok()?.trim();
    let value = |name: &str| {
        text.split(',')
            .find_map(|part| part.strip_prefix(name)?.strip_prefix('=')?.parse::<u32>().ok())
    };
    let controller = u16::try_from(value("cntlid")?).ok()?;
    Some(Connected { instance: value("instance")?, controller })
}

/// Maps the kernel's error number.
fn error_of(tree: &Tree, connection: &Connection<'_>, error: io::Error) -> FabricsError {
    let Some(number) = error.raw_os_error().map(Errno::from_raw_os_error) else {
        return FabricsError::Other(error);
    };
    match number {
        Errno::ALREADY | Errno::EXIST => FabricsError::Already,
        Errno::CONNREFUSED => FabricsError::Refused,
        Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::NETDOWN | Errno::HOSTDOWN => {
            FabricsError::Unreachable(error)
        }
        Errno::TIMEDOUT => FabricsError::TimedOut,
        Errno::NOKEY | Errno::KEYREJECTED | Errno::KEYEXPIRED | Errno::KEYREVOKED => {
            FabricsError::Key
        }
        // The result of a handshake that the peer has aborted (net/handshake).
        Errno::ACCESS if connection.tls => FabricsError::Key,
        Errno::SRCH if connection.tls => FabricsError::Handshake,
        Errno::ACCESS | Errno::PERM => FabricsError::Denied,
        Errno::INVAL | Errno::OPNOTSUPP => {
            missing(tree, connection).map_or(FabricsError::Other(error), FabricsError::Option)
        }
        // The Connect command failed: the subsystem does not exist, or denies this host.
        Errno::IO => FabricsError::AccessDenied,
        _ => FabricsError::Other(error),
    }
}

/// Returns the first requested option that this kernel lacks, as a clause. The kernel lists its
/// options since Linux 5.17.
fn missing(tree: &Tree, connection: &Connection<'_>) -> Option<&'static str> {
    let mut known = [0; 4096];
    let mut device = OpenOptions::new().read(true).open(tree.path(DEVICE)).ok()?;
    let got = device.read(&mut known).ok()?;
    let known = String::from_utf8_lossy(known.get(..got)?).into_owned();
    let has =
        |name: &str| known.split(['\n', ',']).any(|word| word.split('=').next() == Some(name));
    let asked = [
        (
            connection.tls,
            "tls",
            "it does not encrypt NVMe/TCP connections (requires Linux 6.7, built with NVMe/TCP TLS)",
        ),
        (
            connection.chap.is_some(),
            "dhchap_secret",
            "it does not support DH-HMAC-CHAP (requires Linux 6.0, built with NVMe authentication)",
        ),
        (
            connection.interface.is_some(),
            "host_iface",
            "it cannot bind a connection to an interface (requires Linux 5.14)",
        ),
    ];
    let lacks = |(asked, name, _): &&(bool, &str, &str)| *asked && has("transport") && !has(name);
    asked.iter().find(lacks).map(|(_, _, sentence)| *sentence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    const PLAIN: Connection<'static> = Connection {
        address: IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 1, 5)),
        port: 4420,
        interface: None,
        subsystem: "nqn.2024-01.test:disk",
        host: "nqn.2024-01.test:host",
        host_id: "6b1c2f5e-30c4-4a6e-8d27-5b8f0a9c4d11",
        tls: false,
        chap: None,
        chap_controller: None,
        digests: false,
        loss_timeout: 600,
    };

    fn text(connection: &Connection<'_>) -> String {
        String::from_utf8(connection.options().unwrap().to_vec()).unwrap()
    }

    #[test]
    fn request_has_the_syntax_of_the_kernel() {
        assert_eq!(
            text(&PLAIN),
            "transport=tcp,traddr=192.168.1.5,trsvcid=4420,nqn=nqn.2024-01.test:disk,\
             hostnqn=nqn.2024-01.test:host,hostid=6b1c2f5e-30c4-4a6e-8d27-5b8f0a9c4d11,ctrl_loss_tmo=600"
        );
        let all = Connection {
            address: "fe80::1".parse().unwrap(),
            interface: Some("eth0"),
            tls: true,
            digests: true,
            chap: Some(b"DHHC-1:00:abc:"),
            chap_controller: Some(b"DHHC-1:00:def:"),
            loss_timeout: -1,
            ..PLAIN
        };
        let all = text(&all);
        assert!(
            all.contains("traddr=fe80::1,") && all.contains(",host_iface=eth0,ctrl_loss_tmo=-1,")
        );
        assert!(all.ends_with(
            ",dhchap_secret=DHHC-1:00:abc:,dhchap_ctrl_secret=DHHC-1:00:def:,tls,hdr_digest,data_digest"
        ));
    }

    /// A name from the network cannot inject options.
    #[test]
    fn value_cannot_contain_another_option() {
        for wrong in ["", "nqn.a,tls_key=1", "nqn.a\nqueue_size=1", "nqn a", "nqn.\u{e9}", "a\0b"] {
            let bad = Connection { subsystem: wrong, ..PLAIN };
            let error = bad.options().unwrap_err();
            assert!(matches!(error, FabricsError::Value("nqn")), "{wrong:?}: {error}");
        }
        let long = "a".repeat(5000);
        assert!(Connection { host: &long, ..PLAIN }.options().is_err());
        let secret = Connection { chap: Some(b"hunter2,"), ..PLAIN }.options().unwrap_err();
        assert!(!secret.to_string().contains("hunter2"));
    }

    #[test]
    fn reply_is_parsed() {
        let expected = Connected { instance: 12, controller: 3 };
        assert_eq!(parse(b"instance=12,cntlid=3\n"), Some(expected));
        for wrong in [&b""[..], b"instance=-1,cntlid=-1", b"instance=1", b"cntlid=1", b"\xff"] {
            assert_eq!(parse(wrong), None);
        }
    }

    #[test]
    fn missing_driver_is_reported_with_advice() {
        let fake = Fake::new();
        let error = connect(&fake.tree(), &PLAIN).unwrap_err().to_string();
        assert!(error.contains("modprobe nvme-tcp"), "{error}");
    }

    #[test]
    fn kernel_errors_have_messages() {
        let fake = Fake::new();
        let tls = Connection { tls: true, ..PLAIN };
        let of = |connection: &Connection<'_>, errno: Errno| {
            error_of(&fake.tree(), connection, errno.into()).to_string()
        };
        for (errno, part) in [
            (Errno::CONNREFUSED, "refuses the connection"),
            (Errno::ALREADY, "already"),
            (Errno::HOSTUNREACH, "cannot be reached"),
            (Errno::TIMEDOUT, "in time"),
            (Errno::ACCESS, "root"),
            (Errno::IO, "denied"),
            (Errno::INVAL, "cannot connect"),
            (Errno::NOMEM, "cannot connect"),
        ] {
            let sentence = of(&PLAIN, errno);
            assert!(sentence.contains(part), "{errno:?}: {sentence}");
        }
        assert!(of(&tls, Errno::SRCH).contains("tlshd"));
        assert!(of(&tls, Errno::NOKEY).contains("no key"));
        fake.file(DEVICE, "instance=-1,cntlid=-1,transport=%s,traddr=%s,host_iface=%s\n");
        assert!(of(&tls, Errno::INVAL).contains("does not encrypt"));
        let chap = Connection { chap: Some(b"DHHC-1:"), ..PLAIN };
        assert!(of(&chap, Errno::INVAL).contains("DH-HMAC-CHAP"));
        let behind = Connection { interface: Some("eth0"), ..PLAIN };
        assert!(of(&behind, Errno::INVAL).contains("cannot connect"));
    }
}
