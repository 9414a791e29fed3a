//! Errors of the program: one sentence, and the exit status.

use std::{fmt, io};

use rustix::io::Errno;

/// Why the program ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    status: u8,
    sentence: String,
    is_full: bool,
}

impl Failure {
    /// Something did not work: exit status 1.
    pub fn new(sentence: impl fmt::Display) -> Self {
        Self::ending(1, sentence)
    }

    /// The options are wrong: exit status 2.
    pub fn usage(sentence: impl fmt::Display) -> Self {
        Self::ending(2, sentence)
    }

    /// Another machine said no: exit status 3.
    pub fn refused(sentence: impl fmt::Display) -> Self {
        Self::ending(3, sentence)
    }

    /// It ended in a way that has an exit status of its own.
    pub fn ending(status: u8, sentence: impl fmt::Display) -> Self {
        Self { status, sentence: sentence.to_string(), is_full: false }
    }

    /// The same, because of that error.
    pub fn because_of(self, error: &io::Error) -> Self {
        let is_full =
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        Self { is_full, ..self }
    }

    /// Whether there was no space left to store something.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// The exit status.
    pub fn status(&self) -> u8 {
        self.status
    }
}

/// Why a process or a thread could not be started.
pub fn why_not_started(error: &io::Error) -> String {
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
        f.write_str(&console::printable(&self.sentence, true))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_limit_on_processes_is_named_as_the_reason() {
        let error = io::Error::from_raw_os_error(Errno::AGAIN.raw_os_error());
        assert!(why_not_started(&error).contains("ulimit -u"));
        assert!(!why_not_started(&io::ErrorKind::NotFound.into()).contains("ulimit"));
    }
}
