//! Byte streams to other machines, with or without TLS, and the callbacks that open them.

mod buffered;
mod send_queue;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

pub(crate) use buffered::{BufferedTransport, Protocol, read_before};

/// A bidirectional byte stream.
pub trait Transport: Read + Write + AsFd + Send {
    /// Sets non-blocking mode.
    ///
    /// # Errors
    /// Fails as the system call does.
    fn set_nonblocking(&self, on: bool) -> io::Result<()>;

    /// Whether data is buffered that polling the descriptor does not report.
    fn has_unread(&self) -> bool {
        false
    }

    /// Whether accepted data is buffered that the descriptor has not taken yet.
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

/// Why a connection cannot be opened.
pub type DialError = crate::EndpointError;

/// Opens one more connection to the same address.
pub type Dial = Arc<dyn Fn() -> Result<Box<dyn Transport>, DialError> + Send + Sync>;

/// Opens one more connection for the subsystem with this NQN, which determines the TLS key.
pub type DialSubsystem = Arc<dyn Fn(&str) -> Result<Box<dyn Transport>, DialError> + Send + Sync>;

/// A dial callback that ignores the subsystem.
#[must_use]
pub fn any_subsystem(dial: Dial) -> DialSubsystem {
    Arc::new(move |_| dial())
}
