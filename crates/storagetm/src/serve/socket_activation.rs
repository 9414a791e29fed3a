//! Inherited sockets: listeners from socket activation (sd_listen_fds(3)), or one connected client
//! on standard input (inetd).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use export::Auth;
use rustix::net::{AddressFamily, SocketType, getpeername, getsockname, sockopt};

use crate::options::Serve;
use daemon::listen::{BindAddr, Listener, Protocols, Service};
use failure::Failure;

#[derive(Debug)]
pub(super) enum InheritedSockets {
    Listening(Vec<(Listener, OwnedFd)>),
    /// A connected client on standard input, and the authentication it requires.
    Peer(OwnedFd, Auth),
}

impl InheritedSockets {
    /// Takes inherited sockets, if there are any.
    ///
    /// # Errors
    /// Fails if a socket cannot be used, or is for a protocol that is not served.
    pub(super) fn take(options: &Serve) -> Result<Option<Self>, Failure> {
        let protocols = Protocols::of(&options.protocol);
        if options.stdin {
            protocols.require(Service::unix().protocol, "--stdin")?;
            let socket = standard_input()?;
            let auth = if options.open { Auth::None } else { auth(socket.as_fd())? };
            return Ok(Some(Self::Peer(socket, auth)));
        }
        let handed =
            linux::activation::take().map_err(|missing| Failure::new(missing.to_string()))?;
        let sockets = handed.into_iter().map(|handed| {
            let addr = addr(handed.socket.as_fd())?;
            Ok((Listener::inherited(addr, &handed.name, &protocols)?, handed.socket))
        });
        let sockets: Vec<_> = sockets.collect::<Result<_, Failure>>()?;
        Ok((!sockets.is_empty()).then_some(Self::Listening(sockets)))
    }

    /// Returns whether a client must authenticate.
    pub(super) fn is_keyed(&self) -> bool {
        match self {
            Self::Listening(sockets) => {
                sockets.iter().any(|(listener, _)| listener.auth == Auth::Required)
            }
            Self::Peer(_, auth) => *auth == Auth::Required,
        }
    }
}

/// Returns standard input as a connected socket.
///
/// # Errors
/// Fails if it is not one.
fn standard_input() -> Result<OwnedFd, Failure> {
    let input = io::stdin();
    let is_peer = getpeername(&input).is_ok_and(|peer| peer.is_some()) && is_stream(input.as_fd());
    if !is_peer {
        return Err(Failure::new(
            "--stdin: standard input is not a connected socket; start this program by inetd, \
             or by a client that starts its own server",
        ));
    }
    input.as_fd().try_clone_to_owned().map_err(|error| unusable("standard input", error))
}

/// Returns the required authentication, by the local address as for a listener: inetd accepts
/// connections from anywhere.
fn auth(socket: BorrowedFd<'_>) -> Result<Auth, Failure> {
    let address = getsockname(socket).map_err(|errno| unusable("standard input", errno))?;
    let Ok(address) = SocketAddr::try_from(address) else { return Ok(Auth::None) };
    Ok(Listener::inherited(BindAddr::Net(address), "", &Protocols::of(&[]))?.auth)
}

fn is_stream(socket: BorrowedFd<'_>) -> bool {
    sockopt::socket_type(socket) == Ok(SocketType::STREAM)
}

/// Returns the address of an inherited listening socket.
fn addr(socket: BorrowedFd<'_>) -> Result<BindAddr, Failure> {
    let name = "a socket that was handed to this program";
    if !is_stream(socket) || sockopt::socket_acceptconn(socket) != Ok(true) {
        return Err(unusable(name, "it is none that listens for connections"));
    }
    let address = getsockname(socket).map_err(|errno| unusable(name, errno))?;
    if address.address_family() != AddressFamily::UNIX {
        let address = address.try_into().map_err(|_| unusable(name, "it is of no IP address"))?;
        return Ok(BindAddr::Net(address));
    }
    let address = rustix::net::SocketAddrUnix::try_from(address).ok();
    let path = address.as_ref().and_then(|address| address.path_bytes());
    let path = path.and_then(|bytes| std::str::from_utf8(bytes).ok());
    Ok(BindAddr::Path(path.map(PathBuf::from).unwrap_or_default()))
}

pub(super) fn unusable(what: &str, reason: impl std::fmt::Display) -> Failure {
    Failure::new(format!("{what} cannot be used: {reason}"))
}

#[cfg(test)]
mod test {
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn remote_client_on_stdin_needs_a_key() {
        let (unix, _other) = UnixStream::pair().unwrap();
        assert_eq!(auth(unix.as_fd()).unwrap(), Auth::None);
        let near = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert_eq!(auth(near.as_fd()).unwrap(), Auth::None);
        // Sends nothing: the socket only has a routable local address.
        let far = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        assert_eq!(auth(far.as_fd()).unwrap(), Auth::Required);
    }
}
