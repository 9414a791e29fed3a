//! The parsers of what servers answer, for a fuzzer.

use ureq::http::{HeaderMap, HeaderValue, header};

use crate::version::{Range, Version};
use crate::{registry, s3};

/// Parses `data` as an answer of each kind.
///
/// # Panics
/// Panics if a parser returns what it must not.
pub fn answers(data: &[u8]) {
    registry::parse_any(data);
    s3::parse_any(data);
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_RANGE, value.clone());
    if let Some(range) = Range::from_headers(&headers) {
        assert!(!range.is_part(range.first, range.first, u64::MAX), "a part without bytes");
    }
    headers.insert(header::LAST_MODIFIED, value.clone());
    headers.insert(header::DATE, value.clone());
    assert!(Version::lasting(&headers).is_none(), "a time that is not over");
    headers.insert(header::ETAG, value);
    let lasting = Version::lasting(&headers);
    assert!(lasting.is_none_or(|version| version.as_str().starts_with('"')), "a weak version");
}
