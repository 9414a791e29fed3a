//! The URL of a file on a web server.

use std::fmt;
use std::str::FromStr;

use ureq::http::Uri;

/// The URL of a file. Its `Display` form has neither user name and password nor the query.
#[derive(Clone, PartialEq, Eq)]
pub struct Location(Uri);

/// A text is not the URL of a file on a web server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// Not a URI, or without a host.
    #[error("not a URL, as in https://HOST/FILE")]
    Malformed,
    /// Not `http` or `https`.
    #[error("not an http:// or https:// URL")]
    Scheme,
    /// It has a fragment, which is not sent to servers.
    #[error("a # has no meaning here; write it as %23")]
    Fragment,
}

impl Location {
    /// Returns whether this is HTTPS.
    pub fn is_encrypted(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.0
    }
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        if text.contains('#') {
            return Err(LocationError::Fragment);
        }
        let uri: Uri = text.parse().map_err(|_| LocationError::Malformed)?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(LocationError::Scheme);
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(LocationError::Malformed);
        }
        Ok(Self(uri))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = self.0.authority().map(|authority| authority.as_str()).unwrap_or_default();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        write!(f, "{}://{host}{}", self.0.scheme_str().unwrap_or_default(), self.0.path())?;
        // A query may hold a signature that gives access.
        if self.0.query().is_some() { f.write_str("?...") } else { Ok(()) }
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
