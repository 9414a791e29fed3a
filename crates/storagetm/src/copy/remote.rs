//! Remote disks as ends of a copy: connection and authentication.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::copy::{
    DialError, Endpoint, EndpointError, NbdEndpoint, NvmeEndpoint, NvmeHost, Transport, start_tls,
};
use engine::tls;
use linux::tree::Tree;

use super::credentials::{self, Keys, NbdAuth};
use super::summary::refused;
use crate::options::copy::Copy;
use ::remote::uri::{Locator, Nbd, Nvme, ServerAddr, Tls};
use failure::Failure;
use keys::target::Target;
use remote::address::TargetAddr as Machine;
use remote::host_identity::HostIdentity;
use remote::key_selection::{self, KeyCheck, KeySelection};
use remote::machine;

/// Timeout of the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// A machine that took longer than this to fail is not tried with further keys.
const SLOW_ANSWER: Duration = Duration::from_secs(5);

/// Returns the endpoint of a remote disk. Does not connect to it yet, except to select a key.
///
/// # Errors
/// Fails if a required key is missing or cannot be read.
pub(super) fn endpoint(
    tree: &Tree,
    options: &Copy,
    there: &Locator,
) -> Result<Box<dyn Endpoint>, Failure> {
    match there {
        Locator::Nvme(nvme) => nvme_endpoint(tree, options, nvme),
        Locator::Nbd(nbd) => nbd_endpoint(tree, options, nbd),
        Locator::Path(_) | Locator::Pipe => Err(refused(format!("{there} is on this machine"))),
    }
}

fn nvme_endpoint(tree: &Tree, options: &Copy, nvme: &Nvme) -> Result<Box<dyn Endpoint>, Failure> {
    let machine = nvme.host.clone();
    let host = options.hostnqn.as_deref();
    let accepts = |target: &Target| key_selection::check_key(tree, &machine, target, host);
    let target = known_target(options, &machine, options.key.is_some(), accepts)?;
    let keys = Keys::find(tree, options, target)?;
    let identity = HostIdentity::find(tree, Some(&keys.host));
    let host = NvmeHost { nqn: identity.nqn, id: identity.id, credentials: keys.chap.clone() };
    let wanted = keys.disk(&nvme.name).unwrap_or_else(|| nvme.name.clone());
    let name = Locator::Nvme(nvme.clone()).to_string();
    let hint = keys.is_plaintext().then(|| {
        format!("if it requires a key, pair this machine by \"storagetm pair {machine}\"")
    });
    let dial = move |subsystem: &str| {
        let psk = keys
            .nvme(subsystem)
            .map_err(|why| DialError::Refused(format!("{subsystem}: {why}")))?;
        let socket = connect_tcp(&machine)?;
        match psk {
            Some(psk) => connect_tls(socket, &machine.to_string(), &NbdAuth::Psk(psk)),
            None => Ok(Box::new(socket) as Box<dyn Transport>),
        }
    };
    let endpoint = NvmeEndpoint::new(&name, &wanted, host, Arc::new(dial)).with_hint(hint);
    Ok(Box::new(if options.digests { endpoint.with_digests() } else { endpoint }))
}

/// Returns the stored target at an address. `None` if the connection may be in the clear, or if a
/// key was `named`.
///
/// # Errors
/// Fails if the target accepts none of the keys and `--insecure` is not given, or if it cannot be
/// reached.
fn known_target(
    options: &Copy,
    machine: &Machine,
    named: bool,
    accepts: impl Fn(&Target) -> KeyCheck,
) -> Result<Option<Target>, Failure> {
    let known = machine::targets(options.keys.as_deref()).map_err(refused)?;
    if named {
        let (all, here) = key_selection::candidates(&known, std::slice::from_ref(machine));
        return Ok(all.into_iter().take(here.min(1)).next().cloned());
    }
    match key_selection::select_key(machine, &known, accepts) {
        KeySelection::Known(target) => Ok(Some(target.clone())),
        KeySelection::Plaintext => Ok(None),
        KeySelection::NoKeyAccepted if options.insecure => Ok(None),
        KeySelection::NoKeyAccepted => Err(refused(key_selection::no_key_accepted(machine))),
        KeySelection::Unreachable(why) => Err(refused(why)),
    }
}

fn nbd_endpoint(tree: &Tree, options: &Copy, nbd: &Nbd) -> Result<Box<dyn Endpoint>, Failure> {
    let name = nbd.to_string();
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
            known_target(options, machine, options.key.is_some(), accepts)?
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
        let dial = move || connect(&there);
        return Ok(Box::new(NbdEndpoint::new(&name, &nbd.name, Arc::new(dial))));
    };
    let keys = Keys::find(tree, options, target)?;
    let auth = keys.nbd(&tls, host.map_or("localhost", |host| host.name()))?;
    let called = name.clone();
    let dial = move || {
        let mut socket = socket(&there)?;
        start_tls(&mut socket, &called)?;
        connect_tls(socket, &called, &auth)
    };
    Ok(Box::new(NbdEndpoint::new(&name, &nbd.name, Arc::new(dial)).secured()))
}

/// Tries a key with an NBD server.
fn accepts_nbd(there: &ServerAddr, target: &Target, options: &Copy) -> KeyCheck {
    let host = options.hostnqn.as_deref().unwrap_or(&target.host);
    let Some(psk) = credentials::nbd_psk(&target.tls, host) else { return KeyCheck::Rejected };
    let begun = Instant::now();
    let mut socket = match socket(there) {
        Ok(socket) => socket,
        Err(error) => return KeyCheck::Unreachable(error.to_string()),
    };
    let name = there.to_string();
    match start_tls(&mut socket, &name)
        .and_then(|()| connect_tls(socket, &name, &NbdAuth::Psk(psk)))
    {
        Ok(_) => KeyCheck::Accepted,
        // A server that does not answer is not tried with every key.
        Err(error) if begun.elapsed() > SLOW_ANSWER => KeyCheck::Unreachable(error.to_string()),
        Err(_) => KeyCheck::Rejected,
    }
}

fn connect(server: &ServerAddr) -> Result<Box<dyn Transport>, DialError> {
    Ok(match server {
        ServerAddr::Tcp(machine) => Box::new(connect_tcp(machine)?),
        ServerAddr::Unix(path) => Box::new(connect_unix(path)?),
    })
}

/// Connects a socket for TLS, which needs nothing that sockets of only one kind support.
fn socket(server: &ServerAddr) -> Result<TcpStream, DialError> {
    match server {
        ServerAddr::Tcp(machine) => connect_tcp(machine),
        ServerAddr::Unix(path) => Ok(TcpStream::from(OwnedFd::from(connect_unix(path)?))),
    }
}

fn connect_tcp(machine: &Machine) -> Result<TcpStream, DialError> {
    machine.connect().map_err(|failure| EndpointError::Unreachable(failure.to_string()))
}

fn connect_unix(path: &Path) -> Result<UnixStream, DialError> {
    UnixStream::connect(path).map_err(|error| {
        EndpointError::Unreachable(format!("{} cannot be reached: {error}", path.display()))
    })
}

/// Performs the TLS handshake.
fn connect_tls(
    socket: TcpStream,
    name: &str,
    auth: &NbdAuth,
) -> Result<Box<dyn Transport>, DialError> {
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let channel = socket.set_nonblocking(true).and_then(|()| match auth {
        NbdAuth::Psk(psk) => tls::connect(socket, psk.clone(), deadline),
        NbdAuth::Certificates(trust) => tls::connect_certified(socket, trust, deadline),
    });
    match channel {
        Ok(channel) => Ok(Box::new(TlsTransport(channel))),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Err(EndpointError::Refused(format!("{name} cannot be reached securely: {error}")))
        }
        Err(error) => Err(EndpointError::Unreachable(format!("{name}: {error}"))),
    }
}

/// A TLS stream as transport of a copy.
struct TlsTransport(tls::Stream);

impl Read for TlsTransport {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for TlsTransport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl AsFd for TlsTransport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket().as_fd()
    }
}

impl Transport for TlsTransport {
    fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        self.0.socket().set_nonblocking(on)
    }

    fn has_unread(&self) -> bool {
        self.0.has_unread()
    }

    fn has_unsent(&self) -> bool {
        self.0.has_unsent()
    }
}
