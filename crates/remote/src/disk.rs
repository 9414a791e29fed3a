//! Connections to the disks of other machines: address, key, and TLS.

use std::fmt;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{ConnectError, Dial, DialAddress, DialSubsystem, Transport};
use failure::Failure;
use iscsi::chap::Algorithm;
use iscsi::host::Credentials as Chap;
use keys::target::Target;
use linux::host_port::HostPort;
use linux::tree::Tree;
use nvme::auth::Credentials;

use crate::address::TargetAddr;
use crate::credentials::{self, Keys, Options};
use crate::dial::{self, TlsAuth};
use crate::host_identity::HostIdentity;
use crate::key_selection::{self, KeyCheck};
use crate::machine;
use crate::query::QueryError;
use crate::uri::{ISCSI_PORT, Iscsi, Nbd, Nvme, ServerAddr, Tls};

/// Timeout of the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// Timeout of an NBD server's greeting and the TLS handshake.
const NBD_TIMEOUT: Duration = Duration::from_secs(30);

/// A machine that took longer than this to fail is not tried with further keys.
const SLOW_ANSWER: Duration = Duration::from_secs(5);

/// How a disk of an NVMe/TCP target is connected to.
pub struct NvmeDisk {
    /// NQN or name of the disk.
    pub name: String,
    /// This host.
    pub host: HostIdentity,
    /// Credentials for DH-HMAC-CHAP.
    pub credentials: Option<Arc<Credentials>>,
    /// A hint for the error of a target that closes the connection.
    pub hint: Option<String>,
    /// Connects to the target.
    pub dial: DialSubsystem,
}

/// How an export of an NBD server is connected to.
pub struct NbdDisk {
    /// Connects to the server.
    pub dial: Dial,
    /// Whether `dial` has negotiated TLS.
    pub secured: bool,
}

/// How a disk of an iSCSI target is connected to.
pub struct IscsiDisk {
    /// Name of this initiator.
    pub initiator: String,
    /// Credentials for CHAP.
    pub credentials: Option<Chap>,
    /// Connects to the target.
    pub dial: Dial,
    /// Connects to the address to which the target redirects a login.
    pub redirected: DialAddress,
}

impl fmt::Debug for IscsiDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IscsiDisk").field("initiator", &self.initiator).finish_non_exhaustive()
    }
}

impl fmt::Debug for NvmeDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NvmeDisk").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for NbdDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdDisk").field("secured", &self.secured).finish_non_exhaustive()
    }
}

/// Returns how to connect to a disk of an NVMe/TCP target. Does not connect to it yet, except to
/// select a key.
///
/// # Errors
/// Fails if a required key is missing or cannot be read.
pub fn nvme(tree: &Tree, options: &Options<'_>, nvme: &Nvme) -> Result<NvmeDisk, Failure> {
    let machine = nvme.host.clone();
    let accepts =
        |target: &Target| key_selection::check_key(tree, &machine, target, options.hostnqn);
    let target = known_target(options, &machine, accepts)?;
    let keys = Keys::find(tree, options, target)?;
    let host = HostIdentity::find(tree, Some(&keys.host));
    let credentials = keys.chap.clone();
    let name = keys.disk(&nvme.name).unwrap_or_else(|| nvme.name.clone());
    let hint = keys.is_plaintext().then(|| {
        format!("if it requires a key, pair this machine by \"storagetm pair {machine}\"")
    });
    let dial = move |subsystem: &str| {
        let psk = keys
            .nvme(subsystem)
            .map_err(|reason| ConnectError::Permanent(format!("{subsystem}: {reason}")))?;
        let socket = dial::connect_tcp(&machine)?;
        match psk {
            Some(psk) => {
                let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
                start_tls(socket, &machine.to_string(), &TlsAuth::Psk(psk), deadline)
            }
            None => Ok(Box::new(socket) as Box<dyn Transport>),
        }
    };
    Ok(NvmeDisk { name, host, credentials, hint, dial: Arc::new(dial) })
}

/// Returns the stored target at an address. `None` if the connection may be in plaintext.
///
/// # Errors
/// Fails if the target accepts none of the keys and `--insecure` is not given, or if it cannot be
/// reached.
fn known_target(
    options: &Options<'_>,
    machine: &TargetAddr,
    accepts: impl Fn(&Target) -> KeyCheck,
) -> Result<Option<Target>, Failure> {
    let known = machine::targets(options.keys).map_err(Failure::new)?;
    key_selection::target_at(machine, &known, options.key.is_some(), options.insecure, accepts)
        .map(Option::<&Target>::cloned)
        .map_err(|error| match error {
            QueryError::Unreachable(reason) | QueryError::Protocol(reason) => Failure::new(reason),
            QueryError::NoKeyAccepted | QueryError::KeyRequired => {
                Failure::new(key_selection::no_key_accepted(machine))
            }
        })
}

/// Returns how to connect to an export of an NBD server. Does not connect to it yet, except to
/// select a key.
///
/// # Errors
/// Fails if a required key is missing or cannot be read.
pub fn nbd(tree: &Tree, options: &Options<'_>, nbd: &Nbd) -> Result<NbdDisk, Failure> {
    let there = nbd.at.clone();
    let host = match &nbd.at {
        ServerAddr::Tcp(host) => Some(host),
        ServerAddr::Unix(_) => None,
    };
    // A PSK file or certificates in the URI take precedence.
    let shows = |tls: &Tls| tls.psk_file.is_some() || tls.certificates.is_some();
    let target = match &there {
        ServerAddr::Tcp(machine) if !nbd.tls.as_ref().is_some_and(shows) => {
            let accepts = |target: &Target| accepts_nbd(&there, target, options);
            known_target(options, machine, accepts)?
        }
        _ => None,
    };
    let tls = match (&nbd.tls, &target) {
        // A paired machine is always contacted with its key, and so is one with `--key`.
        (None, Some(_)) => Some(Tls::default()),
        (None, None) if host.is_some() && options.key.is_some() => Some(Tls::default()),
        (tls, _) => tls.clone(),
    };
    let Some(tls) = tls else {
        let dial = move || Ok(Box::new(dial::connect(&there)?) as Box<dyn Transport>);
        return Ok(NbdDisk { dial: Arc::new(dial), secured: false });
    };
    let keys = Keys::find(tree, options, target)?;
    let auth = keys.nbd(&tls, host.map_or("localhost", TargetAddr::name))?;
    let name = nbd.to_string();
    let dial =
        move || secure_nbd(dial::connect(&there)?, &name, &auth, Instant::now() + NBD_TIMEOUT);
    Ok(NbdDisk { dial: Arc::new(dial), secured: true })
}

/// File from which open-iscsi reads the name of the initiator.
const INITIATOR_FILE: &str = "/etc/iscsi/initiatorname.iscsi";

/// Returns how to connect to a disk of an iSCSI target. Does not connect to it yet.
///
/// # Errors
/// Fails if a key cannot be read or is not one for iSCSI, or if this machine has keys and
/// `--insecure` is not given: iSCSI has no encryption.
pub fn iscsi(tree: &Tree, options: &Options<'_>, iscsi: &Iscsi) -> Result<IscsiDisk, Failure> {
    let known = machine::targets(options.keys).map_err(Failure::new)?;
    if !key_selection::allows_plaintext(&iscsi.host, &known, options.insecure) {
        return Err(Failure::new(format!(
            "{}: iSCSI is not encrypted, and this machine has keys for encrypted connections: use nvme:// or nbds://, or add \
             --insecure if no machine was paired at this address",
            iscsi.host
        )));
    }
    let initiator = iscsi.initiator.clone().unwrap_or_else(|| initiator_name(tree, options));
    let secret = match (&iscsi.secret, options.key) {
        (Some(secret), _) => Some(secret.clone()),
        (None, Some(path)) => Some(credentials::iscsi_secret(path)?),
        (None, None) if iscsi.user.is_some() => {
            return Err(Failure::usage(
                "a CHAP name needs its secret: iscsi://NAME%SECRET@HOST/IQN, or --key",
            ));
        }
        (None, None) => None,
    };
    let target = iscsi.target_key.as_deref().map(credentials::iscsi_secret).transpose()?;
    if target.is_some() && secret.is_none() {
        return Err(Failure::usage("?target-key needs a secret of this machine as well: --key"));
    }
    let name = iscsi.user.clone().unwrap_or_else(|| initiator.clone());
    let algorithms = match iscsi.md5 {
        true => vec![Algorithm::Md5],
        false => vec![Algorithm::Sha256, Algorithm::Sha3_256, Algorithm::Sha1],
    };
    let credentials = secret.map(|secret| Chap { name, secret, target, algorithms });
    let (machine, insecure) = (iscsi.host.clone(), options.insecure);
    let redirected = redirection(machine.clone(), known, insecure);
    let dial = move || Ok(Box::new(dial::connect_tcp(&machine)?) as Box<dyn Transport>);
    Ok(IscsiDisk { initiator, credentials, dial: Arc::new(dial), redirected })
}

/// Returns a callback that connects to the address to which a target at `named` redirects a login.
///
/// Storage arrays have one address for all, and send each session to one of their nodes. That gives
/// the machine at the first address nothing that it lacks: it could pass the session on as well,
/// since iSCSI protects none, and the response to a CHAP challenge contains no secret and no
/// address. A secret that the target must prove is proved by the machine at the end. But a target
/// must not have this machine talk to itself, nor without encryption to one that was paired.
fn redirection(named: TargetAddr, known: Vec<Target>, insecure: bool) -> DialAddress {
    Arc::new(move |address| {
        let permanent = |reason: String| ConnectError::Permanent(format!("{address}: {reason}"));
        let other = HostPort::parse(address).map_err(|error| permanent(error.to_string()))?;
        let other = TargetAddr::new(other, ISCSI_PORT).map_err(permanent)?;
        let is_unspecified = other.ip().is_some_and(|ip| ip.to_canonical().is_unspecified());
        if is_unspecified || other.is_loopback() && !named.is_loopback() {
            return Err(permanent("that is this machine".to_owned()));
        }
        if !key_selection::allows_plaintext(&other, &known, insecure) {
            return Err(permanent("iSCSI is not encrypted, and this machine has keys".to_owned()));
        }
        let socket = dial::connect_tcp(&other)?;
        // What a name has resolved to. Nothing was sent to it.
        let reached = socket.peer_addr();
        let reached = reached.map_err(|error| ConnectError::Temporary(error.to_string()))?;
        if reached.ip().to_canonical().is_loopback() && !named.is_loopback() {
            return Err(permanent("that is this machine".to_owned()));
        }
        Ok(Box::new(socket) as Box<dyn Transport>)
    })
}

/// Returns the name of this initiator: open-iscsi's, else one with the UUID of the host identifier.
fn initiator_name(tree: &Tree, options: &Options<'_>) -> String {
    let text = tree.text(INITIATOR_FILE).unwrap_or_default();
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("InitiatorName="));
    let name = names.filter_map(|name| iscsi::iqn::normalized(name.trim())).next();
    let own = || HostIdentity::find(tree, options.hostnqn).id_text();
    name.unwrap_or_else(|| format!("iqn.2026-01.io.github.storagetm:host:{}", own()))
}

/// Offers the key of a target to an NBD server.
fn accepts_nbd(there: &ServerAddr, target: &Target, options: &Options<'_>) -> KeyCheck {
    let host = options.hostnqn.unwrap_or(&target.host);
    let Some(psk) = credentials::nbd_psk(&target.tls, host) else { return KeyCheck::Rejected };
    let begun = Instant::now();
    let socket = match dial::connect(there) {
        Ok(socket) => socket,
        Err(error) => return KeyCheck::Unreachable(error.to_string()),
    };
    let deadline = Instant::now() + NBD_TIMEOUT;
    match secure_nbd(socket, &there.to_string(), &TlsAuth::Psk(psk), deadline) {
        Ok(_) => KeyCheck::Accepted,
        // A server that does not answer is not tried with every key.
        Err(error) if begun.elapsed() > SLOW_ANSWER => KeyCheck::Unreachable(error.to_string()),
        Err(_) => KeyCheck::Rejected,
    }
}

fn secure_nbd(
    mut socket: TcpStream,
    name: &str,
    auth: &TlsAuth,
    deadline: Instant,
) -> Result<Box<dyn Transport>, ConnectError> {
    // A server that accepts and sends nothing must not be waited for longer than the timeout.
    let non_blocking = socket.set_nonblocking(true);
    non_blocking.map_err(|error| ConnectError::Temporary(format!("{name}: {error}")))?;
    client::start_tls(&mut socket, name, deadline)?;
    start_tls(socket, name, auth, deadline)
}

fn start_tls(
    socket: TcpStream,
    name: &str,
    auth: &TlsAuth,
    deadline: Instant,
) -> Result<Box<dyn Transport>, ConnectError> {
    match dial::start_tls(socket, auth, deadline) {
        Ok(channel) => Ok(Box::new(channel)),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Err(ConnectError::Permanent(format!("{name} cannot be reached securely: {error}")))
        }
        Err(error) => Err(ConnectError::Temporary(format!("{name}: {error}"))),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::uri::Locator;
    use keys::store::Store;
    use std::io::Write;
    use std::net::TcpListener;

    #[test]
    fn iscsi_needs_insecure_where_keys_are_stored() {
        let folder = testkit::Scratch::new();
        let (tree, keys) = (Tree::at(&folder.0), folder.0.join("keys"));
        let store = Store::open(&keys).unwrap();
        let parsed = Locator::parse("iscsi://192.0.2.9/iqn.a:b".into()).unwrap();
        let Locator::Iscsi(there) = parsed else { panic!("{parsed:?}") };
        let open = |insecure| {
            let options = Options { keys: Some(&keys), insecure, ..Options::default() };
            iscsi(&tree, &options, &there)
        };
        open(false).unwrap();
        let target = Target::sample("desk", "192.0.2.1");
        store.put_target(&target).unwrap();
        assert!(open(false).unwrap_err().to_string().contains("--insecure"));
        open(true).unwrap();
    }

    #[test]
    fn redirection_is_followed_to_other_machines_only() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let port = listener.local_addr().unwrap().port();
        // It resolves to a loopback address, as a name may.
        let [resolved, unspecified] = ["127.1", "0.0.0.0"].map(|host| format!("{host}:{port}"));
        let addr = |text| TargetAddr::parse(text, None).unwrap();
        let paired = vec![Target::sample("desk", "192.0.2.1")];
        let open = |named, known: &[Target], insecure, address: &str| {
            redirection(addr(named), known.to_vec(), insecure)(address).map(drop)
        };
        open("127.0.0.1", &[], false, &at).unwrap();
        for (named, known, insecure, address) in [
            ("192.0.2.9", &[][..], false, at.as_str()),
            ("192.0.2.9", &[], false, "localhost:3260"),
            ("192.0.2.9", &[], false, "[::1]"),
            ("192.0.2.9", &[], false, resolved.as_str()),
            ("192.0.2.9", &[], false, unspecified.as_str()),
            ("127.0.0.1", &[], false, unspecified.as_str()),
            ("192.0.2.9", &[], false, "[::]"),
            ("192.0.2.9", &[], false, "[::ffff:0.0.0.0]"),
            ("192.0.2.9", &[], false, "host:0"),
            ("192.0.2.9", &[], false, "a/b"),
            ("192.0.2.9", &paired, true, "192.0.2.1"),
            ("192.0.2.9", &paired, false, "192.0.2.8"),
        ] {
            let refused = open(named, known, insecure, address);
            assert!(matches!(refused, Err(ConnectError::Permanent(_))), "{address}: {refused:?}");
        }
    }

    #[test]
    fn silent_or_slow_nbd_server_is_given_up_in_time() {
        let target = Target::sample("desk", "127.0.0.1");
        let auth = TlsAuth::Psk(credentials::nbd_psk(&target.tls, &target.host).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for greeting in [&b""[..], b"NBDMAGIC", b"NBDMAGICIHAVEOPT\0\x03"] {
            let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            server.write_all(greeting).unwrap();
            let begun = Instant::now();
            let deadline = begun + Duration::from_millis(100);
            let Err(error) = secure_nbd(socket, "there", &auth, deadline) else {
                panic!("without an answer")
            };
            assert_eq!(error.to_string(), "there: no answer in time");
            assert!(begun.elapsed() < Duration::from_secs(5));
        }
    }
}
