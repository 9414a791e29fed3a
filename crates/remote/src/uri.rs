//! Parses the location of a disk as the user types it: a path, `-` for a pipe, or the URI of a disk
//! on another machine.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use export::Secret;
use linux::host_port::{HostPort, HostPortError};
use nvme::PORT as NVME_PORT;

use crate::address::TargetAddr;

/// The TCP port of NBD servers (NBD, Protocol phases).
const NBD_PORT: u16 = 10809;

/// The TCP port of iSCSI targets (RFC 7143 §14).
pub(crate) const ISCSI_PORT: u16 = 3260;

/// The accepted forms, for error messages.
const SCHEMES: &str = "a disk is a path, -, nvme://HOST/NAME, nbd://HOST/NAME, nbds://HOST/NAME, \
nbd+unix:///NAME?socket=PATH, iscsi://HOST/IQN, https://HOST/FILE, http://HOST/FILE, oci://REGISTRY/NAME or \
s3://BUCKET/KEY";

/// The location of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Locator {
    /// A file or a block device of this machine.
    Path(PathBuf),
    /// Standard input or output.
    Pipe,
    /// A disk of an NVMe/TCP target.
    Nvme(Nvme),
    /// An export of an NBD server.
    Nbd(Nbd),
    /// A disk of an iSCSI target.
    Iscsi(Iscsi),
    /// A file of a web server, an image of a registry, or an object of a bucket.
    Web(fetch::Location),
}

/// A disk of an iSCSI target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Iscsi {
    /// Host and port.
    pub host: TargetAddr,
    /// The iSCSI name of the target.
    pub target: String,
    /// The logical unit number.
    pub lun: u8,
    /// CHAP name.
    pub user: Option<String>,
    /// CHAP secret.
    pub secret: Option<Secret>,
    /// Name of this initiator, in place of the usual one.
    pub initiator: Option<String>,
    /// Whether MD5 is used, the only algorithm of some targets.
    pub md5: bool,
    /// File with the secret that the target must prove to have (mutual CHAP).
    pub target_key: Option<PathBuf>,
}

/// A disk of an NVMe/TCP target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nvme {
    /// Host and port.
    pub host: TargetAddr,
    /// Name or NQN of the disk; empty if the target has only one.
    pub name: String,
}

/// An export of an NBD server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nbd {
    /// Address of the server.
    pub at: ServerAddr,
    /// Export name; empty for the server's default export.
    pub name: String,
    /// TLS settings; `None` for a plaintext connection.
    pub tls: Option<Tls>,
}

/// Address of an NBD server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerAddr {
    /// TCP.
    Tcp(TargetAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// TLS settings of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// PSK identity.
    pub user: Option<String>,
    /// File of PSKs, one `NAME:HEX` per line.
    pub psk_file: Option<PathBuf>,
    /// Directory with `ca-cert.pem` and optionally `client-cert.pem` and `client-key.pem`.
    pub certificates: Option<PathBuf>,
    /// Name to expect in the server's certificate, if it differs from the host.
    pub hostname: Option<String>,
}

impl Locator {
    /// Parses a command-line argument. What does not start with a scheme is a path, which need not
    /// be UTF-8.
    ///
    /// # Errors
    /// Fails with a message for the user if the argument starts with a scheme and is not a valid
    /// URI.
    pub fn parse(typed: OsString) -> Result<Self, String> {
        let Some(text) = typed.to_str() else { return Ok(Self::Path(typed.into())) };
        match text.split_once("://") {
            _ if text == "-" => Ok(Self::Pipe),
            _ if text.is_empty() => Err(format!("nothing is named; {SCHEMES}")),
            Some((scheme, _)) if fetch::Location::SCHEMES.contains(&scheme) => {
                text.parse().map(Self::Web).map_err(|reason| format!("{reason}"))
            }
            Some((scheme, rest)) if is_scheme(scheme) => {
                address(scheme, rest).map_err(|reason| error(text, &reason))
            }
            _ => Ok(Self::Path(typed.into())),
        }
    }

    /// Returns whether this is a path or a pipe.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Path(_) | Self::Pipe)
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Pipe => f.write_str("-"),
            Self::Nvme(nvme) => {
                write!(f, "nvme://{}/{}", nvme.host.authority(NVME_PORT), nvme.name)
            }
            Self::Nbd(nbd) => write!(f, "{nbd}"),
            Self::Iscsi(iscsi) => write!(f, "{iscsi}"),
            Self::Web(location) => write!(f, "{location}"),
        }
    }
}

impl fmt::Display for Iscsi {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let host = self.host.authority(ISCSI_PORT);
        write!(f, "iscsi://{user}{host}/{}/{}", self.target, self.lun)
    }
}

impl fmt::Display for ServerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host) => host.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl fmt::Display for Nbd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "nbds" } else { "nbd" };
        let user = self.tls.as_ref().and_then(|tls| tls.user.as_ref());
        let user = user.map(|user| format!("{user}@")).unwrap_or_default();
        match &self.at {
            ServerAddr::Tcp(host) => {
                write!(f, "{scheme}://{user}{}/{}", host.authority(NBD_PORT), self.name)
            }
            ServerAddr::Unix(path) => {
                write!(f, "{scheme}+unix://{user}/{}?socket={}", self.name, path.display())
            }
        }
    }
}

/// RFC 3986 §3.1.
fn is_scheme(text: &str) -> bool {
    let rest = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(rest)
}

/// Returns the message for a URI that cannot be used. It contains no part of a secret: one with a
/// slash is parsed as other parts of the URI, which a reason may repeat.
fn error(uri: &str, reason: &str) -> String {
    let rest = uri.split_once("://").map_or("", |(_, rest)| rest);
    let shown = without_secret(uri);
    match secret_in(rest).filter(|_| shown != uri) {
        Some(secret) if rest[secret.clone()].contains('/') => {
            format!("{shown}: a secret that contains a / is given by --key FILE")
        }
        _ => format!("{shown}: {reason}"),
    }
}

fn address(scheme: &str, rest: &str) -> Result<Locator, String> {
    if scheme == "iscsi" {
        return iscsi(rest).map(Locator::Iscsi);
    }
    let parts = Parts::split(rest)?;
    match scheme {
        "nvme" => nvme(&parts).map(Locator::Nvme),
        "nbd" => nbd(&parts, false, false).map(Locator::Nbd),
        "nbds" => nbd(&parts, true, false).map(Locator::Nbd),
        "nbd+unix" => nbd(&parts, false, true).map(Locator::Nbd),
        "nbds+unix" => nbd(&parts, true, true).map(Locator::Nbd),
        other => {
            Err(format!("{other}:// is not known; {SCHEMES} (a path that looks so: ./{other}…)"))
        }
    }
}

/// The parts of a URI after the scheme (RFC 3986 §3), percent-decoded.
#[derive(Debug, Default)]
struct Parts {
    user: Option<String>,
    /// As typed, with brackets.
    host: String,
    name: String,
    settings: Vec<(String, String)>,
}

impl Parts {
    fn split(rest: &str) -> Result<Self, String> {
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        if rest.contains('#') || query.contains('#') {
            return Err("a # has no meaning here; write it as %23".to_owned());
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(percent_decoded(user)?), host),
            None => (None, authority),
        };
        let settings = query.split('&').filter(|one| !one.is_empty()).map(setting);
        let settings = settings.collect::<Result<_, _>>()?;
        Ok(Self { user, host: host.to_owned(), name: percent_decoded(path)?, settings })
    }

    /// Parses host and port; the port is `usual` if the URI has none.
    fn authority_with_default(&self, usual: u16) -> Result<TargetAddr, String> {
        let at = HostPort::parse(&decoded_authority(&self.host)).map_err(|error| match error {
            HostPortError::Host => "it names no machine, as in nvme://192.168.1.5/NAME or \
                                    nvme://[fe80::1%eth0]/NAME"
                .to_owned(),
            _ => error.to_string(),
        })?;
        if at.host.contains(':') && !at.in_brackets {
            return Err("an IPv6 address stands in brackets, as in [fe80::1%eth0]".to_owned());
        }
        TargetAddr::new(at, usual)
    }
}

/// Decodes the zone separator: `%25` (RFC 6874 §2), or a bare `%` as users type it. Outside of
/// brackets, other characters may be encoded, too.
fn decoded_authority(text: &str) -> String {
    match text.split_once("%25") {
        Some((address, zone)) if text.starts_with('[') && !zone.starts_with(']') => {
            format!("{address}%{zone}")
        }
        _ if text.starts_with('[') => text.to_owned(),
        _ => percent_decoded(text).unwrap_or_else(|_| text.to_owned()),
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text} has no value"))?;
    Ok((percent_decoded(name)?, percent_decoded(value)?))
}

/// Percent-decodes (RFC 3986 §2.1).
fn percent_decoded(text: &str) -> Result<String, String> {
    let wrong = || "behind a % two hexadecimal digits must stand (a % itself is %25)".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = (digit().ok_or_else(wrong)?, digit().ok_or_else(wrong)?);
        bytes.push(u8::try_from(high << 4 | low).map_err(|_| wrong())?);
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err("it has characters that no name has".to_owned()),
    }
}

fn nvme(parts: &Parts) -> Result<Nvme, String> {
    if let Some((name, _)) = parts.settings.first() {
        return Err(format!("nvme:// has no setting {name}"));
    }
    if parts.user.is_some() {
        return Err("nvme:// has no user; the key is given by --key or storagetm pair".to_owned());
    }
    let name = parts.name.trim_end_matches('/').to_owned();
    Ok(Nvme { host: parts.authority_with_default(NVME_PORT)?, name })
}

/// Returns a word of a command line without secrets: the secret of an iSCSI URI, the user and password of a URL of a
/// web server, and its query, which may be a signature, are replaced. The word may be `--option=URL`.
pub fn without_secret(word: &str) -> String {
    if let Some((option, value)) = word.split_once('=').filter(|_| word.starts_with("--")) {
        return format!("{option}={}", without_secret(value));
    }
    let is_web = |scheme: &&str| {
        word.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    if let Some(scheme) = ["http://", "https://"].into_iter().find(is_web) {
        let (scheme, rest) = word.split_at(scheme.len());
        return format!("{scheme}{}", without_login_and_query(rest));
    }
    let (scheme, rest) = word.split_at_checked("iscsi://".len()).unwrap_or((word, ""));
    let secret = scheme.eq_ignore_ascii_case("iscsi://").then(|| secret_in(rest)).flatten();
    match secret.and_then(|secret| Some((rest.get(..secret.start)?, rest.get(secret.end..)?))) {
        Some((before, after)) => format!("{scheme}{before}SECRET{after}"),
        None => word.to_owned(),
    }
}

/// Replaces the user, password and query in a URL without its scheme. The last @ before the
/// path ends the password.
fn without_login_and_query(rest: &str) -> String {
    let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let host = rest[..authority].rfind('@').map_or(0, |at| at + 1);
    let login = if host > 0 { "SECRET@" } else { "" };
    let (path, query) = match rest[host..].split_once('?') {
        Some((path, _)) => (path, "?SECRET"),
        None => (&rest[host..], ""),
    };
    format!("{login}{path}{query}")
}

/// Returns where the secret is in an iSCSI URI without its scheme. It follows the first % and may
/// have any character, so it is taken to end at the last @ before the name of the target.
fn secret_in(rest: &str) -> Option<std::ops::Range<usize>> {
    let start = rest.find('%').filter(|at| !rest[..*at].contains(['/', '?', '@']))? + 1;
    let names = ["/iqn.", "/eui.", "/naa."].map(|name| rest[start..].find(name));
    let end = names.into_iter().flatten().min().map_or(rest.len(), |at| start + at);
    rest[start..end].rfind('@').map(|at| start..start + at)
}

/// Parses the form of libiscsi and qemu: `[USER[%SECRET]@]HOST[:PORT]/IQN[/LUN]`, in which a % is not
/// an encoding.
fn iscsi(rest: &str) -> Result<Iscsi, String> {
    let end = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end).unwrap_or((rest, ""));
    let (login, host) = match authority.rsplit_once('@') {
        Some((login, host)) => (Some(login), host),
        None => (None, authority),
    };
    let (user, secret) = match login.map(|login| login.split_once('%').ok_or(login)) {
        None => (None, None),
        Some(Ok((user, secret))) => (Some(user), Some(Secret::new(secret.as_bytes().to_vec()))),
        Some(Err(user)) => (Some(user), None),
    };
    let parts = Parts::split(&format!("{host}{path}"))?;
    let name = parts.name.trim_end_matches('/');
    let (target, lun) = name.split_once('/').unwrap_or((name, "0"));
    let lun = lun.parse().map_err(|_| "a logical unit number is 0 to 255".to_owned())?;
    let normalized = |name: &str| {
        let name = iscsi::iqn::normalized(name).filter(|name| !name.contains('/'));
        name.ok_or_else(|| "it names no target, as in iscsi://HOST/iqn.…".to_owned())
    };
    let (mut initiator, mut md5, mut target_key) = (None, false, None);
    for (name, value) in &parts.settings {
        match (name.as_str(), value.as_str()) {
            ("initiator", name) => initiator = Some(normalized(name)?),
            ("chap", "md5") => md5 = true,
            ("target-key", path) => target_key = Some(PathBuf::from(path)),
            _ => return Err(format!("iscsi:// has no setting {name}={value}")),
        }
    }
    if user == Some("") {
        return Err("the CHAP name is empty".to_owned());
    }
    let (host, target) = (parts.authority_with_default(ISCSI_PORT)?, normalized(target)?);
    let user = user.map(str::to_owned);
    Ok(Iscsi { host, target, lun, user, secret, initiator, md5, target_key })
}

fn nbd(parts: &Parts, tls: bool, unix: bool) -> Result<Nbd, String> {
    let mut socket = None;
    let mut secured = Tls { user: parts.user.clone(), ..Tls::default() };
    for (name, value) in &parts.settings {
        let path = || Some(PathBuf::from(value));
        match name.as_str() {
            "socket" if unix => socket = path(),
            "tls-psk-file" if tls => secured.psk_file = path(),
            "tls-certificates" if tls => secured.certificates = path(),
            "tls-hostname" if tls => secured.hostname = Some(value.clone()),
            "tls-verify-peer" if tls && value != "false" && value != "0" => {}
            "tls-verify-peer" if tls => {
                return Err("the server is always verified; leave tls-verify-peer out".to_owned());
            }
            other => return Err(format!("there is no setting {other} for such an address")),
        }
    }
    if secured.user.is_some() && !tls {
        return Err("a user is for nbds:// only, as the name of a key".to_owned());
    }
    if secured.psk_file.is_some() && secured.certificates.is_some() {
        return Err("it is secured by a key or by certificates, not by both".to_owned());
    }
    let at = match (unix, socket) {
        (false, _) => ServerAddr::Tcp(parts.authority_with_default(NBD_PORT)?),
        (true, Some(socket)) if parts.host.is_empty() => ServerAddr::Unix(socket),
        (true, Some(_)) => {
            return Err("a socket of this machine has no host: nbd+unix:///NAME?…".to_owned());
        }
        (true, None) => {
            return Err(
                "it names no socket, as in nbd+unix:///NAME?socket=/run/disk.sock".to_owned()
            );
        }
    };
    Ok(Nbd { at, name: parts.name.clone(), tls: tls.then_some(secured) })
}

#[cfg(test)]
mod test {
    use super::*;

    fn parse(text: &str) -> Result<Locator, String> {
        Locator::parse(text.into())
    }

    fn nbd_of(text: &str) -> Nbd {
        match parse(text) {
            Ok(Locator::Nbd(nbd)) => nbd,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn anything_but_a_uri_is_a_path() {
        for path in ["disk.img", "/dev/sda", "./nbd://x", "a b", "c:\\disk", "2://x", "--"] {
            assert_eq!(parse(path), Ok(Locator::Path(path.into())), "{path}");
        }
        assert_eq!(parse("-"), Ok(Locator::Pipe));
        use std::os::unix::ffi::OsStringExt;
        let odd = OsString::from_vec(vec![b'n', b'b', b'd', b':', b'/', b'/', 0xff]);
        assert_eq!(Locator::parse(odd.clone()), Ok(Locator::Path(odd.into())));
    }

    #[test]
    fn nbd_addresses_of_lent_disks_are_taken_as_they_are() {
        use protocol::Protocol;
        use protocol::commands::ExportNames;
        use protocol::endpoint::{Endpoint, EndpointAddr, NetAddr};
        let uri = |addr, keyed, short| {
            let id = &"nqn.x".into();
            let at = Endpoint { protocol: Protocol::Nbd, addr, keyed, pin: None };
            at.instructions(Some(ExportNames { id, short }), false).listed.remove(0)
        };
        for (keyed, scheme) in [(true, "nbds"), (false, "nbd")] {
            for address in ["192.168.1.5", "fe80::1"] {
                let interface = address.starts_with('f').then(|| "eth0".to_owned());
                let net = NetAddr { ip: address.parse().unwrap(), interface, port: 10809 };
                let uri = uri(EndpointAddr::Net(net), keyed, "a disk");
                assert!(uri.starts_with(&format!("{scheme}://")), "{uri}");
                assert_eq!(nbd_of(&uri).tls.is_some(), keyed, "{uri}");
            }
        }
        nbd_of(&uri(EndpointAddr::Path("/run/x y.sock".to_owned()), false, "sda"));
    }

    #[test]
    fn uris_are_formatted_as_typed() {
        for text in [
            "nvme://192.168.1.5/sda",
            "nvme://old-laptop:4421/nqn.2014-08.org.nvmexpress:uuid:1",
            "nvme://[fe80::1%eth0]/",
            "nvme://[::1]:1/disk",
            "nbd://localhost/",
            "nbd://localhost:1/a/b",
            "nbds://laptop@[::1]/disk",
            "nbd+unix:///disk?socket=/run/a.sock",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        assert_eq!(parse("nvme://a").unwrap().to_string(), "nvme://a/");
        assert_eq!(
            parse("nvme://[fe80::1%25eth0]:4420/").unwrap().to_string(),
            "nvme://[fe80::1%eth0]/"
        );
        assert_eq!(
            parse("nvme://169.254.1.1%eth0/x").unwrap().to_string(),
            "nvme://169.254.1.1%eth0/x"
        );
        assert_eq!(parse("nvme://[fe80::1%25]/").unwrap().to_string(), "nvme://[fe80::1%25]/");
    }

    #[test]
    fn percent_encoding_is_decoded() {
        let nbd = nbd_of("nbds://a%40b@host/d%20%C3%A9?tls-psk-file=%2Fetc%2Fk&tls-hostname=x.y");
        let tls = nbd.tls.unwrap();
        assert_eq!((nbd.name.as_str(), tls.user.as_deref()), ("d é", Some("a@b")));
        assert_eq!(tls.psk_file, Some("/etc/k".into()));
        assert_eq!((tls.hostname.as_deref(), tls.certificates), (Some("x.y"), None));
        let nbd = nbd_of("nbds+unix:///?socket=/s&tls-certificates=/c");
        assert_eq!(
            (nbd.at, nbd.tls.unwrap().certificates),
            (ServerAddr::Unix("/s".into()), Some("/c".into()))
        );
    }

    #[test]
    fn secrets_of_uris_are_not_repeated() {
        for (word, shown) in [
            ("iscsi://me%s3%cr@t@host:1/iqn.x/0", "iscsi://me%SECRET@host:1/iqn.x/0"),
            ("ISCSI://me%s3cret@host/iqn.x", "ISCSI://me%SECRET@host/iqn.x"),
            (
                "iscsi://me%s3/cr?t@host/iqn.x?initiator=iqn.a@b",
                "iscsi://me%SECRET@host/iqn.x?initiator=iqn.a@b",
            ),
            ("iscsi://me%s3/cret@host/disk", "iscsi://me%SECRET@host/disk"),
            // Without an @ it is the zone of an address.
            ("iscsi://169.254.1.1%eth0/iqn.x", "iscsi://169.254.1.1%eth0/iqn.x"),
            ("iscsi://me@host/iqn.x/0", "iscsi://me@host/iqn.x/0"),
            ("iscsi://me@[fe80::1%eth0]/iqn.x", "iscsi://me@[fe80::1%eth0]/iqn.x"),
            ("iscsi://[fe80::1%eth0]/iqn.x", "iscsi://[fe80::1%eth0]/iqn.x"),
            ("iscsi://host/iqn.x/a%b@c", "iscsi://host/iqn.x/a%b@c"),
            ("iscsi://h/iqn.x?target-key=a%2f@b", "iscsi://h/iqn.x?target-key=a%2f@b"),
            ("nbds://a%40b@host/d", "nbds://a%40b@host/d"),
            ("--map", "--map"),
        ] {
            assert_eq!(without_secret(word), shown);
        }
        for (word, shown) in [
            ("https://anna:s3cret@host/a@b?X-Amz-Signature=s3", "https://SECRET@host/a@b?SECRET"),
            ("HTTP://anna@host:1?s3=cret", "HTTP://SECRET@host:1?SECRET"),
            ("--hash-file=https://a:s3@host/x", "--hash-file=https://SECRET@host/x"),
            ("--map=a=b", "--map=a=b"),
            ("https://host/disk.raw", "https://host/disk.raw"),
        ] {
            assert_eq!(without_secret(word), shown);
        }
        for malformed in [
            "iscsi://me%s3cret@host/",
            "iscsi://me%s3cret@host:x/iqn.a:b",
            "iscsi://me%a/s3cret@host/iqn.a:b",
            "iscsi://me%a?s3cret=s3cret@host/iqn.a:b/999",
            "iscsi://me%a/b?s3cret@host/iqn.a:b",
            "iscsi://me%a/b?c=s3cret@host/iqn.a:b",
            "iscsi://me%s3cret#@host:x/iqn.a:b",
            "ISCSI://me%s3cret@host/iqn.a:b",
        ] {
            let error = parse(malformed).unwrap_err();
            assert!(error.contains("me%SECRET") && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn iscsi_uri_is_that_of_libiscsi() {
        let iscsi = |text: &str| match parse(text) {
            Ok(Locator::Iscsi(iscsi)) => iscsi,
            other => panic!("{text}: {other:?}"),
        };
        let plain = iscsi("iscsi://192.168.1.5/iqn.2026-01.org.example:disk");
        assert_eq!((plain.target.as_str(), plain.lun), ("iqn.2026-01.org.example:disk", 0));
        assert_eq!((plain.user, plain.secret, plain.md5), (None, None, false));
        let uri = "iscsi://laptop%s%ecret/x@[::1]:3261/iqn.x:Y/7?initiator=iqn.a:b&chap=md5&target-key=a%2fb";
        assert!(parse(uri).is_err(), "a slash in a secret");
        let full = iscsi(&uri.replace("/x@", "@"));
        assert_eq!(full.secret.as_ref().map(Secret::bytes), Some(&b"s%ecret"[..]));
        assert_eq!((full.lun, full.md5, full.initiator.as_deref()), (7, true, Some("iqn.a:b")));
        assert_eq!(full.target_key.as_deref(), Some(std::path::Path::new("a/b")));
        // The secret is not shown.
        assert_eq!(full.to_string(), "iscsi://laptop@[::1]:3261/iqn.x:y/7");
        for wrong in ["iscsi://h", "iscsi://h/", "iscsi:///iqn.a:b", "iscsi://h/iqn.a:b/256"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(parse("iscsi://h/iqn.a:b?x=y").is_err());
    }

    /// X20: verification of the server cannot be switched off.
    #[test]
    fn x20_the_server_is_always_verified() {
        assert!(parse("nbds://h/?tls-verify-peer=false").unwrap_err().contains("always verified"));
        assert!(parse("nbds://h/?tls-verify-peer=true").is_ok());
    }

    #[test]
    fn malformed_uri_is_refused() {
        for wrong in [
            "",
            "ftp://host/disk",
            "https:///disk",
            "https://host/disk#part",
            "nvme://",
            "nvme:///disk",
            "nvme://host:0/",
            "nvme://host:x/",
            "nvme://host:70000/",
            "nvme://fe80::1/",
            "nvme://[::1/",
            "nvme://[::1]x/",
            "nvme://[fe80::1%]/",
            "nvme://a b/",
            "nvme://user@host/",
            "nvme://host/?a=b",
            "nbd://host/%4",
            "nbd://host/%zz",
            "nbd://host/%00",
            "nbd://host/%ff",
            "nbd://host/#a",
            "nbd://user@host/",
            "nbd://host/?socket=/s",
            "nbd://host/?tls-psk-file=/k",
            "nbds://host/?tls-psk-file",
            "nbds://host/?tls-psk-file=/k&tls-certificates=/c",
            "nbd+unix:///disk",
            "nbd+unix://host/disk?socket=/s",
        ] {
            let reason = parse(wrong).unwrap_err();
            assert!(!reason.contains('\n') && reason.len() < 300, "{wrong}: {reason}");
        }
    }
}
