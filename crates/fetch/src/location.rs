//! The URL of a file: of a web server, in a registry of container images, or in a bucket of S3.

use std::fmt;
use std::str::FromStr;

use ureq::http::Uri;

use crate::registry::Reference;
use crate::s3::{Account, Object, ObjectName};

/// The URL of a file. Its `Display` form has neither user name and password nor the query.
#[derive(Clone, PartialEq, Eq)]
pub struct Location(pub(crate) Place);

/// Where a file is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// `http://` and `https://`.
    Web(Uri),
    /// `oci://`.
    Registry(Reference),
    /// `s3://`.
    Bucket(ObjectName),
}

/// A text is not the URL of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// Not a URI, or without a host.
    #[error("not a URL, as in https://HOST/FILE")]
    Malformed,
    /// Another scheme.
    #[error("not an http://, https://, oci:// or s3:// URL")]
    Scheme,
    /// It has a fragment, which is not sent to servers.
    #[error("a # has no meaning here; write it as %23")]
    Fragment,
    /// Not the reference of an image in a registry.
    #[error(
        "not the name of an image, as in oci://REGISTRY/NAME:TAG or oci://REGISTRY/NAME@sha256:DIGEST"
    )]
    Reference,
    /// Not the name of an object.
    #[error("not the name of an object, as in s3://BUCKET/KEY")]
    Object,
}

impl Location {
    /// The schemes of such URLs.
    pub const SCHEMES: [&str; 4] = ["http", "https", "oci", "s3"];

    /// Returns whether it is a file of a web server.
    pub fn is_web(&self) -> bool {
        matches!(self.0, Place::Web(_))
    }

    /// Returns the object that it names with this account, if it names one.
    pub fn object(&self, account: &Account) -> Option<Object> {
        match &self.0 {
            Place::Bucket(name) => Some(Object::new(name, account.clone())),
            Place::Web(_) | Place::Registry(_) => None,
        }
    }

    /// Returns whether it is an object of a bucket.
    pub fn is_object(&self) -> bool {
        matches!(self.0, Place::Bucket(_))
    }
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        if let Some(name) = text.strip_prefix("s3://") {
            let name = ObjectName::parse(name).ok_or(LocationError::Object)?;
            return Ok(Self(Place::Bucket(name)));
        }
        if text.contains('#') {
            return Err(LocationError::Fragment);
        }
        if let Some(name) = text.strip_prefix("oci://") {
            let reference = Reference::parse(name).ok_or(LocationError::Reference)?;
            return Ok(Self(Place::Registry(reference)));
        }
        let uri: Uri = text.parse().map_err(|_| LocationError::Malformed)?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(LocationError::Scheme);
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(LocationError::Malformed);
        }
        Ok(Self(Place::Web(uri)))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uri = match &self.0 {
            Place::Web(uri) => uri,
            Place::Registry(reference) => return write!(f, "oci://{reference}"),
            Place::Bucket(name) => return write!(f, "s3://{name}"),
        };
        let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        write!(f, "{}://{host}{}", uri.scheme_str().unwrap_or_default(), uri.path())?;
        // A query may hold a signature that gives access.
        if uri.query().is_some() { f.write_str("?...") } else { Ok(()) }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn secrets_of_a_url_are_not_displayed() {
        let typed = "https://anna:secret@example.com:8443/a/b.raw?signature=abc";
        let location: Location = typed.parse().unwrap();
        assert_eq!(location.to_string(), "https://example.com:8443/a/b.raw?...");
        assert_eq!(format!("{location:?}"), location.to_string());
    }

    #[test]
    fn other_urls_are_refused() {
        let parse = |text: &str| text.parse::<Location>().unwrap_err();
        assert_eq!(parse("ftp://host/file"), LocationError::Scheme);
        assert_eq!(parse("https://host/file#part"), LocationError::Fragment);
        assert_eq!(parse("https:///file"), LocationError::Malformed);
        assert_eq!(parse("https://a b/"), LocationError::Malformed);
    }
}
