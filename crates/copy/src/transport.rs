//! A connection to another machine, in the clear or not, and how one more is made. It knows no protocol, and makes none
//! itself: it is given them.

mod buffered;
mod send_queue;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

pub(crate) use buffered::{BufferedTransport, Protocol, read_before};

/// A stream of bytes to another machine and back.
pub trait Transport: Read + Write + AsFd + Send {
    /// Whether reading and writing give up instead of waiting.
    ///
    /// # Errors
    /// As for the descriptor.
    fn set_nonblocking(&self, on: bool) -> io::Result<()>;

    /// Whether there is something to read of which the descriptor does not tell.
    fn has_unread(&self) -> bool {
        false
    }

    /// Whether there is something to send that was taken in, and the descriptor did not take.
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

/// Why a connection cannot be made.
pub type DialError = crate::EndpointError;

/// Makes one more connection to the same place.
pub type Dial = Arc<dyn Fn() -> Result<Box<dyn Transport>, DialError> + Send + Sync>;

/// The same to a subsystem of that place, by its NQN: which key a secured connection needs depends on it.
pub type DialSubsystem = Arc<dyn Fn(&str) -> Result<Box<dyn Transport>, DialError> + Send + Sync>;

/// The same connection to whatever subsystem.
#[must_use]
pub fn any_subsystem(dial: Dial) -> DialSubsystem {
    Arc::new(move |_| dial())
}
