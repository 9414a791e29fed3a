//! Byte streams to peers, with or without TLS, and the callbacks that open them.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// A bidirectional byte stream.
pub trait Transport: Read + Write + AsFd + Send {
    /// Sets non-blocking mode.
    ///
    /// # Errors
    /// Fails as the system call does.
    fn set_nonblocking(&self, on: bool) -> io::Result<()>;

    /// Returns whether received data is buffered here, so that `poll` may not report the descriptor as
    /// readable.
    fn has_unread(&self) -> bool {
        false
    }

    /// Returns whether data is buffered that is not yet written to the descriptor.
    fn has_unsent(&self) -> bool {
        false
    }
}

impl Transport for TcpStream {
    fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        Self::set_nonblocking(self, on)
    }
}

impl Transport for UnixStream {
    fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        Self::set_nonblocking(self, on)
    }
}

/// Why a connection cannot be opened. Each message is one sentence without a full stop: what
/// failed, on what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// An error that may pass: retry later.
    #[error("{0}")]
    Temporary(String),
    /// An error that a retry does not change.
    #[error("{0}")]
    Permanent(String),
    /// The peer violated its protocol: the connection must not be reopened.
    #[error("{0}")]
    Violation(String),
}

/// Callback that opens another connection to the same address.
pub type Dial = Arc<dyn Fn() -> Result<Box<dyn Transport>, ConnectError> + Send + Sync>;

/// Callback that opens another connection for the subsystem with this NQN, which determines the TLS
/// key.
pub type DialSubsystem =
    Arc<dyn Fn(&str) -> Result<Box<dyn Transport>, ConnectError> + Send + Sync>;

/// Callback that opens a connection to this address, a `HOST` or `HOST:PORT` that a peer has named.
pub type DialAddress = Arc<dyn Fn(&str) -> Result<Box<dyn Transport>, ConnectError> + Send + Sync>;

/// Returns a callback that ignores the subsystem.
#[must_use]
pub fn ignoring_subsystem(dial: Dial) -> DialSubsystem {
    Arc::new(move |_| dial())
}
