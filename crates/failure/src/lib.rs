//! The error type of the program: a message for the user and an exit status.

#![forbid(unsafe_code)]

use std::{fmt, io};

use rustix::io::Errno;

/// An error that ends a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    status: u8,
    message: String,
    /// Kind of the I/O error that caused it.
    cause: Option<io::ErrorKind>,
}

impl Failure {
    /// A failure: exit status 1.
    pub fn new(message: impl fmt::Display) -> Self {
        Self::with_status(1, message)
    }

    /// A usage error: exit status 2.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::with_status(2, message)
    }

    /// Another machine denied the request: exit status 3.
    pub fn refused(message: impl fmt::Display) -> Self {
        Self::with_status(3, message)
    }

    /// A failure with another exit status.
    pub fn with_status(status: u8, message: impl fmt::Display) -> Self {
        Self { status, message: message.to_string(), cause: None }
    }

    /// Records the I/O error that caused it.
    pub fn caused_by(self, error: &io::Error) -> Self {
        Self { cause: Some(error.kind()), ..self }
    }

    /// Returns whether it was caused by a full file system or an exceeded quota.
    pub fn is_storage_full(&self) -> bool {
        matches!(self.cause, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    /// Returns whether it was caused by something that did not respond in time.
    pub fn is_timeout(&self) -> bool {
        self.cause == Some(io::ErrorKind::TimedOut)
    }

    /// The exit status.
    pub fn status(&self) -> u8 {
        self.status
    }
}

/// The reason why a process or a thread could not be started, as a clause.
pub fn spawn_error(error: &io::Error) -> String {
    // fork(2), pthread_create(3).
    if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) {
        return "no more processes or threads can be started: raise the limit (ulimit -u, or TasksMax= \
                of a systemd unit)"
            .to_owned();
    }
    error.to_string()
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&console::escape_unprintable(&self.message, true))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn process_limit_is_named_as_the_reason() {
        let error = io::Error::from_raw_os_error(Errno::AGAIN.raw_os_error());
        assert!(spawn_error(&error).contains("ulimit -u"));
        assert!(!spawn_error(&io::ErrorKind::NotFound.into()).contains("ulimit"));
    }
}
