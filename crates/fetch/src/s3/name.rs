//! The name of an object: its bucket and its key.

use std::fmt;

/// The longest name of a bucket, as old buckets have them, and the longest key in bytes (S3, Naming).
const MAX_BUCKET: usize = 255;
const MAX_KEY: usize = 1024;

/// The name of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectName {
    pub(crate) bucket: String,
    pub(crate) key: String,
}

impl ObjectName {
    /// Parses `BUCKET/KEY`. The key is taken as it is, without an escape character.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (bucket, key) = text.split_once('/')?;
        let is_key = !key.is_empty()
            && key.len() <= MAX_KEY
            && !key.ends_with('/')
            && !key.chars().any(char::is_control);
        let name = || Self { bucket: bucket.to_owned(), key: key.to_owned() };
        (is_bucket(bucket) && is_key).then(name)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bucket, self.key)
    }
}

/// Returns whether a text is a label of a host name, or labels that are separated by dots: the bucket
/// may become a part of the host name.
fn is_bucket(text: &str) -> bool {
    let is_label = |label: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        !label.is_empty()
            && label.chars().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= MAX_BUCKET && text.split('.').all(is_label)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn bucket_and_key_are_separated_at_the_first_slash() {
        let name = ObjectName::parse("b-1.x/images/a #1?.raw").unwrap();
        assert_eq!((name.bucket.as_str(), name.key.as_str()), ("b-1.x", "images/a #1?.raw"));
        assert_eq!(name.to_string(), "b-1.x/images/a #1?.raw");
    }

    #[test]
    fn names_that_are_no_objects_are_refused() {
        let long = format!("b/{}", "k".repeat(MAX_KEY + 1));
        for text in [
            "", "b", "b/", "/k", "b/k/", "b..c/k", ".b/k", "-b/k", "b-/k", "b@c/k", "b:80/k",
            "b?c/k", "b c/k", "b/\n", &long,
        ] {
            assert!(ObjectName::parse(text).is_none(), "{text}");
        }
    }
}
