//! Which version of a file a response has (RFC 9110 §8.8), and which part of it.

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use ureq::http::{HeaderMap, header};

/// How much older than the response that names it a time of modification must be, in seconds. RFC 9110 §8.8.2.2 asks for one
/// second by the same clock, or for enough that the clocks do not matter; RFC 7232 §2.2.2 took a minute for that. Whose clock
/// names the times is not known here.
const MIN_AGE: i64 = 60;

/// The version of a file: a strong entity tag, or the time of the last modification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version(String);

impl Version {
    /// Returns the version that a response names, to compare it with the one that was asked for. A weak entity tag does not
    /// identify the bytes (§8.8.1).
    pub(crate) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let text = |name| Some(headers.get(name)?.to_str().ok()?.to_owned());
        let tag = text(header::ETAG).filter(|tag| tag.starts_with('"'));
        tag.or_else(|| text(header::LAST_MODIFIED)).map(Self)
    }

    /// Returns the version that a response names, if it names it for all time, so that `If-Range` may ask for it (§13.1.5): a
    /// strong entity tag, or, from a server without entity tags, the time of a modification [`MIN_AGE`] before the response
    /// (§8.8.2.2), after which another one would have another time.
    pub(crate) fn lasting(headers: &HeaderMap) -> Option<Self> {
        let version = Self::from_headers(headers)?;
        let time = |name| {
            let text = headers.get(name)?.to_str().ok()?;
            DateTimeParser::new().parse_timestamp(text).ok()
        };
        let is_before = || {
            let seconds = |name| time(name).map(Timestamp::as_second);
            let modified = seconds(header::LAST_MODIFIED)?;
            Some(modified.saturating_add(MIN_AGE) <= seconds(header::DATE)?)
        };
        let lasts = match headers.contains_key(header::ETAG) {
            true => version.is_tag(),
            false => is_before().unwrap_or(false),
        };
        lasts.then_some(version)
    }

    /// Returns whether it is an entity tag.
    pub(crate) fn is_tag(&self) -> bool {
        self.0.starts_with('"')
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
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last).then_some(Self { first, last, complete })
    }

    /// Returns whether this is the part from `first` up to `end` of a file of `length` bytes.
    pub(crate) fn is_part(self, first: u64, end: u64, length: u64) -> bool {
        self.first == first
            && self.last.checked_add(1) == Some(end)
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
    fn version_lasts_if_no_other_one_can_have_it() {
        let lasts = |all: &[(HeaderName, &'static str)]| Version::lasting(&headers(all)).is_some();
        let modified = (header::LAST_MODIFIED, TIME);
        let date = |text| (header::DATE, text);
        assert!(lasts(&[(header::ETAG, "\"a\"")]));
        assert!(lasts(&[modified.clone(), date("Tue, 15 Nov 1994 12:46:26 GMT")]));
        assert!(!lasts(&[modified.clone(), date("Tue, 15 Nov 1994 12:46:25 GMT")]));
        assert!(!lasts(&[modified.clone(), date(TIME)]));
        assert!(!lasts(&[modified.clone(), date("Tue, 15 Nov 1994 12:45:20 GMT")]));
        assert!(!lasts(std::slice::from_ref(&modified)));
        assert!(!lasts(&[modified.clone(), date("yesterday")]));
        let weak = (header::ETAG, "W/\"a\"");
        assert!(!lasts(&[weak, modified, date("Tue, 15 Nov 1994 13:00:00 GMT")]));
    }

    #[test]
    fn content_range_is_parsed() {
        let range = |value| Range::from_headers(&headers(&[(header::CONTENT_RANGE, value)]));
        let expected = Range { first: 5, last: 9, complete: Some(10) };
        assert_eq!(range("bytes 5-9/10"), Some(expected));
        assert_eq!(range("bytes 5-9/*"), Some(Range { complete: None, ..expected }));
        for malformed in
            ["bytes */10", "bytes 5-9", "bytes 5-4/10", "items 5-9/10", "bytes 5-/10", ""]
        {
            assert_eq!(range(malformed), None, "{malformed}");
        }
        assert!(expected.is_part(5, 10, 10));
        assert!(
            !expected.is_part(5, 10, 11)
                && !expected.is_part(4, 10, 10)
                && !expected.is_part(5, 9, 10)
        );
        assert!(!Range { last: u64::MAX, ..expected }.is_part(5, 0, 0));
    }
}
