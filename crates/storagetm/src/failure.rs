//! Errors of the program: one sentence, and the exit status.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// Why the program ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    status: u8,
    sentence: String,
}

impl Failure {
    /// Something did not work: exit status 1.
    pub(crate) fn new(sentence: impl fmt::Display) -> Self {
        Self { status: 1, sentence: sentence.to_string() }
    }

    /// The options are wrong: exit status 2.
    pub(crate) fn usage(sentence: impl fmt::Display) -> Self {
        Self { status: 2, sentence: sentence.to_string() }
    }

    /// Another machine said no: exit status 3.
    pub(crate) fn refused(sentence: impl fmt::Display) -> Self {
        Self { status: 3, sentence: sentence.to_string() }
    }

    /// It ended in a way that has an exit status of its own.
    pub(crate) fn ending(status: u8, sentence: impl fmt::Display) -> Self {
        Self { status, sentence: sentence.to_string() }
    }

    /// The exit status.
    pub(crate) fn status(&self) -> u8 {
        self.status
    }
}

/// Why a process or a thread could not be started.
pub(crate) fn why_not_started(error: &io::Error) -> String {
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
