//! A connection to the target, plain or with TLS by a public key.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use engine::Security;
use engine::tls::{self, Hash, Psk, Stream};
use export::{Auth, Secret};

use crate::serve::NQN;
use crate::wire::HOST;

/// AES of so many bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cipher {
    Aes128,
    Aes256,
}

impl FromStr for Cipher {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "128" => Ok(Self::Aes128),
            "256" => Ok(Self::Aes256),
            _ => Err("AES has 128 or 256 bits"),
        }
    }
}

impl Cipher {
    fn key(self) -> Psk {
        let (kind, bytes, hash) = match self {
            Self::Aes128 => ("NVMe0R01", 32, Hash::Sha256),
            Self::Aes256 => ("NVMe0R02", 48, Hash::Sha384),
        };
        let secret = Secret::new(vec![0xbe; bytes]);
        // The target compares these names with those of Connect.
        Psk { identity: format!("{kind} {HOST} {NQN}"), secret, hash, key: None }
    }
}

/// Authorizes everyone, with and without TLS.
pub(crate) fn security() -> Security {
    let keys = Arc::new(|| vec![Cipher::Aes128.key(), Cipher::Aes256.key()]);
    Security { auth: Auth::None, keys: Some(keys), ..Security::open() }
}

/// A non-blocking socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Plain(TcpStream),
    Secured(Box<Stream>),
}

impl Socket {
    /// Takes ownership of a socket; with a `cipher`, does a TLS handshake.
    pub(crate) fn new(
        socket: TcpStream,
        cipher: Option<Cipher>,
        deadline: Instant,
    ) -> io::Result<Self> {
        match cipher {
            None => Ok(Self::Plain(socket)),
            Some(cipher) => {
                Ok(Self::Secured(Box::new(tls::connect(socket, cipher.key(), deadline)?)))
            }
        }
    }

    /// Returns whether there is buffered data to read.
    pub(crate) fn has_unread(&self) -> bool {
        matches!(self, Self::Secured(stream) if stream.has_unread())
    }

    /// Returns whether there is data to send.
    pub(crate) fn has_unsent(&self) -> bool {
        matches!(self, Self::Secured(stream) if stream.has_unsent())
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(into),
            Self::Secured(stream) => stream.read(into),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write_vectored(pieces),
            Self::Secured(stream) => stream.write_vectored(pieces),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Secured(stream) => stream.flush(),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(socket) => socket.as_fd(),
            Self::Secured(stream) => stream.as_fd(),
        }
    }
}
