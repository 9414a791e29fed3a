//! The descriptions of exports received by a client, and the reasons for refusals.

use std::fmt;

use crate::wire::option;
use crate::wire::request::flags;

/// Maximum payload that every server accepts, in bytes (NBD, Size constraints).
pub(super) const MAX_PAYLOAD: u32 = 32 << 20;

/// The negotiated headers of requests and replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Headers {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended requests and replies with 64-bit lengths.
    Extended,
}

/// An export as described by the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size in bytes, less than 2^63.
    pub bytes: u64,
    /// Transmission flags: [`flags`].
    pub flags: u16,
    /// Minimum block size in bytes: a power of two up to 65536. Offsets and lengths are multiples
    /// of it.
    pub minimum: u32,
    /// Preferred block size in bytes.
    pub preferred: u32,
    /// Maximum length of a read or write in bytes: a multiple of the minimum block size.
    pub maximum: u32,
    /// The canonical name; empty if the server did not send it.
    pub name: String,
    /// Description for people; may be empty.
    pub description: String,
    /// The UUID in the description, as sent by storagetm.
    pub uuid: Option<[u8; 16]>,
    /// [`super::Request::Extents`] is supported.
    pub extents: bool,
    /// The negotiated headers.
    pub headers: Headers,
}

impl Default for ExportInfo {
    /// The defaults where the server does not advertise block sizes (NBD, Size constraints).
    fn default() -> Self {
        Self {
            bytes: 0,
            flags: 0,
            minimum: 1,
            preferred: 4096,
            maximum: MAX_PAYLOAD,
            name: String::new(),
            description: String::new(),
            uuid: None,
            extents: false,
            headers: Headers::Simple,
        }
    }
}

impl ExportInfo {
    /// Returns whether all of these [`flags`] are set.
    #[must_use]
    pub fn can(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }

    /// Returns whether the export accepts writes.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        !self.can(flags::READ_ONLY)
    }
}

/// One export in the server's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    /// The export name.
    pub name: String,
    /// Description for people; may be empty.
    pub description: String,
}

/// A refused negotiation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub reason: Reason,
    /// The server's message without control characters; may be empty.
    pub message: String,
}

/// Why the negotiation was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No such export, or not for this client.
    Unknown,
    /// The server requires TLS.
    TlsRequired,
    /// The server does not offer TLS.
    TlsUnavailable,
    /// Forbidden by the server's policy.
    Policy,
    /// The server is shutting down.
    Shutdown,
    /// The server does not support the option.
    Unsupported,
    /// The export name is not a valid string; the server was not asked.
    Name,
    /// Another error, with its number.
    Other(u32),
}

impl Reason {
    /// Returns the reason for `error` in reply to the option `option`.
    pub(super) fn of(option: u32, error: u32) -> Self {
        match (option, error) {
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
            Self::TlsRequired => "the server requires TLS",
            Self::TlsUnavailable => "the server does not offer TLS",
            Self::Policy => "the server's policy forbids it",
            Self::Shutdown => "the server is shutting down",
            Self::Unsupported => "the server does not support this request",
            Self::Name => "invalid export name",
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

/// Returns a text of the server without control characters, truncated to 256 characters.
pub(super) fn strip_and_truncate(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().filter(|c| !c.is_control()).take(256).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn server_text_is_stripped_and_truncated() {
        assert_eq!(strip_and_truncate(b"no \x1b[31mred\n\xff"), "no [31mred\u{fffd}");
        assert_eq!(strip_and_truncate(&[b'a'; 4096]).len(), 256);
    }

    #[test]
    fn refusal_is_formatted_with_message() {
        let reason = Reason::of(option::GO, option::ERR_UNKNOWN);
        let refusal = Refusal { reason, message: "not here".into() };
        assert_eq!(
            refusal.to_string(),
            "the server has no such export for this client: \"not here\""
        );
    }
}
