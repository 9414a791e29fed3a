//! Connects to another machine: a socket, and TLS over it.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use client::{ConnectError, Transport};
use engine::tls::{self, Psk, Trust};

use crate::address::TargetAddr;
use crate::uri::ServerAddr;

/// How TLS is authenticated.
#[derive(Debug, Clone)]
pub enum TlsAuth {
    /// By a PSK.
    Psk(Psk),
    /// By certificates.
    Certificates(Arc<Trust>),
}

/// Connects a socket. A Unix socket is returned as a `TcpStream`, which does for reading, writing
/// and TLS.
pub(crate) fn connect(server: &ServerAddr) -> Result<TcpStream, ConnectError> {
    match server {
        ServerAddr::Tcp(addr) => connect_tcp(addr),
        ServerAddr::Unix(path) => connect_unix(path),
    }
}

pub(crate) fn connect_tcp(addr: &TargetAddr) -> Result<TcpStream, ConnectError> {
    addr.connect().map_err(|failure| ConnectError::Temporary(failure.to_string()))
}

fn connect_unix(path: &Path) -> Result<TcpStream, ConnectError> {
    let socket = UnixStream::connect(path).map_err(|error| {
        ConnectError::Temporary(format!("{} cannot be reached: {error}", path.display()))
    })?;
    Ok(TcpStream::from(OwnedFd::from(socket)))
}

/// Establishes TLS on a connection.
///
/// # Errors
/// `PermissionDenied`: the other end does not accept the key or the certificates, or does not
/// support TLS 1.3. Any other kind: the connection was lost during the handshake, or the deadline
/// has passed.
pub fn start_tls(socket: TcpStream, auth: &TlsAuth, deadline: Instant) -> io::Result<TlsTransport> {
    socket.set_nonblocking(true)?;
    let stream = match auth {
        TlsAuth::Psk(psk) => tls::connect(socket, psk.clone(), deadline),
        TlsAuth::Certificates(trust) => tls::connect_certified(socket, trust, deadline),
    };
    stream.map(TlsTransport)
}

/// A TLS connection.
#[derive(Debug)]
pub struct TlsTransport(tls::Stream);

impl TlsTransport {
    /// The connection as its peer has authenticated it.
    pub fn channel(&self) -> &export::Channel {
        self.0.channel()
    }
}

impl Read for TlsTransport {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for TlsTransport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
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
