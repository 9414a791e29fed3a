//! What the program says when it cannot do what it was told: one sentence, and how it exits. It knows no disk.

use std::fmt;

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

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&console::printable(&self.sentence, true))
    }
}
