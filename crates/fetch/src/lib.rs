//! Reads a file from a web server by HTTP or HTTPS, a disk image from a registry of container images, or an object from a
//! bucket of S3, from its first byte to its last; and writes such an object.
//!
//! A connection that is lost is made again, and the file is read on from the byte where it ended
//! (RFC 9110 §14), if the server still has the same version of it. Parts of two versions are never
//! put together: the version is named by a strong entity tag or the time of the last modification,
//! and a server that names neither is not asked for a part. Only if the hash of the whole file is compared may another address
//! name another version of it.
//!
//! | module | is |
//! |---|---|
//! | [`Location`] | the URL |
//! | `identity` | the name of a source in a map |
//! | `client` | the settings of the HTTP client |
//! | `proxy` | the proxy that the environment names |
//! | `registry` | the way from the name of an image to its blob |
//! | `origin` | the addresses of a file, and what is sent there for permission |
//! | `s3` | requests for an object |
//! | [`Body`] | the bytes of the file, from the first to the last |
//! | [`Parts`] | the bytes of the file, in any order |
//! | [`Upload`] | an object that is written |
//! | `fuzz` | the parsers of answers, for a fuzzer |
//! | `retries` | when a request is made again |
//! | `speed` | the least speed of a server |
//! | `version` | which version of a file a response has |

#![forbid(unsafe_code)]

mod body;
mod client;
#[doc(hidden)]
pub mod fuzz;
mod identity;
mod location;
mod origin;
mod parts;
mod proxy;
mod registry;
mod retries;
mod s3;
mod speed;
mod upload;
mod version;

use std::io;
use std::time::Duration;

use ureq::http::{Response, StatusCode};

pub use body::Body;
pub use location::{Location, LocationError};
pub use parts::Parts;
pub use proxy::unusable_proxy;
pub use registry::Login;
pub use retries::waiting;
pub use s3::{Account, AccountError, Head, Object, Refusal};
pub use upload::{Proof, Stored, Upload};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// The user or key with which servers are asked.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The user of registries.
    pub login: Option<Login>,
    /// The server and the credentials for objects.
    pub account: Option<Account>,
}

/// Why a file cannot be read, or not to its end, or an object cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answers that it does not give the file.
    #[error("the server answers {status}{}", asked(*.after))]
    Status {
        /// The status.
        status: StatusCode,
        /// How long it asks to wait before the next request.
        after: Option<Duration>,
    },
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
    /// The token server sent something else.
    #[error("the token server of the registry gave no token")]
    NoToken,
    /// The file changed between two connections.
    #[error("the file was changed on the server while it was read")]
    Changed,
    /// The address that sent the file fails, and another one has a file of another version, which may be the same.
    #[error(
        "the address that has sent the file until now fails ({0}), and the server names another address, where the file is of \
         another version: without the hash that it must have it is not known whether it is the same"
    )]
    OtherVersion(Box<Self>),
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
    /// Parts of the file cannot be asked for without the risk that they are of two versions.
    #[error("{0}")]
    NoParts(&'static str),
    /// The server sent another part of the same version of the file than was asked for.
    #[error("the server sent another part of the file than it was asked for")]
    OtherPart,
    /// The server sent more bytes than it announced.
    #[error("the server sent more than the {0} bytes that it announced")]
    TooLong(u64),
    /// The server cannot be reached, or violates HTTP or TLS.
    #[error("{}", without_address(.0))]
    Http(#[from] ureq::Error),
    /// The connection was lost again and again.
    #[error("no more bytes came for {seconds} seconds, or too few: {reason}")]
    Stalled {
        /// The time without progress.
        seconds: u64,
        /// The last error.
        reason: String,
    },
    /// A server of objects refuses a request.
    #[error("{0}")]
    Object(Box<Refusal>),
    /// The answer of a server of objects cannot be used.
    #[error("the server's answer cannot be used: {0}")]
    Answer(&'static str),
    /// The answer of a server of objects is empty, or has no end.
    #[error("the server's answer ended early")]
    Cut,
    /// The object was created by another program, and is not to be replaced.
    #[error("the object was created by another program meanwhile")]
    Exists,
    /// The server names another hash for a part than that of what was sent.
    #[error(
        "a part was damaged on its way: the server names another hash than that of what was sent"
    )]
    Damaged,
    /// An object would be larger than objects can be.
    #[error("an object has at most 10,000 parts of 5 GiB")]
    TooLarge,
    /// There is not enough memory, or a part is missing because of another error.
    #[error("{0}")]
    Write(#[source] io::Error),
    /// The object is not there after it was put together.
    #[error("all was sent, and there is no such object")]
    Gone,
    /// The object has another size than what was sent.
    #[error("{sent} bytes were sent, and the object has {there}")]
    Size {
        /// Bytes that were sent.
        sent: u64,
        /// Bytes of the object.
        there: u64,
    },
    /// The object does not hold what was sent.
    #[error("the object does not hold what was sent: bytes {start} to {end} differ")]
    Differs {
        /// The first byte of a part that differs.
        start: u64,
        /// The byte after that part.
        end: u64,
    },
    /// The object is there, and it is not known whether it holds what was sent.
    #[error(
        "all was sent and the object is there, but it is not verified (compare it before you use it): {0}"
    )]
    Unverified(Box<Self>),
    /// The user stopped it.
    #[error("interrupted")]
    Stopped,
    /// An upload failed and could not be aborted.
    #[error(
        "{error}; the server keeps, and bills, the parts that were sent until this is run: {command}"
    )]
    Left {
        /// Why it failed.
        error: Box<Self>,
        /// The command that removes the parts.
        command: String,
    },
}

impl Error {
    fn status(response: &Response<ureq::Body>) -> Self {
        Self::Status { status: response.status(), after: retries::retry_after(response.headers()) }
    }

    /// Returns whether the same request may succeed later (RFC 9110 §15).
    pub fn is_temporary(&self) -> bool {
        let later = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
        match self {
            Self::Status { status, .. } => status.is_server_error() || later.contains(status),
            Self::Object(refusal) => refusal.is_temporary(),
            Self::OtherVersion(error) => error.is_temporary(),
            Self::Damaged | Self::Cut => true,
            Self::Http(ureq::Error::Io(error)) => {
                let tls = error.get_ref().and_then(|it| it.downcast_ref::<rustls::Error>());
                !tls.is_some_and(is_refused)
            }
            Self::Http(error) => matches!(
                error,
                ureq::Error::Timeout(_)
                    | ureq::Error::HostNotFound
                    | ureq::Error::ConnectProxyFailed(_)
                    | ureq::Error::ConnectionFailed
                    | ureq::Error::Protocol(_)
            ),
            _ => false,
        }
    }
    /// Returns how long the server asks to wait before the next request (RFC 9110 §10.2.3).
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { after, .. } => *after,
            Self::Object(refusal) => refusal.after(),
            Self::OtherVersion(error) => error.retry_after(),
            _ => None,
        }
    }
}

/// Returns whether an error of TLS is one of the certificate, or of what both ends are able to do, which is the same the
/// next time.
fn is_refused(error: &rustls::Error) -> bool {
    use rustls::Error::{InvalidCertificate, NoCertificatesPresented, PeerIncompatible};
    matches!(error, InvalidCertificate(_) | NoCertificatesPresented | PeerIncompatible(_))
}

/// Returns an error of the client in words. The address of a redirection may have a signature, and is left out.
fn without_address(error: &ureq::Error) -> String {
    match error {
        ureq::Error::RequireHttpsOnly(_) => {
            "it redirects to an address without encryption".to_owned()
        }
        ureq::Error::BadUri(_) => "it redirects to an address that is not valid".to_owned(),
        other => other.to_string(),
    }
}

/// Returns the words that a server asks to wait.
fn asked(after: Option<Duration>) -> String {
    let seconds = after.map(|after| after.as_secs());
    let words = |seconds| format!(", and asks to wait for {seconds} seconds");
    seconds.map(words).unwrap_or_default()
}

#[cfg(test)]
mod test {
    use rustls::{AlertDescription, CertificateError};

    use super::*;

    #[test]
    fn address_of_a_refused_redirection_is_not_shown() {
        for of in [ureq::Error::RequireHttpsOnly, ureq::Error::BadUri] {
            let error = Error::Http(of("http://host/x?X-Amz-Signature=s3cret".to_owned()));
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn certificate_that_is_not_accepted_stays_so() {
        let is_temporary = |error: rustls::Error| {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            Error::Http(error.into()).is_temporary()
        };
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert!(!is_temporary(unknown.clone()));
        assert!(
            !Error::OtherVersion(Box::new(Error::Http(io::Error::other(unknown).into())))
                .is_temporary()
        );
        assert!(!is_temporary(rustls::Error::NoCertificatesPresented));
        assert!(is_temporary(rustls::Error::AlertReceived(AlertDescription::InternalError)));
        assert!(is_temporary(rustls::Error::DecryptError));
        assert!(Error::Http(io::Error::from(io::ErrorKind::ConnectionReset).into()).is_temporary());
    }
}
