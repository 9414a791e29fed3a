//! Which version of a file a response has (RFC 9110 §8.8), and which part of it.

use ureq::http::{HeaderMap, header};

/// The version of a file: a strong entity tag, or the time of the last modification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version(String);

impl Version {
    /// Returns the version that a response names. A weak entity tag does not identify the bytes
    /// (§8.8.1).
    pub(crate) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let text = |name| Some(headers.get(name)?.to_str().ok()?.to_owned());
        let tag = text(header::ETAG).filter(|tag| tag.starts_with('"'));
        tag.or_else(|| text(header::LAST_MODIFIED)).map(Self)
    }

    /// Returns the value of `If-Range` (§13.1.5).
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Returns the length of the content that a response announces.
pub(crate) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The part of a file that a response has (§14.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Length of the whole file, if it is known.
    pub(crate) complete: Option<u64>,
}

impl Range {
    /// Parses `Content-Range`.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
        let (range, complete) = text.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let complete = match complete {
            "*" => None,
            complete => Some(complete.parse().ok()?),
        };
        Some(Self { first: first.parse().ok()?, last: last.parse().ok()?, complete })
    }

    /// Returns whether this is the part from `first` to the end of a file of `length` bytes.
    pub(crate) fn is_rest(self, first: u64, length: u64) -> bool {
        self.first == first
            && self.last.checked_add(1) == Some(length)
            && self.complete.is_none_or(|complete| complete == length)
    }
}

#[cfg(test)]
mod test {
    use ureq::http::{HeaderName, HeaderValue};

    use super::*;

    const TIME: &str = "Tue, 15 Nov 1994 12:45:26 GMT";

    fn headers(all: &[(HeaderName, &'static str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn weak_tags_identify_no_version() {
        let version = |all| Version::from_headers(&headers(all)).map(|version| version.0);
        assert_eq!(version(&[(header::ETAG, "\"a\"")]).as_deref(), Some("\"a\""));
        assert_eq!(version(&[(header::ETAG, "W/\"a\"")]), None);
        let both = [(header::ETAG, "W/\"a\""), (header::LAST_MODIFIED, TIME)];
        assert_eq!(version(&both).as_deref(), Some(TIME));
    }

    #[test]
    fn content_range_is_parsed() {
        let range = |value| Range::from_headers(&headers(&[(header::CONTENT_RANGE, value)]));
        let expected = Range { first: 5, last: 9, complete: Some(10) };
        assert_eq!(range("bytes 5-9/10"), Some(expected));
        assert_eq!(range("bytes 5-9/*"), Some(Range { complete: None, ..expected }));
        for malformed in ["bytes */10", "bytes 5-9", "items 5-9/10", "bytes 5-/10", ""] {
            assert_eq!(range(malformed), None, "{malformed}");
        }
        assert!(expected.is_rest(5, 10));
        assert!(!expected.is_rest(5, 11) && !expected.is_rest(4, 10));
        assert!(!Range { last: u64::MAX, ..expected }.is_rest(5, 0));
    }
}
