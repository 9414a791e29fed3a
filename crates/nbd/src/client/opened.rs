//! What a client learns of an export before it uses it, and why it may not. It knows no bytes.

use std::fmt;

use crate::wire::option;
use crate::wire::request::flags;

/// The longest payload of a request that every server takes, in bytes (NBD, Size constraints).
pub(super) const LARGEST: u32 = 32 << 20;

/// Which headers requests and replies have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Headers {
    /// Those of the first version.
    #[default]
    Simple,
    /// Replies have structure.
    Structured,
    /// And lengths have 64 bits.
    Extended,
}

/// An export as the server describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Its length in bytes, below 2^63.
    pub bytes: u64,
    /// What it can do: [`flags`].
    pub flags: u16,
    /// Offsets and lengths of requests are multiples of this many bytes: a power of two up to 65536.
    pub minimum: u32,
    /// Multiples of this many bytes are fast.
    pub preferred: u32,
    /// The longest read or write, in bytes: a multiple of `minimum`.
    pub largest: u32,
    /// The name that the server calls it by; empty if it did not tell.
    pub name: String,
    /// What the server says of it to people; perhaps empty.
    pub description: String,
    /// The UUID of the disk, if the server's description has one, as storagetm's does.
    pub uuid: Option<[u8; 16]>,
    /// Whether it tells what is data and what is not.
    pub extents: bool,
    /// Which headers were agreed on.
    pub headers: Headers,
}

impl Default for Opened {
    /// What holds of a server that says nothing (NBD, Size constraints).
    fn default() -> Self {
        Self {
            bytes: 0,
            flags: 0,
            minimum: 1,
            preferred: 4096,
            largest: LARGEST,
            name: String::new(),
            description: String::new(),
            uuid: None,
            extents: false,
            headers: Headers::Simple,
        }
    }
}

impl Opened {
    /// Whether the export has all of these [`flags`].
    #[must_use]
    pub fn can(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }

    /// Whether it may be written.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        !self.can(flags::READ_ONLY)
    }
}

/// An export in a server's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Its name.
    pub name: String,
    /// What the server says of it to people; perhaps empty.
    pub description: String,
}

/// Why a server did not let the client in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub reason: Reason,
    /// What the server said to people, without control characters; perhaps empty.
    pub message: String,
}

/// The reason for a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There is no export of that name, or not for this client.
    Unknown,
    /// It wants TLS first.
    TlsRequired,
    /// It has no TLS.
    TlsUnavailable,
    /// Its owner does not want it.
    Policy,
    /// It is being shut down.
    Shutdown,
    /// It does not know the question.
    Unsupported,
    /// The name cannot be that of an export; the server was not asked.
    Name,
    /// It gave this error.
    Other(u32),
}

impl Reason {
    /// The reason that an error of that number to that option stands for.
    pub(super) fn of(asked: u32, error: u32) -> Self {
        match (asked, error) {
            (_, option::ERR_SHUTDOWN) => Self::Shutdown,
            (option::STARTTLS, _) => Self::TlsUnavailable,
            (_, option::ERR_TLS_REQD) => Self::TlsRequired,
            (_, option::ERR_UNKNOWN) => Self::Unknown,
            (_, option::ERR_POLICY) => Self::Policy,
            (_, option::ERR_UNSUP) => Self::Unsupported,
            (_, error) => Self::Other(error),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "the server has no such export for this client",
            Self::TlsRequired => "the server wants TLS",
            Self::TlsUnavailable => "the server has no TLS",
            Self::Policy => "the server's owner does not allow it",
            Self::Shutdown => "the server is shutting down",
            Self::Unsupported => "the server does not know this question",
            Self::Name => "no export can have this name",
            Self::Other(error) => return write!(f, "the server refused with error {error:#x}"),
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message.as_str() {
            "" => self.reason.fmt(f),
            message => write!(f, "{}: \"{message}\"", self.reason),
        }
    }
}

/// A server's words as they may be shown: without control characters, and not too many of them.
pub(super) fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().filter(|c| !c.is_control()).take(256).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_servers_words_are_harmless_and_short() {
        assert_eq!(shown(b"no \x1b[31mred\n\xff"), "no [31mred\u{fffd}");
        assert_eq!(shown(&[b'a'; 4096]).len(), 256);
    }

    #[test]
    fn a_refusal_is_a_clause() {
        let reason = Reason::of(option::GO, option::ERR_UNKNOWN);
        let refusal = Refusal { reason, message: "not here".into() };
        assert_eq!(
            refusal.to_string(),
            "the server has no such export for this client: \"not here\""
        );
    }
}
