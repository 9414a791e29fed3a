//! Errors of the program: one sentence, and the exit status.

use std::{fmt, io};

use rustix::io::Errno;

/// Why the program ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    status: u8,
    message: String,
    is_storage_full: bool,
}

impl Failure {
    /// Something did not work: exit status 1.
    pub fn new(message: impl fmt::Display) -> Self {
        Self::with_status(1, message)
    }

    /// The options are wrong: exit status 2.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::with_status(2, message)
    }

    /// Another machine said no: exit status 3.
    pub fn refused(message: impl fmt::Display) -> Self {
        Self::with_status(3, message)
    }

    /// It ended in a way that has an exit status of its own.
    pub fn with_status(status: u8, message: impl fmt::Display) -> Self {
        Self { status, message: message.to_string(), is_storage_full: false }
    }

    /// The same, because of that error.
    pub fn caused_by(self, error: &io::Error) -> Self {
        let is_storage_full =
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        Self { is_storage_full, ..self }
    }

    /// Whether there was no space left to store something.
    pub fn is_storage_full(&self) -> bool {
        self.is_storage_full
    }

    /// The exit status.
    pub fn status(&self) -> u8 {
        self.status
    }
}

/// Why a process or a thread could not be started.
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
        f.write_str(&console::printable(&self.message, true))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_limit_on_processes_is_named_as_the_reason() {
        let error = io::Error::from_raw_os_error(Errno::AGAIN.raw_os_error());
        assert!(spawn_error(&error).contains("ulimit -u"));
        assert!(!spawn_error(&io::ErrorKind::NotFound.into()).contains("ulimit"));
    }
}
