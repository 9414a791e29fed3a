//! Reads a file from a web server by HTTP or HTTPS, from its first byte to its last.
//!
//! A connection that is lost is made again, and the file is read on from the byte where it ended
//! (RFC 9110 §14), if the server still has the same version of it. Parts of two versions are never
//! put together: the version is named by a strong entity tag or the time of the last modification,
//! and a server that names neither is not asked for a part.
//!
//! | module | is |
//! |---|---|
//! | [`Location`] | the URL |
//! | `client` | the settings of the HTTP client |
//! | [`Body`] | the bytes of the file |
//! | `version` | which version of a file a response has |

#![forbid(unsafe_code)]

mod body;
mod client;
mod location;
mod version;

pub use body::Body;
pub use location::{Location, LocationError};

/// Why a file cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answers that it does not give the file.
    #[error("the server answers {0}")]
    Status(ureq::http::StatusCode),
    /// The file changed between two connections.
    #[error("the file was changed on the server while it was read")]
    Changed,
    /// The connection was lost, and the server does not send parts of files.
    #[error(
        "the connection was lost after {at} bytes, and the server does not send the rest of a file: {reason}"
    )]
    NoRanges {
        /// Number of bytes that were read.
        at: u64,
        /// Why it was lost.
        reason: String,
    },
    /// The server sent more bytes than it announced.
    #[error("the server sent more than the {0} bytes that it announced")]
    TooLong(u64),
    /// The server cannot be reached, or violates HTTP or TLS.
    #[error("{0}")]
    Http(#[from] ureq::Error),
    /// The connection was lost again and again.
    #[error("no more bytes came for {seconds} seconds: {reason}")]
    Stalled {
        /// The time without progress.
        seconds: u64,
        /// The last error.
        reason: String,
    },
}
