//! Reads a file from a web server by HTTP or HTTPS, or a disk image from a registry of container images,
//! from its first byte to its last.
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
//! | `registry` | the way from the name of an image to its blob |
//! | `origin` | the addresses of a file, and what is sent there for permission |
//! | [`Body`] | the bytes of the file |
//! | `version` | which version of a file a response has |

#![forbid(unsafe_code)]

mod body;
mod client;
mod location;
mod origin;
mod registry;
mod version;

pub use body::Body;
pub use location::{Location, LocationError};
pub use registry::Login;

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// Why a file cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answers that it does not give the file.
    #[error("the server answers {0}")]
    Status(ureq::http::StatusCode),
    /// A registry has no such disk image.
    #[error("this is no disk image in a registry: {0}")]
    Image(&'static str),
    /// A registry demands a user, or another one.
    #[error(
        "the registry demands a user name and a password, or does not accept those in the environment (REGISTRY_USERNAME, \
         REGISTRY_PASSWORD)"
    )]
    Login,
    /// A registry requires a token, and names no server for it, or one that is not asked.
    #[error("the registry requires a token, and names no token server with HTTPS")]
    Token,
    /// What the token server sent is no token.
    #[error("the token server of the registry gave no token")]
    NoToken,
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
